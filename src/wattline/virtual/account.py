"""Watt-seconds above the budget, split by who caused them: pure arithmetic over what was observed.

Knows nothing of ledgers, agents or coordinators. It is given every change of every enforced limit,
in order, with the outside event that made it (None: one of us), and every budget from the moment
it is in force. Levels are whole milliwatts, times are seconds of one monotonic clock.

Per GPU, beside its enforced limit, a *level* is kept: what would be enforced had no outside event
raised it. Our own writes move it, an outside lowering takes it along, an outside raise does not.

  outside   what enforced limits exceed levels by, as far as it is above the budget
  cut       what levels exceeded the budget by at the moment when a smaller one came into force
  ours      what a write of ours raised levels by while they were, or got, above the budget
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FORGET_S = 5.0
"""An outside raise that did no harm for so long is taken as known: later raises answer for it."""


@dataclass(slots=True)
class Exposure:
    """One outside event or cut, and what it cost. `gpu` is None for a cut."""

    kind: str
    gpu: str | None
    start_s: float
    end_s: float | None = None
    watt_seconds: float = 0.0
    peak_w: float = 0.0
    over_s: float = 0.0
    """Seconds during which it stood above the budget."""
    over_spans: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OursOver:
    """A write of ours that took the sum above the budget."""

    at_s: float
    gpu: str
    over_w: float


@dataclass(slots=True)
class _Gpu:
    enforced_mw: int
    level_mw: int
    exposure: Exposure | None = None


class Account:
    """The running account of one domain. Feed it in the order of time."""

    def __init__(
        self, enforced_mw: Mapping[str, int], budget_mw: int, guard_mw: int, start_s: float
    ) -> None:
        self._gpus = {gpu: _Gpu(mw, mw) for gpu, mw in enforced_mw.items()}
        self._budget_mw = budget_mw
        self._guard_mw = guard_mw
        self._now_s = start_s
        self._ours_mw = 0
        self._cut: Exposure | None = None
        self.exposures: list[Exposure] = []
        self.ours: list[OursOver] = []
        self.ours_watt_seconds = 0.0
        self.most_enforced_mw = self._enforced_mw
        self.least_margin_mw = -self._over_mw
        self._note_cut()

    @property
    def _enforced_mw(self) -> int:
        return sum(gpu.enforced_mw for gpu in self._gpus.values())

    @property
    def _over_mw(self) -> int:
        return self._enforced_mw + self._guard_mw - self._budget_mw

    @property
    def _over_level_mw(self) -> int:
        levels_mw = sum(gpu.level_mw for gpu in self._gpus.values())
        return levels_mw + self._guard_mw - self._budget_mw

    def advance(self, to_s: float) -> None:
        """Charge the time up to `to_s` with what stands now."""
        seconds = to_s - self._now_s
        if seconds <= 0:
            return
        over_mw = max(0, self._over_mw)
        over_level_mw = max(0, min(over_mw, self._over_level_mw))
        outside_mw = over_mw - over_level_mw
        ours_mw = min(self._ours_mw, over_level_mw)
        self.ours_watt_seconds += ours_mw / 1000 * seconds
        self._charge(self._cut, over_level_mw - ours_mw, to_s)
        raised = [gpu for gpu in self._gpus.values() if gpu.enforced_mw > gpu.level_mw]
        raised_mw = sum(gpu.enforced_mw - gpu.level_mw for gpu in raised)
        for gpu in raised:
            share_mw = outside_mw * (gpu.enforced_mw - gpu.level_mw) / raised_mw
            self._charge(gpu.exposure, share_mw, to_s)
        self._now_s = to_s
        if over_mw == 0:
            self._forget()

    def _charge(self, exposure: Exposure | None, milliwatts: float, to_s: float) -> None:
        if milliwatts <= 0:
            return
        assert exposure is not None, "watts above the budget that no event explains"
        exposure.watt_seconds += milliwatts / 1000 * (to_s - self._now_s)
        exposure.peak_w = max(exposure.peak_w, milliwatts / 1000)
        exposure.over_s += to_s - self._now_s
        spans = exposure.over_spans
        if spans and spans[-1][1] == self._now_s:
            spans[-1] = (spans[-1][0], to_s)
        else:
            spans.append((self._now_s, to_s))

    def _forget(self) -> None:
        for gpu in self._gpus.values():
            exposure = gpu.exposure
            if exposure is not None and self._now_s - exposure.start_s > FORGET_S:
                gpu.level_mw = gpu.enforced_mw
                self._close(gpu)

    def change(
        self,
        at_s: float,
        gpu: str,
        enforced_mw: int,
        outside: str | None,
        excuse: str | None = None,
        requested_mw: int | None = None,
    ) -> None:
        """Take in that `gpu` now enforces `enforced_mw`, by an outside event or (None) by us.

        excuse: the event that answers for what a raise of ours takes above the budget, if it does.
        requested_mw: what the register asks for; less than is enforced while an outside event holds
        the GPU up, and then our writes move the level and not the limit. None: what is enforced.
        """
        self.advance(at_s)
        book = self._gpus[gpu]
        delta_mw = enforced_mw - book.enforced_mw
        book.enforced_mw = enforced_mw
        if outside is not None:
            self._outside(book, gpu, outside)
        elif delta_mw > 0:
            self._raise(book, gpu, delta_mw, excuse)
        elif book.exposure is not None and requested_mw is not None and requested_mw < enforced_mw:
            if requested_mw > book.level_mw:
                self._raise(book, gpu, requested_mw - book.level_mw, excuse)
            else:
                self._lower(book, requested_mw)
        else:
            # Above the budget, what the outside event left over it stays its own.
            self._lower(
                book, enforced_mw if self._over_mw <= 0 else min(book.level_mw, enforced_mw)
            )
        if book.enforced_mw <= book.level_mw:
            self._close(book)
        self._settle()

    def _outside(self, book: _Gpu, gpu: str, kind: str) -> None:
        if book.enforced_mw <= book.level_mw:
            book.level_mw = book.enforced_mw
            return
        self._close(book)
        book.exposure = Exposure(kind, gpu, self._now_s)
        self.exposures.append(book.exposure)

    def _lower(self, book: _Gpu, level_mw: int) -> None:
        # What we raised last is the first that a lowering of ours takes back.
        self._ours_mw = max(0, self._ours_mw - max(0, book.level_mw - level_mw))
        book.level_mw = level_mw

    def _raise(self, book: _Gpu, gpu: str, delta_mw: int, excuse: str | None) -> None:
        book.level_mw += delta_mw
        over_mw = min(delta_mw, self._over_level_mw)
        if over_mw > 0 and excuse is not None:
            book.level_mw -= over_mw
            self._outside(book, gpu, excuse)
        elif over_mw > 0:
            self._ours_mw += over_mw
            self.ours.append(OursOver(self._now_s, gpu, over_mw / 1000))

    def set_budget(self, at_s: float, budget_mw: int) -> None:
        """Take in that another budget is in force from now on."""
        self.advance(at_s)
        self._budget_mw = budget_mw
        self._settle()
        self._note_cut()

    def _note_cut(self) -> None:
        if self._over_level_mw > self._ours_mw:
            if self._cut is not None:
                self._cut.end_s = self._now_s
            self._cut = Exposure("cut", None, self._now_s)
            self.exposures.append(self._cut)

    def _settle(self) -> None:
        self._ours_mw = max(0, min(self._ours_mw, self._over_level_mw))
        if self._cut is not None and self._over_level_mw <= self._ours_mw:
            self._cut.end_s = self._now_s
            self._cut = None
        self.most_enforced_mw = max(self.most_enforced_mw, self._enforced_mw)
        self.least_margin_mw = min(self.least_margin_mw, -self._over_mw)

    def _close(self, book: _Gpu) -> None:
        if book.exposure is not None:
            book.exposure.end_s = self._now_s
            book.exposure = None

    def finish(self, at_s: float) -> None:
        """Charge up to the end; what is still open then keeps no end."""
        self.advance(at_s)
