"""From decided steps to written limits: the ledger, the nodes, and what is on its way to them."""

from __future__ import annotations

from collections.abc import Callable

from wattline.core.decision import CapSteps
from wattline.core.fleet import Fleet
from wattline.core.snapshot import Budget, Phase
from wattline.grants.book import GpuLimits
from wattline.grants.coordinator import Coordinator
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Adopt, Grant
from wattline.grants.node_state import Found
from wattline.sim.exposure import ExposureMeter
from wattline.sim.node import Node, Order
from wattline.sim.plant.plant import GpuColumns, Plant


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
        ledger = Ledger(dict(enumerate(limits)), budget.total_w, budget.guard_w)
        self._coordinator = Coordinator(ledger)
        self.nodes = self._new_nodes(first, limits)
        self._orders: list[Order] = []
        self._adopts: list[Adopt[int]] = []
        self._writes: list[tuple[int, float, float]] = []
        # The fleet has been known to its coordinator for long when the run starts.
        for _ in range(2):
            self.collect_reports(0.0)
            self._send()
            self.deliver()
        self.clock_sent = list(first.clock)
        self.granted_w = list(first.enforced_w)
        self._last_move = [0] * len(first.pool)
        self.cap_writes = 0
        self.cap_reversals = 0

    def _new_nodes(self, columns: GpuColumns, limits: list[GpuLimits]) -> list[Node]:
        members: list[list[int]] = [[] for _ in range(max(columns.node) + 1)]
        for gpu, node in enumerate(columns.node):
            members[node].append(gpu)
        return [
            Node(
                {
                    gpu: Found(columns.enforced_w[gpu], limits[gpu].min_w, limits[gpu].max_w)
                    for gpu in gpus
                },
                write=self._write,
                read=self._read,
                on_repair=lambda gpu: self._meter.mended(self._plant.now_s, gpu),
                initial_clock={gpu: columns.clock[gpu] for gpu in gpus},
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
            return self._coordinator.ledger.booked_column_w()
        return tuple(self._columns().enforced_w)

    def set_budget(self, budget: Budget, now_s: float) -> None:
        """Take a new budget."""
        self._coordinator.set_budget(budget.total_w, budget.guard_w, now_s)

    def collect_reports(self, now_s: float) -> None:
        """Let every node read back, report and repair."""
        if not self._uses_ledger:
            return
        for node in self.nodes:
            for report in node.report_and_repair(now_s):
                self._coordinator.on_report(report, now_s)
        self._coordinator.ledger.advance(now_s)

    def act(self, caps: CapSteps, now_s: float) -> None:
        """Turn cap steps into what is to be delivered."""
        # Lowers first, so that what they free is never waited for within one decision.
        for gpu, cap_w, clock in sorted(
            zip(caps.gpu, caps.cap_w, caps.clock, strict=True),
            key=lambda step: step[1] > self.granted_w[step[0]],
        ):
            if self._uses_ledger:
                if not isinstance(self._coordinator.grant(gpu, cap_w, now_s), Grant):
                    continue
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

    def send(self, now_s: float) -> None:
        """Put on the way what was granted, and again what no report has answered for a while."""
        self._coordinator.due(now_s)
        self._send()

    def _send(self) -> None:
        for message in self._coordinator.take().messages:
            if isinstance(message, Grant):
                self._orders.append(Order(message, self.clock_sent[message.gpu]))
            else:
                self._adopts.append(message)

    def deliver(self) -> None:
        """Hand over what was sent a moment ago."""
        columns, now_s = self._columns(), self._plant.now_s
        for adopt in self._adopts:
            self.nodes[columns.node[adopt.gpu]].adopt(adopt)
        self._adopts.clear()
        for order in self._orders:
            self.nodes[columns.node[order.grant.gpu]].deliver(order, now_s)
        self._orders.clear()
        for gpu, watts, clock in self._writes:
            if columns.phase[gpu] is not Phase.LOST:
                self._write(gpu, watts, clock)
                self._meter.mended(now_s, gpu)
        self._writes.clear()
