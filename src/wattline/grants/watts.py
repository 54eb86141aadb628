"""Whole milliwatts inside, watts at the interface: sums and comparisons stay exact."""

from __future__ import annotations

from wattline.core.errors import InputError


def milliwatts(where: str, watts: float) -> int:
    """Whole milliwatts; InputError unless `watts` is finite and at least 0."""
    if not 0.0 <= watts < 1e12:
        raise InputError(where, watts, "give watts as a finite number of 0 or more")
    return round(watts * 1000)


def watts_or_none(mw: int | None) -> float | None:
    """Watts of whole milliwatts."""
    return None if mw is None else mw / 1000
