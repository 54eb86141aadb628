"""The modelled answer to caps against the published one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from wattline.catalog.cap_fit import Sweep, fit_board
from wattline.catalog.cap_response import BoardReport, Point, reports
from wattline.cli.models import models
from wattline.core.power import CapResponse

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cap-response.md"


def board(name: str) -> BoardReport:
    return next(report for report in reports() if report.board.name == name)


def points(report: BoardReport, role: str) -> list[tuple[str, Point]]:
    return [
        (series.series.name, point)
        for series in report.series
        for point in series.points
        if point.role == role
    ]


def test_tested_points_of_the_3090_stay_within_their_bounds() -> None:
    tested = points(board("RTX 3090"), "tested")
    assert len(tested) >= 7
    for name, point in tested:
        bound = 0.25 if point.cap_w == 100.0 else 0.10
        assert abs(point.error) <= bound, (name, point)


def test_fitted_and_tested_points_alternate() -> None:
    for index, series in enumerate(board("RTX 3090").series):
        roles = [point.role for point in series.points[1:]]
        expected = ["fitted" if (index + at) % 2 == 0 else "tested" for at in range(1, 6)]
        assert roles == expected


def test_the_decode_cliff_was_tested_and_not_fitted() -> None:
    tested = dict.fromkeys((n, p.cap_w) for n, p in points(board("RTX 3090"), "tested"))
    assert ("decode", 100.0) in tested
    assert ("prefill", 100.0) in tested


def test_the_cliff_follows_from_the_structure() -> None:
    # The same fitted board without its low memory state and knee has no cliff of that depth.
    from dataclasses import replace

    report = board("RTX 3090")
    flat: CapResponse = replace(report.response, memory_knee=0.0, memory_low=1.0)
    decode = (0.1, 1.0, 0.3)
    kept = flat.settle(*decode, 350.0).duration_s / flat.settle(*decode, 100.0).duration_s
    response = report.response
    lost = response.settle(*decode, 350.0).duration_s / response.settle(*decode, 100.0).duration_s
    assert lost < 0.25 < 0.4 < kept


def test_other_boards_stay_near() -> None:
    for name in ("V100 (as collected)", "A100"):
        for _, point in points(board(name), "tested"):
            assert abs(point.error) <= 0.10
    ((_, gemm),) = points(board("GB300"), "predicted")
    assert gemm.lowest is not None
    assert gemm.highest is not None
    assert gemm.lowest <= gemm.relative <= gemm.highest


def test_exchanged_halves_show_what_a_half_cannot_know() -> None:
    exchanged = next(r for r in reports(exchanged=True) if r.board.name == "RTX 3090")
    worst = max(points(exchanged, "tested"), key=lambda row: abs(row[1].error))
    assert (worst[0], worst[1].cap_w) == ("decode", 150.0)


def test_a_fit_recovers_a_known_board() -> None:
    truth = CapResponse(
        static_w=90.0, compute_w=250.0, memory_w=50.0, idle_w=35.0, voltage_floor=0.75
    )
    caps = (350.0, 320.0, 290.0, 260.0, 230.0, 200.0, 170.0)
    work = (1.0, 0.3, 0.15)
    base = truth.settle(*work, 350.0).duration_s
    seen = tuple(base / truth.settle(*work, cap).duration_s for cap in caps)
    fitted = fit_board([Sweep("s", "compute", caps, seen, (True,) * 7)], limit_w=350.0)
    for cap, speed in zip(caps, seen, strict=True):
        assert fitted.relative(0, cap, 350.0) == pytest.approx(speed, rel=0.03)


def test_the_page_of_the_docs_is_what_the_command_prints() -> None:
    result = CliRunner().invoke(models, ["cap-response", "--markdown"])
    assert result.exit_code == 0
    assert result.output == PAGE.read_text(encoding="utf-8"), (
        "run: wattline models cap-response --markdown > docs/reference/cap-response.md"
    )
