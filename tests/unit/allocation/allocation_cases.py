"""Small allocation problems made by hypothesis, and their optimum by trying every plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from hypothesis import strategies as st

from wattline.core.allocate import DeploymentProblem, PoolProblem
from wattline.core.decision import PoolPlan
from wattline.core.fleet import Role, Setting
from wattline.core.problem import evaluate_deployment


@st.composite
def pools(draw: st.DrawFn, role: Role, most_gpus: int = 6) -> PoolProblem:
    """A pool with two to four settings; rate and draw need not rise with the cap."""
    size = draw(st.integers(2, 4))
    pairs = st.tuples(st.integers(20, 70), st.sampled_from((1.0, 0.8)))
    offered = draw(st.lists(pairs, min_size=size, max_size=size, unique=True))
    per_replica = draw(st.integers(1, 2))
    gpus = draw(st.integers(per_replica, most_gpus))
    most = draw(st.integers(0, gpus // per_replica))
    least = draw(st.integers(0, most))
    settings = tuple(Setting(10.0 * cap, clock) for cap, clock in offered)
    rates = st.one_of(st.just(0.0), st.floats(0.5, 8.0))
    return PoolProblem(
        role=role,
        gpus=gpus,
        gpus_per_replica=per_replica,
        parked_w=200.0,
        min_replicas=least,
        max_replicas=most,
        settings=settings,
        rate_rps=tuple(draw(rates) for _ in settings),
        draw_w=tuple(draw(st.floats(100.0, setting.cap_w)) for setting in settings),
        idle_w=90.0,
        current=PoolPlan(draw(st.integers(0, most)), settings[0]),
        fixed_replicas=draw(st.one_of(st.none(), st.integers(0, gpus // per_replica))),
    )


@st.composite
def deployments(draw: st.DrawFn, shapes: Sequence[Sequence[Role]]) -> DeploymentProblem:
    roles = draw(st.sampled_from(shapes))
    return DeploymentProblem(
        priority=draw(st.sampled_from((1.0, 2.0, 5.0))),
        demand_rps=draw(st.floats(0.0, 30.0)),
        pools=tuple(draw(pools(role, 6 if len(roles) < 3 else 2)) for role in roles),
    )


def every_plan(deployment: DeploymentProblem) -> Iterator[tuple[PoolPlan, ...]]:
    """All plans of one deployment."""
    return product(
        *(
            [
                PoolPlan(n, setting)
                for n in range(pool.replica_range[0], pool.replica_range[1] + 1)
                for setting in pool.settings
            ]
            for pool in deployment.pools
        )
    )


def booked_w(deployment: DeploymentProblem, plans: Sequence[PoolPlan]) -> float:
    return sum(pool.booked_w(plan) for pool, plan in zip(deployment.pools, plans, strict=True))


def outcomes(deployment: DeploymentProblem) -> set[tuple[float, float, float]]:
    """Watts booked, rate and expected draw of every plan of one deployment."""
    found = set()
    for plans in every_plan(deployment):
        rate, drawn = evaluate_deployment(deployment, plans)
        found.add((booked_w(deployment, plans), rate, drawn))
    return found


def best_value(problems: Sequence[DeploymentProblem], usable_w: float, headroom: float) -> float:
    """Most priority-weighted demand that any plan within the watts serves; -1 if none fits."""
    tables = []
    for deployment in problems:
        target = deployment.demand_rps * headroom
        best: dict[float, float] = {}
        for watts, rate, _ in outcomes(deployment):
            value = deployment.priority * min(rate, target)
            best[watts] = max(best.get(watts, 0.0), value)
        tables.append(best)
    states = {0.0: 0.0}
    for table in tables:
        merged: dict[float, float] = {}
        for spent, value in states.items():
            for watts, more in table.items():
                if spent + watts <= usable_w:
                    total = spent + watts
                    merged[total] = max(merged.get(total, 0.0), value + more)
        states = merged
    return max(states.values(), default=-1.0)
