"""Policies that scale replicas or clocks: Dynamo's planner, thresholds, latency saturation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_fixtures import (
    HIGH_W,
    LOW_W,
    OUTAGE,
    LinearEngine,
    Load,
    World,
    budget,
    context,
    disaggregated,
    pool,
    settings_of,
    traffic,
)

from wattline.core.decision import Decision, PoolPlan
from wattline.core.errors import InfeasibleError, InputError
from wattline.core.fleet import Role, Setting, Slo
from wattline.core.settings import Settings
from wattline.core.snapshot import Snapshot
from wattline.sim.policies.context import PolicyContext
from wattline.sim.policies.dynamo_engine import Shape, engine_rps
from wattline.sim.policies.registry import build, initial_plan

FULL = Setting(HIGH_W)
SLO = Slo(ttft_s=1.0, itl_s=0.05)


def counts(decision: Decision) -> list[int]:
    return [plan.replicas for plan in decision.plan]


def world_of(settings: Settings, total_w: float, *replicas: int) -> World:
    plan = tuple(PoolPlan(n, FULL) for n in replicas)
    return World(settings, budget(total_w), plan)


# --- capacity of one engine -----------------------------------------------------------------


def test_prefill_rate_is_batch_over_ttft_within_the_target() -> None:
    # One pass of b prompts of 1,000 tokens takes 0.01 + 0.1 b seconds; four fit into a pass.
    rate = engine_rps(LinearEngine(), FULL, Role.PREFILL, Shape(1000, 100), SLO)
    assert rate == pytest.approx(4 / 0.41)


def test_decode_rate_keeps_the_itl_target() -> None:
    # A pass takes 0.01 + 1e-6 * 1,050 b seconds: 38 sequences meet 50 ms, 39 do not.
    rate = engine_rps(LinearEngine(), FULL, Role.DECODE, Shape(1000, 100), SLO)
    assert rate == pytest.approx(38 / (100 * (0.01 + 38 * 1050e-6)))


def test_best_effort_where_no_batch_meets_the_target() -> None:
    rate = engine_rps(LinearEngine(), FULL, Role.DECODE, Shape(1000, 100), Slo(1.0, 0.001))
    assert rate == pytest.approx(64 / (100 * (0.01 + 64 * 1050e-6)))


def test_aggregated_rate_carries_its_prompts() -> None:
    # b sequences of 100 output tokens bring 10 b prompt tokens into every pass.
    rate = engine_rps(LinearEngine(), FULL, Role.AGGREGATED, Shape(1000, 100), SLO)
    assert rate == pytest.approx(19 / (100 * (0.01 + 19 * (1e-3 + 1050e-6))))


def test_cached_prompts_cost_less() -> None:
    plain = engine_rps(LinearEngine(), FULL, Role.PREFILL, Shape(1000, 100), SLO)
    cached = engine_rps(LinearEngine(), FULL, Role.PREFILL, Shape(1000, 100, 0.5), SLO)
    assert cached > 1.5 * plain


# --- dynamo-clamp ---------------------------------------------------------------------------


def test_dynamo_starts_balanced_and_shrunk_in_proportion() -> None:
    plan = initial_plan("dynamo-clamp", disaggregated(8, 8), context(), budget(0.6 * 16 * 700))
    assert [(p.replicas, p.setting.cap_w) for p in plan] == [(4, HIGH_W), (5, HIGH_W)]


def test_dynamo_refuses_to_start_below_its_minimum() -> None:
    with pytest.raises(InfeasibleError, match="minimum replicas"):
        initial_plan("dynamo-clamp", disaggregated(), context(), budget(1_399.0))


def test_dynamo_wants_one_pool_a_role() -> None:
    settings = settings_of(
        pool("a", Role.PREFILL, 4), pool("b", Role.PREFILL, 4), pool("c", Role.DECODE, 4)
    )
    with pytest.raises(InputError, match="one prefill and one decode"):
        build("dynamo-clamp", settings, context())


def test_two_deployments_share_the_budget_by_their_limits() -> None:
    settings = settings_of(
        pool("big", Role.AGGREGATED, 12, deployment="a"),
        pool("small", Role.AGGREGATED, 4, deployment="b"),
    )
    plan = initial_plan("dynamo-clamp", settings, context(), budget(0.5 * 16 * 700))
    assert [p.replicas for p in plan] == [6, 2]


def test_charged_for_parked_gpus_fewer_replicas_run() -> None:
    fleet = disaggregated(8, 8)
    usual = initial_plan("dynamo-clamp", fleet, context(), budget(6_400.0))
    parked = initial_plan("dynamo-clamp-parked", fleet, context(), budget(6_400.0))
    assert sum(p.replicas for p in usual) == 9
    # 16 parked GPUs take 3,200 W; each replica adds the 500 W between parking limit and cap.
    assert sum(p.replicas for p in parked) == 6
    booked_w = sum(p.replicas * 700.0 + (8 - p.replicas) * 200.0 for p in parked)
    assert booked_w <= 6_400.0


def test_low_caps_let_more_replicas_run() -> None:
    plan = initial_plan(
        "dynamo-clamp-best",
        disaggregated(8, 8),
        context(pool_caps_w=(500.0, 300.0)),
        budget(6_400.0),
    )
    # Seven prefill replicas serve what eight decode replicas do: 7 x 9.8 and 8 x 7.6 requests/s.
    assert [(p.replicas, p.setting.cap_w) for p in plan] == [(7, 500.0), (8, 300.0)]


def test_load_adds_one_replica_when_the_queue_breaks_the_target() -> None:
    settings = disaggregated()
    policy = build("dynamo-clamp", settings, context())
    world = world_of(settings, 100_000.0, 2, 2)
    # 30,000 queued tokens on two engines: 1.5 s of prefill each.
    decision = policy.decide(world.snapshot([Load(queued=30_000.0), Load(running=20.0)]))
    assert counts(decision)[0] == 3


def test_load_gives_one_replica_back_when_idle_but_keeps_the_minimum() -> None:
    settings = disaggregated()
    policy = build("dynamo-clamp", settings, context())
    world = world_of(settings, 100_000.0, 3, 1)
    # Replicas found at the start stay until the first throughput decision lowers their bound.
    assert counts(policy.decide(world.snapshot())) == [3, 1]
    world.time_s = 180.0
    assert counts(policy.decide(world.snapshot())) == [2, 1]


def test_load_is_held_while_anything_scales() -> None:
    settings = disaggregated()
    policy = build("dynamo-clamp", settings, context())
    world = world_of(settings, 100_000.0, 2, 2)
    world.starting = {1: 1}
    decision = policy.decide(world.snapshot([Load(queued=90_000.0), Load(running=4.0)]))
    assert counts(decision) == [2, 3]
    assert decision.replicas == ()


def test_throughput_sets_a_lower_bound_after_180_s_bounded_by_eight() -> None:
    settings = disaggregated(16, 16)
    policy = build("dynamo-clamp", settings, context())
    world = world_of(settings, 100_000.0, 1, 1)
    seen = []
    for tick in range(37):
        world.time_s, world.tick = 5.0 * tick, tick
        # Idle workers never ask for more: only the traffic of 200 requests/s can.
        seen.append(counts(policy.decide(world.snapshot(demand=[traffic(200.0)]))))
    assert set(map(tuple, seen[:36])) == {(1, 1)}
    assert seen[36] == [9, 9]


def test_clamp_holds_growth_at_the_budget() -> None:
    settings = disaggregated()
    policy = build("dynamo-clamp", settings, context())
    world = world_of(settings, 4 * HIGH_W, 2, 2)
    decision = policy.decide(
        world.snapshot([Load(queued=90_000.0), Load(running=80.0, kv_tokens=60_000.0)])
    )
    assert counts(decision) == [2, 2]
    assert [plan.replicas for plan in decision.recommended] == [3, 2]
    assert "2800 W" in decision.reasons[0].sentence


def test_nothing_is_done_after_a_cut_while_nothing_is_proposed() -> None:
    settings = disaggregated()
    policy = build("dynamo-clamp", settings, context())
    world = world_of(settings, 8 * HIGH_W, 4, 4)
    busy = [Load(queued=28_000.0), Load(running=120.0, kv_tokens=120_000.0)]
    assert counts(policy.decide(world.snapshot(busy))) == [4, 4]
    world.budget, world.time_s = budget(4 * HIGH_W), 5.0
    assert counts(policy.decide(world.snapshot(busy))) == [4, 4]


def test_an_outage_holds_dynamo() -> None:
    settings = disaggregated()
    policy = build("dynamo-clamp", settings, context())
    world = world_of(settings, 100_000.0, 3, 3)
    blind = [Load(None, None, None)] * 2
    decision = policy.decide(world.snapshot(blind, [OUTAGE]))
    assert counts(decision) == [3, 3]
    assert "no worker metrics" in decision.reasons[0].sentence


def test_dynamo_restores_a_lost_replica_and_holds_meanwhile() -> None:
    settings = disaggregated()
    policy = build("dynamo-clamp", settings, context())
    world = world_of(settings, 100_000.0, 3, 3)
    busy = [Load(queued=21_000.0), Load(running=80.0, kv_tokens=90_000.0)]
    assert counts(policy.decide(world.snapshot(busy))) == [3, 3]
    world.plan, world.time_s = (PoolPlan(2, FULL), PoolPlan(3, FULL)), 5.0
    decision = policy.decide(world.snapshot(busy))
    assert [(step.pool, step.change) for step in decision.replicas] == [(0, 1)]
    assert "held" in decision.reasons[1].sentence


def test_unused_gpus_keep_their_default_limit() -> None:
    settings = disaggregated(2, 2)
    policy = build("dynamo-clamp-best", settings, context(pool_caps_w=(500.0, 400.0)))
    world = World(
        settings, budget(900.0), (PoolPlan(1, Setting(500.0)), PoolPlan(1, Setting(400.0)))
    )
    world.caps_w = {1: 500.0}
    assert policy.decide(world.snapshot()).caps.gpu == (1,)
    assert policy.decide(world.snapshot()).caps.cap_w == (HIGH_W,)


loads = st.builds(
    Load,
    queued=st.floats(0.0, 2e5),
    kv_tokens=st.floats(0.0, 5e5),
    running=st.floats(0.0, 400.0),
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(loads, loads, st.floats(0.0, 300.0)), min_size=1, max_size=6),
    st.integers(2, 16),
)
def test_growth_never_exceeds_the_budget(ticks: list[tuple[Load, Load, float]], fit: int) -> None:
    spec = disaggregated()
    policy = build("dynamo-clamp", spec, context())
    world = world_of(spec, fit * HIGH_W)
    world.plan = policy.initial_plan(world.budget)
    for tick, (prefill, decode, rps) in enumerate(ticks):
        world.time_s = 180.0 * tick
        decision = policy.decide(world.snapshot([prefill, decode], [traffic(rps)]))
        assert sum(counts(decision)) <= fit
        world.plan = decision.plan


# --- threshold ------------------------------------------------------------------------------


def threshold_at(world: World, policy: object, time_s: float, share: float) -> Decision:
    world.time_s = time_s
    world.draw_w = share * world.budget.total_w / world.settings.fleet.gpu_count
    decision = policy.decide(world.snapshot())  # type: ignore[attr-defined]
    assert isinstance(decision, Decision)
    return decision


def ceilings(decision: Decision) -> list[float]:
    return [plan.setting.clock for plan in decision.plan]


def test_thresholds_cap_decode_first_then_everything() -> None:
    settings = disaggregated()
    policy = build("threshold", settings, context())
    world = World(settings, budget(8_000.0), policy.initial_plan(budget(8_000.0)))
    assert ceilings(threshold_at(world, policy, 0.0, 0.79)) == [1.0, 1.0]
    assert ceilings(threshold_at(world, policy, 2.0, 0.82)) == [1.0, round(1275 / 1410, 6)]
    assert ceilings(threshold_at(world, policy, 10.0, 0.90)) == [
        round(1305 / 1410, 6),
        round(1110 / 1410, 6),
    ]


def test_ceilings_are_taken_back_with_hysteresis() -> None:
    settings = disaggregated()
    policy = build("threshold", settings, context())
    world = World(settings, budget(8_000.0), policy.initial_plan(budget(8_000.0)))
    threshold_at(world, policy, 0.0, 0.82)
    low = round(1275 / 1410, 6)
    assert ceilings(threshold_at(world, policy, 20.0, 0.76)) == [1.0, low]
    assert ceilings(threshold_at(world, policy, 22.0, 0.74)) == [1.0, 1.0]


def test_draw_above_the_budget_brakes_every_gpu() -> None:
    settings = disaggregated()
    policy = build("threshold", settings, context())
    world = World(settings, budget(8_000.0), policy.initial_plan(budget(8_000.0)))
    braked = threshold_at(world, policy, 0.0, 1.01)
    assert {plan.setting.cap_w for plan in braked.plan} == {LOW_W}
    assert set(braked.caps.cap_w) == {LOW_W}
    kept = threshold_at(world, policy, 2.0, 0.5)
    assert {plan.setting.cap_w for plan in kept.plan} == {LOW_W}
    released = threshold_at(world, policy, 12.0, 0.5)
    assert {plan.setting.cap_w for plan in released.plan} == {HIGH_W}


def test_unmeasured_draw_keeps_the_ceilings() -> None:
    settings = disaggregated()
    policy = build("threshold", settings, context())
    world = World(settings, budget(8_000.0), policy.initial_plan(budget(8_000.0)))
    threshold_at(world, policy, 0.0, 0.95)
    world.time_s, world.draw_w = 60.0, None
    blind = policy.decide(world.snapshot())
    assert ceilings(blind) == [round(1305 / 1410, 6), round(1110 / 1410, 6)]
    assert "not measured" in blind.reasons[0].sentence


# --- slo-scaler -----------------------------------------------------------------------------


def test_saturation_grows_the_pool_that_misses_its_target() -> None:
    settings = disaggregated()
    policy = build("slo-scaler", settings, context())
    world = world_of(settings, 100_000.0, 2, 2)
    late = traffic(5.0, ttft_p99_s=1.1, itl_p99_s=0.025)
    # 1.1 / 0.55: twice the replicas for prefill; 0.5 lies between the thresholds for decode.
    assert counts(policy.decide(world.snapshot(demand=[late]))) == [4, 2]


def test_growth_is_bounded_per_minute() -> None:
    settings = disaggregated(16, 1)
    policy = build("slo-scaler", settings, context())
    world = world_of(settings, 100_000.0, 2, 1)
    late = traffic(5.0, ttft_p99_s=9.0, itl_p99_s=0.025)
    first = policy.decide(world.snapshot(demand=[late]))
    assert counts(first) == [6, 1]
    world.plan, world.time_s = first.plan, 15.0
    assert counts(policy.decide(world.snapshot(demand=[late]))) == [6, 1]
    world.time_s = 61.0
    assert counts(policy.decide(world.snapshot(demand=[late]))) == [12, 1]


def test_starting_replicas_are_credited() -> None:
    settings = disaggregated()
    policy = build("slo-scaler", settings, context())
    world = world_of(settings, 100_000.0, 2, 2)
    world.starting = {0: 2}
    late = traffic(5.0, ttft_p99_s=1.0, itl_p99_s=0.025)
    # Saturation 1.0 x 2 ready of 4: below 0.55, nothing to add.
    assert counts(policy.decide(world.snapshot(demand=[late]))) == [4, 2]


def test_shrinks_by_one_in_two_minutes() -> None:
    settings = disaggregated()
    policy = build("slo-scaler", settings, context())
    world = world_of(settings, 100_000.0, 4, 4)
    easy = traffic(1.0, ttft_p99_s=0.1, itl_p99_s=0.025)
    world.plan = policy.decide(world.snapshot(demand=[easy])).plan
    assert [plan.replicas for plan in world.plan] == [3, 4]
    world.time_s = 119.0
    assert counts(policy.decide(world.snapshot(demand=[easy]))) == [3, 4]
    world.time_s = 121.0
    assert counts(policy.decide(world.snapshot(demand=[easy]))) == [2, 4]


def test_replicas_fit_the_budget_and_follow_a_cut() -> None:
    settings = disaggregated()
    policy = build("slo-scaler", settings, context())
    world = world_of(settings, 5 * HIGH_W, 2, 2)
    late = traffic(5.0, ttft_p99_s=2.0, itl_p99_s=0.04)
    world.plan = policy.decide(world.snapshot(demand=[late])).plan
    assert [plan.replicas for plan in world.plan] == [3, 2]
    world.budget = budget(3 * HIGH_W)
    assert sum(counts(policy.decide(world.snapshot(demand=[late])))) == 3


def test_a_cut_takes_replicas_from_both_pools_in_proportion() -> None:
    settings = disaggregated(16, 16)
    policy = build("slo-scaler", settings, context())
    world = world_of(settings, 12 * HIGH_W, 16, 8)
    late = traffic(5.0, ttft_p99_s=0.9, itl_p99_s=0.03)
    assert counts(policy.decide(world.snapshot(demand=[late]))) == [8, 4]


def test_an_outage_holds_the_scaler_until_its_samples_are_old() -> None:
    settings = disaggregated()
    policy = build("slo-scaler", settings, context())
    world = world_of(settings, 100_000.0, 3, 3)
    decision = policy.decide(world.snapshot(demand=[OUTAGE]))
    assert counts(decision) == [3, 3]
    assert "held" in decision.reasons[0].sentence


# --- every policy ---------------------------------------------------------------------------


def replayed(name: str, spec: Settings, values: PolicyContext, seen: list[Snapshot]) -> list[str]:
    policy = build(name, spec, values)
    return [repr(policy.decide(snapshot)) for snapshot in seen]


@pytest.mark.parametrize(
    "name",
    [
        "uncapped",
        "uniform-cap",
        "static-caps",
        "best-static",
        "dynamo-clamp",
        "dynamo-clamp-parked",
        "dynamo-clamp-best",
        "threshold",
        "slo-scaler",
    ],
)
def test_two_instances_decide_alike_and_answer_every_pool(name: str) -> None:
    spec = disaggregated()
    values = context(pool_caps_w=(500.0, 300.0))
    policy = build(name, spec, values)
    world = World(spec, budget(7_000.0), policy.initial_plan(budget(7_000.0)))
    seen = []
    for tick in range(80):
        world.time_s, world.tick = policy.interval_s * tick, tick
        world.draw_w = 300.0 + 3.0 * tick
        demand = traffic(20.0 + tick, ttft_p99_s=0.02 * tick, itl_p99_s=0.001 * tick)
        snapshot = world.snapshot(
            [Load(queued=2_000.0 * tick), Load(running=5.0 * tick, kv_tokens=5_000.0 * tick)],
            [OUTAGE if tick % 10 == 9 else demand],
        )
        seen.append(snapshot)
        decision = policy.decide(snapshot)
        assert [reason.pool for reason in decision.reasons] == [0, 1]
        assert all(reason.sentence for reason in decision.reasons)
        assert decision.admission == ()
        assert decision.tick == tick
        world.plan = decision.plan
        if tick == 40:
            world.budget = replace(budget(5_000.0), version=2)
    assert replayed(name, spec, values, seen) == replayed(name, spec, values, seen)
