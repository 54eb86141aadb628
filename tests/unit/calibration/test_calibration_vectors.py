"""The published vectors of correction factors, drift triggers and sweeps that fail."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from wattline.core.calibration.drift import Drift, DriftTerms, Served
from wattline.core.calibration.factors import Comparison, Factors, FactorTerms, follow
from wattline.core.calibration.sweep import Reoptimiser, SweepFailed, SweepTerms, Swept
from wattline.core.fleet import Slo

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "calibration.json").read_text(encoding="utf-8")
)


def cases(name: str) -> pytest.MarkDecorator:
    entries = VECTORS[name]
    return pytest.mark.parametrize("case", entries, ids=[entry["case"] for entry in entries])


@cases("factors")
def test_factor(case: dict[str, Any]) -> None:
    factor = case["start"]
    seen = Comparison(observed=case["observed"], predicted=case["predicted"], work=case["work"])
    for _ in range(case["steps"]):
        factor = follow(factor, seen, FactorTerms())
    assert factor == pytest.approx(case["expected"], abs=case["within"], rel=0.0)


def test_a_noisy_factor_stays_near_its_mean() -> None:
    case = VECTORS["noisy_factor"]
    random, factor = Random(case["seed"]), 1.0
    for _ in range(case["steps"]):
        ratio = random.uniform(1.0 - case["noise"], 1.0 + case["noise"])
        factor = follow(factor, Comparison(observed=ratio, predicted=1.0, work=1.0), FactorTerms())
    assert factor == pytest.approx(case["expected"], abs=case["within"])


def test_each_side_follows_its_own_work() -> None:
    # Decode draws 850 W where 700 W were predicted; prefill reports watts but computed no tokens.
    after = Factors().followed(
        FactorTerms(), power=Comparison(observed=600.0, predicted=700.0, work=0.0)
    )
    assert after == Factors()
    after = Factors(ttft=1.3).followed(
        FactorTerms(), power=Comparison(observed=850.0, predicted=700.0, work=200.0)
    )
    assert after.power == pytest.approx(1.0642857, abs=1e-6)
    assert (after.ttft, after.itl) == (1.3, 1.0)


@cases("drift")
def test_drift(case: dict[str, Any]) -> None:
    terms = DriftTerms(
        enabled=case.get("enabled", True),
        interval_s=case["interval_s"],
        in_a_row=case["in_a_row"],
    )
    drift = Drift(swept_s=case["swept_s"])
    fires = []
    repeat = case.get("repeat", 1)
    for number, tick in enumerate(case["ticks"] * repeat):
        served = Served(estimate_tokens_per_s=case.get("estimate"), **tick)
        after = drift.watched(served, Slo(*case["slo"]), terms, now_s=1.0 + number)
        fires.append(after.fired > drift.fired)
        drift = after
    assert fires == case["fires"] * repeat
    if "violations" in case:
        assert drift.violations == case["violations"]


def test_a_day_in_the_life() -> None:
    day = VECTORS["day_in_the_life"]
    terms = DriftTerms(interval_s=0.0, in_a_row=day["in_a_row"])
    drift, factors, now_s = Drift(swept_s=0.0), Factors(), 0.0
    predicted_ttft_s, predicted_itl_s = day["predicted"]
    for phase in day["phases"]:
        fires = phase["fires"] if len(phase["fires"]) > 1 else phase["fires"] * phase["ticks"]
        for expected in fires:
            now_s += 1.0
            factors = factors.followed(
                FactorTerms(),
                ttft=Comparison(observed=phase["ttft_s"], predicted=predicted_ttft_s, work=5.0),
                itl=Comparison(observed=phase["itl_s"], predicted=predicted_itl_s, work=5.0),
            )
            served = Served(
                ttft_s=phase["ttft_s"],
                itl_s=phase["itl_s"],
                tokens_per_s=phase["tokens_per_s"],
                estimate_tokens_per_s=day["estimate"],
            )
            after = drift.watched(served, Slo(*day["slo"]), terms, now_s)
            assert (after.fired > drift.fired) is expected
            drift = after
    assert drift.swept(now_s).violations == 0
    assert factors.ttft > 1.0
    assert factors.itl > 1.0


@cases("sweeps")
def test_sweeps(case: dict[str, Any]) -> None:
    terms = SweepTerms(most_failures=case.get("most_failures", 5))
    state: Reoptimiser[str] = Reoptimiser(terms=terms)
    for number, given in enumerate(case["outcomes"]):
        outcome = SweepFailed(given["failed"]) if "failed" in given else Swept[str](**given)
        state = state.after(outcome, Slo(*case["slo"]), now_s=float(number))
    assert state.config == case["config"]
    assert (state.disabled is not None) is case["disabled"]
    assert state.failures == case["failures"]
    assert state.regressions == case.get("regressions", 0)


def test_while_disabled_nothing_is_swept() -> None:
    state: Reoptimiser[str] = Reoptimiser().disable("not wanted")
    assert not state.due(0.0, drifts=7)
    good = Swept(config="x", ttft_s=None, itl_s=0.01, throughput=1.0)
    assert state.after(good, Slo(0.2, 0.05), 1.0) is state
