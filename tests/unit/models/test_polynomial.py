"""The mock engine's timing against Dynamo's own replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wattline.catalog import engine_polynomial
from wattline.core.engine import ForwardPass
from wattline.core.fleet import Setting
from wattline.core.polynomial import PolynomialEngine
from wattline.core.power import CapResponse

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "dynamo_mock_timing.json").read_text()
)
LOOSE = Setting(700.0)


@pytest.fixture(name="engine")
def _engine() -> PolynomialEngine:
    return engine_polynomial("H200")


def prompt(tokens: int) -> ForwardPass:
    return ForwardPass(prefill_tokens=tokens, prefill_context=tokens * (tokens + 1) / 2)


@pytest.mark.parametrize("case", VECTORS["single_request"], ids=lambda c: str(c["input_tokens"]))
def test_one_request_as_in_the_replay(engine: PolynomialEngine, case: dict[str, Any]) -> None:
    tokens = case["input_tokens"]
    both = ForwardPass(tokens, tokens * (tokens + 1) / 2, 1, tokens)
    assert engine.cost(both, LOOSE).duration_s * 1e3 == pytest.approx(case["ttft_ms"], abs=1e-3)
    steps = [
        engine.cost(ForwardPass(decode_batch=1, decode_kv_tokens=tokens + n), LOOSE).duration_s
        for n in range(1, case["output_tokens"])
    ]
    mean_ms = sum(steps) / len(steps) * 1e3
    assert case["itl_low_ms"] <= mean_ms <= case["itl_high_ms"]


def test_a_pass_that_does_both_takes_the_sum(engine: PolynomialEngine) -> None:
    step = ForwardPass(decode_batch=3, decode_kv_tokens=9000.0)
    both = ForwardPass(512, 131_328.0, 3, 9000.0)
    apart_s = engine.cost(prompt(512), LOOSE).duration_s + engine.cost(step, LOOSE).duration_s
    assert engine.cost(both, LOOSE).duration_s == pytest.approx(apart_s, abs=2e-9)


def test_a_full_cache_never_beats_a_millisecond() -> None:
    tight = PolynomialEngine(
        response=CapResponse(
            static_w=100.0, compute_w=400.0, memory_w=150.0, idle_w=80.0, overlap=0.0
        ),
        kv_capacity_tokens=1000,
    )
    full = tight.cost(ForwardPass(decode_batch=4, decode_kv_tokens=5000), LOOSE)
    assert full.duration_s == pytest.approx((5.74 + 54.01 - 25.74) / 1e3)


def test_caps_slow_prompts_more_than_decode_steps(engine: PolynomialEngine) -> None:
    step = ForwardPass(decode_batch=64, decode_kv_tokens=64_000)
    slower = [
        engine.cost(work, Setting(350.0)).duration_s / engine.cost(work, LOOSE).duration_s
        for work in (prompt(2048), step)
    ]
    assert slower[0] > slower[1] >= 1.0


def test_overlap_would_break_the_sum() -> None:
    with pytest.raises(ValueError, match="overlap 0"):
        PolynomialEngine(
            response=CapResponse(static_w=1.0, compute_w=1.0, memory_w=1.0, idle_w=1.0)
        )
