"""Which watts of a predictor are believed: the published cases, and bounds for all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.power_figures import CREDIBLE, Predicted, believed

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "aic_power.json").read_text("utf-8"))


@pytest.mark.parametrize(("raw", "limit_w", "used", "clamped"), VECTORS["rows"])
def test_published_cases(raw: Any, limit_w: float, used: list[float], clamped: list[str]) -> None:
    prefill, decode = (Predicted(value, 1.0) for value in raw)
    sides = believed(prefill, decode, limit_w)
    assert [side.watts for side in sides] == used
    names = ("prefill", "decode")
    assert [n for n, side in zip(names, sides, strict=True) if side.clamped] == clamped
    for side, value in zip(sides, raw, strict=True):
        # What was said stays known where it counted, also where the limit stands for it.
        assert side.raw_w == (value if side.predicted else None)


@pytest.mark.parametrize("coverage", [None, 0.0, 0.89, float("nan")])
def test_a_figure_of_which_too_little_was_measured_is_none(coverage: float | None) -> None:
    sides = believed(Predicted(400.0, coverage), Predicted(300.0, 1.0), 700.0)
    assert [side.watts for side in sides] == [700.0, 700.0]
    assert not any(side.predicted for side in sides)


_WATTS = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(float("nan")), st.just(float("inf")))


@given(_WATTS, _WATTS, st.floats(0.0, 1.0), st.floats(50.0, 2000.0))
def test_used_watts_are_real_and_credible(
    prefill: float | None, decode: float | None, coverage: float, limit_w: float
) -> None:
    for side in believed(Predicted(prefill, coverage), Predicted(decode, coverage), limit_w):
        assert 0.0 < side.watts <= CREDIBLE * limit_w
        assert side.clamped <= side.predicted
