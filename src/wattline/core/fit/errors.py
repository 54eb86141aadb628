"""Errors of a fit: median and 90th percentile of |relative error|, overall and by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NO_ROWS = "no rows"
NOT_MEASURED = "not measured in these rows"
DIGITS = 4
"""Decimals of a reported error: what is left of a float is the same on every CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One row: what was measured (None: not in the data) and what was predicted for it.

    watts are per GPU, rates output tokens per second of the replica. `gpu`, `model` and `op` are
    the keys of groups, None where a kind of data has no such key.
    """

    gpu: str
    model: str | None
    op: str | None
    watts: float
    measured_watts: float | None
    rate: float | None
    measured_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors over some rows, as fractions; None with a reason where nothing could be compared."""

    rows: int
    watts_median: float | None
    watts_p90: float | None
    rate_median: float | None
    rate_p90: float | None
    watts_reason: str | None
    rate_reason: str | None

    def record(self) -> dict[str, object]:
        """Return the same as the JSON of `wattline profile fit` has it."""
        values: dict[str, object] = {
            "rows": self.rows,
            "watts_median_error": self.watts_median,
            "watts_p90_error": self.watts_p90,
            "token_rate_median_error": self.rate_median,
            "token_rate_p90_error": self.rate_p90,
        }
        if self.watts_reason is not None:
            values["watts_reason"] = self.watts_reason
        if self.rate_reason is not None:
            values["token_rate_reason"] = self.rate_reason
        return values


def errors_of(rows: Sequence[Prediction], rate_reason: str | None = None) -> Errors:
    """Errors over `rows`; `rate_reason` says why there are no rates where there cannot be any."""
    watts = [
        abs(row.watts / row.measured_watts - 1.0) for row in rows if row.measured_watts is not None
    ]
    rates = [
        abs(row.rate / row.measured_rate - 1.0)
        for row in rows
        if row.rate is not None and row.measured_rate is not None
    ]
    missing = NO_ROWS if not rows else NOT_MEASURED
    return Errors(
        rows=len(rows),
        watts_median=_quantile(watts, 0.5),
        watts_p90=_quantile(watts, 0.9),
        rate_median=_quantile(rates, 0.5),
        rate_p90=_quantile(rates, 0.9),
        watts_reason=None if watts else missing,
        rate_reason=None if rates else rate_reason or missing,
    )


def report(rows: Sequence[Prediction], rate_reason: str | None = None) -> dict[str, object]:
    """Errors over `rows` with their `groups`, as the JSON of `wattline profile fit` has them.

    A group names the keys it is cut by; a key that is null runs over all values.
    """
    groups: list[dict[str, object]] = []
    for keys in (("gpu",), ("model",), ("op",), ("gpu", "model"), ("gpu", "op")):
        for labels, members in _grouped(rows, keys):
            groups.append({**labels, **errors_of(members, rate_reason).record()})
    return {**errors_of(rows, rate_reason).record(), "groups": groups}


def spread_over(
    rows: Sequence[Prediction], fold: Callable[[Prediction], str], rate_reason: str | None = None
) -> dict[str, object]:
    """Smallest, middle and largest median error over folds: how much one number can be trusted."""
    folds: dict[str, list[Prediction]] = {}
    for row in rows:
        folds.setdefault(fold(row), []).append(row)
    each = [errors_of(folds[name], rate_reason) for name in sorted(folds)]
    watts = [errors.watts_median for errors in each if errors.watts_median is not None]
    rates = [errors.rate_median for errors in each if errors.rate_median is not None]
    return {
        "folds": len(folds),
        "watts_median_error": _range(watts),
        "token_rate_median_error": _range(rates),
    }


def _range(values: Sequence[float]) -> Mapping[str, float | None]:
    return {
        "min": _quantile(values, 0.0),
        "median": _quantile(values, 0.5),
        "max": _quantile(values, 1.0),
    }


def _grouped(
    rows: Sequence[Prediction], keys: Sequence[str]
) -> list[tuple[dict[str, object], list[Prediction]]]:
    """Rows by the values of `keys`, in order of those; none when a row has no such key."""
    found: dict[tuple[str, ...], list[Prediction]] = {}
    for row in rows:
        values = [getattr(row, key) for key in keys]
        if None not in values:
            found.setdefault(tuple(values), []).append(row)
    blank: dict[str, object] = {"gpu": None, "model": None, "op": None}
    return [
        ({**blank, **dict(zip(keys, values, strict=True))}, found[values])
        for values in sorted(found)
    ]


def _quantile(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    return round(float(np.quantile(np.asarray(values), share)), DIGITS)
