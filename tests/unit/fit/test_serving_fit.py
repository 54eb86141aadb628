from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_fixtures import TRUTH, serving_runs, truth

from wattline.catalog import gpu
from wattline.core.fit.errors import Prediction, errors_of
from wattline.core.fit.report import serving_report
from wattline.core.fit.serving import ServingFit, fit_serving
from wattline.core.fit.shapes import guessed_spec
from wattline.core.fit.workload import ServingRun


@pytest.fixture(scope="module")
def runs() -> list[ServingRun]:
    return serving_runs()


@pytest.fixture(scope="module")
def fitted(runs: list[ServingRun]) -> ServingFit:
    return fit_serving(runs)


def errors(fit: ServingFit, runs: list[ServingRun]) -> tuple[float, float]:
    """Median errors in watts and in rate."""
    rows = []
    for run in runs:
        watts, rate = fit.predict(run)
        rows.append(
            Prediction(
                gpu=run.gpu.name,
                model=run.name,
                op=None,
                watts=watts,
                measured_watts=run.watts,
                rate=rate,
                measured_rate=run.rate,
            )
        )
    found = errors_of(rows)
    assert found.watts_median is not None
    assert found.rate_median is not None
    return found.watts_median, found.rate_median


def test_a_known_model_is_recovered(fitted: ServingFit, runs: list[ServingRun]) -> None:
    watts, rate = errors(fitted, runs)
    assert watts < 0.02
    assert rate < 0.02


def test_well_determined_parameters_come_out_right(fitted: ServingFit) -> None:
    engine = fitted.shared.engine
    assert engine.weight_bandwidth == pytest.approx(TRUTH.engine.weight_bandwidth, rel=0.1)
    assert engine.sequence_overhead_s == pytest.approx(TRUTH.engine.sequence_overhead_s, rel=0.2)
    assert fitted.shared.base_share == pytest.approx(TRUTH.base_share, rel=0.15)


def test_single_bad_rows_do_not_steer_the_fit(runs: list[ServingRun]) -> None:
    spoilt = [
        replace(run, watts=3.0 * (run.watts or 0.0), rate=(run.rate or 0.0) / 4.0)
        if index % 11 == 0
        else run
        for index, run in enumerate(runs)
    ]
    watts, rate = errors(fit_serving(spoilt), runs)
    assert watts < 0.05
    assert rate < 0.05


def test_efficiencies_stay_below_the_peak_whatever_is_measured(runs: list[ServingRun]) -> None:
    faster = [replace(run, rate=2.0 * (run.rate or 0.0)) for run in runs]
    engine = fit_serving(faster).shared.engine
    shares = (engine.gemm_mfu, engine.weight_bandwidth, engine.expert_bandwidth)
    assert max(*shares, engine.cache_bandwidth, engine.link_efficiency) < 1.0


def test_a_product_without_rows_borrows_from_its_architecture(fitted: ServingFit) -> None:
    assert fitted.params_for(gpu("H200")).based_on == ("H100-80GB-HBM3",)
    assert fitted.params_for(gpu("GB200")).based_on == ("B200",)
    assert fitted.params_for(gpu("A100-SXM4-80GB")).based_on == ("B200", "H100-80GB-HBM3")


def test_an_unseen_product_is_predicted_from_its_datasheet(runs: list[ServingRun]) -> None:
    only = fit_serving([run for run in runs if run.gpu.name == "B200"])
    others = [run for run in runs if run.gpu.name != "B200"]
    watts, rate = errors(only, others)
    assert watts < 0.10
    assert rate < 0.10


def test_predictions_never_exceed_the_limit(fitted: ServingFit, runs: list[ServingRun]) -> None:
    for run in runs:
        watts, rate = fitted.predict(run)
        assert 0.0 < watts <= run.gpu.default_limit_w
        assert rate > 0.0


def test_response_has_the_fitted_watts_at_full_clock() -> None:
    product = gpu("H100")
    response = TRUTH.response(product)
    limit_w = product.default_limit_w
    base_w = response.static_w + response.stall * response.compute_w
    assert base_w == pytest.approx(TRUTH.base_share * limit_w)
    busy = response.watts(1.0, 0.0, 0.0, 1.0)
    assert busy == pytest.approx((TRUTH.base_share + TRUTH.compute_share) * limit_w)
    streaming = response.watts(0.0, 1.0, 0.0, 1.0)
    assert streaming == pytest.approx((TRUTH.base_share + TRUTH.memory_share) * limit_w)
    assert response.watts(0.0, 1.0, 0.0, 0.5) < streaming


def test_the_report_never_scores_a_family_that_it_fitted(
    monkeypatch: pytest.MonkeyPatch, runs: list[ServingRun]
) -> None:
    seen: list[set[str]] = []

    def spy(given: list[ServingRun]) -> ServingFit:
        seen.append({run.family for run in given})
        return truth(("H100", "B200"))

    monkeypatch.setattr("wattline.core.fit.report.fit_serving", spy)
    result = serving_report(runs, [])
    families = {run.family for run in runs}
    assert seen[0] == families
    assert [families - rest for rest in seen[1 : 1 + len(families)]] == [
        {family} for family in sorted(families)
    ]
    assert result.record["cross_validation"]["rows"] == len(runs)  # type: ignore[index]


def test_the_report_is_the_same_twice(runs: list[ServingRun]) -> None:
    few = [run for run in runs if run.batch in (8.0, 64.0, 512.0)]
    assert serving_report(few, few[:3]).record == serving_report(few, few[:3]).record


def test_unmeasured_targets_have_a_reason_and_not_a_zero(runs: list[ServingRun]) -> None:
    blank = [replace(run, watts=None) for run in runs[:5]]
    holdout = serving_report(runs[:20], blank).record["holdout"]
    assert isinstance(holdout, dict)
    assert holdout["watts_median_error"] is None
    assert holdout["watts_reason"]
    assert holdout["token_rate_median_error"] is not None


@pytest.mark.parametrize(
    ("params_b", "active_b", "kind"),
    [(8.0, 8.0, "Dense"), (405.0, 405.0, "Dense"), (120.0, 5.0, "MoE"), (9.0, 9.0, "Mamba hybrid")],
)
def test_a_guessed_shape_adds_up(params_b: float, active_b: float, kind: str) -> None:
    spec = guessed_spec("x", params_b * 1e9, active_b * 1e9, kind, "bf16")
    body = 12.0 * spec.layers * spec.hidden**2
    if not spec.is_moe:
        assert body == pytest.approx(spec.params, rel=0.25)
    else:
        used = spec.expert_params * spec.experts_per_token / spec.experts
        dense = spec.params - spec.expert_params
        assert dense + used == pytest.approx(spec.active_params, rel=0.35)
        assert dense > 0.0
    assert (spec.recurrent_layers > 0) == ("hybrid" in kind)


def test_rates_fall_and_watts_change_with_parallelism_as_physics_says(fitted: ServingFit) -> None:
    run = next(r for r in serving_runs(("H100",)) if r.name.startswith("Qwen/Qwen3-8B"))
    rates = [fitted.predict(replace(run, batch=float(b)))[1] for b in (1, 4, 16, 64, 256)]
    assert np.all(np.diff(rates) > 0.0)
