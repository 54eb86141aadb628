"""Policies that keep their replicas on and only choose caps: uncapped, uniform, static."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import fsum

from wattline.core.decision import CapSteps, Decision, PoolPlan, ReasonCode
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet, Setting
from wattline.core.settings import Settings
from wattline.core.snapshot import Budget, Snapshot
from wattline.sim.policies.common import (
    all_replicas,
    booked_steps,
    decided,
    direct_steps,
    fit_caps,
    gpu_targets,
    limits_w,
    most_replicas,
    replica_steps,
    water_level,
    whole_watts,
)
from wattline.sim.policies.context import PolicyContext

INTERVAL_S = 1.0


class Uncapped:
    """Every GPU at its largest limit, every replica on; the budget is ignored, for reference."""

    name = "uncapped"
    interval_s = INTERVAL_S
    uses_ledger = False

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        self._fleet = settings.fleet

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """All replicas at the largest limit."""
        return all_replicas(self._fleet, [Setting(high) for _, high in limits_w(self._fleet)])

    def decide(self, snapshot: Snapshot) -> Decision:
        """Keep everything on."""
        plan = self.initial_plan(snapshot.budget)
        settings = [want.setting for want in plan]
        sentences = [
            (
                ReasonCode.STEADY,
                f"{pool.name}: {want.replicas} replicas at the largest limit of "
                f"{want.setting.cap_w:.0f} W; the budget is not looked at",
            )
            for pool, want in zip(self._fleet.pools, plan, strict=True)
        ]
        return decided(
            snapshot,
            plan,
            sentences,
            caps=direct_steps(snapshot, gpu_targets(snapshot, settings, settings)),
            replicas=replica_steps(snapshot, self._fleet, plan),
        )


class FewestUncapped:
    """A fixed number of replicas at the largest limit, in hindsight the fewest that suffice.

    GPUs without a replica stay at their default limit, as in a fleet that nobody manages. The
    budget is ignored. The search for the fewest is in `wattline.sim.fewest`.
    """

    name = "fewest-uncapped"
    interval_s = INTERVAL_S
    uses_ledger = False

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        self._fleet = settings.fleet
        self._replicas = stated_replicas(settings.fleet, context)

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """The stated replicas at the largest limit."""
        return tuple(
            PoolPlan(replicas, Setting(high))
            for replicas, (_, high) in zip(self._replicas, limits_w(self._fleet), strict=True)
        )

    def decide(self, snapshot: Snapshot) -> Decision:
        """Keep the stated replicas on."""
        plan = self.initial_plan(snapshot.budget)
        serving = [want.setting for want in plan]
        idle = [Setting(self._fleet.product_of(pool).default_limit_w) for pool in self._fleet.pools]
        sentences = [
            (
                ReasonCode.STEADY,
                f"{pool.name}: {want.replicas} of {most_replicas(pool)} replicas at the largest "
                f"limit of {want.setting.cap_w:.0f} W, all the time; the budget is not looked at",
            )
            for pool, want in zip(self._fleet.pools, plan, strict=True)
        ]
        return decided(
            snapshot,
            plan,
            sentences,
            caps=direct_steps(snapshot, gpu_targets(snapshot, serving, idle)),
            replicas=replica_steps(snapshot, self._fleet, plan),
        )


class _Capped(ABC):
    """Every replica on at caps that follow from the budget alone; unused GPUs are parked low."""

    name = ""
    interval_s = INTERVAL_S
    uses_ledger = True

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        self._fleet = settings.fleet
        self._limits = limits_w(settings.fleet)
        self._serving = [
            most_replicas(pool) * pool.gpus_per_replica for pool in settings.fleet.pools
        ]
        self._parked_w = fsum(
            (pool.gpus - serving) * low
            for pool, serving, (low, _) in zip(
                settings.fleet.pools, self._serving, self._limits, strict=True
            )
        )

    @abstractmethod
    def caps_w(self, usable_w: float) -> tuple[float, ...]:
        """Cap per pool when `usable_w` watts may be spent on serving GPUs."""

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """All replicas at the caps of this budget."""
        caps = self.caps_w(budget.usable_w - self._parked_w)
        return all_replicas(self._fleet, [Setting(cap) for cap in caps])

    def decide(self, snapshot: Snapshot) -> Decision:
        """Follow the budget: lower at once, raise when watts have become free."""
        plan = self.initial_plan(snapshot.budget)
        parked = [Setting(low) for low, _ in self._limits]
        targets = gpu_targets(snapshot, [want.setting for want in plan], parked)
        spent_w = self._parked_w + fsum(
            n * want.setting.cap_w for n, want in zip(self._serving, plan, strict=True)
        )
        steps = booked_steps(snapshot, targets, self.interval_s)
        reasons = [
            self._reason(index, want, snapshot, targets, steps, spent_w)
            for index, want in enumerate(plan)
        ]
        return decided(
            snapshot,
            plan,
            reasons,
            caps=steps,
            replicas=replica_steps(snapshot, self._fleet, plan),
        )

    def _reason(
        self,
        pool: int,
        want: PoolPlan,
        snapshot: Snapshot,
        targets: Sequence[Setting],
        steps: CapSteps,
        spent_w: float,
    ) -> tuple[ReasonCode, str]:
        gpus, usable_w = snapshot.gpus, snapshot.budget.usable_w
        at = (
            f"{self._fleet.pools[pool].name}: {want.replicas} replicas at "
            f"{want.setting.cap_w:.0f} W per GPU"
        )
        if spent_w > usable_w:
            return ReasonCode.INFEASIBLE_FLOOR, (
                f"{at}; the smallest limits need {spent_w:.0f} W, more than {usable_w:.0f} W"
            )
        members = [i for i, member in enumerate(gpus.pool) if member == pool]
        lowered = sum(1 for i in members if targets[i].cap_w < gpus.granted_w[i])
        if lowered:
            return ReasonCode.BUDGET_CUT, (
                f"{at}; {lowered} GPUs are lowered to fit into {usable_w:.0f} W"
            )
        sent = set(steps.gpu)
        waiting = sum(1 for i in members if targets[i].cap_w > gpus.granted_w[i] and i not in sent)
        if waiting:
            return ReasonCode.WAITING_FOR_SETTLE, (
                f"{at}; {waiting} GPUs wait until watts are free to raise them"
            )
        code = ReasonCode.BUDGET_BOUND
        if want.setting.cap_w >= self._limits[pool][1]:
            code = ReasonCode.STEADY
        return code, f"{at}; {spent_w:.0f} W of {usable_w:.0f} W are planned for the fleet"


class UniformCap(_Capped):
    """One cap for every GPU, clamped to each product's range, that spends budget less guard."""

    name = "uniform-cap"

    def caps_w(self, usable_w: float) -> tuple[float, ...]:
        """Cap per pool at the water level of the budget."""
        level = water_level(self._serving, self._limits, usable_w)
        return tuple(whole_watts(min(max(level, lo), hi), lo) for lo, hi in self._limits)


class StaticCaps(_Capped):
    """Caps per role as fractions of the largest limit, scaled down together where they exceed."""

    name = "static-caps"

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        super().__init__(settings, context)
        missing = [p.role for p in self._fleet.pools if p.role not in context.role_caps]
        if missing:
            raise InputError(
                "static_caps",
                sorted(role.value for role in context.role_caps),
                f"give a fraction of the largest limit for role {missing[0].value}",
            )
        self._wanted: Sequence[float] = [
            context.role_caps[pool.role] * high
            for pool, (_, high) in zip(self._fleet.pools, self._limits, strict=True)
        ]

    def caps_w(self, usable_w: float) -> tuple[float, ...]:
        """Stated caps, or all of them times one factor."""
        return fit_caps(self._wanted, self._serving, self._limits, usable_w)


class BestStatic(_Capped):
    """The caps that a sweep in hindsight found best; the sweep itself is in `sweep`."""

    name = "best-static"

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        super().__init__(settings, context)
        self._wanted = stated_caps(settings.fleet, context)

    def caps_w(self, usable_w: float) -> tuple[float, ...]:
        """Caps of the split, or all of them times one factor after a cut of the budget."""
        return fit_caps(self._wanted, self._serving, self._limits, usable_w)


def stated_caps(fleet: Fleet, context: PolicyContext) -> tuple[float, ...]:
    """Caps per pool of the context; InputError unless there is one per pool, in its range."""
    caps = context.pool_caps_w
    if caps is None or len(caps) != len(fleet.pools):
        raise InputError(
            "pool_caps_w", caps, f"give one cap in watts for each of the {len(fleet.pools)} pools"
        )
    for pool, cap_w, (low, high) in zip(fleet.pools, caps, limits_w(fleet), strict=True):
        if not low <= cap_w <= high:
            raise InputError(
                f"pool_caps_w of {pool.name}",
                cap_w,
                f"give {low:.0f} to {high:.0f} W, as {pool.gpu}",
            )
    return caps


def stated_replicas(fleet: Fleet, context: PolicyContext) -> tuple[int, ...]:
    """Replicas per pool of the context; InputError unless there is a possible one per pool."""
    replicas = context.pool_replicas
    if replicas is None or len(replicas) != len(fleet.pools):
        raise InputError(
            "pool_replicas",
            replicas,
            f"give one count for each of the {len(fleet.pools)} pools (`wattline compare` searches "
            "for the fewest)",
        )
    for pool, count in zip(fleet.pools, replicas, strict=True):
        if not pool.min_replicas <= count <= most_replicas(pool):
            raise InputError(
                f"pool_replicas of {pool.name}",
                count,
                f"give {pool.min_replicas} to {most_replicas(pool)}",
            )
    return replicas
