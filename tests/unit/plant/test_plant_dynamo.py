"""The plant against figures of Dynamo's own offline replay of its mock engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plant_fixtures import make_plant, mock_engine, pool

from wattline.core.fleet import Role
from wattline.sim.request import Request

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "dynamo_mock_timing.json").read_text()
)


@pytest.mark.parametrize("case", VECTORS["single_request"])
def test_one_request_takes_as_long_as_in_the_replay(case: dict[str, float]) -> None:
    request = Request(0.0, int(case["input_tokens"]), int(case["output_tokens"]))
    plant = make_plant([request], (pool(Role.AGGREGATED, 1),), engine=mock_engine())
    plant.advance(10.0)
    totals = plant.totals()
    assert totals.ttft_s[0] * 1e3 == pytest.approx(case["ttft_ms"], abs=1e-3)
    assert case["itl_low_ms"] <= totals.itl_s[0] * 1e3 <= case["itl_high_ms"]


@pytest.mark.parametrize("name", ["poisson", "fixed_interval"])
def test_a_loaded_fleet_has_the_latencies_of_the_replay(name: str) -> None:
    case = VECTORS[name]
    count = case["requests"]
    if name == "poisson":
        times = np.cumsum(np.random.default_rng(7).exponential(1.0 / case["rate_rps"], count))
    else:
        times = np.arange(count) * case["interval_s"]
    requests = [Request(t, case["input_tokens"], case["output_tokens"]) for t in times.tolist()]
    plant = make_plant(requests, (pool(Role.AGGREGATED, case["workers"]),), engine=mock_engine())
    plant.advance(float(times[-1]) + 10.0)
    totals = plant.totals()
    assert totals.completed == count
    assert totals.ttft_s.mean() * 1e3 == pytest.approx(case["mean_ttft_ms"], rel=0.01)
    assert np.percentile(totals.ttft_s, 99) * 1e3 == pytest.approx(case["p99_ttft_ms"], rel=0.01)
    # Arrivals in step with the service time: whether 11 or 12 prompts interrupt a request turns on
    # the mocker's cache blocks of 64 tokens, which the plant counts as tokens.
    assert totals.itl_s.mean() * 1e3 == pytest.approx(case["mean_itl_ms"], rel=0.02)
