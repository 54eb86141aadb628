"""Allocation against trying every plan, and what must hold of any allocation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from allocation_cases import best_value, booked_w, deployments, every_plan, pools
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wattline.core.allocate import (
    Binding,
    DeploymentProblem,
    Objective,
    PoolProblem,
    allocate,
    evaluate,
)
from wattline.core.decision import PoolPlan
from wattline.core.errors import InputError
from wattline.core.fleet import Role, Setting
from wattline.core.problem import evaluate_deployment

P, D, A = Role.PREFILL, Role.DECODE, Role.AGGREGATED
SHAPES: tuple[tuple[Role, ...], ...] = ((P, D), (A,), (P, P, D), (A, P, D), (D, P, D), (D,))
OBJECTIVES: tuple[Objective, ...] = ("throughput", "energy")

problems = st.lists(deployments(SHAPES), min_size=1, max_size=3)
fractions = st.floats(0.3, 1.1)
objectives = st.sampled_from(OBJECTIVES)
modest = settings(max_examples=60, deadline=None)


def watts(problem: Sequence[DeploymentProblem], fraction: float) -> float:
    return fraction * sum(700.0 * pool.gpus for d in problem for pool in d.pools)


def close(found: float, expected: float) -> bool:
    return abs(found - expected) <= 1e-7 * max(1.0, expected)


@given(problems, fractions, st.sampled_from((1.0, 1.3)), objectives)
@settings(max_examples=150, deadline=None)
def test_equals_trying_every_plan(
    problem: list[DeploymentProblem], fraction: float, headroom: float, objective: Objective
) -> None:
    usable_w = watts(problem, fraction)
    found = allocate(problem, usable_w, objective, headroom=headroom, gap=0.0)
    judged = evaluate(problem, found.plans, usable_w, headroom)
    best = best_value(problem, usable_w, headroom)
    assert found.feasible == (best >= 0.0)
    if found.feasible:
        assert close(judged.value, best)
        assert close(found.value, best)
        assert found.gap == 0.0
        assert judged.fits


@given(problems, fractions, objectives)
@modest
def test_books_within_the_watts_and_keeps_bounds(
    problem: list[DeploymentProblem], fraction: float, objective: Objective
) -> None:
    usable_w = watts(problem, fraction)
    found = allocate(problem, usable_w, objective)
    booked = 0.0
    for deployment, plans in zip(problem, found.plans, strict=True):
        booked += booked_w(deployment, plans)
        for pool, plan in zip(deployment.pools, plans, strict=True):
            low, high = pool.replica_range
            assert low <= plan.replicas <= high
            assert plan.replicas == 0 or plan.setting in pool.settings
    assert found.booked_w == pytest.approx(booked)
    assert booked <= usable_w + 1e-6 or not found.feasible


@given(problems, fractions, st.floats(0.0, 0.5), objectives)
@modest
def test_more_budget_never_serves_less(
    problem: list[DeploymentProblem], fraction: float, more: float, objective: Objective
) -> None:
    less = allocate(problem, watts(problem, fraction), objective, gap=0.0)
    usable_w = watts(problem, fraction + more)
    rich = allocate(problem, usable_w, objective, gap=0.0)
    assert rich.feasible or not less.feasible
    if less.feasible:
        assert rich.value >= less.value * (1.0 - 1e-9)
        assert rich.bound >= less.bound * (1.0 - 1e-9)


@given(problems, fractions, objectives)
@modest
def test_same_input_same_output(
    problem: list[DeploymentProblem], fraction: float, objective: Objective
) -> None:
    usable_w = watts(problem, fraction)
    copied = [
        replace(d, pools=tuple(replace(pool, rate_rps=(*pool.rate_rps,)) for pool in d.pools))
        for d in problem
    ]
    assert allocate(problem, usable_w, objective) == allocate(copied, usable_w, objective)


@given(problems, fractions, objectives)
@modest
def test_order_does_not_change_totals(
    problem: list[DeploymentProblem], fraction: float, objective: Objective
) -> None:
    usable_w = watts(problem, fraction)
    one = allocate(problem, usable_w, objective, gap=0.0)
    two = allocate(problem[::-1], usable_w, objective, gap=0.0)
    assert one.feasible == two.feasible
    assert close(one.value, two.value)


@given(problems, fractions)
@modest
def test_energy_objective_serves_what_throughput_serves(
    problem: list[DeploymentProblem], fraction: float
) -> None:
    usable_w = watts(problem, fraction)
    fast = allocate(problem, usable_w, "throughput", gap=0.0)
    frugal = allocate(problem, usable_w, "energy", gap=0.0)
    assume(fast.feasible)
    judged = evaluate(problem, frugal.plans, usable_w)
    assert close(judged.value, evaluate(problem, fast.plans, usable_w).value)


@given(st.sampled_from([(P, D), (A,), (D,)]), fractions, st.data())
@settings(max_examples=80, deadline=None)
def test_energy_objective_draws_least_of_all_plans_that_serve_as_much(
    roles: tuple[Role, ...], fraction: float, data: st.DataObject
) -> None:
    deployment = DeploymentProblem(
        priority=1.0,
        demand_rps=data.draw(st.floats(0.0, 30.0)),
        pools=tuple(data.draw(pools(role)) for role in roles),
    )
    usable_w = watts([deployment], fraction)
    found = allocate([deployment], usable_w, "energy", gap=0.0)
    assume(found.feasible)
    served = min(found.rate_rps[0], deployment.demand_rps)
    # Plans that leave replicas up without serving anybody are not looked for, so only compare
    # where something is served.
    assume(served > 0.0)
    least = min(
        drawn
        for plans in every_plan(deployment)
        if booked_w(deployment, plans) <= usable_w
        for rate, drawn in [evaluate_deployment(deployment, plans)]
        if rate >= served * (1.0 - 1e-12)
    )
    assert found.draw_w <= least + 0.01


def simple(
    role: Role,
    rates: tuple[float, ...],
    caps: tuple[float, ...] = (200.0, 300.0, 400.0),
    *,
    gpus: int = 4,
    current: PoolPlan | None = None,
    fixed: int | None = None,
    least: int = 1,
) -> PoolProblem:
    offered = tuple(Setting(cap) for cap in caps)
    return PoolProblem(
        role=role,
        gpus=gpus,
        gpus_per_replica=1,
        parked_w=200.0,
        min_replicas=least,
        max_replicas=gpus,
        settings=offered,
        rate_rps=rates,
        draw_w=tuple(0.9 * cap for cap in caps),
        idle_w=80.0,
        current=current or PoolPlan(gpus, offered[0]),
        fixed_replicas=fixed,
    )


def one(demand: float, *tables: PoolProblem, priority: float = 1.0) -> DeploymentProblem:
    return DeploymentProblem(priority=priority, demand_rps=demand, pools=tables)


def test_watts_go_to_the_phase_that_is_short_of_them() -> None:
    problem = one(
        100.0,
        simple(P, (1.0, 2.0, 3.0), fixed=4),
        simple(D, (2.9, 3.0, 3.1), fixed=4),
    )
    found = allocate([problem], 2400.0)
    assert [plan.setting.cap_w for plan in found.plans[0]] == [400.0, 200.0]
    assert found.rate_rps == pytest.approx((11.6,))
    assert found.binding == (Binding.BUDGET,)


def test_priority_is_served_first() -> None:
    tables = simple(A, (1.0, 2.0, 3.0), fixed=4)
    low, high = one(12.0, tables), one(12.0, tables, priority=3.0)
    found = allocate([low, high], 2400.0)
    assert found.rate_rps == (4.0, 12.0)
    assert allocate([high, low], 2400.0).rate_rps == (12.0, 4.0)


def test_a_slowed_pool_gets_the_watts_that_make_up_for_it() -> None:
    healthy = one(8.0, simple(A, (1.0, 2.0, 2.3), fixed=4))
    slowed = one(8.0, simple(A, (0.9, 1.8, 2.07), fixed=4))
    assert allocate([healthy], 1600.0, "energy").plans[0][0].setting.cap_w == 300.0
    assert allocate([slowed], 1600.0, "energy").plans[0][0].setting.cap_w == 400.0


def test_watts_left_over_become_headroom_in_proportion_to_demand() -> None:
    tables = simple(A, (1.0, 2.0, 3.0), fixed=4)
    found = allocate([one(4.0, tables), one(4.0, tables)], 2400.0)
    assert found.binding == (Binding.DEMAND, Binding.DEMAND)
    assert found.rate_rps == (8.0, 8.0)


def test_energy_leaves_watts_and_replicas_that_are_not_needed() -> None:
    found = allocate([one(3.0, simple(A, (1.0, 2.0, 3.0)))], 1600.0, "energy")
    assert found.plans[0][0].replicas < 4
    assert found.rate_rps[0] >= 3.0
    assert found.booked_w < 1600.0


def test_replicas_that_must_be_up_can_serve_when_nothing_is_asked() -> None:
    found = allocate([one(0.0, simple(A, (0.0, 2.0, 3.0), fixed=2))], 1600.0, "energy")
    assert found.plans[0][0].setting.cap_w == 300.0
    tight = allocate([one(0.0, simple(A, (0.0, 2.0, 3.0), fixed=2))], 850.0, "energy")
    assert tight.plans[0][0].setting.cap_w == 200.0


def test_floors_that_do_not_fit_are_said_to_be_infeasible() -> None:
    found = allocate([one(5.0, simple(A, (1.0, 2.0), (250.0, 400.0), least=2))], 850.0)
    assert not found.feasible
    assert found.plans == ((PoolPlan(2, Setting(250.0)),),)
    assert found.booked_w == 900.0
    assert found.binding == (Binding.FLOOR,)


def test_pools_of_one_role_add_up_and_aggregated_pools_are_a_path_of_their_own() -> None:
    problem = one(
        100.0,
        simple(P, (1.0, 2.0, 3.0), fixed=2),
        simple(P, (0.5, 1.0, 1.5), fixed=4),
        simple(D, (9.0, 9.5, 10.0), fixed=1),
        simple(A, (0.2, 0.4, 0.5), fixed=4),
    )
    found = allocate([problem], 16 * 400.0)
    assert found.rate_rps == (min(2 * 3.0 + 4 * 1.5, 10.0) + 4 * 0.5,)
    assert found.binding == (Binding.GPUS,)


def test_equal_plans_keep_the_present_one() -> None:
    present = PoolPlan(4, Setting(300.0))
    flat = simple(A, (2.0, 2.0, 2.0), (300.0, 300.5, 301.0), current=present, fixed=4)
    assert allocate([one(8.0, flat)], 1600.0).plans[0][0] == present
    clocks = replace(
        simple(A, (2.0, 2.0), (300.0, 301.0), current=PoolPlan(4, Setting(300.0, 0.9)), fixed=4),
        settings=(Setting(300.0), Setting(300.0, 0.9)),
        draw_w=(250.0, 250.0),
    )
    for objective in OBJECTIVES:
        chosen = allocate([one(8.0, clocks)], 1600.0, objective).plans[0][0]
        assert chosen == PoolPlan(4, Setting(300.0, 0.9))


def test_a_fractional_watt_is_never_booked_above_the_budget() -> None:
    tables = simple(A, (1.0, 2.0), (200.0, 233.3335), gpus=3, fixed=3)
    assert allocate([one(9.0, tables)], 700.002).rate_rps == (6.0,)
    assert allocate([one(9.0, tables)], 700.0).rate_rps == (3.0,)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(InputError, match="one rate and one draw"):
        simple(A, (1.0, 2.0))
    with pytest.raises(InputError, match="replicas"):
        simple(A, (1.0, 2.0, 3.0), fixed=5)
    with pytest.raises(InputError, match="demand_rps"):
        one(float("nan"), simple(A, (1.0, 2.0, 3.0)))


def test_evaluate_says_what_another_setting_would_do() -> None:
    problem = one(10.0, simple(A, (1.0, 2.0, 3.0), fixed=4))
    wish = ((PoolPlan(4, Setting(400.0)),),)
    over = evaluate([problem], wish, 1500.0)
    assert not over.fits
    assert over.verdict == "books 1,600 W, 100 W above the usable budget"
    assert evaluate([problem], wish, 1600.0).verdict.endswith("serves all demand")
    less = evaluate([problem], ((PoolPlan(4, Setting(300.0)),),), 1600.0)
    assert "leaves 2 requests/s unserved" in less.verdict
    with pytest.raises(InputError, match="caps 200 to 400 W"):
        evaluate([problem], ((PoolPlan(4, Setting(350.0)),),), 1600.0)
