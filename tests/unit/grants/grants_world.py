"""A fleet of nodes and coordinators around a log, over a network that forgets nothing.

Every message ever sent stays at hand and may be delivered at any time, again and again, or never:
loss, repetition, delay and reordering are choices of whoever drives the world. Registers obey
writes at once, draws follow within the settle time. Limits that others raise are told apart from
those that Wattline's own nodes wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wattline.grants.answers import Terms
from wattline.grants.book import GpuLimits
from wattline.grants.coordinator import Coordinator
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Adopt, Grant, Message, Report
from wattline.grants.node import Node
from wattline.grants.node_state import Found, Journalled, Outcome
from wattline.grants.records import Opened, Record, may_append, next_epoch, read_log

SETTLE_S = 2.0
MIN_W, MAX_W, START_W = 200.0, 700.0, 400.0
Gpu = tuple[int, int]
"""Node and place in it."""


@dataclass
class Register:
    """One GPU's limit, what of it our nodes did, and the limits that its draw may still follow."""

    enforced_w: float = START_W
    ours_w: float = START_W
    past: list[tuple[float, float]] = field(default_factory=list)

    def set(self, limit_w: float, now_s: float) -> None:
        self.past.append((now_s, self.enforced_w))
        self.enforced_w = limit_w
        self.ours_w = min(self.ours_w, limit_w)

    def most_draw_w(self, now_s: float) -> float:
        return max([self.enforced_w, *(w for until, w in self.past if until > now_s - SETTLE_S)])


@dataclass
class Site:
    """One node: its registers, its running agent (None: dead) and its disk (None: empty)."""

    name: int
    registers: dict[Gpu, Register]
    node: Node[Gpu] | None = None
    disk: Journalled[Gpu] | None = None
    under_way: dict[Gpu, float] = field(default_factory=dict)
    starts: int = 0
    from_before_a_brake: frozenset[int] = frozenset()

    def found(self) -> dict[Gpu, Found]:
        return {
            gpu: Found(register.enforced_w, MIN_W, MAX_W)
            for gpu, register in self.registers.items()
        }

    def start(self, now_s: float) -> None:
        self.starts += 1
        for register in self.registers.values():
            if register.enforced_w == 0.0:  # it was powered off
                register.set(MAX_W, now_s)
        self.node = Node(
            self.found(), incarnation=1000 * self.starts, journal=self.disk, now_s=now_s
        )

    def crash(self, *, loses_disk: bool = False) -> None:
        """The agent dies, and with it what it had not written yet: it held the node's lock."""
        self.node = None
        self.under_way.clear()
        self.from_before_a_brake = frozenset()
        if loses_disk:
            self.disk = None


class World:
    """Everything there is. `coordinators`: each with whether it is running; the newest is last."""

    def __init__(
        self,
        nodes: int = 2,
        gpus_per_node: int = 2,
        *,
        budget_w: float = 1800.0,
        guard_w: float = 0.0,
        terms: Terms | None = None,
        coordinator_type: type[Coordinator[Gpu]] = Coordinator,
        ledger_type: type[Ledger[Gpu]] = Ledger,
    ) -> None:
        self.now_s = 0.0
        self.budget_w, self.guard_w = budget_w, guard_w
        self.terms = terms or Terms()
        self._coordinator_type, self._ledger_type = coordinator_type, ledger_type
        self.limits = {
            (node, place): GpuLimits(MIN_W, MAX_W, SETTLE_S, node=str(node))
            for node in range(nodes)
            for place in range(gpus_per_node)
        }
        self.sites = [
            Site(node, {gpu: Register() for gpu in self.limits if gpu[0] == node})
            for node in range(nodes)
        ]
        self.log: list[Record[Gpu]] = []
        self.log_epoch = 0
        self.epochs = 0
        self.to_nodes: list[Message[Gpu]] = []
        self.reports: list[Report[Gpu]] = []
        self.coordinators: list[Coordinator[Gpu]] = []
        self.told_w: dict[Gpu, float] = {}
        for site in self.sites:
            site.start(-60.0)

    @property
    def registers(self) -> dict[Gpu, Register]:
        return {gpu: each for site in self.sites for gpu, each in site.registers.items()}

    @property
    def newest(self) -> Coordinator[Gpu]:
        return self.coordinators[-1]

    # Coordinators

    def open_coordinator(self, *, with_log: bool = True, alone: bool = True) -> Coordinator[Gpu]:
        """A start or a take-over; `alone`: the older ones are dead, else they go on unaware."""
        if not with_log:
            self.log.clear()
        epoch = next_epoch(max(self.log_epoch, self.epochs))
        self.epochs = epoch
        self.append(Opened(epoch))
        log = read_log(self.log)
        ledger = self._ledger_type(
            self.limits,
            self.budget_w,
            self.guard_w,
            epoch=log.epoch,
            booked_mw=log.booked_mw if with_log else None,
        )
        ledger.advance(self.now_s)
        self.told_w.clear()
        if alone or not with_log:
            self.coordinators.clear()
        self.coordinators.append(self._coordinator_type(ledger, terms=self.terms))
        return self.newest

    def append(self, record: Record[Gpu]) -> bool:
        if not may_append(self.log_epoch, record):
            return False
        self.log_epoch = record.epoch
        self.log.append(record)
        return True

    def flush(self, coordinator: Coordinator[Gpu], *, dies_after_log: bool = False) -> None:
        """Log what a step asks for, then send it; a step that cannot be logged is not sent."""
        step = coordinator.take()
        if not all(self.append(record) for record in step.records):
            coordinator.fence(self.log_epoch)
            return
        if not dies_after_log:
            self.to_nodes += step.messages

    def compact(self) -> None:
        if self.newest.fenced_by is None:
            self.flush(self.newest)
            self.log[:] = [self.newest.compacted()]

    # Nodes

    def deliver(self, message: Message[Gpu]) -> Outcome | None:
        site = self.sites[message.gpu[0]]
        if site.node is None:
            return None
        if isinstance(message, Adopt):
            return site.node.on_adopt(message)
        before_w = site.node.held_w(message.gpu)
        outcome = site.node.on_grant(message, self.now_s)
        if id(message) in site.from_before_a_brake:
            assert site.node.held_w(message.gpu) <= before_w, "raised by a grant that a brake ended"
        return outcome

    def brake(self, site: Site) -> None:
        """Whatever was sent before this is dead for the node."""
        if site.node is not None:
            site.node.brake()
            site.from_before_a_brake = frozenset(id(message) for message in self.to_nodes)

    def begin_write(self, site: Site, gpu: Gpu) -> bool:
        """Journal and begin a write that is due; the device obeys it some time later."""
        if site.node is None or gpu in site.under_way:
            return False
        watts = site.node.write_due(gpu, self.now_s)
        if watts is None:
            return False
        site.disk = site.node.journal_state()
        site.node.begin_write(gpu, watts, self.now_s)
        site.under_way[gpu] = watts
        return True

    def land_write(self, site: Site, gpu: Gpu, *, dies: bool = False) -> None:
        """The device obeys the write under way, and the agent reads back, unless it dies first."""
        if site.node is None or gpu not in site.under_way:
            return
        register = site.registers[gpu]
        limit_w = site.under_way.pop(gpu)
        raised = limit_w > register.enforced_w
        # Of a limit that others raised, what is left after a lowering is still their doing.
        register.ours_w = limit_w if raised else min(register.ours_w, limit_w)
        register.set(limit_w, self.now_s)
        if dies:
            site.crash()
        else:
            site.node.end_write(gpu, register.enforced_w, self.now_s)

    def write(self, site: Site, gpu: Gpu) -> None:
        """Do a write that is due."""
        self.begin_write(site, gpu)
        self.land_write(site, gpu)

    def read(self, site: Site, gpu: Gpu) -> None:
        if site.node is not None:
            site.node.on_enforced(gpu, site.registers[gpu].enforced_w, self.now_s)

    def report(self, site: Site, gpu: Gpu) -> Report[Gpu] | None:
        if site.node is None:
            return None
        self.read(site, gpu)
        report = site.node.report(gpu, self.now_s)
        self.reports.append(report)
        return report

    def tell(self, site: Site, gpu: Gpu) -> None:
        """Report, and let the newest coordinator hear it at once."""
        report = self.report(site, gpu)
        if report is not None and self.newest.on_report(report, self.now_s):
            self.told_w[gpu] = report.enforced_w
            self.flush(self.newest)

    # Everything at once, without faults

    def exchange(self, plan: dict[Gpu, float], *, wait_s: float = 1.0) -> None:
        """One report of every GPU, the coordinator's answer, and every write that it asks for."""
        coordinator = self.newest
        for site in self.sites:
            for gpu in site.registers:
                report = self.report(site, gpu)
                if report is not None:
                    coordinator.on_report(report, self.now_s)
        coordinator.due(self.now_s)
        coordinator.pursue(plan, self.now_s)
        sent = len(self.to_nodes)
        self.flush(coordinator)
        for message in self.to_nodes[sent:]:
            self.deliver(message)
        for site in self.sites:
            if site.node is not None:
                site.node.tick(self.now_s)
            for gpu in site.registers:
                self.write(site, gpu)
        self.now_s += wait_s
        coordinator.ledger.advance(self.now_s)

    # What must hold

    def check_sums(self) -> None:
        for coordinator in self.coordinators:
            coordinator.ledger.check()

    def check_ours_within(self, usable_w: float) -> None:
        """What our nodes wrote never adds up to more than may be booked."""
        ours_w = sum(register.ours_w for register in self.registers.values())
        assert ours_w <= usable_w + 1e-9, f"our limits add up to {ours_w} W of {usable_w} W"

    def check_what_was_told_is_booked(self) -> None:
        """A limit that the coordinator has heard of stays booked for as long as it stands."""
        for gpu, told_w in list(self.told_w.items()):
            if self.registers[gpu].enforced_w != told_w:
                del self.told_w[gpu]
            else:
                booked_w = self.newest.ledger.booked_w(gpu)
                assert booked_w >= told_w, f"{gpu} is known at {told_w} W, booked {booked_w} W"

    def check_bookings_cover(self) -> None:
        """In peace: no GPU may draw, nor its node write, more than what is booked for it."""
        ledger = self.newest.ledger
        for site in self.sites:
            for gpu, register in site.registers.items():
                booked_w = ledger.booked_w(gpu)
                assert booked_w >= register.most_draw_w(self.now_s), f"{gpu} may draw more"
                if site.node is not None:
                    held_w = site.node.state(gpu).reported_held_mw / 1000
                    assert booked_w >= held_w, f"{gpu} is held at {held_w} W, booked {booked_w} W"


def grants_of(world: World) -> list[Grant[Gpu]]:
    return [message for message in world.to_nodes if isinstance(message, Grant)]
