"""The explored fleet: coordinators, logs, nodes, the network, and every event that may come next.

The network loses, repeats and reorders at will: a message under way may be delivered at any time
and any number of times, or never. What happens in one place does not depend on the rest, so each
event is worked out once for each state of its place (`sites`, `desks`).

What must hold in every state, and what every step must respect, is named I1 to I5 in
docs/concepts/exploration.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from wattline.grants.records import next_epoch
from wattline.verification.bounds import CUT_BUDGET, GUARD_W, Bounds, Fault
from wattline.verification.desks import Desks, DeskStep
from wattline.verification.fleet import NOBODY, SHARED, Fleet, at
from wattline.verification.machines import GpuKey
from wattline.verification.naming import Namer
from wattline.verification.site import DEAD, report_words, watts_word
from wattline.verification.sites import Sites

RAISING = frozenset(
    {
        Fault.NODE_REBOOT,
        Fault.DRIVER_RELOAD,
        Fault.GPU_REPLACED,
        Fault.RIVAL_WRITE,
        Fault.CLAMPED_DOWN,  # its end gives back what was asked for before it
        Fault.CLAMPED_UP,
    }
)
"""Faults by which an outsider may raise a limit."""
COORDINATOR_STARTS = (
    Fault.COORDINATOR_CRASH,
    Fault.COORDINATOR_CRASH_LOG_LOST,
    Fault.HANDOVER,
    Fault.HANDOVER_NO_LOG,
)


Steps = Iterator[tuple[str, Fleet, str | None]]


class World:
    """A fleet within `bounds` as a model to search; machines come from `sites` and `desks`.

    `start` makes the first state of a search from a cold fleet; `also` is one more look at each
    state.
    """

    def __init__(
        self,
        bounds: Bounds,
        sites: Sites | None = None,
        desks: Desks | None = None,
        *,
        keep_dead: bool = False,
    ) -> None:
        self.bounds = bounds
        self.sites = sites or Sites(bounds, keep_dead=keep_dead)
        self.desks = desks or Desks(bounds)
        self._keep_dead = keep_dead
        self.start: Callable[[Fleet], Fleet] = _itself
        self.also: Callable[[Fleet], str | None] = _nothing
        self._first: Fleet | None = None
        self._faults = tuple(bounds.faults)
        self._namer = Namer(bounds, self.sites, self.desks)
        self._desk_steps: dict[tuple[int, int, int], tuple[tuple[str, DeskStep], ...]] = {}

    # The first state

    def cold(self) -> Fleet:
        """A fleet of which nobody has heard: GPUs at their default limits, an empty log."""
        sites = tuple([self.sites.first() for _ in range(self.bounds.nodes)])
        fleet = Fleet(
            first=DEAD,
            second=NOBODY,
            first_log=self.desks.empty_log(),
            second_log=SHARED,
            plan=0,
            replans=self.bounds.replans,
            cut=False,
            top_epoch=0,
            used=tuple([0 for _ in self._faults]),
            sites=sites,
        )
        return self.restarted(fleet)

    def initial(self) -> Fleet:
        """What `start` makes of a cold fleet."""
        if self._first is None:
            self._first = self.start(self.cold())
        return self._first

    # What holds in a state

    def flaw(self, fleet: Fleet) -> str | None:
        """I2 and I5: what a GPU may draw is booked; without outsiders the sum is in the budget."""
        desk = fleet.first if fleet.second == NOBODY else fleet.second
        booked = self.desks.booked_w(desk) if desk >= 0 else {}
        drawn_w = 0.0
        for node, number in enumerate(fleet.sites):
            for gpu in self.sites.get(number).hardware:
                drawn_w += gpu.most_draw_w
                mine_w = booked.get(GpuKey(node, gpu.gpu))
                if mine_w is not None and gpu.booked_for_w > mine_w:
                    return (
                        f"I2: n{node} g{gpu.gpu} may draw {watts_word(gpu.booked_for_w)}, "
                        f"booked are {watts_word(mine_w)}"
                    )
        if drawn_w + GUARD_W > self.bounds.budget_w and not self._raised(fleet):
            return (
                f"I5: {watts_word(drawn_w)} may be drawn of {watts_word(self.bounds.budget_w)} "
                f"less {watts_word(GUARD_W)}, and no outsider raised anything"
            )
        return self.also(fleet)

    def _raised(self, fleet: Fleet) -> bool:
        return any(
            times and fault in RAISING
            for fault, times in zip(self._faults, fleet.used, strict=True)
        )

    # What may happen next

    def steps(self, fleet: Fleet) -> Steps:
        """Every possible next event."""
        yield from self._node_steps(fleet)
        for second in (False, True):
            if (fleet.second if second else fleet.first) >= 0:
                yield from self._coordinator_steps(fleet, second)
        yield from self._starts(fleet)
        yield from self._common_steps(fleet)

    def may(self, fleet: Fleet, fault: Fault) -> bool:
        """True while the bounds allow another `fault`."""
        times = self.bounds.faults.get(fault, 0)
        if not times or sum(fleet.used) >= self.bounds.most_faults:
            return False
        return fleet.used[self._faults.index(fault)] < times

    def _used(self, fleet: Fleet, fault: Fault) -> Fleet:
        at = self._faults.index(fault)
        used = (*fleet.used[:at], fleet.used[at] + 1, *fleet.used[at + 1 :])
        return fleet._replace(used=used)

    def _node_steps(self, fleet: Fleet) -> Steps:
        for node, number in enumerate(fleet.sites):
            for step in self.sites.steps(number):
                after = fleet
                if step.fault is not None:
                    if not self.may(fleet, step.fault):
                        continue
                    after = self._used(fleet, step.fault)
                yield f"n{node} {step.event}", at(after, node, step.site), step.broken
            if fleet.cut:
                seen = self.sites.see_cut(number, CUT_BUDGET)
                if seen != number:
                    yield f"n{node} sees the cut and brakes", at(fleet, node, seen), None

    def _coordinator_steps(self, fleet: Fleet, second: bool) -> Steps:
        desk, log = self._desk(fleet, second)
        name = f"c{self.desks.machine(desk).epoch}"
        for event, step in self._own_steps(fleet, desk, log):
            for after in self.outcomes(fleet, second, step):
                if after != fleet:
                    yield f"{name} {event}", after, step.broken
        in_charge = second or fleet.second == NOBODY
        for node, number in enumerate(fleet.sites):
            for box in self.sites.get(number).outbox:
                for letter in box:
                    step = self.desks.hear(desk, log, node, letter.report)
                    told = fleet
                    if step.taken and letter.tells and in_charge:
                        told = at(fleet, node, self.sites.told(number, letter))
                    event = f"{name} hears n{node} {report_words(letter.report)}"
                    for after in self.outcomes(told, second, step):
                        if after != fleet:
                            yield event, after, step.broken
        for fault, event in (
            (Fault.COORDINATOR_CRASH, "dies"),
            (Fault.COORDINATOR_CRASH_LOG_LOST, "dies, its log is lost"),
        ):
            if in_charge and self.may(fleet, fault):
                yield f"{name} {event}", self._crashed(fleet, second, fault), None

    def _own_steps(self, fleet: Fleet, desk: int, log: int) -> Iterator[tuple[str, DeskStep]]:
        """What a coordinator may do by itself: grant, send again, hear of a cut, of an operator."""
        key = (desk, log, fleet.plan)
        known = self._desk_steps.get(key)
        if known is None:
            moves = []
            for gpu, booked_w in self.desks.booked_w(desk).items():
                if not booked_w:
                    continue  # attested to be gone: in no plan
                watts = self.target_w(fleet.plan, gpu)
                step = self.desks.grant(desk, log, gpu, watts)
                moves.append((f"grants {_gpu_word(gpu)} {watts_word(watts)}", step))
                moves.append(
                    (f"sends again to {_gpu_word(gpu)}", self.desks.resend(desk, log, gpu))
                )
            known = tuple(
                [(word, step) for word, step in moves if step.orders or step.desk != desk]
            )
            self._desk_steps[key] = known
        yield from known
        if fleet.cut:
            yield "hears of the cut", self.desks.hear_cut(desk, log)
        for node, number in enumerate(fleet.sites):
            for position, each in enumerate(self.sites.get(number).hardware):
                if each.gpu != position:
                    old, new = GpuKey(node, position), GpuKey(node, each.gpu)
                    word = f"is told that {_gpu_word(old)} is gone"
                    yield word, self.desks.attest(desk, log, old)
                    yield f"is told of {_gpu_word(new)}", self.desks.add(desk, log, new)

    def outcomes(self, fleet: Fleet, second: bool, step: DeskStep) -> Iterator[Fleet]:
        """States after a coordinator's step: several where the network has to lose something."""
        after = self._with_desk(fleet, second, step.desk, step.log)
        if not step.orders:
            yield after
            return
        nodes = sorted({node for node, _ in step.orders})
        choices = []
        for node in nodes:
            numbers = [fleet.sites[node]]
            for to, order in step.orders:
                if to == node:
                    numbers = [
                        each for number in numbers for each in self.sites.send(number, order)
                    ]
            choices.append(numbers)
        for chosen in product(*choices):
            done = after
            for node, number in zip(nodes, chosen, strict=True):
                done = at(done, node, number)
            yield done

    def _desk(self, fleet: Fleet, second: bool) -> tuple[int, int]:
        if not second:
            return fleet.first, fleet.first_log
        log = fleet.first_log if fleet.second_log == SHARED else fleet.second_log
        return fleet.second, log

    def _with_desk(self, fleet: Fleet, second: bool, desk: int, log: int) -> Fleet:
        if desk == DEAD and not second and fleet.second != NOBODY:
            desk = NOBODY  # it has been overtaken
        if not second:
            return fleet._replace(first=desk, first_log=log)
        if fleet.second_log == SHARED:
            return fleet._replace(second=desk, first_log=log)
        return fleet._replace(second=desk, second_log=log)

    # Coordinators that end and begin

    def _crashed(self, fleet: Fleet, second: bool, fault: Fault) -> Fleet:
        _, log = self._desk(fleet, second)
        if fault is Fault.COORDINATOR_CRASH_LOG_LOST:
            log = self.desks.empty_log()
        return self._used(self._with_desk(fleet, second, DEAD, log), fault)

    def _starts(self, fleet: Fleet) -> Steps:
        if DEAD in (fleet.first, fleet.second):
            yield "a coordinator starts", self.restarted(fleet), None
        if fleet.second == NOBODY:
            if self.may(fleet, Fault.HANDOVER):
                taken = self._used(fleet, Fault.HANDOVER)._replace(second=DEAD, second_log=SHARED)
                yield "another coordinator takes over, same log", self.restarted(taken), None
            if self.may(fleet, Fault.HANDOVER_NO_LOG):
                empty = self.desks.empty_log()
                taken = self._used(fleet, Fault.HANDOVER_NO_LOG)
                taken = taken._replace(second=DEAD, second_log=empty)
                yield "another coordinator takes over, no log", self.restarted(taken), None

    def restarted(self, fleet: Fleet) -> Fleet:
        """Whoever is to be in charge starts, if dead, and knows only what its log says."""
        if DEAD not in (fleet.first, fleet.second):
            return fleet
        second = fleet.second != NOBODY
        _, log = self._desk(fleet, second)
        known = self.desks.log(log)
        gpus = {gpu for gpu, _ in known.booked_mw}
        for node, number in enumerate(fleet.sites):
            gpus |= {GpuKey(node, gpu.gpu) for gpu in self.sites.get(number).hardware}
        # Without a log, an epoch that was never used, as from a clock: a report need not have shown
        # the newest one.
        epoch = next_epoch(known.epoch, 0 if known.epoch else fleet.top_epoch)
        step = self.desks.start(log, epoch, gpus, fleet.cut)
        if second and fleet.first == DEAD:
            fleet = fleet._replace(first=NOBODY)
        after = self._with_desk(fleet, second, step.desk, step.log)
        sites = tuple([self.sites.forgotten(number) for number in fleet.sites])
        return after._replace(sites=sites, top_epoch=max(fleet.top_epoch, epoch))

    # Time, plans and budgets

    def _common_steps(self, fleet: Fleet) -> Steps:
        after = self.tick(fleet)
        if after != fleet:
            yield "a tick passes", after, None
        if self.may(fleet, Fault.COORDINATOR_CLOCK_FAST):
            ahead = self._used(self._desks_tick(fleet), Fault.COORDINATOR_CLOCK_FAST)
            yield "a tick passes for coordinators only", ahead, None
        if self.may(fleet, Fault.BUDGET_CUT):
            cut = self._used(fleet, Fault.BUDGET_CUT)._replace(cut=True)
            yield f"the budget is cut to {watts_word(self.bounds.cut_w)}", cut, None
        if fleet.replans:
            for plan, targets in enumerate(self.bounds.plans):
                if plan != fleet.plan:
                    word = "/".join([f"{watts:g}" for watts in targets])
                    after = fleet._replace(plan=plan, replans=fleet.replans - 1)
                    yield f"the plan becomes {word} W", after, None

    def tick(self, fleet: Fleet) -> Fleet:
        """Let a tick pass for everybody."""
        sites = tuple([self.sites.tick(number) for number in fleet.sites])
        return self._desks_tick(fleet)._replace(sites=sites)

    def _desks_tick(self, fleet: Fleet) -> Fleet:
        for second in (False, True):
            desk, log = self._desk(fleet, second)
            if desk >= 0:
                step = self.desks.tick(desk, log)
                fleet = self._with_desk(fleet, second, step.desk, step.log)
        return fleet

    def target_w(self, plan: int, gpu: GpuKey) -> float:
        """Watts that a plan has for a GPU, or for the one that took its place."""
        per_node = self.bounds.gpus_per_node
        return self.bounds.plans[plan][gpu.node * per_node + gpu.gpu % per_node]

    def canonical(self, fleet: Fleet) -> Fleet:
        """State that stands for `fleet` and all that differ from it in names only."""
        prune = not self._keep_dead and not self._more_coordinators(fleet)
        return self._namer.canonical(fleet, prune)

    def _more_coordinators(self, fleet: Fleet) -> bool:
        """True when a coordinator may yet start, to whom every report is new."""
        if DEAD in (fleet.first, fleet.second):
            return True
        return any(self.may(fleet, fault) for fault in COORDINATOR_STARTS)

    # For humans

    def describe(self, fleet: Fleet) -> str:
        """Booked, enforced and drawable watts of each GPU, and what is free."""
        desk = fleet.first if fleet.second == NOBODY else fleet.second
        booked = self.desks.booked_w(desk) if desk >= 0 else {}
        words = []
        for node, number in enumerate(fleet.sites):
            for gpu in self.sites.get(number).hardware:
                mine_w = booked.get(GpuKey(node, gpu.gpu))
                booked_word = "-" if mine_w is None else f"{mine_w:g}"
                word = f"n{node}g{gpu.gpu} booked {booked_word} enforced {gpu.enforced_w:g}"
                if gpu.most_draw_w > gpu.enforced_w:
                    word += f" draws to {gpu.most_draw_w:g}"
                words.append(word)
        free = f"{self.desks.machine(desk).ledger.free_w:g}" if desk >= 0 else "-"
        return ", ".join([*words, f"free {free} W"])


def _itself(fleet: Fleet) -> Fleet:
    return fleet


def _nothing(_: Fleet) -> str | None:
    return None


def _gpu_word(gpu: GpuKey) -> str:
    return f"n{gpu.node} g{gpu.gpu}"
