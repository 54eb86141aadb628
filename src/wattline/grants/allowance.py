"""What may be booked: a budget less its guard band, and the changes of it that are announced."""

from __future__ import annotations

from wattline.grants.watts import milliwatts


class Allowance:
    """A budget and its guard band, in milliwatts. A change may be announced before it takes effect.

    `usable_mw` is what raises are judged by: an announced cut counts at once, an announced rise
    when it takes effect. `in_force_mw` is what exposure is judged by.
    """

    def __init__(self, budget_w: float, guard_w: float) -> None:
        self.in_force_mw = _usable_mw(budget_w, guard_w)
        self._announced: list[tuple[float, int]] = []

    @property
    def usable_mw(self) -> int:
        """The least of what is in force and what is announced."""
        return min([self.in_force_mw, *(usable_mw for _, usable_mw in self._announced)])

    def change(self, budget_w: float, guard_w: float, effective_s: float) -> None:
        """Take a new budget, newer than all that were announced for `effective_s` or later."""
        entry = (effective_s, _usable_mw(budget_w, guard_w))
        self._announced = [each for each in self._announced if each[0] < effective_s]
        self._announced.append(entry)

    def advance(self, now_s: float) -> None:
        """Put into force what has been announced for `now_s` or earlier."""
        while self._announced and self._announced[0][0] <= now_s:
            self.in_force_mw = self._announced.pop(0)[1]

    def freeze(self) -> tuple[int, tuple[tuple[float, int], ...]]:
        """Return all of it as one value."""
        return self.in_force_mw, tuple(self._announced)

    def copy(self) -> Allowance:
        """Return an allowance that changes on its own."""
        other = Allowance(0.0, 0.0)
        other.in_force_mw = self.in_force_mw
        other._announced = list(self._announced)
        return other


def _usable_mw(budget_w: float, guard_w: float) -> int:
    return milliwatts("budget_w", budget_w) - milliwatts("guard_w", guard_w)
