"""Published answers to power caps against the modelled ones, for the docs and `wattline models`.

Boards with a sweep are fitted on alternate points (series i, cap j with i + j even) and tested on
the others, once as shipped and once with the halves exchanged. Boards with one point are predicted:
nothing of theirs is fitted, and the range is that over the uncertain parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from wattline.catalog.cap_fit import BoardFit, Sweep, fit_board
from wattline.catalog.files import Sourced, Strict, Watts, parse_yaml
from wattline.catalog.fits import ASSUMED_COMPUTE_SHARE, ASSUMED_MEMORY_SHARE
from wattline.catalog.products import gpu, gpu_names
from wattline.core.power import CapResponse

UNCERTAINTY = 0.3
"""Relative range of exponent, static share and memory floor where no sweep is public."""

_PREDICTED_WORK = {"compute": (1.0, 0.3, 0.15), "memory": (0.3, 1.0, 0.15)}

Role = Literal["base", "fitted", "tested", "predicted"]
Fraction = Sourced[Literal["fraction"]]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class SeriesFile(Strict):
    """One published series, from the largest cap down."""

    name: str
    bound: Literal["compute", "memory"]
    workload: str
    source: str
    measured: Literal["rate", "time"]
    single_kernel: bool = False
    points: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=2)]


class BoardFile(Strict):
    """One board with its published series."""

    name: str
    note: str | None = None
    limit_w: Watts
    clock_min: Fraction | None = None
    memory_low: Fraction | None = None
    overdraws_below_floor: str | None = None
    series: Annotated[tuple[SeriesFile, ...], Field(min_length=1)]


class PublishedFile(Strict):
    """All published cap sweeps."""

    boards: tuple[BoardFile, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One published point; speeds relative to the series' first cap."""

    cap_w: float
    published: float
    relative: float
    modelled: float
    role: Role
    lowest: float | None = None
    highest: float | None = None

    @property
    def error(self) -> float:
        """Modelled over published speed, less 1."""
        return self.modelled / self.relative - 1.0


@dataclass(frozen=True, slots=True)
class SeriesReport:
    """A series with its modelled counterpart."""

    series: SeriesFile
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class BoardReport:
    """A board with the response that was fitted or assumed for it."""

    board: BoardFile
    response: CapResponse
    series: tuple[SeriesReport, ...]


@cache
def published() -> PublishedFile:
    """Read the packaged sweeps."""
    entry = files("wattline.catalog") / "published" / "cap_response.yaml"
    return parse_yaml(PublishedFile, entry.read_text("utf-8"), "published/cap_response.yaml")


@cache
def reports(*, exchanged: bool = False) -> tuple[BoardReport, ...]:
    """Model every published point; `exchanged` swaps the fitted and the tested half."""
    return tuple(_report(board, exchanged) for board in published().boards)


def _report(board: BoardFile, exchanged: bool) -> BoardReport:
    sweeps = [_sweep(series, index, exchanged) for index, series in enumerate(board.series)]
    if sum(len(sweep.caps_w) - 1 for sweep in sweeps) < 2:
        return _predicted(board, sweeps)
    fit = fit_board(
        sweeps,
        limit_w=board.limit_w.value,
        clock_min=board.clock_min.value if board.clock_min else None,
        memory_low=board.memory_low.value if board.memory_low else 1.0,
        lowest_duty=1.0 if board.overdraws_below_floor else 0.01,
    )
    series = tuple(
        SeriesReport(published_series, _points(published_series, sweep, fit, index))
        for index, (published_series, sweep) in enumerate(zip(board.series, sweeps, strict=True))
    )
    return BoardReport(board, fit.response, series)


def _sweep(series: SeriesFile, index: int, exchanged: bool) -> Sweep:
    caps = tuple(cap for cap, _ in series.points)
    first = series.points[0][1]
    relative = tuple(
        value / first if series.measured == "rate" else first / value for _, value in series.points
    )
    fitted = tuple((index + at + exchanged) % 2 == 0 for at in range(len(caps)))
    return Sweep(series.name, series.bound, caps, relative, fitted, series.single_kernel)


def _points(series: SeriesFile, sweep: Sweep, fit: BoardFit, index: int) -> tuple[Point, ...]:
    points = []
    for at, (cap_w, value) in enumerate(series.points):
        role: Role = "base" if at == 0 else "fitted" if sweep.fitted[at] else "tested"
        modelled = fit.relative(index, cap_w, sweep.caps_w[0])
        points.append(Point(cap_w, value, sweep.relative[at], round(modelled, 6), role))
    return tuple(points)


def assumed_shares(limit_w: float) -> CapResponse:
    """Return the response assumed for a board of which only the limit is known."""
    shares = [
        product.loaded_idle_w / product.max_limit_w
        for product in map(gpu, gpu_names())
        if product.loaded_idle_w is not None
    ]
    static_w = limit_w * sum(shares) / len(shares)
    return CapResponse(
        static_w=static_w,
        compute_w=ASSUMED_COMPUTE_SHARE * limit_w,
        memory_w=ASSUMED_MEMORY_SHARE * limit_w,
        idle_w=static_w,
    )


def _predicted(board: BoardFile, sweeps: list[Sweep]) -> BoardReport:
    usual = assumed_shares(board.limit_w.value)
    scales = (1.0 - UNCERTAINTY, 1.0, 1.0 + UNCERTAINTY)
    others = [
        usual.perturbed(exponent=exponent, static=static, floor=floor)
        for exponent, static, floor in product(scales, scales, scales)
    ]
    series = []
    for published_series, sweep in zip(board.series, sweeps, strict=True):
        compute_s, memory_s, other_s = _PREDICTED_WORK[sweep.bound]
        work = ((compute_s, memory_s, 0.0 if sweep.single_kernel else other_s),)
        points = []
        for at, (cap_w, value) in enumerate(published_series.points):
            base_w, seen = sweep.caps_w[0], sweep.relative[at]
            if at == 0:
                points.append(Point(cap_w, value, 1.0, 1.0, "base"))
                continue
            modelled = round(BoardFit(usual, work).relative(0, cap_w, base_w), 6)
            spread = [
                round(BoardFit(other, work).relative(0, cap_w, base_w), 6) for other in others
            ]
            points.append(
                Point(cap_w, value, seen, modelled, "predicted", min(spread), max(spread))
            )
        series.append(SeriesReport(published_series, tuple(points)))
    return BoardReport(board, usual, tuple(series))


def worst_tested(boards: tuple[BoardReport, ...]) -> float:
    """Return the largest absolute error of a tested point."""
    return max(
        abs(point.error)
        for board in boards
        for series in board.series
        for point in series.points
        if point.role == "tested"
    )
