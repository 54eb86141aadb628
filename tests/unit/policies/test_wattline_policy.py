"""Wattline and the oracle behind the seam of the policies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policy_fixtures import Load, World, budget, context, disaggregated, traffic

from wattline.core.decide import decide
from wattline.sim.policies.registry import build


@pytest.mark.parametrize("name", ["wattline", "oracle"])
def test_starts_inside_the_budget_with_every_watt_useful(name: str) -> None:
    settings = disaggregated(8, 8)
    plan = build(name, settings, context()).initial_plan(budget(8_000.0, 100.0))
    spent_w = sum(p.replicas * p.setting.cap_w + (8 - p.replicas) * 200.0 for p in plan)
    assert spent_w <= 7_900.0
    assert all(p.replicas >= 1 for p in plan)


def test_more_budget_starts_with_no_fewer_replicas() -> None:
    policy = build("wattline", disaggregated(8, 8), context())
    few = policy.initial_plan(budget(4_000.0))
    many = policy.initial_plan(budget(11_200.0))
    assert sum(p.replicas for p in many) >= sum(p.replicas for p in few)


def test_decisions_are_those_of_the_core() -> None:
    settings = disaggregated(4, 4)
    policy = build("wattline", settings, context())
    world = World(settings, budget(4_000.0), policy.initial_plan(budget(4_000.0)))
    snapshot = world.snapshot([Load(), Load()], [traffic(5.0)])
    assert policy.decide(snapshot) == decide(snapshot, settings)


def test_the_oracle_differs_only_in_its_forecast() -> None:
    settings = disaggregated(4, 4)
    policy = build("oracle", settings, context())
    world = World(settings, budget(4_000.0), policy.initial_plan(budget(4_000.0)))
    seen = replace(traffic(5.0), future_rps=(50.0,) * 60)
    snapshot = world.snapshot([Load(), Load()], [seen])
    told = replace(settings, forecast="oracle")
    assert policy.decide(snapshot) == decide(snapshot, told)
