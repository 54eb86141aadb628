"""Broken protocols, each the real machines but for one rule: the search must catch every one.

A checker that has never failed proves nothing. Each variant names the rule that it breaks and the
bounds within which it is caught.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

from wattline.grants.book import Book
from wattline.grants.coordinator import Coordinator, Step
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Grant, Message, Report
from wattline.grants.node import Node
from wattline.grants.node_state import GpuState, Outcome
from wattline.grants.records import Granted, LogState, Record, read_log
from wattline.grants.rules import Rule
from wattline.verification.bounds import TICK_S, Bounds, Fault
from wattline.verification.desks import Desks
from wattline.verification.machines import GpuKey
from wattline.verification.sites import Sites
from wattline.verification.world import World


class _RaisesBeforeVerify(Ledger[GpuKey]):
    """A lowering frees watts when it is sent."""

    def grant(self, gpu: GpuKey, watts: float, *args: Any, **kwargs: Any) -> Any:
        answer = super().grant(gpu, watts, *args, **kwargs)
        if isinstance(answer, Grant):
            book = self._books[gpu]
            book.alive[:] = [(book.sent, round(watts * 1000))]
            book.enforced_mw = None
            self._rebook(gpu, book)
        return answer


class _FreesOnSilence(Ledger[GpuKey]):
    """A GPU that has not been heard of for two ticks is taken to be at its lowest limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, silent_after_s=2 * TICK_S)

    def _watch_again(self, gpu: GpuKey, book: Book[GpuKey]) -> None:
        silent_s = book.heard_s + 2 * TICK_S
        book.watched = silent_s > self._now_s
        if book.watched:
            self._push(self._silences, silent_s, gpu)
        else:
            book.alive[:] = [(book.sent, book.min_mw)]
            book.enforced_mw = None
            self._rebook(gpu, book)


class _ForgetsAtExpiry(Ledger[GpuKey]):
    """A grant whose lease has ended on the coordinator's clock is booked no longer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ends_s: dict[GpuKey, float] = {}

    def grant(self, gpu: GpuKey, watts: float, *args: Any, **kwargs: Any) -> Any:
        answer = super().grant(gpu, watts, *args, **kwargs)
        if isinstance(answer, Grant):
            self._ends_s[gpu] = self._now_s + answer.lease_s
        return answer

    def advance(self, now_s: float) -> None:
        super().advance(now_s)
        for gpu in [gpu for gpu, end_s in self._ends_s.items() if end_s <= self._now_s]:
            del self._ends_s[gpu]
            book = self._books[gpu]
            if book.enforced_mw is not None:
                book.alive[:] = [(book.sent, book.enforced_mw)]
                self._rebook(gpu, book)

    def copy(self) -> Self:
        other = super().copy()
        other._ends_s = dict(self._ends_s)
        return other

    def freeze(self) -> Hashable:
        left = [(gpu, end_s - self._now_s) for gpu, end_s in sorted(self._ends_s.items())]
        return super().freeze(), tuple(left)


def _without_grants(records: Iterable[Record[GpuKey]]) -> LogState[GpuKey]:
    """A restart believes what was proven, and forgets what was granted."""
    return read_log([record for record in records if not isinstance(record, Granted)])


class _SendsBeforeLogging(Coordinator[GpuKey]):
    """Messages go out at once; their records reach the log with the next step."""

    _late: tuple[Record[GpuKey], ...] = ()

    def take(self) -> Step[GpuKey]:
        step = super().take()
        late, self._late = self._late, step.records
        return Step(late, step.messages)

    def freeze(self) -> Hashable:
        return super().freeze(), self._late


class _IgnoresRivals(Ledger[GpuKey]):
    """A limit above the grant is put down to a reading error."""

    def _limit_mw(self, book: Book[GpuKey], enforced_mw: int) -> int:
        return min(enforced_mw, book.alive[0][1])


class _ReleasesBeforeSettling(Ledger[GpuKey]):
    """What the register says, the draw is taken to do at once."""

    def _settle(self, gpu: GpuKey, book: Book[GpuKey], deadline_s: float, level_mw: int) -> None:
        del gpu, book, deadline_s, level_mw


class _TrustsStrangers(Ledger[GpuKey]):
    """A report frees watts whoever speaks, whether it was asked or not."""

    def _take_unproven(self, book: Book[GpuKey], report: Report[GpuKey], level_mw: int) -> None:
        super()._take_unproven(book, report, level_mw)
        book.alive[:] = [(book.sent, level_mw)]


class _AcceptsOldEpochs(Node[int]):
    """Within an epoch only the newest is obeyed; an older epoch is as good as a newer one."""

    def _refusal(self, state: GpuState, message: Message[int]) -> Outcome | None:
        if message.incarnation != self.incarnation:
            return Outcome.OTHER_INCARNATION
        if message.epoch == state.epoch and message.sequence <= state.sequence:
            return Outcome.OLDER_SEQUENCE
        return None


class _ObeysOldGrants(Node[int]):
    """What comes last is obeyed, not what was sent last."""

    def _refusal(self, state: GpuState, message: Message[int]) -> Outcome | None:
        if message.incarnation != self.incarnation:
            return Outcome.OTHER_INCARNATION
        return Outcome.OLDER_EPOCH if message.epoch < self.epoch else None


class _RestoresForFree(Node[int]):
    """An original limit is given back without asking."""

    def restore(self, gpu: int, original_w: float) -> bool:
        original_mw = round(original_w * 1000)
        self._gpus[gpu] = replace(self._gpus[gpu], held_mw=original_mw, restored=True)
        return True


class _HidesWritesUnderWay(Node[int]):
    """What is held is reported without the write that has begun and not returned."""

    def report(self, gpu: int, read_s: float) -> Report[int]:
        return replace(super().report(gpu, read_s), held_w=self.held_w(gpu))


@dataclass(frozen=True, slots=True)
class Variant:
    """A broken protocol: the rule that it breaks, where it is caught, and the fleet that has it."""

    name: str
    rule: Rule
    bounds: Bounds
    build: Callable[[Bounds], World]


def _ledger(new_ledger: Any, bounds: Bounds) -> World:
    return World(bounds, desks=Desks(bounds, new_ledger=new_ledger))


def _coordinator(new_coordinator: Any, bounds: Bounds) -> World:
    return World(bounds, desks=Desks(bounds, new_coordinator=new_coordinator))


def _node(new_node: Any, bounds: Bounds) -> World:
    """The network keeps what an agent of the protocol would not obey: this one may."""
    return World(bounds, sites=Sites(bounds, new_node, keep_dead=True), keep_dead=True)


def _forgetful(bounds: Bounds) -> World:
    return World(bounds, desks=Desks(bounds, fold=_without_grants))


def _plain(bounds: Bounds) -> World:
    return World(bounds)


_ALONE: dict[str, Any] = {"nodes": 1, "plans": ((100.0,), (300.0,))}
"""One node with watts to spare: enough where it does not matter who gets what another gave up."""


def _within(name: str, *faults: Fault, **changes: Any) -> Bounds:
    most = len(faults)
    bounds = Bounds(name, faults=dict.fromkeys(faults, 1), most_faults=most, in_flight=1)
    return replace(bounds, **changes)


_BROKEN: list[tuple[str, Rule, Callable[[Bounds], World], Bounds]] = [
    (
        "raise before verify",
        Rule.VERIFY_BEFORE_FREE,
        partial(_ledger, _RaisesBeforeVerify),
        _within("v"),
    ),
    (
        "release before the settle time",
        Rule.SETTLE_BEFORE_FREE,
        partial(_ledger, _ReleasesBeforeSettling),
        _within("v"),
    ),
    (
        "free on silence",
        Rule.SILENCE_FREES_NOTHING,
        partial(_ledger, _FreesOnSilence),
        _within("v"),
    ),
    (
        "forget issued grants at expiry",
        Rule.EXPIRY_FREES_NOTHING,
        partial(_ledger, _ForgetsAtExpiry),
        _within("v", lease_ticks=1, **_ALONE),
    ),
    (
        "forget issued grants at restart",
        Rule.DURABLE_BEFORE_SENT,
        _forgetful,
        _within("v", Fault.COORDINATOR_CRASH, **_ALONE),
    ),
    (
        "send before logging",
        Rule.DURABLE_BEFORE_SENT,
        partial(_coordinator, _SendsBeforeLogging),
        _within("v", Fault.COORDINATOR_CRASH, **_ALONE),
    ),
    (
        "ignore a rival writer",
        Rule.BOOKED_AS_FOUND,
        partial(_ledger, _IgnoresRivals),
        _within("v", Fault.RIVAL_WRITE),
    ),
    (
        "accept an old epoch",
        Rule.EPOCH_FENCES,
        partial(_node, _AcceptsOldEpochs),
        _within("v", Fault.HANDOVER, in_flight=2, settle_ticks=0, **_ALONE),
    ),
    (
        "obey what comes last",
        Rule.NEWEST_ONLY,
        partial(_node, _ObeysOldGrants),
        _within("v", in_flight=2, replans=2, **_ALONE),
    ),
    (
        "trust a report that answers nothing",
        Rule.ECHO_PROVES,
        partial(_ledger, _TrustsStrangers),
        _within("v", Fault.NODE_CRASH, **_ALONE),
    ),
    (
        "restore as if it were free",
        Rule.RESTORE_IS_A_RAISE,
        partial(_node, _RestoresForFree),
        _within("v", Fault.RESTORE),
    ),
    (
        "hide a write under way",
        Rule.WRITES_UNDER_WAY_ARE_HELD,
        partial(_node, _HidesWritesUnderWay),
        _within("v", Fault.BRAKE, **_ALONE),
    ),
    (
        "settle time without a margin for clocks",
        Rule.SETTLE_BEFORE_FREE,
        _plain,
        _within("v", Fault.COORDINATOR_CLOCK_FAST),
    ),
]


def variants() -> tuple[Variant, ...]:
    """All broken protocols."""
    return tuple(
        [
            Variant(name, rule, replace(bounds, name=name), build)
            for name, rule, build, bounds in _BROKEN
        ]
    )
