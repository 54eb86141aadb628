"""What is predicted of the load that is there, and numbers that no model can make sense of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calibration_world import ENGINE, GPUS, MIX, World, make_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.calibration.drift import Drift, DriftTerms, Served, violation
from wattline.core.calibration.factors import Comparison, FactorTerms, follow
from wattline.core.calibration.predict import predict
from wattline.core.calibration.sweep import Reoptimiser, SweepFailed, SweepTerms, Swept
from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.errors import InputError
from wattline.core.fleet import Role, Setting, Slo
from wattline.core.snapshot import PoolView, Snapshot

FULL = Setting(700.0)
SLO = Slo(0.2, 0.05)


def view(**changes: object) -> PoolView:
    plain = PoolView(
        ready=2,
        starting=0,
        draining=0,
        setting=FULL,
        queued_prefill_tokens=0.0,
        active_kv_tokens=22_000.0,
        running=20.0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_prefill_in_closed_form() -> None:
    # 1,000 tokens at 20,000 tokens/s are 50 ms; 4,000 queued on two replicas are two prompts each.
    alone = predict(ENGINE, Role.PREFILL, FULL, MIX, view(), tokens_per_s=10_000.0)
    queued = predict(
        ENGINE,
        Role.PREFILL,
        FULL,
        MIX,
        view(queued_prefill_tokens=4000.0),
        tokens_per_s=10_000.0,
    )
    assert alone.stage_s == pytest.approx(0.05)
    assert alone.queue_s == pytest.approx(0.0)
    assert queued.stage_s == pytest.approx(0.15)
    assert queued.queue_s == pytest.approx(0.10)
    # Half of the time busy: half way between idle and busy watts.
    assert alone.draw_w == pytest.approx((110.0 + 560.0) / 2.0)


def test_decode_in_closed_form() -> None:
    made = predict(ENGINE, Role.DECODE, FULL, MIX, view(), tokens_per_s=0.0)
    assert made.itl_s == pytest.approx(0.010 + 0.0002 * 10)
    assert made.stage_s is None
    assert made.draw_w == pytest.approx(560.0, rel=1e-3)


@pytest.mark.parametrize(
    "seen",
    [
        view(ready=0),
        view(running=None),
        view(running=0.0),
        view(active_kv_tokens=None),
        view(running=float("nan")),
    ],
)
def test_what_is_not_known_is_not_predicted(seen: PoolView) -> None:
    made = predict(ENGINE, Role.DECODE, FULL, MIX, seen, tokens_per_s=0.0)
    assert (made.stage_s, made.itl_s, made.draw_w) == (None, None, None)


def test_a_queue_that_is_not_known_leaves_watts() -> None:
    seen = view(queued_prefill_tokens=None)
    made = predict(ENGINE, Role.PREFILL, FULL, MIX, seen, tokens_per_s=10_000.0)
    assert made.stage_s is None
    assert made.draw_w is not None


ODD = st.one_of(
    st.none(),
    st.sampled_from([0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")]),
    st.floats(0.0, 1e6),
)


@settings(max_examples=40, deadline=None)
@given(draw=ODD, running=ODD, held=ODD, queued=ODD, ttft=ODD, itl=ODD)
def test_odd_measurements_never_break_a_decision(
    draw: float | None,
    running: float | None,
    held: float | None,
    queued: float | None,
    ttft: float | None,
    itl: float | None,
) -> None:
    def odd(snapshot: Snapshot) -> Snapshot:
        (seen,) = snapshot.demand
        return replace(
            snapshot,
            gpus=replace(snapshot.gpus, draw_w=(draw,) * (2 * GPUS)),
            pools=tuple(
                replace(
                    pool,
                    running=None if running is None else abs(running),
                    active_kv_tokens=held,
                    queued_prefill_tokens=queued,
                )
                for pool in snapshot.pools
            ),
            demand=(replace(seen, ttft_mean_s=ttft, itl_p50_s=itl),),
        )

    world = World(settings=make_settings(calibration=CalibrationSettings(window_s=1.0)))
    world.run(15)
    world.edit = odd
    world.run(5)
    for entry in world.calibration.roles:
        for factors in (entry.factors, entry.in_force):
            for value in (factors.ttft, factors.itl, factors.power):
                assert 0.5 <= value <= 2.0


@given(
    factor=st.floats(0.5, 2.0),
    observed=ODD,
    predicted=ODD,
    work=st.sampled_from([0.0, 1.0, float("nan")]),
)
def test_a_factor_stays_within_its_clamp(
    factor: float, observed: float | None, predicted: float | None, work: float
) -> None:
    seen = Comparison(observed=observed, predicted=predicted, work=work)
    assert 0.5 <= follow(factor, seen, FactorTerms()) <= 2.0


def test_thresholds_are_strict() -> None:
    terms = DriftTerms()
    assert violation(Served(ttft_s=0.2, itl_s=0.05), SLO, terms) is None
    assert violation(Served(ttft_s=0.2000001), SLO, terms) is not None
    assert violation(Served(itl_s=0.0500001), SLO, terms) is not None
    nothing = Served(tokens_per_s=1e9, estimate_tokens_per_s=0.0)
    assert violation(nothing, SLO, terms) is None


def test_a_drift_goes_on_until_it_is_answered() -> None:
    drift, terms = Drift(swept_s=0.0), DriftTerms(interval_s=10.0, in_a_row=2)
    for now_s in range(1, 14):
        drift = drift.watched(Served(ttft_s=1.0), SLO, terms, float(now_s))
    # Counted from second 10 on: 10, 11 (fires), 12 and 13 again, because nobody answered.
    assert (drift.fired, drift.fired_s, drift.violations) == (3, 13.0, 4)
    answered = drift.swept(13.0)
    assert answered.watched(Served(ttft_s=1.0), SLO, terms, 20.0) == answered


def test_a_sweep_is_due_at_the_start_after_a_drift_and_after_a_pause() -> None:
    good = Swept(config="a", ttft_s=0.1, itl_s=0.01, throughput=10.0)
    state: Reoptimiser[str] = Reoptimiser(terms=SweepTerms(retry_s=30.0))
    assert state.due(0.0)
    state = state.after(good, SLO, 0.0)
    assert not state.due(1e6)
    assert state.due(100.0, drifts=1)
    state = state.after(SweepFailed("no answer"), SLO, 100.0, drifts=1)
    assert state.config == "a"
    assert not state.due(129.0, drifts=1)
    assert state.due(130.0, drifts=1)
    state = state.after(replace(good, config="b"), SLO, 130.0, drifts=1)
    assert (state.config, state.failures, state.failed, state.why) == ("b", 0, 1, None)
    assert not state.due(1e6, drifts=1)


def test_factors_are_part_of_a_sweeps_target() -> None:
    tight = Swept(config="a", ttft_s=0.15, itl_s=0.01, throughput=10.0)
    state: Reoptimiser[str] = Reoptimiser()
    assert state.after(tight, SLO, 0.0, ttft_factor=0.5).config == "a"  # never loosened
    failed = state.after(tight, SLO, 0.0, ttft_factor=1.4)
    assert failed.config is None
    assert failed.disabled is not None
    assert "0.21 s" in failed.disabled


def test_enabled_again_by_command() -> None:
    state: Reoptimiser[str] = Reoptimiser()
    state = state.after(SweepFailed("no predictor"), SLO, 0.0)
    assert not state.due(1e6)
    state = state.enable()
    assert state.due(0.0)
    assert state.after(SweepFailed("still none"), SLO, 1.0).disabled is not None
    good = Swept(config="a", ttft_s=None, itl_s=0.01, throughput=1.0)
    state = state.after(good, SLO, 2.0)
    assert state.config == "a"
    again = state.disable("not wanted").enable()
    assert again.config == "a"
    assert again.due(3.0)


@pytest.mark.parametrize("throughput", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("itl_s", [0.01, 0.0, -1.0, float("nan")])
def test_impossible_points_are_failures(throughput: float, itl_s: float) -> None:
    point = Swept(config="a", ttft_s=None, itl_s=itl_s, throughput=throughput)
    assert Reoptimiser[str]().after(point, SLO, 0.0).config is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: FactorTerms(alpha=0.0),
        lambda: FactorTerms(least=1.1),
        lambda: DriftTerms(in_a_row=0),
        lambda: DriftTerms(interval_s=float("nan")),
        lambda: SweepTerms(most_failures=0),
        lambda: CalibrationSettings(window_s=0.0),
        lambda: CalibrationSettings(step=2.0),
    ],
)
def test_terms_that_cannot_be_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(InputError):
        make()
