"""Every event at a coordinator of the explored fleet, and the log that outlives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from wattline.core.errors import SafetyError
from wattline.grants.answers import Refusal, Terms
from wattline.grants.book import GpuLimits
from wattline.grants.coordinator import Coordinator
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Adopt, Grant, Message, Report
from wattline.grants.records import Compacted, LogState, Opened, Record, may_append, read_log
from wattline.verification.bounds import (
    CUT_BUDGET,
    FIRST_BUDGET,
    GUARD_W,
    MAX_W,
    MIN_W,
    TICK_S,
    Bounds,
    Fault,
)
from wattline.verification.machines import (
    GpuKey,
    Names,
    Renaming,
    Shelf,
    coordinator_key,
    coordinator_names,
    rename_coordinator,
    swap_nodes,
)
from wattline.verification.site import DEAD, Order


class Log(NamedTuple):
    """What a log proves: its newest epoch and a bound for each GPU, in milliwatts."""

    epoch: int = 0
    booked_mw: tuple[tuple[GpuKey, int], ...] = ()


class Clocked(NamedTuple):
    """A coordinator and what its clock shows."""

    coordinator: Coordinator[GpuKey]
    now_s: float


@dataclass(frozen=True, slots=True)
class DeskStep:
    """What an event leaves: coordinator, log, messages by node; `taken`: a report was news.

    A coordinator that has been fenced is DEAD: it never does anything again.
    """

    desk: int
    log: int
    orders: tuple[tuple[int, Order], ...] = ()
    taken: bool = False
    broken: str | None = None


class Desks:
    """All events at a coordinator of a fleet within `bounds`.

    `new_ledger` and `new_coordinator` build the machines to explore; `fold` reads a log.
    """

    def __init__(
        self,
        bounds: Bounds,
        new_ledger: Callable[..., Ledger[GpuKey]] = Ledger,
        new_coordinator: Callable[..., Coordinator[GpuKey]] = Coordinator,
        fold: Callable[[Iterable[Record[GpuKey]]], LogState[GpuKey]] = read_log,
    ) -> None:
        self._bounds = bounds
        self._new_ledger = new_ledger
        self._new_coordinator = new_coordinator
        self._fold = fold
        self._desks: Shelf[Clocked] = Shelf()
        self._logs: Shelf[Log] = Shelf()
        self._limits = GpuLimits(MIN_W, MAX_W, (bounds.settle_ticks + bounds.margin_ticks) * TICK_S)
        self._terms = Terms(
            lease_s=bounds.lease_ticks * TICK_S if bounds.lease_ticks else float("inf"),
            brake_w=MIN_W,
            expiry_w=bounds.expiry_w,
        )
        self._memo: dict[tuple[Any, ...], DeskStep] = {}
        self._booked: dict[int, dict[GpuKey, float]] = {}

    def machine(self, desk: int) -> Coordinator[GpuKey]:
        """Coordinator under `desk`; not to be changed."""
        return self._desks.get(desk).coordinator

    def log(self, number: int) -> Log:
        """Log under `number`."""
        return self._logs.get(number)

    def empty_log(self) -> int:
        """Number of the log that says nothing."""
        return self._logs.put(Log(), Log())

    def booked_w(self, desk: int) -> dict[GpuKey, float]:
        """Booking of every GPU that a coordinator knows."""
        booked = self._booked.get(desk)
        if booked is None:
            ledger = self.machine(desk).ledger
            booked = {gpu: ledger.booked_w(gpu) for gpu in ledger.gpus}
            self._booked[desk] = booked
        return booked

    # A start

    def start(self, log: int, epoch: int, gpus: Iterable[GpuKey], cut: bool) -> DeskStep:
        """Open `epoch` in a log and build a coordinator with what the log says."""
        state = self._append(self.log(log), [Opened(epoch)])
        if state is None:
            raise SafetyError(f"epoch {epoch} cannot be opened: the log is at {self.log(log)}")
        ledger = self._new_ledger(
            dict.fromkeys(sorted(gpus), self._limits),
            self._bounds.cut_w if cut else self._bounds.budget_w,
            GUARD_W,
            epoch=epoch,
            booked_mw=dict(state.booked_mw),
        )
        versioned = Fault.BUDGET_CUT in self._bounds.faults
        version = (CUT_BUDGET if cut else FIRST_BUDGET) if versioned else None
        coordinator = self._new_coordinator(ledger, terms=self._terms, budget_version=version)
        return DeskStep(self._put(Clocked(coordinator, 0.0)), self._logs.put(state, state))

    def _put(self, clocked: Clocked) -> int:
        return self._desks.put(coordinator_key(clocked.coordinator), clocked)

    def _append(self, log: Log, records: Iterable[Record[GpuKey]]) -> Log | None:
        """The log with `records`; None when a newer epoch refuses one of them."""
        kept: list[Record[GpuKey]] = []
        if log.epoch:
            kept += [Opened(log.epoch), Compacted(log.epoch, log.booked_mw)]
        epoch = log.epoch
        for record in records:
            if not may_append(epoch, record):
                return None
            epoch = record.epoch
            kept.append(record)
        state = self._fold(kept)
        return Log(state.epoch, tuple(sorted(state.booked_mw.items())))

    # Events

    def grant(self, desk: int, log: int, gpu: GpuKey, watts: float) -> DeskStep:
        """Grant `watts` to `gpu`, unless that is granted already or may not be."""
        return self._do((desk, log, "grant", gpu, watts), _granting(gpu, watts))

    def resend(self, desk: int, log: int, gpu: GpuKey) -> DeskStep:
        """Send the newest message of `gpu` once more."""

        def act(clocked: Clocked) -> bool:
            coordinator = clocked.coordinator
            if coordinator.fenced_by is None and gpu in coordinator.ledger.gpus:
                message = coordinator._newest_message(gpu)
                if message is not None:
                    coordinator._messages.append(message)
            return False

        return self._do((desk, log, "resend", gpu), act)

    def hear(self, desk: int, log: int, node: int, report: Report[int]) -> DeskStep:
        """Take in a report of a node; one of a GPU that is not known is left lying."""

        def act(clocked: Clocked) -> bool:
            coordinator, now_s = clocked
            key = GpuKey(node, report.gpu)
            if key not in coordinator.ledger.gpus:
                return False
            told = replace(report, gpu=key)  # type: ignore[arg-type]
            return coordinator.on_report(told, now_s)  # type: ignore[arg-type]

        return self._do((desk, log, "hear", node, report), act)

    def tick(self, desk: int, log: int) -> DeskStep:
        """Let a tick pass on the coordinator's clock."""

        def act(clocked: Clocked) -> bool:
            clocked.coordinator.ledger.advance(clocked.now_s + TICK_S)
            return False

        return self._do((desk, log, "tick"), act, TICK_S)

    def hear_cut(self, desk: int, log: int) -> DeskStep:
        """Hear that the budget is cut."""

        def act(clocked: Clocked) -> bool:
            coordinator, now_s = clocked
            coordinator.set_budget(self._bounds.cut_w, GUARD_W, now_s, version=CUT_BUDGET)
            return False

        return self._do((desk, log, "cut"), act)

    def attest(self, desk: int, log: int, gpu: GpuKey) -> DeskStep:
        """An operator attests that `gpu` is gone."""

        def act(clocked: Clocked) -> bool:
            if gpu in clocked.coordinator.ledger.gpus:
                clocked.coordinator.release(gpu, "operator", "replaced", clocked.now_s)
            return False

        return self._do((desk, log, "attest", gpu), act)

    def remove(self, desk: int, log: int, gpu: GpuKey) -> DeskStep:
        """An operator strikes a GPU that was attested off from the list."""

        def act(clocked: Clocked) -> bool:
            if gpu in clocked.coordinator.ledger.gpus:
                clocked.coordinator.remove(gpu)
            return False

        return self._do((desk, log, "remove", gpu), act)

    def add(self, desk: int, log: int, gpu: GpuKey) -> DeskStep:
        """Book a GPU that is new."""

        def act(clocked: Clocked) -> bool:
            if gpu not in clocked.coordinator.ledger.gpus:
                clocked.coordinator.add(gpu, self._limits)
            return False

        return self._do((desk, log, "add", gpu), act)

    def pursue(self, desk: int, log: int, plan: tuple[tuple[GpuKey, float], ...]) -> DeskStep:
        """What a running coordinator does in a tick: grant towards `plan`, send again, renew.

        A tick is longer than its pauses, which are no part of its state here: they are over.
        """

        def act(clocked: Clocked) -> bool:
            coordinator, now_s = clocked
            coordinator._retry_s.clear()
            coordinator._unanswered = dict.fromkeys(coordinator._unanswered, now_s - TICK_S)
            renewals = coordinator._renewals
            coordinator._renewals = [(now_s, at, sent, gpu) for _, at, sent, gpu in renewals]
            coordinator.pursue(dict(plan), now_s)
            coordinator.due(now_s)
            return False

        return self._do((desk, log, "pursue", plan), act)

    def _do(
        self,
        key: tuple[Any, ...],
        act: Callable[[Clocked], bool],
        passed_s: float = 0.0,
    ) -> DeskStep:
        """Run `act` on a copy of the coordinator; log, then send; look at the sums."""
        known = self._memo.get(key)
        if known is not None:
            return known
        desk, log = key[:2]
        before, now_s = self._desks.get(desk)
        coordinator = before.copy()
        taken, broken = False, None
        try:
            taken = act(Clocked(coordinator, now_s))
            coordinator.ledger.check()
        except SafetyError as error:
            broken = f"I4: {error}"
        if broken is None:
            broken = _books_too_much(before.ledger, coordinator.ledger, key[2])
        asked = coordinator.take()
        after = self._append(self.log(log), asked.records)
        messages = asked.messages
        if after is None:
            coordinator.fence(self.log(log).epoch)
            after, messages = self.log(log), ()
        number = self._put(Clocked(coordinator, now_s + passed_s))
        step = DeskStep(
            DEAD if coordinator.fenced_by is not None else number,
            self._logs.put(after, after),
            tuple([(message.gpu.node, _local(message)) for message in messages]),
            taken,
            broken,
        )
        self._memo[key] = step
        return step

    # Names

    def names(self, desk: int, node: int, heard: set[int]) -> Names:
        """Numbers that a coordinator uses around one node."""
        return coordinator_names(self.machine(desk), node, heard)

    def renamed(self, desk: int, node: int, to: Renaming) -> int:
        """The same coordinator under new numbers around one node."""
        coordinator, now_s = self._desks.get(desk)
        return self._put(Clocked(rename_coordinator(coordinator, node, to), now_s))

    def swapped(self, desk: int, order: tuple[int, ...]) -> int:
        """The same coordinator with its nodes in another order."""
        coordinator, now_s = self._desks.get(desk)
        return self._put(Clocked(swap_nodes(coordinator, order), now_s))

    def log_swapped(self, number: int, order: tuple[int, ...]) -> int:
        """The same log with its nodes in another order."""
        log = self.log(number)
        places = {old: new for new, old in enumerate(order)}
        booked = [(GpuKey(places[gpu.node], gpu.gpu), mw) for gpu, mw in log.booked_mw]
        swapped = log._replace(booked_mw=tuple(sorted(booked)))
        return self._logs.put(swapped, swapped)


def _granting(gpu: GpuKey, watts: float) -> Callable[[Clocked], bool]:
    def act(clocked: Clocked) -> bool:
        coordinator, now_s = clocked
        if gpu in coordinator.ledger.gpus and coordinator.ledger.granted_w(gpu) != watts:
            return not isinstance(coordinator.grant(gpu, watts, now_s), Refusal)
        return False

    return act


def _books_too_much(before: Ledger[GpuKey], after: Ledger[GpuKey], what: object) -> str | None:
    """I1: a grant never makes the sum of bookings exceed the budget less the guard band."""
    total_w = after.total_booked_w
    if what in ("grant", "pursue") and before.total_booked_w < total_w > after.usable_w:
        return f"I1: {total_w:g} W are booked by a grant, {after.usable_w:g} W may be"
    return None


def _local(message: Message[GpuKey]) -> Order:
    """A message under the node's own name of its GPU."""
    gpu = message.gpu.gpu
    if isinstance(message, Grant):
        return replace(message, gpu=gpu)  # type: ignore[return-value, arg-type]
    assert isinstance(message, Adopt)
    return replace(message, gpu=gpu)  # type: ignore[return-value, arg-type]
