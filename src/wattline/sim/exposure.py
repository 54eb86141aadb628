"""Watt-seconds above the budget, split into what our actions caused and what outside events did.

Enforced limits and the budget are step functions of time, so the integral is exact. An outside
event (a rival's write, a node back at its default limits, a cut of the budget) may put the fleet
above its budget; for `repair_s` seconds after the event that excess is exposure, counted and named;
what is left above the budget after that is ours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class OutsideEvent:
    """One outside event: watts that it put above the budget until mended or until its deadline."""

    time_s: float
    text: str
    excess_w: float
    deadline_s: float
    gpu: int | None = None
    exposure_ws: float = 0.0


class ExposureMeter:
    """Integrates enforced watts above the budget and tells whose doing each watt-second is."""

    def __init__(self, *, budget_w: float, enforced_w: float, repair_s: float) -> None:
        self._budget_w = budget_w
        self._enforced_w = enforced_w
        self._repair_s = repair_s
        self._now_s = 0.0
        self._open: list[OutsideEvent] = []
        self.events: list[OutsideEvent] = []
        self.over_budget_ws = 0.0
        self.exposure_ws = 0.0
        self.peak_enforced_w = enforced_w

    @property
    def budget_w(self) -> float:
        """Budget in force."""
        return self._budget_w

    @property
    def enforced_w(self) -> float:
        """Sum of enforced limits at the newest change."""
        return self._enforced_w

    def advance(self, until_s: float) -> None:
        """Integrate up to `until_s` with the present limits and budget."""
        while self._now_s < until_s:
            self._open = [event for event in self._open if event.deadline_s > self._now_s]
            step_end_s = min([until_s, *(event.deadline_s for event in self._open)])
            self._integrate(step_end_s - self._now_s)
            self._now_s = step_end_s

    def _integrate(self, span_s: float) -> None:
        over_w = self._enforced_w - self._budget_w
        if over_w <= 0.0:
            return
        left_w = over_w
        for event in self._open:
            share_w = min(left_w, event.excess_w)
            event.exposure_ws += share_w * span_s
            self.exposure_ws += share_w * span_s
            left_w -= share_w
        self.over_budget_ws += left_w * span_s

    def enforced_changed(self, time_s: float, total_w: float) -> None:
        """Some limit was written: the fleet's enforced sum is `total_w` from `time_s` on."""
        self.advance(time_s)
        self._enforced_w = total_w
        self.peak_enforced_w = max(self.peak_enforced_w, total_w)

    def budget_changed(self, time_s: float, total_w: float, text: str) -> None:
        """The budget is `total_w` from `time_s` on; a cut is an outside event."""
        self.advance(time_s)
        cut_w = self._budget_w - total_w
        self._budget_w = total_w
        if cut_w > 0.0:
            self._add(time_s, text, cut_w, None)

    def raised_from_outside(self, time_s: float, gpu: int, by_w: float, text: str) -> None:
        """Something outside raised the enforced limit of `gpu` by `by_w` watts at `time_s`."""
        self.advance(time_s)
        if by_w > 0.0:
            self._add(time_s, text, by_w, gpu)

    def mended(self, time_s: float, gpu: int) -> None:
        """The node wrote its own value over whatever outside events had left on `gpu`."""
        self.advance(time_s)
        self._open = [event for event in self._open if event.gpu != gpu]

    def _add(self, time_s: float, text: str, excess_w: float, gpu: int | None) -> None:
        event = OutsideEvent(
            time_s=time_s,
            text=text,
            excess_w=excess_w,
            deadline_s=time_s + self._repair_s,
            gpu=gpu,
        )
        self._open.append(event)
        self.events.append(event)
