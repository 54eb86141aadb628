"""The booking ledger: who may draw how much, as far as we can know.

For every GPU g, L(g) is the limit that its newest report says the hardware enforces, and G(g) the
largest limit that its node may still write by itself: the largest grant sent that no answer proves
superseded, or what the node says that it holds. Its booking is the larger of the two, kept up for
the settle time after it falls, or the GPU's largest limit while we cannot know. The one promise: no
call of `grant` makes the sum of all bookings plus the guard band exceed the budget.

A report frees watts only if it answers something that this ledger's coordinator sent to the very
incarnation that speaks (rule ECHO_PROVES); any other report may only raise what is booked. So
incarnations need no order, and a report delayed from before a restart frees nothing.

State is held in integer milliwatts, so that sums stay exact; watts appear at the interface only.
Every call costs O(1), amortised. No clock is read: `now_s` comes in and never runs backwards here.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from wattline.core.errors import InputError, SafetyError
from wattline.grants.allowance import Allowance
from wattline.grants.answers import Refusal, RefusalReason, Terms
from wattline.grants.book import Book, GpuLimits, new_book
from wattline.grants.bookings import Bookings
from wattline.grants.exposure import Cause
from wattline.grants.messages import Adopt, Gpu, Grant, Report
from wattline.grants.watts import milliwatts


class Ledger(Bookings[Gpu]):
    """Bookings of one strict domain.

    `limits` gives one entry per GPU. `booked_mw`: bounds that a log proves, for a restart; a GPU
    that it does not name is booked at its largest limit until its node has answered under `epoch`.
    `silent_after_s`: a GPU without persistence mode that has been silent for so long is booked at
    its largest limit. Raises InputError for values that are not finite numbers in a sensible range.
    """

    def __init__(
        self,
        limits: Mapping[Gpu, GpuLimits],
        budget_w: float,
        guard_w: float,
        *,
        epoch: int = 1,
        booked_mw: Mapping[Gpu, int] | None = None,
        silent_after_s: float = float("inf"),
    ) -> None:
        super().__init__(epoch, Allowance(budget_w, guard_w))
        self._silent_after_s = silent_after_s
        bounds = booked_mw or {}
        for gpu, entry in limits.items():
            self.add(gpu, entry, bounds.get(gpu))

    # The budget

    def set_budget(
        self, budget_w: float, guard_w: float, now_s: float, effective_s: float | None = None
    ) -> None:
        """Take a new budget and guard band; a cut below the bookings is exposure, not an error.

        With `effective_s` in the future, raises are judged by the smaller of the two at once, and
        exposure by the new one from then on.
        """
        at_s = self._now_s if effective_s is None else effective_s
        self._allowance.change(budget_w, guard_w, at_s)
        self.advance(now_s)

    @property
    def settles_s(self) -> float | None:
        """When the next lowered draw has settled, so that its booking may fall; None: none has to.

        It may be early: what a later raise has made pointless is not taken out.
        """
        return self._due[0][0] if self._due else None

    # Granting

    def refusal(self, gpu: Gpu, watts: float) -> RefusalReason | None:
        """Say why `watts` may not be granted to `gpu` now.

        Rule FREE_WATTS_ONLY.
        """
        book = self._books[gpu]
        wanted_mw = milliwatts("watts", watts)
        if not book.min_mw <= wanted_mw <= book.max_mw:
            return RefusalReason.OUT_OF_RANGE
        if book.incarnation is None:
            return RefusalReason.NOT_HEARD
        if book.released_mw is not None:
            return RefusalReason.RELEASED
        if wanted_mw > book.booked_mw and not self.fits(gpu, watts):
            return RefusalReason.NO_FREE_WATTS
        return None

    def fits(self, gpu: Gpu, watts: float) -> bool:
        """Return True when everything fits with `watts` booked for `gpu`.

        What is booked need not be what is enforced. So while it does not fit, even a grant within a
        booking could be a raise that makes true what was only feared: it must be one that
        `lowers_only`.
        """
        others_mw = self._total_mw - self._books[gpu].booked_mw
        return others_mw + milliwatts("watts", watts) <= self._allowance.usable_mw

    def grant(
        self,
        gpu: Gpu,
        watts: float,
        now_s: float,
        terms: Terms | None = None,
        budget_version: int | None = None,
    ) -> Grant[Gpu] | Refusal[Gpu]:
        """Book `watts` for `gpu` and return the grant to send, or say why not.

        Lowering is always allowed and frees nothing yet. A raise needs free watts for the whole
        difference to the present booking; while more is booked than may be, no grant raises.
        """
        self.advance(now_s)
        reason = self.refusal(gpu, watts)
        book = self._books[gpu]
        if reason is not None or book.incarnation is None:
            return Refusal(gpu, watts, reason or RefusalReason.NOT_HEARD, self.free_w)
        terms = terms or Terms()
        wanted_mw, before_mw = milliwatts("watts", watts), self._total_mw
        lowers_only = not self.fits(gpu, watts)
        book.sent += 1
        book.add_alive(book.sent, wanted_mw)
        book.newest = Grant(
            gpu=gpu,
            incarnation=book.incarnation,
            epoch=self._epoch,
            sequence=book.sent,
            watts=wanted_mw / 1000,
            brake_w=book.min_mw / 1000 if terms.brake_w is None else terms.brake_w,
            lease_s=terms.lease_s,
            expiry_w=terms.expiry_w,
            budget_version=budget_version,
            lowers_only=lowers_only,
        )
        self._rebook(gpu, book)
        if self._total_mw > before_mw and self._free_mw < 0:
            raise SafetyError(
                f"grant of {watts} W to GPU {gpu} would book {self.total_booked_w} W "
                f"of {self.usable_w} W: stop and report this as a bug"
            )
        return book.newest

    def adopt(self, gpu: Gpu, budget_version: int | None = None) -> Adopt[Gpu] | None:
        """Return what asks the incarnation of `gpu` to say what it holds; None if none is known.

        The same message until it is answered or overtaken.
        """
        book = self._books[gpu]
        if book.incarnation is None:
            return None
        if book.adopt is None or book.adopt.sequence < book.addressed_from:
            book.sent += 1
            book.adopt = Adopt(
                gpu=gpu,
                incarnation=book.incarnation,
                epoch=self._epoch,
                sequence=book.sent,
                budget_version=budget_version,
            )
        return book.adopt

    # Hearing

    def on_report(self, report: Report[Gpu], now_s: float) -> bool:
        """Take a report in; False when it is a repeat or older than one already taken."""
        self.advance(now_s)
        book = self._books[report.gpu]
        where = f"report of GPU {report.gpu}"
        enforced_mw = milliwatts(f"{where}: enforced_w", report.enforced_w)
        held_mw = milliwatts(f"{where}: held_w", report.held_w)
        if report.incarnation in book.ended or (
            report.incarnation == book.incarnation
            and report.report_sequence <= book.report_sequence
        ):
            return False
        before_mw = book.standing_mw
        known_mw = before_mw if book.ours_mw is not None else None
        if self._answers(book, report):
            self._take_answer(book, report, held_mw)
            later = [mw for sequence, mw in book.alive if sequence > report.sequence]
            ours_mw = max([book.ours_mw or 0, *later])
        else:
            self._take_unproven(book, report, max(enforced_mw, held_mw))
            ours_mw = max(enforced_mw, held_mw) if known_mw is None else known_mw
        book.report_sequence = report.report_sequence
        book.enforced_mw = self._limit_mw(book, enforced_mw)
        if book.standing_mw < before_mw:
            deadline_s = self._now_s - max(0.0, report.standing_s) + book.settle_s
            self._settle(report.gpu, book, deadline_s, before_mw)
        self._rebook(report.gpu, book)
        self._note_found(report.gpu, book, enforced_mw, ours_mw)
        self._listen(report.gpu, book, report.persistence)
        return True

    def _answers(self, book: Book[Gpu], report: Report[Gpu]) -> bool:
        """Rule ECHO_PROVES: True for an answer to what was sent to the incarnation that speaks."""
        return (
            report.incarnation == book.incarnation
            and report.epoch == self._epoch
            and max(book.addressed_from, book.acted) <= report.sequence <= book.sent
        )

    def _take_answer(self, book: Book[Gpu], report: Report[Gpu], held_mw: int) -> None:
        book.answered(report.sequence)
        newest = book.newest
        if newest is not None and newest.sequence == report.sequence:
            book.ours_mw = min(milliwatts("watts", newest.watts), held_mw)
        elif book.ours_mw is None:
            book.ours_mw = held_mw
        else:
            exact = [mw for sequence, mw in book.alive if sequence == report.sequence]
            book.ours_mw = min(exact[0] if exact else book.ours_mw, held_mw)
        book.supersede(report.sequence, held_mw)

    def _take_unproven(self, book: Book[Gpu], report: Report[Gpu], level_mw: int) -> None:
        """Rule ECHO_PROVES: what nobody asked for may only raise what is booked."""
        same = report.incarnation == book.incarnation
        ours = report.epoch == self._epoch
        if (
            report.epoch > self._epoch
            or (ours and report.sequence > book.sent)
            or (ours and same and report.sequence < book.acted)
        ):
            # Another coordinator, or a node that forgot what it obeyed: anything may be held.
            level_mw = max(level_mw, book.max_mw)
        if book.released_mw is not None:
            level_mw = max(level_mw, book.released_mw)
            book.released_mw = None
        if not same or level_mw > book.standing_mw:
            book.doubt(level_mw)
        if not same:
            book.meet(report.incarnation)

    def _limit_mw(self, book: Book[Gpu], enforced_mw: int) -> int:
        """Rule BOOKED_AS_FOUND: what the hardware says that it obeys, whoever wrote it."""
        return enforced_mw

    def _note_found(self, gpu: Gpu, book: Book[Gpu], enforced_mw: int, ours_mw: int) -> None:
        """Remember by how much, and as far as known why, a limit is above what it has leave for."""
        if enforced_mw > ours_mw:
            at_default = enforced_mw == book.default_mw
            cause = Cause.AT_DEFAULT if at_default else Cause.FOUND_ABOVE
            self._outside[gpu] = (cause, enforced_mw - ours_mw)
        elif book.proven or self._outside.get(gpu, (None,))[0] is not Cause.UNKNOWN:
            self._outside.pop(gpu, None)

    # GPUs that come and go

    def add(self, gpu: Gpu, limits: GpuLimits, booked_mw: int | None = None) -> None:
        """A GPU that is to be booked from now on, at its largest limit unless a bound is known."""
        if gpu in self._books:
            raise InputError(f"GPU {gpu}", gpu, "each GPU can be added once")
        book: Book[Gpu] = new_book(
            f"limits of GPU {gpu}", limits, booked_mw, self._retired.pop(gpu, 0)
        )
        self._books[gpu] = book
        self._total_mw += book.booked_mw
        self._outside[gpu] = (Cause.UNKNOWN, book.booked_mw)

    def release(self, gpu: Gpu, now_s: float) -> None:
        """Book nothing for `gpu` because somebody attests that it is powered off or gone.

        A later report of it is booked as found (rule ATTESTED_RELEASE).
        """
        self.advance(now_s)
        book = self._books[gpu]
        book.released_mw = max(book.standing_mw, book.released_mw or 0)
        book.ours_mw = 0
        book.sent += 1
        book.alive[:] = [(book.sent, 0)]
        book.addressed_from = book.sent + 1
        book.settling.clear()
        book.enforced_mw = None
        self._outside.pop(gpu, None)
        self._rebook(gpu, book)

    def remove(self, gpu: Gpu) -> None:
        """Forget a GPU that has been released; InputError while anything is booked for it."""
        book = self._books[gpu]
        if book.booked_mw:
            raise InputError(f"GPU {gpu}", self.booked_w(gpu), "release it first: it is booked")
        self._retired[gpu] = book.sent
        self._outside.pop(gpu, None)
        del self._books[gpu]

    # Time

    def advance(self, now_s: float) -> None:
        """Release what has settled by `now_s`. Called by every other method that takes a time."""
        self._now_s = max(self._now_s, now_s)
        self._allowance.advance(self._now_s)
        while self._due and self._due[0][0] <= self._now_s:
            _, _, gpu = heapq.heappop(self._due)
            book = self._books.get(gpu)
            if book is None:
                continue
            while book.settling and book.settling[0][0] <= self._now_s:
                book.settling.pop(0)
            self._rebook(gpu, book)
        while self._silences and self._silences[0][0] <= self._now_s:
            _, _, gpu = heapq.heappop(self._silences)
            if gpu in self._books:
                self._watch_again(gpu, self._books[gpu])

    def _listen(self, gpu: Gpu, book: Book[Gpu], persistence: bool | None) -> None:
        """Note that `gpu` was heard; without persistence mode, watch for its silence."""
        book.heard_s = self._now_s
        book.persistent = persistence is True
        if not book.persistent and not book.watched and self._silent_after_s < float("inf"):
            book.watched = True
            self._push(self._silences, self._now_s + self._silent_after_s, gpu)

    def _watch_again(self, gpu: Gpu, book: Book[Gpu]) -> None:
        """A silent driver may have been unloaded: its GPU may be at its default limit."""
        silent_s = book.heard_s + self._silent_after_s
        may_unload = not book.persistent and book.released_mw is None
        book.watched = may_unload and silent_s > self._now_s
        if book.watched:
            self._push(self._silences, silent_s, gpu)
        elif may_unload and book.standing_mw < book.max_mw:
            self._outside[gpu] = (Cause.SILENT, book.max_mw - book.standing_mw)
            book.doubt(book.max_mw)
            self._rebook(gpu, book)

    def _push(self, heap: list[tuple[float, int, Gpu]], at_s: float, gpu: Gpu) -> None:
        self._count += 1
        heapq.heappush(heap, (at_s, self._count, gpu))

    def _settle(self, gpu: Gpu, book: Book[Gpu], deadline_s: float, level_mw: int) -> None:
        """Rule SETTLE_BEFORE_FREE: the draw follows the register late."""
        if deadline_s <= self._now_s:
            return
        levels = book.settling
        while levels and levels[-1][1] <= level_mw:
            deadline_s = max(deadline_s, levels.pop()[0])
        if not levels or levels[-1][0] < deadline_s:
            levels.append((deadline_s, level_mw))
            self._push(self._due, deadline_s, gpu)

    def _rebook(self, gpu: Gpu, book: Book[Gpu]) -> None:
        booked_mw = self._booking_mw(book)
        if booked_mw < book.booked_mw:
            self._fallen[gpu] = None
        self._total_mw += booked_mw - book.booked_mw
        book.booked_mw = booked_mw
