"""What holds for every policy on any sequence of snapshots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import fsum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_fixtures import (
    HIGH_W,
    LOW_W,
    OUTAGE,
    Load,
    World,
    budget,
    context,
    disaggregated,
    pool,
    settings_of,
    traffic,
)

from wattline.core.fleet import Role
from wattline.core.snapshot import DemandView
from wattline.sim.policies.registry import build, names

FLEETS = {
    "disaggregated": disaggregated(6, 4),
    "aggregated": settings_of(pool("all", Role.AGGREGATED, 8, per_replica=2)),
    "two deployments": settings_of(
        pool("a-prefill", Role.PREFILL, 4, deployment="a"),
        pool("a-decode", Role.DECODE, 4, deployment="a"),
        pool("b-all", Role.AGGREGATED, 4, deployment="b"),
    ),
}

load = st.builds(
    Load,
    queued=st.none() | st.floats(0.0, 1e6),
    kv_tokens=st.none() | st.floats(0.0, 1e6),
    running=st.none() | st.floats(0.0, 500.0),
)
demand = st.just(OUTAGE) | st.builds(
    lambda rps, ttft, itl: replace(traffic(rps), ttft_p99_s=ttft, itl_p99_s=itl),
    st.floats(0.0, 500.0),
    st.none() | st.floats(1e-3, 30.0),
    st.none() | st.floats(1e-4, 1.0),
)


@dataclass(frozen=True)
class Tick:
    """What happens between two decisions."""

    seconds: float
    budget_w: float
    draw_w: float | None
    starting: int
    draining: int
    loads: tuple[Load, Load, Load]
    demand: tuple[DemandView, DemandView]


tick = st.builds(
    Tick,
    seconds=st.floats(1.0, 200.0),
    budget_w=st.floats(4_000.0, 10_000.0),
    draw_w=st.none() | st.floats(50.0, 900.0),
    starting=st.integers(0, 2),
    draining=st.integers(0, 2),
    loads=st.tuples(load, load, load),
    demand=st.tuples(demand, demand),
)


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("name", names())
@settings(max_examples=15, derandomize=True, deadline=None)
@given(ticks=st.lists(tick, min_size=1, max_size=5))
def test_decisions_stay_inside_the_fleet(name: str, fleet: str, ticks: list[Tick]) -> None:
    spec = FLEETS[fleet]
    pools = spec.fleet.pools
    counts = tuple(pool.min_replicas for pool in pools)
    policy = build(name, spec, context(pool_caps_w=(300.0,) * len(pools), pool_replicas=counts))
    world = World(spec, budget(7_000.0), policy.initial_plan(budget(7_000.0)))
    for number, seen in enumerate(ticks):
        advance(world, number, seen)
        snapshot = world.snapshot(
            seen.loads[: len(pools)], seen.demand[: len(spec.fleet.deployments)]
        )
        decision = policy.decide(snapshot)
        caps = zip(decision.caps.gpu, decision.caps.cap_w, decision.caps.clock, strict=True)
        assert all(
            0 <= gpu < spec.fleet.gpu_count and LOW_W <= cap <= HIGH_W and 0.0 < clock <= 1.0
            for gpu, cap, clock in caps
        )
        assert len(set(decision.caps.gpu)) == len(decision.caps.gpu)
        for want, spec_pool in zip(decision.plan, pools, strict=True):
            assert 0 <= want.replicas <= spec_pool.gpus // spec_pool.gpus_per_replica
        assert [reason.pool for reason in decision.reasons] == list(range(len(pools)))
        if policy.uses_ledger:
            raised = dict(zip(decision.caps.gpu, decision.caps.cap_w, strict=True))
            booked = [
                max(watts, raised.get(gpu, 0.0)) for gpu, watts in enumerate(snapshot.gpus.booked_w)
            ]
            grown_w = fsum(booked) - fsum(snapshot.gpus.booked_w)
            free_w = snapshot.budget.usable_w - fsum(snapshot.gpus.booked_w)
            assert grown_w <= max(0.0, free_w) + 1e-6


def advance(world: World, number: int, seen: Tick) -> None:
    """Move the world on: time, budget, draw, and pods that come and go."""
    world.tick, world.time_s = number, world.time_s + seen.seconds
    world.budget, world.draw_w = budget(seen.budget_w), seen.draw_w
    first = world.settings.fleet.pools[0]
    room = first.gpus // first.gpus_per_replica - world.plan[0].replicas
    world.starting = {0: min(seen.starting, room)}
    world.draining = {0: seen.draining}
