"""Fit the cap response to a published cap sweep: damped least squares with priors, plain Python.

Unknown are the board's parameters, shared by its series, and the shape of each series' workload.
Each is a centre times exp(spread x z) with z pulled towards 0, because a sweep of a few points does
not determine them all. Centres are what CMOS logic and the boards' specifications suggest: a power
law between square and cube, a voltage floor at two thirds of the clock, a quarter of the limit lost
to leakage and memory clocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from wattline.core.power import CapResponse

ERROR_SCALE = 0.03
"""Size of an error in relative speed that weighs as much as one spread of a prior."""

_STEPS = 30
_PROBE = 0.05


@dataclass(frozen=True, slots=True)
class Prior:
    """Where a parameter lies before any data: centre, spread of its logarithm, largest value."""

    centre: float
    spread: float
    largest: float = math.inf


@dataclass(frozen=True, slots=True)
class Sweep:
    """One series: caps in watts, speed relative to the first cap, and which points to fit.

    single_kernel: nothing is launched in between, so that no time is spent on anything else.
    """

    name: str
    bound: Literal["compute", "memory"]
    caps_w: tuple[float, ...]
    relative: tuple[float, ...]
    fitted: tuple[bool, ...]
    single_kernel: bool = False


@dataclass(frozen=True, slots=True)
class BoardFit:
    """A fitted board: its response, and seconds (arithmetic, memory, other) of each series."""

    response: CapResponse
    work: tuple[tuple[float, float, float], ...]

    def relative(self, series: int, cap_w: float, base_w: float) -> float:
        """Speed of a series under a cap over that under `base_w`."""
        base = self.response.settle(*self.work[series], base_w)
        return base.duration_s / self.response.settle(*self.work[series], cap_w).duration_s


def board_priors(limit_w: float, clock_min: float | None) -> dict[str, Prior]:
    """Return priors of a board's parameters, in the order in which they are fitted."""
    return {
        "static_w": Prior(0.25 * limit_w, 0.25),
        "compute_w": Prior(0.75 * limit_w, 0.25),
        "memory_w": Prior(0.15 * limit_w, 0.25),
        "gamma": Prior(2.4, 0.15),
        "voltage_floor": Prior(0.7, 0.15, 1.0),
        "memory_knee": Prior(0.5, 0.2, 1.0),
        "clock_min": Prior(clock_min or 0.15, 0.05 if clock_min else 0.2, 1.0),
        "stall": Prior(0.25, 0.3, 1.0),
        "overlap": Prior(0.85, 0.1, 1.0),
    }


_SMALLER = Prior(0.3, 0.5)
_OTHER = Prior(0.15, 0.5)


def fit_board(
    sweeps: Sequence[Sweep],
    *,
    limit_w: float,
    clock_min: float | None = None,
    memory_low: float = 1.0,
    lowest_duty: float = 0.01,
) -> BoardFit:
    """Fit one board to the points of `sweeps` that are marked; deterministic."""
    priors = board_priors(limit_w, clock_min)
    spreads = [*priors.values(), *([_SMALLER, _OTHER] * len(sweeps))]

    def built(z: Sequence[float]) -> BoardFit:
        values = [
            min(prior.largest, prior.centre * math.exp(prior.spread * at))
            for prior, at in zip(spreads, z, strict=True)
        ]
        shared = dict(zip(priors, values, strict=False))
        shared["gamma"] = max(1.0, shared["gamma"])
        response = CapResponse(
            **shared, idle_w=0.1 * limit_w, memory_low=memory_low, lowest_duty=lowest_duty
        )
        work = []
        for index, sweep in enumerate(sweeps):
            smaller, other = values[len(priors) + 2 * index : len(priors) + 2 * index + 2]
            pair = (1.0, smaller) if sweep.bound == "compute" else (smaller, 1.0)
            work.append((*pair, 0.0 if sweep.single_kernel else other))
        return BoardFit(response, tuple(work))

    def residuals(z: Sequence[float]) -> list[float]:
        fit = built(z)
        return [
            round(math.log(fit.relative(index, cap_w, sweep.caps_w[0]) / seen) / ERROR_SCALE, 9)
            for index, sweep in enumerate(sweeps)
            for cap_w, seen, use in zip(sweep.caps_w, sweep.relative, sweep.fitted, strict=True)
            if use
        ]

    return built(_minimised(residuals, len(spreads)))


def _minimised(residuals: Callable[[Sequence[float]], list[float]], size: int) -> list[float]:
    """Minimise sum of squared residuals plus sum of squares of the `size` unknowns, from 0."""
    z = [0.0] * size
    errors = residuals(z)
    loss = _squares(errors)
    damping = 1.0
    for _ in range(_STEPS):
        columns = []
        for index in range(size):
            moved = list(z)
            moved[index] += _PROBE
            pairs = zip(residuals(moved), errors, strict=True)
            columns.append([(after - before) / _PROBE for after, before in pairs])
        while damping < 1e6:
            matrix = [
                [_dot(a, b) + (1.0 + damping if i == j else 0.0) for j, b in enumerate(columns)]
                for i, a in enumerate(columns)
            ]
            slope = [-_dot(column, errors) - at for column, at in zip(columns, z, strict=True)]
            step = _solved(matrix, slope)
            # Rounded, so that the last bits of a processor never decide a step.
            tried = [round(at + by, 6) for at, by in zip(z, step, strict=True)]
            errors_tried = residuals(tried)
            loss_tried = _squares(errors_tried) + _squares(tried)
            if loss_tried < loss:
                z, errors, loss, damping = tried, errors_tried, loss_tried, damping / 4.0
                break
            damping *= 4.0
    return z


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a positive definite system by Gaussian elimination."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for pivot in range(size):
        for below in range(pivot + 1, size):
            factor = rows[below][pivot] / rows[pivot][pivot]
            for column in range(pivot, size + 1):
                rows[below][column] -= factor * rows[pivot][column]
    solution = [0.0] * size
    for pivot in reversed(range(size)):
        known = math.fsum(rows[pivot][j] * solution[j] for j in range(pivot + 1, size))
        solution[pivot] = (rows[pivot][size] - known) / rows[pivot][pivot]
    return solution


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _squares(values: Sequence[float]) -> float:
    return _dot(values, values)
