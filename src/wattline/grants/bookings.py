"""The books of all GPUs together: their sum, what may be booked, and what can be asked of both."""

from __future__ import annotations

from collections.abc import Hashable
from copy import copy
from typing import Generic, Self

from wattline.core.errors import SafetyError
from wattline.grants.allowance import Allowance
from wattline.grants.book import Book
from wattline.grants.exposure import Cause, Exposure, share_out
from wattline.grants.messages import Gpu, Grant


class Bookings(Generic[Gpu]):
    """Books, their sum in milliwatts, and the allowance; `Ledger` is what changes them."""

    def __init__(self, epoch: int, allowance: Allowance) -> None:
        self._epoch = epoch
        self._allowance = allowance
        self._now_s = 0.0
        self._books: dict[Gpu, Book[Gpu]] = {}
        self._total_mw = 0
        self._outside: dict[Gpu, tuple[Cause, int]] = {}
        self._fallen: dict[Gpu, None] = {}
        # Sequences of removed GPUs, never to be used again in this epoch
        self._retired: dict[Gpu, int] = {}
        # (time, count, GPU): levels that settle, and silences that end what is known
        self._due: list[tuple[float, int, Gpu]] = []
        self._silences: list[tuple[float, int, Gpu]] = []
        self._count = 0

    @property
    def epoch(self) -> int:
        """Epoch that this ledger's grants carry."""
        return self._epoch

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs, in the order in which they were added."""
        return tuple(self._books)

    @property
    def total_booked_w(self) -> float:
        """Sum of all bookings."""
        return self._total_mw / 1000

    @property
    def usable_w(self) -> float:
        """Budget less guard band, as raises are judged: an announced cut counts at once."""
        return self._allowance.usable_mw / 1000

    @property
    def free_w(self) -> float:
        """Watts that a raise may take now; never negative."""
        return max(0, self._free_mw) / 1000

    @property
    def exposure_w(self) -> float:
        """Watts by which the bookings exceed the budget in force: never by an action of ours."""
        return max(0, self._total_mw - self._allowance.in_force_mw) / 1000

    @property
    def exposures(self) -> tuple[Exposure[Gpu], ...]:
        """`exposure_w` by GPU and cause, as far as known; a budget cut has no GPU."""
        return share_out(self.exposure_w, self._outside)

    @property
    def found_above_w(self) -> dict[Gpu, float]:
        """Per GPU: watts by which its enforced limit exceeds all that it has leave for.

        A rival writer, a clamp upwards, a node back at its defaults. Empty in peace.
        """
        return {
            gpu: mw / 1000
            for gpu, (cause, mw) in self._outside.items()
            if cause in (Cause.FOUND_ABOVE, Cause.AT_DEFAULT)
        }

    @property
    def _free_mw(self) -> int:
        return self._allowance.usable_mw - self._total_mw

    def booked_w(self, gpu: Gpu) -> float:
        """Return the most that `gpu` may be allowed to draw, as far as we can know."""
        return self._books[gpu].booked_mw / 1000

    def booked_column_w(self) -> tuple[float, ...]:
        """Bookings of all GPUs in order, for a snapshot."""
        return tuple([book.booked_mw / 1000 for book in self._books.values()])

    def book(self, gpu: Gpu) -> Book[Gpu]:
        """Return the book of `gpu`, to be read only."""
        return self._books[gpu]

    def newest_grant(self, gpu: Gpu) -> Grant[Gpu] | None:
        """Return the newest grant of `gpu`, or None. To be sent again when its node did not act."""
        return self._books[gpu].newest

    def granted_w(self, gpu: Gpu) -> float | None:
        """Return the watts that the newest grant gives leave for; None when it is dead.

        It is when its node has started anew, has braked, or fell into doubt since it was sent. What
        a node declined (an operator's hold) it has no leave for.
        """
        book = self._books[gpu]
        newest = book.newest
        if newest is None or newest.sequence < book.addressed_from:
            return None
        if book.acted >= newest.sequence and book.ours_mw is not None:
            return book.ours_mw / 1000
        return newest.watts

    def acted_on_newest(self, gpu: Gpu) -> bool:
        """Return True when a report answers the newest message that was sent for `gpu`."""
        book = self._books[gpu]
        return book.acted >= book.sent

    def reboot_exposure_w(self, nodes: int) -> float:
        """Watts that could be booked above the present if `nodes` nodes came up at their defaults.

        The worst choice of nodes; to be kept free by whoever wants to be covered (rule
        EXPOSURE_IS_STATED). O(GPUs).
        """
        rises_mw: dict[str, int] = {}
        for book in self._books.values():
            rise_mw = max(0, book.default_mw - book.booked_mw)
            rises_mw[book.node] = rises_mw.get(book.node, 0) + rise_mw
        return sum(sorted(rises_mw.values(), reverse=True)[:nodes]) / 1000

    def _booking_mw(self, book: Book[Gpu]) -> int:
        """Rules VERIFY_BEFORE_FREE and SETTLE_BEFORE_FREE: what is booked for one GPU."""
        return max(book.standing_mw, book.settling_mw)

    def take_fallen(self) -> tuple[Gpu, ...]:
        """Return the GPUs whose booking has fallen since the last call."""
        fallen = tuple(self._fallen)
        self._fallen.clear()
        return fallen

    def copy(self) -> Self:
        """Return a ledger that changes on its own."""
        other = copy(self)
        other._books = {gpu: book.copy() for gpu, book in self._books.items()}
        other._allowance = self._allowance.copy()
        other._due, other._silences = list(self._due), list(self._silences)
        other._outside, other._fallen = dict(self._outside), dict(self._fallen)
        other._retired = dict(self._retired)
        return other

    def freeze(self) -> Hashable:
        """Return everything that decides what the ledger does next; times relative to its own."""
        return (
            self._epoch,
            self._allowance.freeze(),
            tuple([(gpu, book.freeze(self._now_s)) for gpu, book in self._books.items()]),
            tuple(self._retired.items()),
        )

    def check(self) -> None:
        """Recompute every sum from scratch; SafetyError if the running ones differ. O(GPUs)."""
        for gpu, book in self._books.items():
            if book.booked_mw != self._booking_mw(book):
                raise SafetyError(f"booking of GPU {gpu} is {book.booked_mw} mW: a bug, stop")
        total_mw = sum(book.booked_mw for book in self._books.values())
        if total_mw != self._total_mw:
            raise SafetyError(f"sum of bookings is {total_mw}, kept {self._total_mw} mW: a bug")
