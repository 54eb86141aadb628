from __future__ import annotations

import pytest

from wattline.core.mix import Mix
from wattline.sim.mixes import RunningMix
from wattline.sim.plant.outcomes import DemandCounters


def counters(arrivals: int, input_tokens: int, completions: int, output: int) -> DemandCounters:
    return DemandCounters(
        window_s=1.0,
        arrivals=arrivals,
        input_tokens_sum=arrivals * input_tokens,
        cached_tokens_sum=0,
        completions=completions,
        output_tokens_sum=completions * output,
        rejected=0,
        ttft_s=(),
        itl_s=(),
    )


def test_starts_from_what_is_expected() -> None:
    mix = RunningMix(Mix(1000.0, 200.0, 0.3))
    assert mix.current.input_tokens == pytest.approx(1000.0, rel=0.03)
    assert mix.current.output_tokens == pytest.approx(200.0, rel=0.03)
    assert mix.current.cached_fraction == 0.3
    assert mix.rate_rps is None


def test_follows_prompts_quickly_and_answers_slowly() -> None:
    mix = RunningMix(Mix(1000.0, 200.0))
    for _ in range(50):
        mix.add(counters(20, 2000, 20, 400))
    prompts = mix.current.input_tokens / 1000.0
    answers = mix.current.output_tokens / 200.0
    assert 1.7 < prompts <= 2.1
    assert answers < prompts
    assert mix.rate_rps == pytest.approx(20.0, rel=0.03)


def test_no_arrivals_are_a_rate_of_zero() -> None:
    mix = RunningMix(Mix(1000.0, 200.0))
    mix.add(counters(0, 0, 0, 0))
    assert mix.rate_rps == 0.0
