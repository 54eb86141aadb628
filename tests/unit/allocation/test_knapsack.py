"""The knapsack and the whole allocation against HiGHS, a solver of integer programs."""

from __future__ import annotations

from collections.abc import Sequence

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.allocate import DeploymentProblem, PoolProblem, allocate
from wattline.core.decision import PoolPlan
from wattline.core.fleet import Role, Setting
from wattline.core.knapsack import solve

Groups = list[tuple[list[float], list[float]]]


def solver() -> highspy.Highs:
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("mip_rel_gap", 1e-9)
    return highs


def highs_knapsack(groups: Groups, capacity: float) -> float:
    """Optimum of the multiple-choice knapsack."""
    highs = solver()
    terms, spent = [], []
    for values, weights in groups:
        picks = [highs.addBinary() for _ in values]
        highs.addConstr(sum(picks[1:], picks[0]) == 1)
        terms += [pick * value for pick, value in zip(picks, values, strict=True)]
        spent += [pick * weight for pick, weight in zip(picks, weights, strict=True)]
    highs.addConstr(sum(spent[1:], spent[0]) <= capacity)
    highs.maximize(sum(terms[1:], terms[0]))
    return float(highs.getInfo().objective_function_value)


def highs_allocation(problem: Sequence[DeploymentProblem], usable_w: float) -> float:
    """Most priority-weighted demand served, with one binary per replicas and setting of a pool."""
    highs = solver()
    served, spent = [], []
    for deployment in problem:
        rate = highs.addVariable(0.0, deployment.demand_rps)
        served.append(rate * deployment.priority)
        for pool in deployment.pools:
            low, high = pool.replica_range
            plans = [PoolPlan(n, s) for n in range(low, high + 1) for s in pool.settings]
            rates = [n * r for n in range(low, high + 1) for r in pool.rate_rps]
            picks = [highs.addBinary() for _ in plans]
            highs.addConstr(sum(picks[1:], picks[0]) == 1)
            reached = [pick * r for pick, r in zip(picks, rates, strict=True)]
            highs.addConstr(sum(reached[1:], reached[0]) >= rate)
            spent += [p * pool.booked_w(plan) for p, plan in zip(picks, plans, strict=True)]
    highs.addConstr(sum(spent[1:], spent[0]) <= usable_w)
    highs.maximize(sum(served[1:], served[0]))
    return float(highs.getInfo().objective_function_value)


def rising(rng: np.random.Generator, size: int, top: int) -> list[float]:
    steps: list[int] = np.cumsum(rng.integers(1, top, size)).tolist()
    return [float(step) for step in steps]


def random_groups(seed: int, count: int) -> Groups:
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        size = int(rng.integers(1, 12))
        groups.append((rising(rng, size, 1000), rising(rng, size, 1000)))
    return groups


def flat(groups: Groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start = np.concatenate(([0], np.cumsum([len(values) for values, _ in groups])))
    values = np.concatenate([values for values, _ in groups])
    weights = np.concatenate([weights for _, weights in groups])
    return values, weights, start


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("count", [1, 4, 25])
def test_knapsack_equals_highs(seed: int, count: int) -> None:
    groups = random_groups(seed, count)
    values, weights, start = flat(groups)
    lightest, heaviest = weights[start[:-1]].sum(), weights[start[1:] - 1].sum()
    for share in (0.1, 0.5, 0.9):
        capacity = float(np.floor(lightest + share * (heaviest - lightest)))
        found = solve(values, weights, start, capacity)
        assert found is not None
        best = highs_knapsack(groups, capacity)
        assert found.weight <= capacity
        assert found.bound >= best - 1e-6
        assert found.value == pytest.approx(best, abs=1e-6)
        assert found.gap == 0.0


@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_cut_search_still_states_a_true_bound(seed: int, count: int, share: float) -> None:
    values, weights, start = flat(random_groups(seed, count))
    lightest, heaviest = weights[start[:-1]].sum(), weights[start[1:] - 1].sum()
    capacity = float(np.floor(lightest + share * (heaviest - lightest)))
    exact = solve(values, weights, start, capacity)
    cut = solve(values, weights, start, capacity, most_states=1)
    assert exact is not None
    assert cut is not None
    assert cut.weight <= capacity
    assert cut.value <= exact.value <= cut.bound
    assert cut.gap == pytest.approx((cut.bound - cut.value) / cut.bound)


def test_a_choice_that_weighs_too_much_is_no_choice() -> None:
    values, weights, start = flat([([1.0, 2.0], [5.0, 6.0]), ([1.0], [5.0])])
    assert solve(values, weights, start, 9.0) is None
    found = solve(values, weights, start, 10.0)
    assert found is not None
    assert found.choice.tolist() == [0, 2]


def random_problem(seed: int, deployments: int) -> list[DeploymentProblem]:
    """Deployments of a prefill and a decode pool whose rates rise and level off with the cap."""
    rng = np.random.default_rng(seed)
    offered = tuple(Setting(cap) for cap in (200.0, 275.0, 350.0, 425.0, 500.0, 600.0, 700.0))
    share = np.array([setting.cap_w / 700.0 for setting in offered])
    problem = []
    for _ in range(deployments):
        pools = []
        for role, exponent in ((Role.PREFILL, 0.8), (Role.DECODE, 0.3)):
            gpus = int(rng.integers(2, 7))
            rates = rng.uniform(1.0, 4.0) * share ** (exponent * rng.uniform(0.7, 1.3))
            pools.append(
                PoolProblem(
                    role=role,
                    gpus=gpus,
                    gpus_per_replica=1,
                    parked_w=200.0,
                    min_replicas=0,
                    max_replicas=gpus,
                    settings=offered,
                    rate_rps=tuple(np.round(rates, 4).tolist()),
                    draw_w=tuple(0.9 * setting.cap_w for setting in offered),
                    idle_w=90.0,
                    current=PoolPlan(0, offered[0]),
                )
            )
        priority = float(rng.choice([1.0, 2.0]))
        demand = float(np.round(rng.uniform(2.0, 12.0), 3))
        problem.append(DeploymentProblem(priority=priority, demand_rps=demand, pools=tuple(pools)))
    return problem


@pytest.mark.parametrize(("seed", "deployments"), [(1, 3), (2, 6), (3, 10)])
@pytest.mark.parametrize("fraction", [0.5, 0.65])
def test_allocation_equals_highs(seed: int, deployments: int, fraction: float) -> None:
    problem = random_problem(seed, deployments)
    usable_w = fraction * sum(700.0 * pool.gpus for d in problem for pool in d.pools)
    found = allocate(problem, usable_w, gap=0.0)
    best = highs_allocation(problem, usable_w)
    assert found.value == pytest.approx(best, rel=1e-6)
    assert found.gap == 0.0


def test_a_large_allocation_states_a_small_gap() -> None:
    problem = random_problem(7, 300)
    usable_w = 0.5 * sum(700.0 * pool.gpus for d in problem for pool in d.pools)
    found = allocate(problem, usable_w)
    assert found.booked_w <= usable_w
    assert found.bound >= found.value
    assert found.gap <= 1e-3
