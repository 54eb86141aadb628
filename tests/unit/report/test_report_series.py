"""Thinning and packing of series: small, and no peak lost."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixtures import fake_comparison, fake_run
from test_report_html import unpack

from wattline.sim.report.series import (
    MAX_EVENTS,
    MAX_VALUES,
    MIN_POINTS,
    drawn_events,
    pack,
    pack_run,
    points_per_run,
)
from wattline.sim.result import RunEvent

COLUMN = st.lists(st.one_of(st.none(), st.floats(0, 1e6), st.just(5.0)), max_size=60)


@settings(max_examples=100, derandomize=True)
@given(COLUMN, st.sampled_from([1.0, 0.01, 10.0]))
def test_packing_loses_less_than_half_a_step(values: list[float | None], step: float) -> None:
    found = unpack(pack(values, step))
    assert len(found) == len(values)
    for before, after in zip(values, found, strict=True):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert abs(before - after) <= step / 2 * (1 + 1e-9) + 1e-9 * before


def test_a_constant_series_costs_two_entries() -> None:
    assert pack([7.0] * 1000, 1.0)["d"] == [7, [999]]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.integers(1, 300), st.integers(1, 100), st.integers(0, 10_000))
def test_thinning_keeps_the_worst_instant_and_invents_none(
    steps: int, points: int, seed: int
) -> None:
    series = fake_run(steps=steps, seed=seed).series
    spike = seed % steps
    enforced = list(series.enforced_w)
    enforced[spike] = series.budget_w[spike] + 500.0
    run = fake_run(steps=steps, seed=seed)
    run = dataclasses.replace(run, series=dataclasses.replace(series, enforced_w=enforced))
    power: dict[str, Any] = pack_run(run, points)["power"]
    over = [
        e - b
        for e, b in zip(unpack(power["enforced"]), unpack(power["budget"]), strict=True)
        if e is not None and b is not None
    ]
    assert len(over) == min(points, steps)
    assert abs(max(over) - 500.0) <= 1.0
    assert sum(value > 1.0 for value in over) == 1


def test_all_runs_together_stay_within_the_bound_on_numbers() -> None:
    runs = fake_comparison(steps=2, deployments=3)
    points = points_per_run(runs)
    columns = sum(5 + 4 * len(r.series.pools) + 7 * len(r.series.deployments) for r in runs)
    assert points >= MIN_POINTS
    assert points * columns <= MAX_VALUES
    assert points_per_run([fake_run(steps=2)]) == 1500


def test_events_are_thinned_from_the_routine_end() -> None:
    plans = [RunEvent(time_s=float(i), kind="plan", text=f"p{i}") for i in range(5000)]
    faults = [RunEvent(time_s=i + 0.5, kind="fault", text=f"f{i}") for i in range(20)]
    drawn = drawn_events(plans + faults)
    assert len(drawn) <= MAX_EVENTS
    assert [event for event in drawn if event.kind == "fault"] == faults
    assert [event.time_s for event in drawn] == sorted(event.time_s for event in drawn)
