"""Faults around the grants: files, coordinators, budgets, brakes, operators."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults_base import CellNode, resume
from faults_cell import GrantsCell
from wattline.agent import control
from wattline.agent.commands import Brake, Command, Hold, Pin
from wattline.core.errors import WattlineError
from wattline.drivers.trusted_files import replace_file


def damaged_file(cell: GrantsCell, node: CellNode) -> str | None:
    """Put something else in the place of the node's grants; the coordinator will replace it."""
    if not node.source.is_file():  # reading a pipe that an earlier fault left would never end
        return None
    good = node.source.read_bytes()
    other = next(each for each in cell.nodes if each is not node)
    kinds: dict[str, Callable[[], None]] = {
        "torn": lambda: _replace(node, good[: cell.rng.randrange(len(good) + 1) // 2]),
        "rewritten in place, torn": lambda: _in_place(node, good[: len(good) // 2]),
        "empty": lambda: _replace(node, b""),
        "noise": lambda: _replace(node, cell.rng.randbytes(500)),
        "another node's": lambda: _replace(node, _or_nothing(other.source)),
        "of another version": lambda: _replace(node, _changed(good, protocol=99)),
        "of an older epoch": lambda: _replace(node, _forged(cell, _older(good))),
        "beyond every range": lambda: _replace(node, _forged(cell, _watts(good, 1e5))),
        "writable by all": lambda: _open_to_all(node, _forged(cell, _watts(good, 700.0))),
        "a directory": lambda: _directory(node),
        "a pipe": lambda: _pipe(node),
        "gone": lambda: node.source.unlink(missing_ok=True),
    }
    kind = cell.rng.choice(list(kinds))
    kinds[kind]()
    cell.later(cell.rng.uniform(0.2, 2.0), lambda: _clear(node))
    return kind


def _replace(node: CellNode, content: bytes) -> None:
    _clear(node)
    replace_file(node.source, content, durable=False, mode=0o644)


def _clear(node: CellNode) -> None:
    """Take away what a coordinator's rename could not replace."""
    if node.source.is_dir():
        with contextlib.suppress(OSError):
            node.source.rmdir()


def _in_place(node: CellNode, content: bytes) -> None:
    with contextlib.suppress(OSError):
        node.source.write_bytes(content)


def _or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


def _changed(content: bytes, **fields: object) -> bytes:
    with contextlib.suppress(ValueError):
        return json.dumps(json.loads(content) | fields).encode()
    return content


def _older(content: bytes) -> bytes:
    """Larger grants of the epoch before, as a coordinator that was overtaken would send them."""
    with contextlib.suppress(ValueError, KeyError):
        document = json.loads(content)
        document["epoch"] -= 1
        for grant in document["grants"]:
            grant |= {"epoch": grant["epoch"] - 1, "sequence": 10**6, "watts": 700.0}
        return json.dumps(document).encode()
    return content


def _watts(content: bytes, watts: float) -> bytes:
    with contextlib.suppress(ValueError, KeyError):
        document = json.loads(content)
        for grant in document["grants"]:
            grant |= {"sequence": 10**6, "watts": watts, "expiry_w": None}
        return json.dumps(document).encode()
    return content


def _forged(cell: GrantsCell, content: bytes) -> bytes:
    """Note that no coordinator wrote this."""
    cell.forged.add(content)
    return content


def _open_to_all(node: CellNode, content: bytes) -> None:
    _clear(node)
    replace_file(node.source, content, durable=False, mode=0o666)


def _directory(node: CellNode) -> None:
    node.source.unlink(missing_ok=True)
    node.source.mkdir()


def _pipe(node: CellNode) -> None:
    node.source.unlink(missing_ok=True)
    os.mkfifo(node.source)


def replayed_file(cell: GrantsCell, node: CellNode) -> str | None:
    """Put an older, whole grant file back: a message that was delayed or repeated.

    Only one that a coordinator wrote. With the right owner and mode a forgery is the coordinator's
    word, and whoever can write it so can do what the coordinator can.
    """
    if not node.source.is_file():
        return None
    old = node.source.read_bytes()
    if old in cell.forged:
        return None
    wait_s = cell.rng.choice((0.1, 1.5, 4.0, 9.0))
    cell.later(wait_s, lambda: _replace(node, old))
    return f"repeated after {wait_s:.1f} s"


def _kill_coordinator(cell: GrantsCell) -> bool:
    if cell.coordinator.pid is None or cell.coordinator_busy:
        return False
    cell.coordinator_hindered.begin("coordinator down")
    cell.coordinator.kill()
    cell.coordinator_busy = True
    return True


def _start_coordinator_later(cell: GrantsCell, delay_s: float) -> None:
    def start() -> None:
        cell.coordinator_busy = False
        cell.restart_coordinator()

    cell.later(delay_s, start)


def coordinator_killed(cell: GrantsCell, node: CellNode) -> str | None:
    """SIGKILL the coordinator; it goes on from its log."""
    if not _kill_coordinator(cell):
        return None
    down_s = cell.rng.choice((0.0, 0.5, 2.0, 7.0))
    _start_coordinator_later(cell, down_s)
    return f"down for {down_s:.1f} s"


def coordinator_without_log(cell: GrantsCell, node: CellNode) -> str | None:
    """SIGKILL the coordinator and take its log away."""
    if not _kill_coordinator(cell):
        return None
    (cell.folder / "log" / "grants.log").unlink(missing_ok=True)
    _start_coordinator_later(cell, cell.rng.uniform(0.0, 2.0))
    return "its log is gone"


def coordinator_torn_log(cell: GrantsCell, node: CellNode) -> str | None:
    """SIGKILL the coordinator in the middle of an append that was never sent."""
    if not _kill_coordinator(cell):
        return None
    with (cell.folder / "log" / "grants.log").open("ab") as log:
        log.write(
            b'12345678 {"format":"wattline-grant-log-1","epoch":'[: cell.rng.randrange(1, 50)]
        )
    _start_coordinator_later(cell, cell.rng.uniform(0.0, 1.0))
    return "its last line is torn"


def coordinator_stopped(cell: GrantsCell, node: CellNode) -> str | None:
    """SIGSTOP the coordinator, so that leases may end; it goes on with what it knew."""
    if cell.coordinator.pid is None or cell.coordinator_busy:
        return None
    seconds = cell.rng.choice((0.5, 2.0, 8.0))
    cell.coordinator_busy = True
    cell.coordinator_hindered.begin("coordinator stopped")
    cell.coordinator.signal(signal.SIGSTOP)

    def go_on() -> None:
        cell.coordinator.signal(signal.SIGCONT)
        cell.coordinator_hindered.end("coordinator stopped")
        cell.coordinator_busy = False

    cell.later(seconds, go_on)
    return f"SIGSTOP {seconds:.1f} s"


def coordinator_disk_full(cell: GrantsCell, node: CellNode) -> str | None:
    """Nothing can be made durable, so nothing may be sent."""
    if cell.coordinator_busy or not cell.coordinator.limit_files(0):
        return None
    cell.coordinator_hindered.begin("coordinator's disk full")

    def end() -> None:
        cell.coordinator.limit_files(-1)
        cell.coordinator_hindered.end("coordinator's disk full")

    cell.later(cell.rng.uniform(0.3, 2.0), end)
    return "file-size limit"


def rival_coordinator(cell: GrantsCell, node: CellNode) -> str | None:
    """A second coordinator with a log of its own writes to the same nodes for a while."""
    if cell.coordinator_busy:
        return None
    cell.coordinator_busy = True
    cell.rivals_started += 1
    rival = cell.rival_coordinator(cell.rivals_started)
    cell.coordinator_hindered.begin("two coordinators")
    rival.start()
    seconds = cell.rng.uniform(1.0, 4.0)

    def end() -> None:
        rival.kill()
        cell.coordinator_busy = False
        # The first one is fenced off by now, or will be, and must start anew.
        cell.later(4.0, lambda: cell.coordinator_hindered.end("two coordinators"))

    cell.later(seconds, end)
    return f"for {seconds:.1f} s"


def budget_changed(cell: GrantsCell, node: CellNode) -> str | None:
    """A cut with some notice or none, or a rise."""
    if time.monotonic() < cell.budget_quiet_s:
        return None
    before_w = cell.budget_w
    lead_s = cell.rng.choice((0.0, 0.3, 1.5))
    cell.set_budget(cell.random_budget(), lead_s)
    return f"{before_w:.0f} W to {cell.budget_w:.0f} W in {lead_s:.1f} s"


def cut_with_brake(cell: GrantsCell, node: CellNode) -> str | None:
    """A cut without notice, told to the nodes as well, which brake at once."""
    if time.monotonic() < cell.budget_quiet_s or any(each.busy for each in cell.nodes):
        return None
    watts = cell.random_budget() * 0.75
    if watts >= cell.budget_w:
        return None
    content = json.dumps({"budget_version": cell.budget_version + 1}).encode()
    cell.set_budget(watts)
    for each in cell.nodes:
        replace_file(each.brake_file, content, durable=False, mode=0o644)
        cell.later(1.0, lambda each=each: each.brake_file.unlink(missing_ok=True))  # type: ignore[misc]
    return f"to {watts:.0f} W with the brake"


def brake(cell: GrantsCell, node: CellNode) -> str | None:
    """The brake of one node: by file, or by command."""
    if cell.rng.random() < 0.5:
        replace_file(node.brake_file, b"{}", durable=False, mode=0o644)
        seconds = cell.rng.uniform(0.05, 1.5)
        cell.later(seconds, lambda: node.brake_file.unlink(missing_ok=True))
        return f"by file for {seconds:.1f} s"
    return _ask(cell, node, Brake(by="campaign"))


def _ask(cell: GrantsCell, node: CellNode, command: Command) -> str | None:
    if not node.agent.up or "process" in node.busy:
        return None
    try:
        answer = control.send(node.agent.state_dir / "control.sock", command, timeout_s=3.0)
    except WattlineError as error:
        return f"not answered: {error}"
    finally:
        cell.later(
            cell.rng.uniform(0.5, 3.0),
            lambda: resume(node),
        )
    return answer.text


def operator(cell: GrantsCell, node: CellNode) -> str | None:
    """A hold of the node, or a pin of one GPU."""
    if cell.rng.random() < 0.5:
        return _ask(cell, node, Hold(by="campaign", why="maintenance"))
    uuid = cell.rng.choice(node.uuids)
    watts = cell.rng.uniform(200.0, 500.0)
    return _ask(cell, node, Pin(by="campaign", why="maintenance", gpu=uuid, watts=watts))


KINDS: dict[str, tuple[float, Callable[[GrantsCell, CellNode], str | None]]] = {
    "grant file damaged": (10, damaged_file),
    "grant file repeated": (5, replayed_file),
    "coordinator killed": (5, coordinator_killed),
    "coordinator without its log": (2, coordinator_without_log),
    "coordinator's log torn": (2, coordinator_torn_log),
    "coordinator stopped": (2, coordinator_stopped),
    "coordinator's disk full": (1.5, coordinator_disk_full),
    "rival coordinator": (2, rival_coordinator),
    "budget changed": (7, budget_changed),
    "budget cut with brake": (2, cut_with_brake),
    "brake": (4, brake),
    "operator": (3, operator),
}
