"""From decided steps to written limits: the ledger, the nodes, and what is on its way to them."""

from __future__ import annotations

from collections.abc import Callable

from wattline.core.decision import CapSteps
from wattline.core.fleet import Fleet
from wattline.core.snapshot import Budget, Phase
from wattline.grants.ledger import GpuLimits, Grant, Ledger
from wattline.sim.exposure import ExposureMeter
from wattline.sim.node import Node, Order
from wattline.sim.plant.plant import GpuColumns, Plant

RESEND_TICKS = 2
"""A grant that no report confirms is sent again after so many ticks."""


class Actuation:
    """Limits of all GPUs as the coordinator sends them.

    With the ledger, cap steps become grants that nodes obey and report on; without it they are
    written to the GPUs as they are, as an agent that trusts its planner would. `columns` gives the
    GPUs' state as read at the start of the tick.
    """

    def __init__(
        self,
        *,
        plant: Plant,
        fleet: Fleet,
        budget: Budget,
        meter: ExposureMeter,
        columns: Callable[[], GpuColumns],
        uses_ledger: bool,
    ) -> None:
        self._plant = plant
        self._meter = meter
        self._columns = columns
        self._uses_ledger = uses_ledger
        first = columns()
        limits = [
            GpuLimits(product.min_limit_w, product.max_limit_w, product.settle_s)
            for pool in fleet.pools
            for product in (fleet.product_of(pool),)
            for _ in range(pool.gpus)
        ]
        self._ledger = Ledger(limits, budget.total_w, budget.guard_w)
        self.nodes = self._new_nodes(first)
        self.clock_sent = list(first.clock)
        self.granted_w = list(first.enforced_w)
        self._orders: list[Order] = []
        self._writes: list[tuple[int, float, float]] = []
        self._unconfirmed: dict[int, int] = {}
        self._last_move = [0] * len(first.pool)
        self.cap_writes = 0
        self.cap_reversals = 0

    def _new_nodes(self, columns: GpuColumns) -> list[Node]:
        members: list[list[int]] = [[] for _ in range(max(columns.node) + 1)]
        for gpu, node in enumerate(columns.node):
            members[node].append(gpu)
        return [
            Node(
                gpus,
                write=self._write,
                read=self._read,
                on_repair=lambda gpu: self._meter.mended(self._plant.now_s, gpu),
                epoch=self._ledger.epoch,
                initial_w=[columns.enforced_w[gpu] for gpu in gpus],
                initial_clock=[columns.clock[gpu] for gpu in gpus],
            )
            for gpus in members
        ]

    def _read(self, gpu: int) -> float | None:
        columns = self._columns()
        return None if columns.phase[gpu] is Phase.LOST else columns.enforced_w[gpu]

    def _write(self, gpu: int, watts: float, clock: float) -> float:
        self.cap_writes += 1
        enforced_w = self._plant.write_limit(gpu, watts, clock)
        self._columns().enforced_w[gpu] = enforced_w
        return enforced_w

    def booked_w(self) -> tuple[float, ...]:
        """Booking of every GPU; without the ledger what is enforced is all that is known."""
        if self._uses_ledger:
            return self._ledger.booked_column_w()
        return tuple(self._columns().enforced_w)

    def set_budget(self, budget: Budget, now_s: float) -> None:
        """Take a new budget."""
        self._ledger.set_budget(budget.total_w, budget.guard_w, now_s)

    def collect_reports(self, now_s: float) -> None:
        """Let every node read back, report and repair."""
        if not self._uses_ledger:
            return
        for node in self.nodes:
            for report in node.report_and_repair(now_s):
                self._ledger.on_report(report, now_s)
        self._ledger.advance(now_s)

    def act(self, caps: CapSteps, now_s: float, tick: int) -> None:
        """Turn cap steps into what is to be delivered."""
        # Lowers first, so that what they free is never waited for within one decision.
        for gpu, cap_w, clock in sorted(
            zip(caps.gpu, caps.cap_w, caps.clock, strict=True),
            key=lambda step: step[1] > self.granted_w[step[0]],
        ):
            if self._uses_ledger:
                answer = self._ledger.grant(gpu, cap_w, now_s)
                if not isinstance(answer, Grant):
                    continue
                self._orders.append(Order(answer, clock))
                self._unconfirmed[gpu] = tick
            else:
                self._writes.append((gpu, cap_w, clock))
            self._note_move(gpu, cap_w)
            self.clock_sent[gpu] = clock

    def _note_move(self, gpu: int, cap_w: float) -> None:
        """Count a change of direction of a GPU's cap."""
        before_w = self.granted_w[gpu]
        move = (cap_w > before_w) - (cap_w < before_w)
        if move and self._last_move[gpu] == -move:
            self.cap_reversals += 1
        self._last_move[gpu] = move or self._last_move[gpu]
        self.granted_w[gpu] = cap_w

    def resend(self, tick: int) -> None:
        """Send again what no report has confirmed for a while."""
        for gpu, sent_tick in list(self._unconfirmed.items()):
            if self._ledger.acted_on_newest(gpu):
                del self._unconfirmed[gpu]
            elif tick - sent_tick >= RESEND_TICKS:
                grant = self._ledger.newest_grant(gpu)
                assert grant is not None
                self._unconfirmed[gpu] = tick
                self._orders.append(Order(grant, self.clock_sent[gpu]))

    def deliver(self) -> None:
        """Hand over what was sent a moment ago."""
        columns, now_s = self._columns(), self._plant.now_s
        for order in self._orders:
            self.nodes[columns.node[order.grant.gpu]].deliver(order, now_s)
        self._orders.clear()
        for gpu, watts, clock in self._writes:
            if columns.phase[gpu] is not Phase.LOST:
                self._write(gpu, watts, clock)
                self._meter.mended(now_s, gpu)
        self._writes.clear()
