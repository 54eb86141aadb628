"""The booking ledger: who may draw how much, as far as we can know.

For every GPU g, L(g) is the limit that its newest report says the hardware enforces, and G(g) the
largest grant sent to it that no report proves superseded. Its booking is the larger of the two,
kept up for the settle time after it falls, or the GPU's largest limit while we cannot know. The one
promise: no call of `grant` makes the sum of all bookings plus the guard band exceed the budget.

State is held in integer milliwatts, so that sums stay exact; watts appear at the interface only.
Every call costs O(1), amortised. No clock is read: `now_s` comes in and never runs backwards here.

Rules (numbers refer to "Safety: watts are leased" in the design):
a raise takes only free watts (2); a lowered GPU keeps its booking until a report carries the new
grant and the settle time has passed (2); silence frees nothing (3); what a report shows is booked
as found (6). The node's side of the bargain is that it obeys only a grant newer than every grant
that it has obeyed, and that its reports are numbered in the order in which they were made.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from wattline.core.errors import InputError, SafetyError

_NEVER = 2**62  # a sequence that no grant reaches: nothing that is known supersedes it
_MOST_ALIVE = 16  # grants remembered apart per GPU; beyond it neighbours merge, on the safe side


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """Range of power limits that one GPU accepts, and how long its draw follows its register."""

    min_w: float
    max_w: float
    settle_s: float


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave for one GPU to enforce `watts`. The newest (epoch, sequence) is the one to obey."""

    gpu: int
    epoch: int
    sequence: int
    watts: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says about one GPU.

    epoch, sequence: the newest grant acted on (sequence 0: the epoch is accepted, no grant acted
    on yet). report_sequence: the number of this report, rising by the order of making.
    enforced_w: the limit that the hardware says it obeys, read after acting. standing_s: seconds
    for which that limit is known to have stood when the report was made; they count as settled.
    """

    gpu: int
    epoch: int
    sequence: int
    report_sequence: int
    enforced_w: float
    standing_s: float = 0.0


class RefusalReason(StrEnum):
    """Why a grant was not given."""

    OUT_OF_RANGE = "out_of_range"
    NO_FREE_WATTS = "no_free_watts"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A grant that may not be given now; `free_w` is what was free when it was asked."""

    gpu: int
    watts: float
    reason: RefusalReason
    free_w: float


@dataclass(slots=True)
class _Gpu:
    """Book of one GPU, in milliwatts.

    alive: (sequence, milliwatts) of grants that the node may still obey, oldest first, watts
    strictly falling: a later grant that is at least as large covers an earlier one.
    settling: (deadline, milliwatts) of levels that the draw may still follow, watts strictly
    falling, deadlines rising.
    """

    min_mw: int
    max_mw: int
    settle_s: float
    booked_mw: int
    alive: list[tuple[int, int]]
    settling: list[tuple[float, int]] = field(default_factory=list)
    enforced_mw: int | None = None
    report_sequence: int = -1
    acted: int = -1
    sent: int = 0
    newest: Grant | None = None


class Ledger:
    """Bookings of one strict domain.

    `limits` gives one entry per GPU; a GPU's index is its identity. Until a first report under
    `epoch`, a GPU is booked at its largest limit. Raises InputError for values that are not
    finite numbers in a sensible range.
    """

    def __init__(
        self, limits: Sequence[GpuLimits], budget_w: float, guard_w: float, epoch: int = 1
    ) -> None:
        self._epoch = epoch
        self._now_s = 0.0
        self._due: list[tuple[float, int]] = []
        self._found: dict[int, int] = {}
        self._gpus = [_new_gpu(index, entry) for index, entry in enumerate(limits)]
        self._total_mw = sum(gpu.booked_mw for gpu in self._gpus)
        self._budget_mw = _milliwatts("budget_w", budget_w)
        self._guard_mw = _milliwatts("guard_w", guard_w)

    @property
    def epoch(self) -> int:
        """Epoch that this ledger's grants carry."""
        return self._epoch

    @property
    def total_booked_w(self) -> float:
        """Sum of all bookings."""
        return self._total_mw / 1000

    @property
    def usable_w(self) -> float:
        """Budget less guard band."""
        return (self._budget_mw - self._guard_mw) / 1000

    @property
    def free_w(self) -> float:
        """Watts that a raise may take now; never negative."""
        return max(0, self._free_mw) / 1000

    @property
    def exposure_w(self) -> float:
        """Watts by which the bookings exceed what may be booked: never by an action of ours."""
        return max(0, -self._free_mw) / 1000

    @property
    def found_above_w(self) -> dict[int, float]:
        """Per GPU: watts by which its enforced limit exceeds every grant that it may obey.

        A rival writer, a clamp upwards, a node back at its defaults. Empty in peace; in order of
        GPU index.
        """
        return {gpu: self._found[gpu] / 1000 for gpu in sorted(self._found)}

    @property
    def _free_mw(self) -> int:
        return self._budget_mw - self._guard_mw - self._total_mw

    def booked_w(self, gpu: int) -> float:
        """Return the most that `gpu` may be allowed to draw, as far as we can know."""
        return self._gpus[gpu].booked_mw / 1000

    def booked_column_w(self) -> tuple[float, ...]:
        """Bookings of all GPUs in order, for a snapshot."""
        return tuple([gpu.booked_mw / 1000 for gpu in self._gpus])

    def newest_grant(self, gpu: int) -> Grant | None:
        """Return the newest grant of `gpu`, or None. To be sent again when its node did not act."""
        return self._gpus[gpu].newest

    def acted_on_newest(self, gpu: int) -> bool:
        """Return True when a report shows that the node acted on the newest grant of `gpu`."""
        book = self._gpus[gpu]
        return book.acted >= book.sent

    def set_budget(self, budget_w: float, guard_w: float, now_s: float) -> None:
        """Take a new budget and guard band; a cut below the bookings is exposure, not an error."""
        self._budget_mw = _milliwatts("budget_w", budget_w)
        self._guard_mw = _milliwatts("guard_w", guard_w)
        self.advance(now_s)

    def grant(self, gpu: int, watts: float, now_s: float) -> Grant | Refusal:
        """Book `watts` for `gpu` and return the grant to send, or say why not.

        Lowering is always allowed and frees nothing yet. A raise needs free watts for the whole
        difference to the present booking.
        """
        self.advance(now_s)
        book = self._gpus[gpu]
        wanted_mw = _milliwatts("watts", watts)
        if not book.min_mw <= wanted_mw <= book.max_mw:
            return Refusal(gpu, watts, RefusalReason.OUT_OF_RANGE, self.free_w)
        rise_mw = wanted_mw - book.booked_mw
        if rise_mw > 0 and rise_mw > self._free_mw:
            return Refusal(gpu, watts, RefusalReason.NO_FREE_WATTS, self.free_w)
        before_mw = self._total_mw
        book.sent += 1
        _add_alive(book.alive, book.sent, wanted_mw)
        book.newest = Grant(gpu, self._epoch, book.sent, wanted_mw / 1000)
        self._set_booked(book, _target_mw(book))
        if self._total_mw > before_mw and self._free_mw < 0:
            raise SafetyError(
                f"grant of {watts} W to GPU {gpu} would book {self.total_booked_w} W "
                f"of {self.usable_w} W: stop and report this as a bug"
            )
        return book.newest

    def on_report(self, report: Report, now_s: float) -> bool:
        """Take a report in; False when it is a repeat or older than one already taken."""
        self.advance(now_s)
        book = self._gpus[report.gpu]
        enforced_mw = _milliwatts(f"report of GPU {report.gpu}: enforced_w", report.enforced_w)
        if report.report_sequence <= book.report_sequence:
            return False
        standing_before_mw = _standing_mw(book)
        book.report_sequence = report.report_sequence
        book.enforced_mw = enforced_mw
        self._supersede(book, report)
        if _standing_mw(book) < standing_before_mw:
            deadline_s = self._now_s - max(0.0, report.standing_s) + book.settle_s
            self._settle(report.gpu, book, deadline_s, standing_before_mw)
        self._set_booked(book, _target_mw(book))
        found_mw = enforced_mw - book.alive[0][1]
        if found_mw > 0:
            self._found[report.gpu] = found_mw
        else:
            self._found.pop(report.gpu, None)
        return True

    def advance(self, now_s: float) -> None:
        """Release what has settled by `now_s`. Called by every other method that takes a time."""
        self._now_s = max(self._now_s, now_s)
        while self._due and self._due[0][0] <= self._now_s:
            _, gpu = heapq.heappop(self._due)
            book = self._gpus[gpu]
            while book.settling and book.settling[0][0] <= self._now_s:
                book.settling.pop(0)
            self._set_booked(book, _target_mw(book))

    def check(self) -> None:
        """Recompute every sum from scratch; SafetyError if the running ones differ. O(GPUs)."""
        for index, book in enumerate(self._gpus):
            if book.booked_mw != _target_mw(book):
                raise SafetyError(f"booking of GPU {index} is {book.booked_mw} mW: a bug, stop")
        total_mw = sum(book.booked_mw for book in self._gpus)
        if total_mw != self._total_mw:
            raise SafetyError(f"sum of bookings is {total_mw}, kept {self._total_mw} mW: a bug")

    def _supersede(self, book: _Gpu, report: Report) -> None:
        """Forget the grants that `report` proves superseded; doubt everything if it goes back."""
        if report.epoch < self._epoch:
            return
        if report.epoch > self._epoch or report.sequence > book.sent:
            # Another coordinator granted something, which no report under this epoch can undo.
            book.alive[:] = [(_NEVER, book.max_mw)]
            return
        if report.sequence < book.acted:
            # The node forgot what it obeyed, so it may obey any old grant that is still under way,
            # until it acts on the newest.
            newest = [entry for entry in book.alive if entry[0] >= book.sent]
            book.alive[:] = [(book.sent - 1, book.max_mw), *newest]
            book.acted = report.sequence
            return
        book.acted = report.sequence
        book.alive[:] = [entry for entry in book.alive if entry[0] >= report.sequence]
        if not book.alive:  # nothing granted yet: what is found is what the node may go on holding
            book.alive.append((report.sequence, book.enforced_mw or 0))

    def _settle(self, gpu: int, book: _Gpu, deadline_s: float, level_mw: int) -> None:
        """Keep `level_mw` booked until `deadline_s`, because the draw follows the register late."""
        if deadline_s <= self._now_s:
            return
        levels = book.settling
        while levels and levels[-1][1] <= level_mw:
            deadline_s = max(deadline_s, levels.pop()[0])
        if not levels or levels[-1][0] < deadline_s:
            levels.append((deadline_s, level_mw))
            heapq.heappush(self._due, (deadline_s, gpu))

    def _set_booked(self, book: _Gpu, booked_mw: int) -> None:
        self._total_mw += booked_mw - book.booked_mw
        book.booked_mw = booked_mw


def _standing_mw(book: _Gpu) -> int:
    """max(L, G) of one GPU."""
    return max(book.alive[0][1], book.enforced_mw or 0)


def _target_mw(book: _Gpu) -> int:
    """max(L, G, levels that still settle) of one GPU."""
    settling_mw = book.settling[0][1] if book.settling else 0
    return max(_standing_mw(book), settling_mw)


def _add_alive(alive: list[tuple[int, int]], sequence: int, watts_mw: int) -> None:
    """Append a grant, dropping the earlier ones that it covers because it is at least as large."""
    if alive and alive[-1][0] > sequence:
        return  # in doubt for good, at the largest limit, which covers any grant
    while alive and alive[-1][1] <= watts_mw:
        alive.pop()
    alive.append((sequence, watts_mw))
    if len(alive) > _MOST_ALIVE:
        larger, newer = alive[0], alive[1]
        alive[:2] = [(newer[0], larger[1])]


def _new_gpu(index: int, limits: GpuLimits) -> _Gpu:
    where = f"limits of GPU {index}"
    min_mw, max_mw = _milliwatts(where, limits.min_w), _milliwatts(where, limits.max_w)
    if min_mw > max_mw:
        raise InputError(where, limits, "the smallest limit must not exceed the largest")
    if not 0.0 <= limits.settle_s < float("inf"):
        raise InputError(where, limits.settle_s, "the settle time must be 0 s or more")
    return _Gpu(min_mw, max_mw, limits.settle_s, max_mw, [(-1, max_mw)])


def _milliwatts(where: str, watts: float) -> int:
    """Whole milliwatts; InputError unless `watts` is finite and at least 0."""
    if not 0.0 <= watts < 1e12:
        raise InputError(where, watts, "give watts as a finite number of 0 or more")
    return round(watts * 1000)
