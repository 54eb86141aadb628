"""A node as the closed loop meets it: the protocol's own node on the plant's registers.

What it obeys, repairs and reports is decided by `grants/node.py`; this adds the plant's registers,
the clock ceilings that travel with grants, and a network that is down while the node is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wattline.grants import node as protocol
from wattline.grants.messages import Adopt, Grant, Report
from wattline.grants.node_state import Found, Outcome

_INCARNATION = 1
_HAS_STOOD_S = float("-inf")
"""What stood before the first grant has stood long: nothing is left to settle."""


@dataclass(frozen=True, slots=True)
class Order:
    """What travels to a node for one GPU: the grant and the clock ceiling that goes with it."""

    grant: Grant[int]
    clock: float


class Node:
    """One node of the simulated fleet.

    `write(gpu, watts, clock)` writes a limit and returns what is then enforced; `read(gpu)` reads
    the enforced limit, None while the GPU does not answer. `on_repair(gpu)` is told when the node
    has written its own value over somebody else's.
    """

    def __init__(
        self,
        found: Mapping[int, Found],
        *,
        write: Callable[[int, float, float], float],
        read: Callable[[int], float | None],
        on_repair: Callable[[int], None],
        initial_clock: Mapping[int, float],
    ) -> None:
        self.silent = False
        self._write = write
        self._read = read
        self._on_repair = on_repair
        self._clock = dict(initial_clock)
        self._protocol = protocol.Node(found, incarnation=_INCARNATION, now_s=_HAS_STOOD_S)
        for gpu in found:
            self._protocol.set_persistence(gpu, True)

    def adopt(self, adopt: Adopt[int]) -> None:
        """Take up the coordinator's epoch; lost while silent."""
        if not self.silent:
            self._protocol.on_adopt(adopt)

    def deliver(self, order: Order, now_s: float) -> None:
        """Obey `order` if it is newer than everything obeyed so far; lost while silent."""
        if self.silent:
            return
        gpu = order.grant.gpu
        if self._protocol.on_grant(order.grant, now_s) is not Outcome.ACCEPTED:
            return
        due = self._protocol.write_due(gpu, now_s) is not None
        if due or order.clock != self._clock[gpu]:
            self._clock[gpu] = order.clock
            self._enforce(gpu, now_s)

    def _enforce(self, gpu: int, now_s: float) -> None:
        watts = self._protocol.wanted_w(gpu)
        self._protocol.begin_write(gpu, watts, now_s)
        self._protocol.end_write(gpu, self._write(gpu, watts, self._clock[gpu]), now_s)

    def report_and_repair(self, now_s: float) -> list[Report[int]]:
        """Read back and report every GPU that answers, as found; then repair what differs.

        A silent node does none of it. Repairs of one GPU are spaced ever wider apart.
        """
        if self.silent:
            return []
        reports = []
        for gpu in self._protocol.gpus:
            enforced_w = self._read(gpu)
            if enforced_w is None:
                continue
            self._protocol.on_enforced(gpu, enforced_w, now_s)
            reports.append(self._protocol.report(gpu, now_s))
            if self._protocol.write_due(gpu, now_s) is not None:
                self._enforce(gpu, now_s)
                self._on_repair(gpu)
        return reports
