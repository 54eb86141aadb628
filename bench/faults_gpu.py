"""Faults of the GPUs and of those who share them: NVML errors, rivals, reloads, clamps."""

from __future__ import annotations

import time
from collections.abc import Callable

from faults_agent import Fault
from faults_base import Cell, CellNode
from wattline.virtual.gpus import Group, NvmlCode

RIVAL_PAUSE_S = 5.0
"""Between two raises of one GPU from outside: the agent's first repair is immediate, and its
back-off (1 s, doubled at each, up to 60 s) ends when a repair has held for as long."""


def _a_gpu(cell: Cell, node: CellNode) -> str | None:
    """A GPU to which nothing is being done; None if there is none."""
    now_s = time.monotonic()
    free = [
        uuid
        for uuid in node.uuids
        if uuid not in node.busy and node.rival_free_s.get(uuid, 0.0) <= now_s
    ]
    return cell.rng.choice(free) if free else None


def _refuse(
    cell: Cell, node: CellNode, why: str, break_: Callable[[str], None], mend: Callable[[str], None]
) -> str | None:
    """Break one GPU's driver for a while."""
    uuid = _a_gpu(cell, node)
    if uuid is None:
        return None
    seconds = cell.rng.uniform(0.3, 3.0)
    node.busy.add(uuid)
    token = f"{why} {uuid}"
    node.agent.hindered.begin(token)
    break_(uuid)

    def end() -> None:
        mend(uuid)
        node.agent.hindered.end(token)
        node.busy.discard(uuid)

    cell.later(seconds, end)
    return f"{why} for {seconds:.1f} s"


def _failing(group: Group, code: NvmlCode, why: str, delay_s: float = 0.0) -> Fault:
    def fault(cell: Cell, node: CellNode) -> str | None:
        gpus = node.virtual.gpus
        return _refuse(
            cell,
            node,
            why,
            lambda uuid: gpus.fail(uuid, group, code, delay_s=delay_s),
            lambda uuid: gpus.fail(uuid, group, NvmlCode.SUCCESS, count=0),
        )

    return fault


def lost(cell: Cell, node: CellNode) -> str | None:
    """A GPU falls off the bus, and comes back as it was."""
    gpus = node.virtual.gpus
    return _refuse(cell, node, "lost", lambda uuid: gpus.lose(uuid), gpus.recover)


def slow(cell: Cell, node: CellNode) -> str | None:
    """Calls that take from 20 ms to 2 s."""
    delay_s = cell.rng.choice((0.02, 0.1, 0.5, 2.0))
    group = cell.rng.choice((Group.LIMIT_WRITE, Group.LIMIT_READ, Group.ALL))
    detail = _failing(group, NvmlCode.SUCCESS, "slow calls", delay_s)(cell, node)
    return None if detail is None else f"{detail}, {delay_s * 1000:.0f} ms each"


def hung(cell: Cell, node: CellNode) -> str | None:
    """One write that hangs for longer than the agent waits."""
    uuid = _a_gpu(cell, node)
    if uuid is None:
        return None
    node.busy.add(uuid)
    token = f"hung call {uuid}"
    node.agent.hindered.begin(token)
    node.virtual.gpus.fail(uuid, Group.LIMIT_WRITE, NvmlCode.SUCCESS, count=1, delay_s=7.0)

    def end() -> None:
        node.virtual.gpus.fail(uuid, Group.LIMIT_WRITE, NvmlCode.SUCCESS, count=0)
        node.agent.hindered.end(token)
        node.busy.discard(uuid)

    cell.later(10.0, end)  # the call may begin late, and it cannot be called back
    return "one write hangs for 7 s"


def unsupported(cell: Cell, node: CellNode) -> str | None:
    """Readings that the GPU no longer has: draw, energy, reasons, requested limit."""
    group = cell.rng.choice((Group.POWER, Group.ENERGY, Group.FIELDS, Group.REASONS))
    fault = _failing(group, NvmlCode.NOT_SUPPORTED, f"{group.name.lower()} unsupported")
    return fault(cell, node)


def renumbered(cell: Cell, node: CellNode) -> str | None:
    """Indices change, and every handle is from before."""
    uuids = list(node.uuids)
    cell.rng.shuffle(uuids)
    node.virtual.gpus.renumber(uuids)
    return "renumbered"


def rival(cell: Cell, node: CellNode) -> str | None:
    """Another process writes another limit through NVML."""
    uuid = _a_gpu(cell, node)
    if uuid is None:
        return None
    watts = round(cell.rng.uniform(200.0, 700.0))
    node.rival_free_s[uuid] = time.monotonic() + RIVAL_PAUSE_S
    answer = node.rival.write(uuid, watts)
    return f"{watts} W: {answer}"


def reload(cell: Cell, node: CellNode) -> str | None:
    """The driver is loaded anew: default limits, dead sessions, absent for up to a second."""
    now_s = time.monotonic()
    if node.busy or any(node.rival_free_s.get(uuid, 0.0) > now_s for uuid in node.uuids):
        return None
    absent_s = cell.rng.choice((0.0, 0.2, 1.0))
    for uuid in node.uuids:
        node.rival_free_s[uuid] = now_s + RIVAL_PAUSE_S
    if absent_s:
        node.agent.hindered.begin("driver absent")
        cell.later(absent_s, lambda: node.agent.hindered.end("driver absent"))
    node.virtual.gpus.reload(absent_s=absent_s)
    cell.known.told.append(("driver reload", node.name, (now_s, time.monotonic())))
    return f"driver absent for {absent_s:.1f} s"


def clamp(cell: Cell, node: CellNode) -> str | None:
    """Out of band a GPU is held below what was asked for, for a while."""
    uuid = _a_gpu(cell, node)
    if uuid is None:
        return None
    watts = round(cell.rng.uniform(200.0, 400.0))
    node.busy.add(uuid)
    node.virtual.gpus.hold_below(uuid, watts)

    def end() -> None:
        node.virtual.gpus.hold_below(uuid, None)
        node.busy.discard(uuid)

    cell.later(cell.rng.uniform(0.5, 4.0), end)
    return f"held below {watts} W"


def raised_out_of_band(cell: Cell, node: CellNode) -> str | None:
    """Out of band a GPU is held above what was asked for: nobody on the node can lower it."""
    uuid = _a_gpu(cell, node)
    if uuid is None:
        return None
    watts = round(cell.rng.uniform(300.0, 500.0))
    node.busy.add(uuid)
    node.rival_free_s[uuid] = time.monotonic() + RIVAL_PAUSE_S
    start_s = time.monotonic()
    node.virtual.gpus.hold_above(uuid, watts)

    def end() -> None:
        node.virtual.gpus.hold_above(uuid, None)
        told = ("out-of-band raise", node.name, (start_s, time.monotonic()))
        cell.known.told.append(told)
        node.busy.discard(uuid)

    cell.later(cell.rng.uniform(1.0, 5.0), end)
    return f"held above {watts} W"


KINDS: dict[str, tuple[float, Fault]] = {
    "NVML: no permission": (
        3,
        _failing(Group.LIMIT_WRITE, NvmlCode.NO_PERMISSION, "no permission"),
    ),
    "NVML: unknown error": (3, _failing(Group.ALL, NvmlCode.UNKNOWN, "unknown error")),
    "NVML: reading fails": (2, _failing(Group.LIMIT_READ, NvmlCode.UNKNOWN, "reading fails")),
    "NVML: GPU lost": (3, lost),
    "NVML: slow calls": (3, slow),
    "NVML: hung write": (1, hung),
    "NVML: unsupported": (2, unsupported),
    "NVML: renumbered": (2, renumbered),
    "rival writer": (8, rival),
    "driver reload": (3, reload),
    "out-of-band clamp": (4, clamp),
    "out-of-band raise": (2, raised_out_of_band),
}
