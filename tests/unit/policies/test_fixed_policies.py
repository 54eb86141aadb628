"""Policies that only choose caps, and the sweep of static splits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_fixtures import HIGH_W, LOW_W, World, budget, context, disaggregated, pool, settings_of

from wattline.core.decision import ReasonCode
from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.sim.policies.common import fit_caps, water_level
from wattline.sim.policies.registry import build, initial_plan, names
from wattline.sim.policies.sweep import MAX_SPLITS, static_splits, widest_step_w


def test_unknown_policy_names_the_nearest() -> None:
    with pytest.raises(InputError, match="uniform-cap"):
        build("uniform-caps", disaggregated(), context())


def test_every_name_builds_a_policy_of_that_name() -> None:
    for name in names():
        given_to_all = context(pool_caps_w=(500.0, 400.0), pool_replicas=(8, 8))
        assert build(name, disaggregated(), given_to_all).name == name


def test_uncapped_ignores_the_budget() -> None:
    plan = initial_plan("uncapped", disaggregated(8, 4), context(), budget(1.0))
    assert [(p.replicas, p.setting.cap_w) for p in plan] == [(8, HIGH_W), (4, HIGH_W)]


def test_fewest_uncapped_keeps_the_stated_replicas_and_leaves_the_rest_at_default() -> None:
    spec = disaggregated(4, 4)
    policy = build("fewest-uncapped", spec, context(pool_replicas=(3, 1)))
    start = policy.initial_plan(budget(1.0))
    assert [(p.replicas, p.setting.cap_w) for p in start] == [(3, HIGH_W), (1, HIGH_W)]
    world = World(spec, budget(1.0), start, caps_w=dict.fromkeys(range(8), LOW_W))
    decision = policy.decide(world.snapshot())
    assert decision.caps.gpu == tuple(range(8))
    assert set(decision.caps.cap_w) == {HIGH_W}
    assert decision.replicas == ()


@pytest.mark.parametrize("replicas", [None, (4,), (0, 4), (4, 5)])
def test_fewest_uncapped_needs_possible_counts(replicas: tuple[int, ...] | None) -> None:
    with pytest.raises(InputError, match="pool_replicas"):
        build("fewest-uncapped", disaggregated(4, 4), context(pool_replicas=replicas))


def test_uniform_cap_divides_the_budget_by_the_gpus() -> None:
    plan = initial_plan("uniform-cap", disaggregated(8, 8), context(), budget(8_100.0, 100.0))
    assert [(p.replicas, p.setting.cap_w) for p in plan] == [(8, 500.0), (8, 500.0)]


@pytest.mark.parametrize(("total_w", "cap_w"), [(1_000.0, LOW_W), (50_000.0, HIGH_W)])
def test_uniform_cap_stays_in_the_products_range(total_w: float, cap_w: float) -> None:
    plan = initial_plan("uniform-cap", disaggregated(), context(), budget(total_w))
    assert {p.setting.cap_w for p in plan} == {cap_w}


def test_static_caps_stand_as_stated_while_they_fit() -> None:
    plan = initial_plan("static-caps", disaggregated(), context(), budget(11_200.0))
    assert [p.setting.cap_w for p in plan] == [499.0, 424.0]


def test_static_caps_shrink_by_one_factor_when_they_do_not_fit() -> None:
    roles = {Role.PREFILL: 0.8, Role.DECODE: 0.4}
    plan = initial_plan(
        "static-caps", disaggregated(), context(role_caps=roles), budget(8 * 420 + 8 * 210)
    )
    assert [p.setting.cap_w for p in plan] == [420.0, 210.0]


def test_static_caps_need_a_cap_for_every_role() -> None:
    with pytest.raises(InputError, match="decode"):
        build("static-caps", disaggregated(), context(role_caps={Role.PREFILL: 0.5}))


def test_best_static_needs_one_cap_per_pool() -> None:
    with pytest.raises(InputError, match="2 pools"):
        build("best-static", disaggregated(), context(pool_caps_w=(500.0,)))


def test_best_static_refuses_caps_that_the_product_cannot_take() -> None:
    with pytest.raises(InputError, match="200 to 700 W"):
        build("best-static", disaggregated(), context(pool_caps_w=(500.0, 701.0)))


def test_a_cut_lowers_everything_at_once_and_a_rise_waits_for_free_watts() -> None:
    settings = disaggregated(2, 2)
    policy = build("uniform-cap", settings, context())
    world = World(settings, budget(2_000.0), policy.initial_plan(budget(2_000.0)))
    world.budget = budget(1_200.0)
    lowered = policy.decide(world.snapshot())
    assert lowered.caps.gpu == (0, 1, 2, 3)
    assert set(lowered.caps.cap_w) == {300.0}
    # All at 300 W now. 100 W are free: they do not cover 200 W more for GPU 2; the others are
    # still booked at 500 W or above, so that raising them takes nothing.
    world.budget = budget(2_000.0)
    world.caps_w = dict.fromkeys(range(4), 300.0)
    world.booked_w = {0: 500.0, 1: 500.0, 2: 300.0, 3: 600.0}
    assert policy.decide(world.snapshot()).caps.gpu == (0, 1, 3)


def test_a_limit_on_the_rise_spreads_raises_over_ticks() -> None:
    settings = disaggregated(2, 2)
    policy = build("uniform-cap", settings, context())
    limited = replace(budget(2_000.0), rise_w_per_s=400.0)
    world = World(settings, limited, policy.initial_plan(budget(1_200.0)))
    assert policy.decide(world.snapshot()).caps.gpu == (0, 1)


def test_missing_replicas_are_started_on_free_gpus() -> None:
    settings = settings_of(pool("all", Role.AGGREGATED, 8, per_replica=2))
    policy = build("uniform-cap", settings, context())
    world = World(settings, budget(4_000.0), policy.initial_plan(budget(4_000.0)))
    world.plan = (replace(world.plan[0], replicas=2),)
    decision = policy.decide(world.snapshot())
    assert [(step.pool, step.change) for step in decision.replicas] == [(0, 2)]
    assert decision.plan[0].replicas == 4


caps = st.floats(50.0, 900.0)


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.tuples(caps, st.integers(1, 40)), min_size=1, max_size=6), st.floats(0, 2e5))
def test_fitted_caps_never_exceed_the_total_unless_at_the_smallest_limits(
    pools: list[tuple[float, int]], total_w: float
) -> None:
    limits = [(LOW_W, HIGH_W)] * len(pools)
    gpus = [n for _, n in pools]
    fitted = fit_caps([cap for cap, _ in pools], gpus, limits, total_w)
    spent_w = sum(n * cap for n, cap in zip(gpus, fitted, strict=True))
    assert spent_w <= total_w + 1e-3 or set(fitted) == {LOW_W}
    assert all(LOW_W <= cap <= HIGH_W for cap in fitted)
    assert all(cap <= max(LOW_W, want) for cap, (want, _) in zip(fitted, pools, strict=True))


@settings(max_examples=200, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(100, 400), st.integers(0, 800)),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 2e5),
)
def test_water_level_spends_what_can_be_spent(
    pools: list[tuple[int, int, int]], total_w: float
) -> None:
    gpus = [n for n, _, _ in pools]
    limits = [(float(low), float(low + span)) for _, low, span in pools]
    level = water_level(gpus, limits, total_w)
    spent_w = sum(n * min(max(level, lo), hi) for n, (lo, hi) in zip(gpus, limits, strict=True))
    least_w = sum(n * lo for n, (lo, _) in zip(gpus, limits, strict=True))
    most_w = sum(n * hi for n, (_, hi) in zip(gpus, limits, strict=True))
    assert spent_w == pytest.approx(min(max(total_w, least_w), most_w), rel=1e-9)


def test_two_pools_are_swept_along_the_line_in_small_steps() -> None:
    settings = disaggregated(19, 13)
    splits = static_splits(settings.fleet, budget(13_440.0, 200.0))
    assert widest_step_w(splits) <= 25.0
    for prefill, decode in splits:
        assert 13_240.0 - 32.0 < 19 * prefill + 13 * decode <= 13_240.0
    assert splits[0][1] == HIGH_W
    assert splits[-1][1] == LOW_W


def test_a_budget_for_all_limits_has_one_split() -> None:
    assert static_splits(disaggregated().fleet, budget(11_200.0)) == [(HIGH_W, HIGH_W)]


def test_one_pool_has_one_split() -> None:
    fleet = settings_of(pool("all", Role.AGGREGATED, 8)).fleet
    assert static_splits(fleet, budget(4_000.0)) == [(500.0,)]


def test_many_pools_are_swept_coarsely_within_the_budget() -> None:
    fleet = settings_of(
        *(pool(f"p{i}", Role.AGGREGATED, 8, deployment=f"d{i}") for i in range(4))
    ).fleet
    splits = static_splits(fleet, budget(13_000.0))
    assert 10 < len(splits) <= MAX_SPLITS
    assert all(8 * sum(split) <= 13_000.0 for split in splits)
    assert widest_step_w(splits) > 25.0


def test_reasons_name_the_cut_the_wait_and_the_misfit() -> None:
    settings = disaggregated(2, 2)
    policy = build("uniform-cap", settings, context())
    world = World(settings, budget(2_000.0), policy.initial_plan(budget(2_000.0)))
    assert policy.decide(world.snapshot()).reasons[0].code is ReasonCode.BUDGET_BOUND
    world.budget = budget(1_200.0)
    assert policy.decide(world.snapshot()).reasons[0].code is ReasonCode.BUDGET_CUT
    world.budget = budget(700.0)
    assert policy.decide(world.snapshot()).reasons[0].code is ReasonCode.INFEASIBLE_FLOOR
    world.budget, world.booked_w = budget(2_400.0), dict.fromkeys(range(4), 590.0)
    world.caps_w = dict.fromkeys(range(4), 500.0)
    seen = policy.decide(world.snapshot())
    assert seen.caps.gpu == (0, 1, 2, 3)
    world.booked_w = dict.fromkeys(range(4), 500.0) | {0: 900.0}
    assert policy.decide(world.snapshot()).reasons[1].code is ReasonCode.WAITING_FOR_SETTLE
