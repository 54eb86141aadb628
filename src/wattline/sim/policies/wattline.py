"""Wattline itself, and Wattline told the future.

Both are `core.decide` and nothing else: what they remember travels in `snapshot.state`. The oracle
has the same actions and delays; its settings name the forecast `oracle`, and its snapshots carry
the demand ahead.
"""

from __future__ import annotations

from dataclasses import replace

from wattline.core.allocate import allocate
from wattline.core.capacity import fleet_capacity_rps
from wattline.core.decide import decide
from wattline.core.decision import Decision, PoolPlan
from wattline.core.demand import Demand
from wattline.core.derive import Layout, problem
from wattline.core.fleet import Setting
from wattline.core.settings import Settings
from wattline.core.snapshot import Budget, PoolView, Snapshot
from wattline.sim.policies.common import most_replicas
from wattline.sim.policies.context import PolicyContext

INTERVAL_S = 1.0


class Wattline:
    """The decision of this package."""

    name = "wattline"
    interval_s = INTERVAL_S
    uses_ledger = True

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        self._settings = settings

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """Plan of the allocator for more demand than the fleet can serve, of the expected mix.

        Before the first request nothing is known of the traffic, so that the start is the plan that
        serves the most.
        """
        return unlimited_demand_plan(self._settings, budget)

    def decide(self, snapshot: Snapshot) -> Decision:
        """Decide as the product does."""
        return decide(snapshot, self._settings)


class Oracle(Wattline):
    """The same decision with the true demand as its forecast."""

    name = "oracle"

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        super().__init__(replace(settings, forecast="oracle"), context)


def unlimited_demand_plan(settings: Settings, budget: Budget) -> tuple[PoolPlan, ...]:
    """Plan that serves the most requests of the expected mix within the budget."""
    fleet = settings.fleet
    layout = Layout(settings)
    full = [
        PoolPlan(most_replicas(pool), Setting(fleet.product_of(pool).max_limit_w))
        for pool in fleet.pools
    ]
    views = [_idle_view(plan) for plan in full]
    mixes = [settings.expected_mix(index) for index in range(len(fleet.deployments))]
    rates = fleet_capacity_rps(fleet, settings.engines, mixes)
    problems = [
        problem(
            layout,
            index,
            Demand(rate_rps=rate, ahead_rps=rate, seen_rps=rate, mix=mix, outage=None),
            full,
            views,
            [()] * len(full),  # nobody is slowed
            [0] * len(full),  # nobody is about to serve
            replicas_too=True,
        )
        for index, (rate, mix) in enumerate(zip(rates, mixes, strict=True))
    ]
    allocation = allocate(problems, budget.usable_w)
    plans = dict(zip(range(len(full)), full, strict=True))
    for members, chosen in zip(layout.pools_of, allocation.plans, strict=True):
        plans |= dict(zip(members, chosen, strict=True))
    return tuple(plans[index] for index in range(len(full)))


def _idle_view(plan: PoolPlan) -> PoolView:
    return PoolView(
        ready=plan.replicas,
        starting=0,
        draining=0,
        setting=plan.setting,
        queued_prefill_tokens=0.0,
        active_kv_tokens=0.0,
        running=0.0,
    )
