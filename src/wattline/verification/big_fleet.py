"""A big fleet under random faults: too many states to explore, so invariants along one history.

Pure: `below(n)` gives the next random number under n, time is counted in here. One exchange is with
one node, whatever the size of the fleet: its messages arrive, or some of them, in any order and
perhaps twice; it obeys, writes, reads back and reports; its reports arrive likewise; the
coordinator grants towards a new plan of that node. Before it, one of the faults may strike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wattline.core.errors import SafetyError
from wattline.grants.book import GpuLimits
from wattline.grants.coordinator import Coordinator
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Grant, Message, Report
from wattline.grants.node import Node
from wattline.grants.node_state import Found, Journalled
from wattline.grants.records import Compacted, Opened, Record, next_epoch, read_log

MIN_W, MAX_W, SETTLE_S = 100.0, 300.0, 2.0
GUARD_W = 500.0
GPUS_PER_NODE = 8
STEP_S = 0.5
"""Time from one exchange of a node to the next: a node reports twice a second."""
Below = Callable[[int], int]


@dataclass(slots=True)
class Level:
    """A limit that the draw may follow until `until_s`; see `Register`."""

    until_s: float
    watts: float
    ours: bool
    told: bool


@dataclass(slots=True)
class Register:
    """One GPU's limit, and the levels that its draw may still follow.

    ours: an agent wrote it; told: if not, the coordinator in charge has been told of it.
    """

    watts: float = MAX_W
    ours: bool = True
    told: bool = True
    lag: list[Level] = field(default_factory=list)

    def write(self, watts: float, ours: bool, now_s: float) -> None:
        """Take a limit from the agent (`ours`) or from somebody else."""
        if watts < self.watts:
            self.lag.append(Level(now_s + SETTLE_S, self.watts, self.ours, self.told))
        self.watts, self.ours, self.told = watts, ours, ours

    def forget(self) -> None:
        """Another coordinator is in charge, whom nobody has told."""
        self.told = self.ours
        self.lag = [replace(level, told=level.ours) for level in self.lag]

    def booked_for_w(self, now_s: float) -> float:
        """The most that must be booked: what we wrote, or what was reported."""
        self.lag = [level for level in self.lag if level.until_s > now_s]
        levels = [level.watts for level in self.lag if level.ours or level.told]
        return max([self.watts if self.ours or self.told else 0.0, *levels])


@dataclass(slots=True)
class Place:
    """One node: its agent (None: dead), its disk, its GPUs, and the network around it."""

    gpus: tuple[int, ...]
    registers: dict[int, Register]
    node: Node[int] | None = None
    journal: Journalled[int] | None = None
    incarnation: int = 0
    inbox: list[Message[int]] = field(default_factory=list)
    outbox: list[tuple[Report[int], bool]] = field(default_factory=list)


@dataclass(slots=True)
class Counts:
    """What happened so far."""

    exchanges: int = 0
    grants: int = 0
    reports: int = 0
    lost: int = 0
    repeated: int = 0
    crashes: int = 0
    reboots: int = 0
    rival_writes: int = 0
    brakes: int = 0
    coordinator_restarts: int = 0


class BigFleet:
    """A fleet of `gpus` GPUs; `below` is its only source of chance. Faults: one in `rarity`."""

    def __init__(self, gpus: int, below: Below, rarity: int = 50) -> None:
        self._below = below
        self._rarity = rarity
        self.now_s = 0.0
        self.counts = Counts()
        numbers = range(gpus)
        self._limits = dict.fromkeys(numbers, GpuLimits(MIN_W, MAX_W, SETTLE_S))
        self.budget_w = gpus * (MIN_W + MAX_W) / 2 + GUARD_W
        self.places = [
            Place(tuple(each), {gpu: Register() for gpu in each})
            for each in (numbers[at : at + GPUS_PER_NODE] for at in range(0, gpus, GPUS_PER_NODE))
        ]
        self._log: list[Record[int]] = []
        self.coordinator = self._started()

    # Exchanges

    def exchange(self) -> None:
        """One exchange with a random node; SafetyError if an invariant breaks."""
        self.counts.exchanges += 1
        self.now_s += STEP_S / len(self.places)
        place = self.places[self._below(len(self.places))]
        self._strike(place)
        if place.node is None:
            self._start(place)
        elif self._below(10):  # one time in ten it hears nothing
            self._hear(place, place.node)
        if place.node is not None:
            self._act(place, place.node)
        self._report(place)
        self._pursue(place)
        for gpu in place.gpus:
            self._inspect(gpu, place.registers[gpu])

    def _carry(self, count: int) -> list[int]:
        """Which of `count` messages arrive now: some, in any order, some twice."""
        arriving = [at for at in range(count) if self._below(10)]
        self.counts.lost += count - len(arriving)
        for _ in range(len(arriving) // 4):
            arriving.append(arriving[self._below(len(arriving))])
            self.counts.repeated += 1
        for at in range(len(arriving) - 1, 0, -1):
            other = self._below(at + 1)
            arriving[at], arriving[other] = arriving[other], arriving[at]
        return arriving

    def _hear(self, place: Place, node: Node[int]) -> None:
        for at in self._carry(len(place.inbox)):
            message = place.inbox[at]
            if isinstance(message, Grant):
                node.on_grant(message, self.now_s)
            else:
                node.on_adopt(message)
        place.inbox = [message for message in place.inbox if not self._below(3)]

    def _act(self, place: Place, node: Node[int]) -> None:
        for gpu in place.gpus:
            watts = node.write_due(gpu, self.now_s)
            if watts is None:
                node.on_enforced(gpu, place.registers[gpu].watts, self.now_s)
                continue
            place.journal = node.journal_state()
            node.begin_write(gpu, watts, self.now_s)
            if not self._below(self._rarity * GPUS_PER_NODE):  # killed between journal and write
                self._kill(place)
                return
            place.registers[gpu].write(watts, True, self.now_s)
            node.end_write(gpu, watts, self.now_s)

    def _report(self, place: Place) -> None:
        if place.node is not None:
            place.outbox += [
                (place.node.report(gpu, self.now_s), not place.registers[gpu].told)
                for gpu in place.gpus
            ]
        for at in self._carry(len(place.outbox)):
            report, tells = place.outbox[at]
            self.counts.reports += 1
            if self.coordinator.on_report(report, self.now_s) and tells:
                place.registers[report.gpu].told = True
        place.outbox = [entry for entry in place.outbox if not self._below(4)]

    def _pursue(self, place: Place) -> None:
        """A new plan for one node whose watts have the sum that every plan of it has."""
        if not self._below(4):
            plan = {}
            for first, second in zip(place.gpus[::2], place.gpus[1::2], strict=True):
                watts = MIN_W + self._below(201)
                plan[first], plan[second] = watts, MIN_W + MAX_W - watts
            before_w = self.coordinator.ledger.total_booked_w
            self.coordinator.pursue(plan, self.now_s)
            total_w = self.coordinator.ledger.total_booked_w
            if before_w < total_w > self.coordinator.ledger.usable_w:
                raise SafetyError(f"grants raised the bookings to {total_w} W")
        self.coordinator.due(self.now_s)
        step = self.coordinator.take()
        self._log += step.records
        self.counts.grants += len(step.messages)
        for message in step.messages:
            self.places[message.gpu // GPUS_PER_NODE].inbox.append(message)

    # Faults

    def _strike(self, place: Place) -> None:
        if self._below(self._rarity):
            return
        fault = self._below(4)
        if fault == 0 and place.node is not None:
            self._kill(place)
        elif fault == 1:
            self.counts.reboots += 1
            if place.node is not None:
                self._kill(place)
            for gpu in place.gpus:
                self._overwrite(place, gpu, MAX_W)
        elif fault == 2:
            self.counts.rival_writes += 1
            gpu = place.gpus[self._below(len(place.gpus))]
            self._overwrite(place, gpu, MIN_W + self._below(201))
        elif place.node is not None:
            self.counts.brakes += 1
            place.node.brake()

    def _overwrite(self, place: Place, gpu: int, watts: float) -> None:
        place.registers[gpu].write(watts, False, self.now_s)
        place.outbox = [(report, tells and report.gpu != gpu) for report, tells in place.outbox]

    def _kill(self, place: Place) -> None:
        self.counts.crashes += 1
        place.incarnation = place.node.incarnation if place.node else place.incarnation
        place.node = None

    def _start(self, place: Place) -> None:
        found = {gpu: Found(place.registers[gpu].watts, MIN_W, MAX_W) for gpu in place.gpus}
        place.node = Node(
            found,
            incarnation=place.incarnation + 1,
            journal=place.journal,
            now_s=self.now_s,
        )

    def restart_coordinator(self) -> None:
        """The coordinator dies; another starts with the log. O(GPUs)."""
        self.counts.coordinator_restarts += 1
        self.coordinator = self._started()
        for place in self.places:
            for register in place.registers.values():
                register.forget()

    def _started(self) -> Coordinator[int]:
        epoch = next_epoch(read_log(self._log).epoch)
        self._log.append(Opened(epoch))
        known = read_log(self._log)
        self._log = [Opened(epoch), Compacted(epoch, tuple(known.booked_mw.items()))]
        ledger = Ledger(
            self._limits, self.budget_w, GUARD_W, epoch=epoch, booked_mw=known.booked_mw
        )
        coordinator = Coordinator(ledger)
        ledger.advance(self.now_s)
        return coordinator

    # Invariants

    def _inspect(self, gpu: int, register: Register) -> None:
        drawn_w = register.booked_for_w(self.now_s)
        booked_w = self.coordinator.ledger.booked_w(gpu)
        if drawn_w > booked_w:
            raise SafetyError(f"GPU {gpu} may draw {drawn_w} W, booked are {booked_w} W")

    def check(self) -> None:
        """Every GPU and every sum from scratch. O(GPUs)."""
        self.coordinator.ledger.check()
        for place in self.places:
            for gpu, register in place.registers.items():
                self._inspect(gpu, register)
