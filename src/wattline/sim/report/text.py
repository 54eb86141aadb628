"""Numbers as people read them, and the one list of columns that every table shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from wattline.sim.result import RunResult

NO_VALUE = "-"


def watts(value_w: float) -> str:
    """Watts with the unit that keeps three to four digits: `640 W`, `13.44 kW`, `1.20 MW`."""
    return _scaled(value_w, ((1e6, "MW"), (1e3, "kW")), "W")


def watt_seconds(value_ws: float) -> str:
    """Watt-seconds above a budget: `0 W·s`, `1.25 kW·s`."""
    return _scaled(value_ws, ((1e6, "MW·s"), (1e3, "kW·s")), "W·s")


def energy(value_j: float) -> str:
    """Joules as watt-hours: `820 Wh`, `12.40 kWh`, `1.20 MWh`."""
    return _scaled(value_j / 3600.0, ((1e6, "MWh"), (1e3, "kWh")), "Wh")


def latency(value_ms: float | None) -> str:
    """Milliseconds up to a second, seconds from there; a dash where nothing was measured."""
    if value_ms is None:
        return NO_VALUE
    if value_ms < 999.5:
        return f"{value_ms:.0f} ms" if value_ms >= 100 else f"{value_ms:.1f} ms"
    return f"{value_ms / 1000:.2f} s" if value_ms < 99_950 else f"{value_ms / 1000:,.0f} s"


def percent(fraction: float) -> str:
    """A share with one decimal, never rounded up to `100.0 %` when it is less."""
    shown = f"{100 * fraction:.1f}"
    return "99.9 %" if shown == "100.0" and fraction < 1.0 else f"{shown} %"


def whole_percent(fraction: float) -> str:
    """A budget's share of the fleet's maximum: `70 %`, `62.5 %`."""
    return f"{100 * fraction:.4g} %"


def rate(value_rps: float) -> str:
    """Requests per second with three significant digits below 100."""
    return f"{value_rps:.{decimals([value_rps])}f}"


def duration(value_s: float) -> str:
    """A span of time: `45 s`, `20 min`, `1 h 30 min`, `24 h`."""
    if value_s < 120:
        return f"{value_s:g} s"
    minutes = round(value_s / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def decimals(values: Sequence[float]) -> int:
    """Decimals that show the largest of `values` with three significant digits, at most three."""
    largest = max((abs(value) for value in values), default=0.0)
    for limit, places in ((100.0, 0), (10.0, 1), (1.0, 2)):
        if largest >= limit:
            return places
    return 3


def _scaled(value: float, units: tuple[tuple[float, str], ...], base: str) -> str:
    for factor, unit in units:
        if abs(value) >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} {base}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the comparison: its name, unit and definition, and how to read it.

    `value` is in `unit`; None where the run measured nothing. `better` says which end is marked as
    best of a budget; empty: no mark. `zero` is shown in place of an exact zero.
    """

    key: str
    label: str
    unit: str
    definition: str
    value: Callable[[RunResult], float | None]
    places: int | None = None
    better: Literal["high", "low", ""] = ""

    def cell(self, result: RunResult, places: int) -> str:
        """The figure of one run without its unit."""
        value = self.value(result)
        if value is None:
            return NO_VALUE
        return "0" if value == 0 else f"{value:,.{places}f}"

    def places_for(self, results: Sequence[RunResult]) -> int:
        """Decimals for the whole column, so that its digits stand under each other."""
        if self.places is not None:
            return self.places
        values = [value for result in results if (value := self.value(result)) is not None]
        return min(decimals(values) + 1, 3)
