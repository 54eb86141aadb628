"""Policies by name."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Protocol

from wattline.core.decision import PoolPlan
from wattline.core.errors import InputError
from wattline.core.settings import Settings
from wattline.core.snapshot import Budget
from wattline.sim.policies.base import Policy
from wattline.sim.policies.context import PolicyContext
from wattline.sim.policies.dynamo_clamp import DynamoClamp, DynamoClampBest, DynamoClampParked
from wattline.sim.policies.fixed import (
    BestStatic,
    FewestUncapped,
    StaticCaps,
    Uncapped,
    UniformCap,
)
from wattline.sim.policies.slo_scaler import SloScaler
from wattline.sim.policies.threshold import Threshold
from wattline.sim.policies.wattline import Oracle, Wattline


class StartingPolicy(Policy, Protocol):
    """A policy that also says where it starts."""

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """Ready replicas and caps in force at the first tick."""
        ...


_POLICIES: dict[str, Callable[[Settings, PolicyContext], StartingPolicy]] = {
    Uncapped.name: Uncapped,
    FewestUncapped.name: FewestUncapped,
    UniformCap.name: UniformCap,
    StaticCaps.name: StaticCaps,
    BestStatic.name: BestStatic,
    DynamoClamp.name: DynamoClamp,
    DynamoClampParked.name: DynamoClampParked,
    DynamoClampBest.name: DynamoClampBest,
    Threshold.name: Threshold,
    SloScaler.name: SloScaler,
    Wattline.name: Wattline,
    Oracle.name: Oracle,
}


def names() -> tuple[str, ...]:
    """Names of all policies, in the order of the documentation."""
    return tuple(_POLICIES)


def build(name: str, settings: Settings, context: PolicyContext) -> StartingPolicy:
    """Make a fresh policy; InputError for an unknown name or a context that lacks its values."""
    check_name(name)
    return _POLICIES[name](settings, context)


def check_name(name: str) -> None:
    """InputError with the nearest names if there is no policy `name`."""
    if name not in _POLICIES:
        close = get_close_matches(name, _POLICIES, n=3, cutoff=0.4)
        raise InputError("policy", name, f"use one of {', '.join(close or _POLICIES)}")


def initial_plan(
    name: str, settings: Settings, context: PolicyContext, budget: Budget
) -> tuple[PoolPlan, ...]:
    """Where the policy starts, knowing the budget and nothing of the traffic."""
    return build(name, settings, context).initial_plan(budget)
