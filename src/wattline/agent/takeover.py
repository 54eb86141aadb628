"""A Dynamo Power Agent on this node: found, refused as a rival, or taken over on request.

It is told by its pods' names, its process, its metrics port or its state file. Taking over means:
the GPUs that its state file names become ours with the device's default limit as their original,
because that is what it would have restored, and the file is set aside. It does not end a power
agent that still runs: while one does, its writes are a rival's.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wattline.agent.journal import GpuRecord, Journal
from wattline.agent.lock import WriterLock
from wattline.agent.settings import AgentSettings
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.gpu.device import GpuDevice, GpuDriver, GpuError
from wattline.drivers.kubelet.processes import HOST_PROC, OWN_PROC
from wattline.drivers.pods import Pod
from wattline.drivers.trusted_files import sync_folder

METRICS_PORT = 9100
"""Of its chart; only seen where it uses the host's network."""
RECENT_S = 120.0
"""A state file that changed within this time belongs to a living agent: it looks every 15 s."""
TAKEN = ".taken-over-by-wattline"

_MAX_STATE_BYTES = 1 << 20
_MOST_GPUS = 1024
# The chart's DaemonSet is `power-agent`, or ends in it after the release's name.
_POD = re.compile(r"(?:.+-)?power-agent-[a-z0-9]{5}")
_MODULE = re.compile(rb"(?:.*[/.])?power_agent(?:\.py)?")
_THEIR_METRIC = b"dynamo_power_agent_"
_OUR_METRIC = b"wattline_agent_info"


@dataclass(frozen=True, slots=True)
class Rival:
    """What there is of a Dynamo Power Agent. `running`: why we believe that it lives."""

    running: tuple[str, ...]
    managed: tuple[str, ...]
    """UUIDs of its state file; empty too where that cannot be read."""
    state_problem: str | None = None
    """Why the state file, which is there, cannot be used."""

    def __bool__(self) -> bool:
        return bool(self.running or self.managed or self.state_problem)

    def lines(self) -> list[str]:
        """What was found, one line each."""
        found = list(self.running)
        if self.managed:
            found.append(f"its state file names {len(self.managed)} GPUs that it has capped")
        if self.state_problem:
            found.append(f"its state file cannot be used: {self.state_problem}")
        return found


def find(
    settings: AgentSettings,
    pods: Iterable[Pod] = (),
    *,
    wall_s: Callable[[], float] = time.time,
    metrics_port: int = METRICS_PORT,
) -> Rival:
    """Look for a Dynamo Power Agent on this node; changes nothing."""
    running = rival_pods(pods)
    proc_root = settings.proc_root or (HOST_PROC if HOST_PROC.is_dir() else OWN_PROC)
    running += [f"its process {pid} runs" for pid in _processes(proc_root)]
    if _serves_metrics(metrics_port):
        running.append(f"its metrics are served on port {metrics_port}")
    problem = None
    try:
        managed = read_state(settings.dynamo_state)
        age_s = wall_s() - settings.dynamo_state.stat().st_mtime
        if age_s < RECENT_S:
            running.append(f"its state file changed {max(age_s, 0.0):.0f} s ago")
    except FileNotFoundError:
        managed = ()  # the usual case: it never ran here
    except (InputError, OSError) as error:
        managed, problem = (), str(error)
    return Rival(running=tuple(running), managed=managed, state_problem=problem)


def rival_pods(pods: Iterable[Pod]) -> list[str]:
    """One line for each pod of this node that is named like a Dynamo Power Agent and may be one.

    Its DaemonSet has `hostPID`, without which it finds no GPU's pod. A pod without is a tenant's
    with such a name, and must not keep us from starting.
    """
    return [
        f"its pod {pod.namespace}/{pod.name} is on this node"
        for pod in pods
        if not pod.finished and pod.host_pid is not False and _POD.fullmatch(pod.name)
    ]


def refuse(rival: Rival) -> None:
    """WattlineError for a rival that was not asked to be taken over."""
    if rival:
        raise WattlineError(refusal(rival.lines()))


def refusal(signs: Sequence[str]) -> str:
    """Why the agent does not start beside it, in one line."""
    return (
        f"a Dynamo Power Agent is on this node: {'; '.join(signs)}: two writers would fight: "
        "remove it, or start with --take-over"
    )


def read_state(path: Path) -> tuple[str, ...]:
    """UUIDs that its state file names, in order; FileNotFoundError, OSError or InputError."""
    with path.open("rb") as stream:
        content = stream.read(_MAX_STATE_BYTES + 1)
    try:
        if len(content) > _MAX_STATE_BYTES:
            raise ValueError(f"over {_MAX_STATE_BYTES} bytes")
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(str(path), found, "no whole state file of a power agent") from None
    uuids = document.get("managed_uuids") if isinstance(document, dict) else None
    if not isinstance(uuids, list) or len(uuids) > _MOST_GPUS:
        raise InputError(str(path), document, 'not {"managed_uuids": [...]}')
    for uuid in uuids:
        if not isinstance(uuid, str) or not 1 <= len(uuid) <= 200 or not uuid.isprintable():
            raise InputError(str(path), uuid, "not the UUID of a GPU")
    return tuple(dict.fromkeys(uuids))


def take_over(settings: AgentSettings, driver: GpuDriver) -> list[str]:
    """Make the GPUs of its state file ours and set the file aside; what was done, in lines.

    Nothing is written to a GPU. Our journal has the GPUs on disk before the file is set aside, so
    that a crash between the two is mended by doing it again. Raises WattlineError, and then the
    file is where it was.
    """
    path = settings.dynamo_state
    try:
        uuids = read_state(path)
    except FileNotFoundError:
        return []
    except InputError as error:
        _check_folder(path)
        return [f"{error}; set aside as {_set_aside(path).name}"]
    _check_folder(path)
    devices = {device.identity.uuid: device for device in driver.enumerate()}
    lock = WriterLock(settings.state_dir)
    try:
        journal = Journal(settings.state_dir)
        state = journal.load()
        if journal.problem is not None:
            raise WattlineError(f"the journal {journal.problem}: nothing can be taken over")
        lines, records = _imports(uuids, devices, state.gpus)
        journal.commit(replace(state, gpus={**state.gpus, **records}))
    finally:
        lock.release()
    return [*lines, f"{path}: set aside as {_set_aside(path).name}"]


def _imports(
    uuids: Sequence[str], devices: Mapping[str, GpuDevice], known: Mapping[str, GpuRecord]
) -> tuple[list[str], dict[str, GpuRecord]]:
    lines: list[str] = []
    records: dict[str, GpuRecord] = {}
    for uuid in uuids:
        if uuid not in devices:
            lines.append(f"{uuid}: not on this node any more: left out")
        elif uuid in known and known[uuid].ours_w:
            lines.append(f"{uuid}: already ours")
        else:
            records[uuid] = _record(devices[uuid])
            lines.append(f"{uuid}: taken over; its original is {records[uuid].original_w:g} W")
    return lines, records


def _record(device: GpuDevice) -> GpuRecord:
    try:
        default_w, enforced_w = device.default_w(), device.enforced_w()
        requested_w = device.requested_w()
    except GpuError as error:
        raise WattlineError(f"{device.identity.uuid}: cannot be taken over: {error}") from None
    if default_w is None:
        uuid = device.identity.uuid
        raise WattlineError(
            f"{uuid}: cannot be taken over: it does not tell its default limit: "
            "take it out of the state file and set its limit by hand"
        )
    ours_w = {enforced_w} if requested_w is None else {enforced_w, requested_w}
    return GpuRecord(original_w=default_w, ours_w=tuple(sorted(ours_w)), held_w=enforced_w)


def _check_folder(path: Path) -> None:
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise WattlineError(
            f"{path}: cannot be set aside: mount its directory writable for the take-over"
        )


def _set_aside(path: Path) -> Path:
    aside = path.with_name(path.name + TAKEN)
    try:
        os.replace(path, aside)
        sync_folder(path.parent)
    except OSError as error:
        raise WattlineError(f"{path}: cannot be set aside: {error.strerror or error}") from None
    return aside


def _processes(proc_root: Path) -> list[int]:
    """Processes whose command line runs its module; those that we may not see are not there."""
    found = []
    try:
        entries = [entry for entry in os.scandir(proc_root) if entry.name.isdigit()]
    except OSError:
        return []  # without a process tree there is no telling by processes
    for entry in entries:
        try:
            with open(os.path.join(entry.path, "cmdline"), "rb") as stream:
                program, *arguments = stream.read(4096).split(b"\0")
        except OSError:
            continue  # ended while we looked
        python = os.path.basename(program).startswith(b"python")
        if python and any(_MODULE.fullmatch(argument) for argument in arguments):
            found.append(int(entry.name))
    return sorted(found)


def _serves_metrics(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/metrics")
        content = connection.getresponse().read(_MAX_STATE_BYTES)
    except (OSError, http.client.HTTPException):
        return False  # nothing, or nothing of the kind, listens there
    finally:
        connection.close()
    return _THEIR_METRIC in content and _OUR_METRIC not in content
