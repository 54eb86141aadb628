"""Every parser of the agent, fed with one input: what comes back is what people get to read of it.

A parser may refuse with Wattline's own error; an AssertionError says that it took what it must not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuzz_samples import GPUS, NODE
from wattline.agent.annotated import PodIndex, decide, parse_limit
from wattline.agent.control import COMMANDS, decode_command
from wattline.agent.grant_source import FileGrantSource, GrantsRefused
from wattline.agent.journal import Journal
from wattline.agent.journal import decode as decode_journal
from wattline.agent.settings import load_settings
from wattline.agent.takeover import read_state
from wattline.core.errors import WattlineError
from wattline.drivers.gpu.device import LimitRange
from wattline.drivers.grant_files import decode_grants, decode_report
from wattline.drivers.grant_log import FencedError, GrantLog
from wattline.drivers.grant_records import decode_records
from wattline.drivers.kube.pod_object import pod_of
from wattline.drivers.kube.slices import uuids_of
from wattline.drivers.kubelet.cgroups import pod_uid, read_pod_uid
from wattline.drivers.kubelet.devices import GpuResolver
from wattline.drivers.kubelet.wire import decode_list
from wattline.drivers.pods import Pod
from wattline.drivers.pods_file import OwnersFile, PodsFile

ENVIRONMENT_MARK = b"\n@environment@"
"""Between a configuration file and, as JSON, the environment that goes with it."""

Texts = Sequence[str]


def annotation(data: bytes) -> Texts:
    """One pod, and two that share a GPU: whatever is decided lies in the GPU's range."""
    text = data.decode("utf-8", "surrogatepass")
    watts = parse_limit(text)
    if watts is not None and not 0 < watts < 10**9:
        raise AssertionError(f"{text!r} was read as {watts} W")
    pods = [Pod("a", "b", "uid-1", text), Pod("a", "c", "uid-2", "400")]
    limits = LimitRange(200.0, 700.0)
    notes = []
    for owners in ({"uid-1"}, {"uid-1", "uid-2"}, {"uid-1", "unknown"}):
        decision = decide(owners, PodIndex(pods), ours=False, limits=limits, safe_default_w=500.0)
        if decision.watts is not None and not 200.0 <= decision.watts <= 700.0:
            raise AssertionError(f"{text!r} led to {decision.watts} W")
        notes.append(decision.note or "")
    return notes


def grants(data: bytes) -> Texts:
    """A grant file; what is taken is finite and not negative."""
    file = decode_grants(data, node=NODE, where="grants")
    for entry in file.grants:
        grant = entry.grant
        for number in (grant.watts, grant.brake_w, grant.lease_s, grant.expiry_w or 0.0):
            if not 0.0 <= number <= 1e9:
                raise AssertionError(f"a grant with {number}")
    return [entry.grant.gpu for entry in file.grants]


def report(data: bytes) -> Texts:
    """A report of an agent."""
    decode_report(data, node=NODE, where="report")
    return ()


def journal(data: bytes) -> Texts:
    """A journal's content."""
    decode_journal(data)
    return ()


def listing(data: bytes) -> Texts:
    """The kubelet's answer, and whose GPUs it tells."""
    return GpuResolver(lambda: {"MIG-1234": GPUS[2]}).ownership(decode_list(data)).unresolved


def cgroup_text(data: bytes) -> Texts:
    """The text of a cgroup file."""
    return [pod_uid(data.decode("utf-8", "surrogatepass")) or ""]


def command(data: bytes) -> Texts:
    """A command over the control socket; which one, the length tells."""
    found = decode_command(list(COMMANDS)[len(data) % len(COMMANDS)], data)
    return [found.by, getattr(found, "why", "")]


def pod_object(data: bytes) -> Texts:
    """A pod of the API server."""
    pod_of(_decoded(data))
    return ()


def slices(data: bytes) -> Texts:
    """The ResourceSlices of a node."""
    uuids_of(_decoded(data))
    return ()


def _decoded(data: bytes) -> Any:
    """What the client library makes of it; what is no JSON never gets past it."""
    try:
        return json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None


class Files:
    """Parsers that read files, which are replaced by each case; `folder` is the run's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o700)
        (folder / "proc" / "1").mkdir(parents=True, exist_ok=True)

    def put(self, name: str, data: bytes) -> Path:
        """Write one of the run's files."""
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def grant_source(self, data: bytes) -> Texts:
        """The grant file and the brake file as the agent looks at them."""
        source = FileGrantSource(
            self.put("grants.json", data),
            node=NODE,
            brake_file=self.put("brake", data),
            poll_s=1.0,
            now=lambda: 0.0,
        )
        for event in source.look():
            if isinstance(event, GrantsRefused):
                raise WattlineError(event.why)
        return ()

    def journal(self, data: bytes) -> Texts:
        """The journal at the start: what cannot be understood is set aside."""
        self.put("journal.json", data)
        found = Journal(self.folder)
        found.load()
        for aside in self.folder.glob("journal.json.corrupt-*"):
            aside.unlink()
        if found.set_aside is not None:
            raise WattlineError(found.set_aside)
        return ()

    def log(self, data: bytes) -> Texts:
        """The coordinator's log, which must be let go whatever is in it."""
        path = self.put("grants.log", data)
        try:
            log = GrantLog(path)
        except FencedError as error:
            raise AssertionError("the log before this one was not let go") from error
        try:
            decode_records(log.replay.records, str(path))
        finally:
            log.close()
        return ()

    def cgroup(self, data: bytes) -> Texts:
        """The cgroup file of process 1."""
        self.put("proc/1/cgroup", data)
        return [read_pod_uid(self.folder / "proc", 1) or ""]

    def pods(self, data: bytes) -> Texts:
        """Pods without a cluster."""
        source = PodsFile(self.put("pods.json", data), poll_s=60.0)
        source.start()
        source.stop()
        source.pods()
        return ()

    def owners(self, data: bytes) -> Texts:
        """Owners without a kubelet."""
        return OwnersFile(self.put("owners.json", data)).owners().unresolved

    def settings(self, data: bytes) -> Texts:
        """A configuration file with an environment."""
        text, _, surroundings = data.rpartition(ENVIRONMENT_MARK)
        env: Mapping[str, str] = json.loads(surroundings)
        _, warnings, _ = load_settings(self.put("agent.yaml", text), env, {})
        return warnings

    def dynamo_state(self, data: bytes) -> Texts:
        """The state file of Dynamo's Power Agent."""
        return read_state(self.put("managed.json", data))
