"""The book of one GPU: what it may be enforcing, what it settles from, what was sent to it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Generic

from wattline.core.errors import InputError
from wattline.grants.messages import Adopt, Gpu, Grant
from wattline.grants.watts import milliwatts

MOST_ALIVE = 16
"""Grants remembered apart per GPU; beyond it neighbours merge, on the safe side."""
MOST_ENDED = 4
"""Incarnations remembered as over; a report of an older one is met as a new one: on the safe side.
"""


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """Range of power limits that one GPU accepts, and how long its draw follows its register.

    default_w: its limit after a reset, the largest one unless stated. node: GPUs that share it go
    down and come up together.
    """

    min_w: float
    max_w: float
    settle_s: float
    default_w: float | None = None
    node: str = ""


@dataclass(slots=True)
class Book(Generic[Gpu]):
    """Book of one GPU, in milliwatts.

    alive: (sequence, milliwatts) of what the node may still hold, oldest first, watts strictly
    falling: a later one that is at least as large covers an earlier one. An entry dies when an
    answer to a message with at least its sequence (a grant) or with a larger one (a doubt) says
    what is held. settling: (deadline, milliwatts) of levels that the draw may still follow, watts
    strictly falling, deadlines rising. incarnation: the one that messages are addressed to, with
    sequences from addressed_from on. acted: the newest sequence that it answered; sent: the newest
    used. ours_mw: what the newest answer says that the GPU has leave for, None before the first.
    met: incarnations that reported before the present one and are not proven to be over; ended:
    those that are. released_mw: what stood when somebody attested that the GPU is off.
    """

    min_mw: int
    max_mw: int
    default_mw: int
    settle_s: float
    node: str
    booked_mw: int
    alive: list[tuple[int, int]]
    settling: list[tuple[float, int]]
    incarnation: int | None = None
    addressed_from: int = 1
    report_sequence: int = -1
    acted: int = 0
    sent: int = 0
    enforced_mw: int | None = None
    ours_mw: int | None = None
    heard_s: float = 0.0
    persistent: bool = True
    watched: bool = False
    met: tuple[int, ...] = ()
    ended: tuple[int, ...] = ()
    released_mw: int | None = None
    newest: Grant[Gpu] | None = None
    adopt: Adopt[Gpu] | None = None

    @property
    def proven(self) -> bool:
        """True when the present incarnation has answered something sent to it."""
        return self.incarnation is not None and self.acted >= self.addressed_from

    @property
    def leave_mw(self) -> int:
        """The limit that the GPU goes to if every message arrives: the newest grant's, or held."""
        return self.alive[-1][1]

    @property
    def standing_mw(self) -> int:
        """max(L, G): the most that may be enforced, as far as is known."""
        return max(self.alive[0][1], self.enforced_mw or 0)

    @property
    def settling_mw(self) -> int:
        """The largest level that the draw may still follow."""
        return self.settling[0][1] if self.settling else 0

    def add_alive(self, sequence: int, mw: int) -> None:
        """Append what may be held from now on, dropping the earlier entries that it covers."""
        alive = self.alive
        while alive and alive[-1][1] <= mw:
            alive.pop()
        alive.append((sequence, mw))
        if len(alive) > MOST_ALIVE:
            larger, newer = alive[0], alive[1]
            alive[:2] = [(newer[0], larger[1])]

    def doubt(self, mw: int) -> None:
        """Hold `mw` possible until something that is sent from now on is answered."""
        self.sent += 1
        self.add_alive(self.sent, max(mw, self.standing_mw))
        self.addressed_from = self.sent + 1

    def meet(self, incarnation: int) -> None:
        """From now on messages are addressed to `incarnation`."""
        if self.incarnation is not None:
            others = [each for each in (*self.met, self.incarnation) if each != incarnation]
            self.met = tuple(others[-MOST_ENDED:])
        self.incarnation = incarnation
        self.acted = 0

    def answered(self, sequence: int) -> None:
        """The present incarnation answered: all that reported before it was addressed are over."""
        self.acted = sequence
        if self.met:
            self.ended = (*self.ended, *self.met)[-MOST_ENDED:]
            self.met = ()

    def supersede(self, sequence: int, held_mw: int) -> None:
        """Everything sent up to `sequence` is over: `held_mw` is held instead (ECHO_PROVES)."""
        later = [entry for entry in self.alive if entry[0] > sequence]
        self.alive[:] = [(sequence, held_mw)]
        for entry in later:
            self.add_alive(*entry)

    def copy(self) -> Book[Gpu]:
        """Return a book that changes on its own."""
        return replace(self, alive=list(self.alive), settling=list(self.settling))

    def freeze(self, now_s: float) -> Hashable:
        """Return everything that changes as one value, times relative to `now_s`."""
        return (
            self.booked_mw,
            tuple(self.alive),
            tuple([(deadline_s - now_s, mw) for deadline_s, mw in self.settling]),
            self.incarnation,
            self.addressed_from,
            self.report_sequence,
            self.acted,
            self.sent,
            self.enforced_mw,
            self.ours_mw,
            self.heard_s - now_s if self.watched else 0.0,
            self.persistent,
            self.watched,
            self.met,
            self.ended,
            self.released_mw,
            self.newest,
            self.adopt,
        )


def new_book(where: str, limits: GpuLimits, booked_mw: int | None, sent: int) -> Book[Gpu]:
    """Return the book of a GPU of which nothing is known but a bound, or not even that.

    `booked_mw` None: it is booked at its largest limit. `sent`: the newest sequence used for it in
    this epoch. Raises InputError for limits that are none.
    """
    min_mw, max_mw = milliwatts(where, limits.min_w), milliwatts(where, limits.max_w)
    if min_mw > max_mw:
        raise InputError(where, limits, "the smallest limit must not exceed the largest")
    if not 0.0 <= limits.settle_s < float("inf"):
        raise InputError(where, limits.settle_s, "the settle time must be 0 s or more")
    default_mw = max_mw if limits.default_w is None else milliwatts(where, limits.default_w)
    level_mw = max_mw if booked_mw is None else booked_mw
    return Book(
        min_mw=min_mw,
        max_mw=max_mw,
        default_mw=default_mw,
        settle_s=limits.settle_s,
        node=limits.node,
        booked_mw=level_mw,
        alive=[(sent, level_mw)],
        settling=[],
        addressed_from=sent + 1,
        sent=sent,
        ours_mw=booked_mw,
    )
