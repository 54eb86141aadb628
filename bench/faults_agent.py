"""Faults of the agent's process: kills, stops, disks, journals, clocks, a second agent."""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from faults_base import Cell, CellNode, shift_wall_clock
from faults_processes import Supervised
from wattline.virtual.gpus import Group, NvmlCode

Fault = Callable[[Cell, CellNode], str | None]
"""Injects one fault and plans its end; what it did, or None if it does not apply at present."""

_IN_MOVED_TO = 0x80


def _free(node: CellNode) -> bool:
    """True when the agent runs and nothing is being done to its process."""
    return node.agent.up and not node.busy


def _restart_later(cell: Cell, node: CellNode, delay_s: float) -> None:
    def restart() -> None:
        node.busy.discard("process")
        cell.restart(node)

    node.busy.add("process")
    cell.later(delay_s, restart)


def kill(cell: Cell, node: CellNode) -> str | None:
    """SIGKILL at any time."""
    if not _free(node):
        return None
    node.agent.kill()
    _restart_later(cell, node, cell.rng.uniform(0.0, 1.0))
    return "SIGKILL"


def kill_after_grant(cell: Cell, node: CellNode) -> str | None:
    """SIGKILL soon after new grants came: from 0.1 ms to 0.3 s, evenly on a logarithmic scale.

    What the agent does in that time is read, journal, write, read back, report.
    """
    if not _free(node):
        return None
    delay_s = 10 ** cell.rng.uniform(-4.0, math.log10(0.3))
    slow = cell.rng.random() < 0.3
    if slow:  # so that many kills fall between the journal and the end of the write
        _delay_writes(node, 0.05)
    node.busy.add("process")
    wait_s = 2 * cell.settings.period_s
    killer = threading.Thread(target=_kill_when_replaced, args=(node, delay_s, wait_s), daemon=True)
    killer.start()

    def look() -> None:
        if killer.is_alive():
            cell.later(0.02, look)
            return
        if slow:
            _delay_writes(node, 0.0)
        node.agent.kill()
        _restart_later(cell, node, cell.rng.uniform(0.0, 0.6))

    cell.later(0.02, look)
    return f"SIGKILL {delay_s * 1000:.1f} ms after a grant"


def _kill_when_replaced(node: CellNode, delay_s: float, timeout_s: float) -> None:
    """Wait for a replacement of the node's grant file, a little more, and kill."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC)
    try:
        libc.inotify_add_watch(watch, bytes(node.source.parent), _IN_MOVED_TO)
        end_s = time.monotonic() + timeout_s
        while (left_s := end_s - time.monotonic()) > 0:
            if not select.select([watch], [], [], left_s)[0]:
                break
            if node.source.name.encode() in os.read(watch, 65536):
                break
        due_s = time.monotonic() + delay_s
        if delay_s > 0.002:
            time.sleep(delay_s - 0.001)
        while time.monotonic() < due_s:
            pass
        node.agent.hindered.begin("agent down")
        node.agent.signal(signal.SIGKILL)
    finally:
        os.close(watch)


def _delay_writes(node: CellNode, delay_s: float) -> None:
    for uuid in node.uuids:
        count = None if delay_s else 0
        node.virtual.gpus.fail(
            uuid, Group.LIMIT_WRITE, NvmlCode.SUCCESS, delay_s=delay_s, count=count
        )


def stop(cell: Cell, node: CellNode) -> str | None:
    """SIGSTOP for a while; then SIGCONT, or SIGKILL as it stands."""
    if not _free(node):
        return None
    seconds = cell.rng.choice((0.2, 0.7, 1.5, 4.0, 8.0)) * cell.rng.uniform(0.5, 1.0)
    node.busy.add("process")
    node.agent.hindered.begin("agent stopped")
    node.agent.signal(signal.SIGSTOP)
    if cell.rng.random() < 0.2:

        def put_down() -> None:
            node.agent.kill()
            node.agent.hindered.end("agent stopped")
            _restart_later(cell, node, cell.rng.uniform(0.0, 0.5))

        cell.later(seconds, put_down)
        return f"SIGSTOP {seconds:.1f} s, then SIGKILL"

    def go_on() -> None:
        node.agent.signal(signal.SIGCONT)
        node.agent.hindered.end("agent stopped")
        node.busy.discard("process")

    cell.later(seconds, go_on)
    return f"SIGSTOP {seconds:.1f} s"


def terminate(cell: Cell, node: CellNode) -> str | None:
    """SIGTERM: under grants, limits are held."""
    if cell.settings.mode != "grants":
        return _terminate_annotated(cell, node)
    if not _free(node):
        return None
    before = {uuid: node.virtual.gpus.state(uuid).requested_w for uuid in node.uuids}
    quiet = not any(node.rival_free_s.get(uuid, 0.0) > time.monotonic() for uuid in node.uuids)
    code = node.agent.end()
    after = {uuid: node.virtual.gpus.state(uuid).requested_w for uuid in node.uuids}
    if code != 0:
        cell.unexpected.append(f"agent of {node.name} ended with {code} on SIGTERM")
    raised = [uuid for uuid in node.uuids if after[uuid] == node.original_w[uuid] != before[uuid]]
    if raised and quiet:
        cell.unexpected.append(f"agent of {node.name} restored {raised} without a grant")
    _restart_later(cell, node, cell.rng.uniform(0.0, 1.0))
    return "SIGTERM"


def _terminate_annotated(cell: Cell, node: CellNode) -> str | None:
    """SIGTERM: what annotations had set is given back before it ends."""
    if not _free(node):
        return None
    code = node.agent.end()
    if code != 0:
        cell.unexpected.append(f"agent of {node.name} ended with {code} on SIGTERM")
    _restart_later(cell, node, cell.rng.uniform(0.0, 1.0))
    return "SIGTERM"


def second_agent(cell: Cell, node: CellNode) -> str | None:
    """Start a second agent beside the first: it must not get the node's lock."""
    if not _free(node):
        return None
    first = node.agent
    second = Supervised(f"{node.name}-second", first.command, first.env, cell.folder)
    cell.known.agents.add(second.start())
    node.busy.add("process")

    def look(tries: int) -> None:
        code = second.exited()
        if code is None and tries > 0:
            cell.later(0.2, lambda: look(tries - 1))
            return
        if code in (None, 0):
            cell.unexpected.append(f"a second agent on {node.name} was not refused: {code}")
            second.kill()
        node.busy.discard("process")

    cell.later(0.5, lambda: look(50))
    return "second agent"


def disk_full(cell: Cell, node: CellNode) -> str | None:
    """Let no write to the agent's disk succeed for a while."""
    if not _free(node):
        return None
    node.busy.add("process")
    seconds = cell.rng.uniform(0.5, 3.0)
    node.agent.hindered.begin("disk full")
    how = node.disk.fill(node.agent)

    def free() -> None:
        node.disk.free(node.agent)
        node.agent.hindered.end("disk full")
        node.busy.discard("process")

    cell.later(seconds, free)
    return f"disk full ({how}) for {seconds:.1f} s"


def disk_full_at_start(cell: Cell, node: CellNode) -> str | None:
    """Kill it, and let it start on a full disk."""
    if not _free(node):
        return None
    node.agent.kill()
    node.busy |= {"process", "start refused"}
    node.agent.hindered.begin("disk full")
    how = node.disk.fill(node.agent)

    def free() -> None:
        node.disk.free(node.agent)
        node.agent.hindered.end("disk full")

    def calm() -> None:
        node.busy -= {"process", "start refused"}
        cell.restart(node)

    cell.later(0.1, lambda: cell.restart(node))
    cell.later(cell.rng.uniform(1.0, 2.5), free)
    cell.later(4.0, calm)
    return f"started on a full disk ({how})"


def damage_journal(cell: Cell, node: CellNode) -> str | None:
    """Kill it and leave it a journal that is torn, changed, empty, gone or something else."""
    if not _free(node):
        return None
    node.agent.kill()
    kinds: dict[str, Callable[[Path], object]] = {
        "torn": lambda path: path.write_bytes(path.read_bytes()[: _somewhere(cell, path)]),
        "changed": lambda path: _flip(cell, path),
        "empty": lambda path: path.write_bytes(b""),
        "noise": lambda path: path.write_bytes(cell.rng.randbytes(300)),
        "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "gone": lambda path: path.unlink(),
        "a directory": _make_directory,
        "of version 99": lambda path: path.write_bytes(b'{"version": 99}\n{}\n'),
    }
    kind = cell.rng.choice(list(kinds))
    if not node.agent.journal.is_file():
        kind = "noise"
    kinds[kind](node.agent.journal)
    node.journal_lost = True
    node.unmanaged_s = node.unmanaged_s or time.monotonic()
    _restart_later(cell, node, cell.rng.uniform(0.0, 0.5))
    return f"journal {kind}"


def _somewhere(cell: Cell, path: Path) -> int:
    return cell.rng.randrange(max(1, path.stat().st_size))


def _flip(cell: Cell, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[_somewhere(cell, path)] ^= 1 << cell.rng.randrange(8)
    path.write_bytes(content)


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def clock_jump(cell: Cell, node: CellNode) -> str | None:
    """Move the agent's wall clock, to and fro or for good; its monotonic clock goes on."""
    if cell.settings.clock_shim is None:
        return None
    seconds = cell.rng.choice((-1.0, 1.0)) * 10 ** cell.rng.uniform(0.0, 8.5)
    shift_wall_clock(node, seconds)
    if cell.rng.random() < 0.3 and _free(node):
        node.agent.kill()
        _restart_later(cell, node, 0.1)
        return f"wall clock {seconds:+.0f} s, and SIGKILL"
    return f"wall clock {seconds:+.0f} s"


KINDS: dict[str, tuple[float, Fault]] = {
    "agent killed": (8, kill),
    "agent killed after a grant": (30, kill_after_grant),
    "agent stopped": (6, stop),
    "agent terminated": (4, terminate),
    "second agent": (1.5, second_agent),
    "disk full": (4, disk_full),
    "disk full at start": (1.5, disk_full_at_start),
    "journal damaged": (6, damage_journal),
    "wall clock jumped": (4, clock_jump),
}
