"""The allocation problem as plain tables, and what a given plan would do in it.

Nothing here knows engines or latencies: `capacity` has turned them into rates and watts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import fsum

from wattline.core.decision import PoolPlan
from wattline.core.errors import InputError
from wattline.core.fleet import Role, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolProblem:
    """What one pool could be.

    settings: all different. rate_rps: requests per second that one replica serves within its
    targets, per setting. draw_w: mean watts per GPU at that rate, per setting. draw_curve_w
    (optional): per setting, mean watts per GPU at evenly spaced loads from none to all of its rate;
    without it draw runs straight from `idle_w` to `draw_w`. parked_w: watts booked for a GPU that
    serves nothing (its lowest limit). parked_draw_w: what such a GPU draws (None: the lesser of
    `idle_w` and `parked_w`).
    fixed_replicas: set when only watts may change; it overrides floor and ceiling.
    Rates and draws may be shared tuples: equal pools that share them are solved once.
    """

    role: Role
    gpus: int
    gpus_per_replica: int
    parked_w: float
    min_replicas: int
    max_replicas: int
    settings: tuple[Setting, ...]
    rate_rps: tuple[float, ...]
    draw_w: tuple[float, ...]
    idle_w: float
    current: PoolPlan
    fixed_replicas: int | None = None
    draw_curve_w: tuple[tuple[float, ...], ...] | None = None
    parked_draw_w: float | None = None

    def __post_init__(self) -> None:
        if not self.settings:
            raise InputError("pool.settings", self.settings, "give at least one setting")
        if not len(self.settings) == len(self.rate_rps) == len(self.draw_w):
            raise InputError(
                "pool.rate_rps",
                (len(self.settings), len(self.rate_rps), len(self.draw_w)),
                "give one rate and one draw per setting",
            )
        low, high = self.replica_range
        if not 0 <= low <= high or high * self.gpus_per_replica > self.gpus:
            raise InputError(
                "pool.replicas", (low, high), f"stay within 0 and the {self.gpus} GPUs of the pool"
            )

    @property
    def replica_range(self) -> tuple[int, int]:
        """Fewest and most replicas that a plan may give the pool."""
        if self.fixed_replicas is not None:
            return self.fixed_replicas, self.fixed_replicas
        return self.min_replicas, self.max_replicas

    @property
    def parked_draw(self) -> float:
        """Watts that a parked GPU is expected to draw."""
        if self.parked_draw_w is not None:
            return self.parked_draw_w
        return min(self.idle_w, self.parked_w)

    def key(self) -> tuple[object, ...]:
        """Say what makes two pools the same problem, whatever they do at present.

        Tables are compared by identity, which may miss equals but never confuses two.
        """
        return (
            self.role,
            id(self.settings),
            id(self.rate_rps),
            id(self.draw_w),
            id(self.draw_curve_w),
            self.gpus,
            self.gpus_per_replica,
            self.parked_w,
            self.idle_w,
            self.parked_draw_w,
            self.replica_range,
        )

    def current_option(self) -> int:
        """Find the present plan among the options (see `option_plan`), -1 if not offered."""
        index = find_setting(self.settings, self.current.setting)
        return -1 if index is None else self.current.replicas * len(self.settings) + index

    def booked_w(self, plan: PoolPlan) -> float:
        """Watts that `plan` books: the cap of serving GPUs, the parking limit of the others."""
        serving = plan.replicas * self.gpus_per_replica
        return serving * plan.setting.cap_w + (self.gpus - serving) * self.parked_w

    def curve_w(self, index: int) -> tuple[float, ...]:
        """Mean watts per GPU of setting `index` at evenly spaced loads from none to all."""
        if self.draw_curve_w is not None:
            return self.draw_curve_w[index]
        return (self.idle_w, self.draw_w[index])

    def expected_draw_w(self, plan: PoolPlan, index: int, load: float) -> float:
        """Watts the pool draws when its replicas carry `load` (0 to 1) of their rate."""
        serving = plan.replicas * self.gpus_per_replica
        curve = self.curve_w(index)
        place = min(max(load, 0.0), 1.0) * (len(curve) - 1)
        left = min(int(place), len(curve) - 2)
        per_gpu = curve[left] + (curve[left + 1] - curve[left]) * (place - left)
        return serving * per_gpu + (self.gpus - serving) * self.parked_draw


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentProblem:
    """One deployment: its weight against others, the demand to serve, and its pools.

    Its rate is the smaller of the summed prefill rates and the summed decode rates (of the stages
    that it has) plus the summed aggregated rates.
    """

    priority: float
    demand_rps: float
    pools: tuple[PoolProblem, ...]

    def __post_init__(self) -> None:
        if not self.pools:
            raise InputError("deployment.pools", self.pools, "give at least one pool")
        if not self.priority > 0:
            raise InputError("deployment.priority", self.priority, "give a weight above 0")
        if not 0 <= self.demand_rps < float("inf"):
            raise InputError("deployment.demand_rps", self.demand_rps, "give a finite rate >= 0")

    def rate_rps(self, rates: Sequence[float]) -> float:
        """Rate of the deployment from the rate of each of its pools."""
        paired, aggregated = path_rates_rps(self.role_rates_rps(rates))
        return paired + aggregated

    def role_rates_rps(self, rates: Sequence[float]) -> dict[Role, float]:
        """Sum the rates of the pools of each role that the deployment has."""
        sums: dict[Role, float] = {}
        for pool, rate in zip(self.pools, rates, strict=True):
            sums[pool.role] = sums.get(pool.role, 0.0) + rate
        return sums


class Binding(StrEnum):
    """What kept a deployment from serving more."""

    DEMAND = "demand"
    BUDGET = "budget"
    GPUS = "gpus"
    FLOOR = "floor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The chosen plans and how good they are.

    plans: per deployment, per pool. rate_rps: capacity of each deployment under its plans.
    value: priority-weighted demand served (requests/s); bound: no plan within the watts can exceed
    it; gap: (bound - value) / bound. booked_w: sum over pools, parked GPUs included. feasible is
    False when not even the floors fit into the watts: the plans then are those floors.
    """

    plans: tuple[tuple[PoolPlan, ...], ...]
    rate_rps: tuple[float, ...]
    booked_w: float
    draw_w: float
    value: float
    bound: float
    gap: float
    binding: tuple[Binding, ...]
    feasible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What given plans would do: capacity and served demand per deployment, watts, a sentence."""

    rate_rps: tuple[float, ...]
    served_rps: tuple[float, ...]
    value: float
    booked_w: float
    draw_w: float
    fits: bool
    verdict: str


def path_rates_rps(sums: Mapping[Role, float]) -> tuple[float, float]:
    """Rates of both ways through a deployment: prefill then decode, and aggregated."""
    stages = [sums[role] for role in (Role.PREFILL, Role.DECODE) if role in sums]
    return min(stages, default=0.0), sums.get(Role.AGGREGATED, 0.0)


def role_order(deployment: DeploymentProblem) -> list[int]:
    """Order the deployment's pools (by index): prefill, then decode, then aggregated."""
    ranks = {Role.PREFILL: 0, Role.DECODE: 1, Role.AGGREGATED: 2}
    return sorted(range(len(deployment.pools)), key=lambda i: ranks[deployment.pools[i].role])


def option_plan(pool: PoolProblem, option: int) -> PoolPlan:
    """Plan of an option: replicas x number of settings + index of the setting.

    The present plan stays where it gives the same rate and draw for no more watts.
    """
    replicas, index = divmod(option, len(pool.settings))
    plan = PoolPlan(replicas, pool.settings[index])
    current = pool.current
    if current == plan or current.replicas != replicas:
        return plan
    if replicas == 0:
        return current
    at = pool.current_option() - replicas * len(pool.settings)
    if current.setting.cap_w > plan.setting.cap_w or at < 0:
        return plan
    same = pool.rate_rps[at] == pool.rate_rps[index] and pool.curve_w(at) == pool.curve_w(index)
    return current if same else plan


def find_setting(settings: Sequence[Setting], setting: Setting) -> int | None:
    """Index of `setting` among `settings`, None if it is not there."""
    cap_w, clock = setting.cap_w, setting.clock
    # Comparing fields is ten times faster than comparing settings, and this runs per pool.
    for index, offered in enumerate(settings):
        if offered.cap_w == cap_w and offered.clock == clock:
            return index
    return None


def setting_index(pool: PoolProblem, setting: Setting) -> int:
    """Index of `setting` among the pool's; InputError if the pool does not offer it."""
    index = find_setting(pool.settings, setting)
    if index is None:
        caps = sorted({offered.cap_w for offered in pool.settings})
        raise InputError(
            "setting",
            setting,
            f"choose one that the pool offers: caps {caps[0]:g} to {caps[-1]:g} W",
        )
    return index


def evaluate(
    deployments: Sequence[DeploymentProblem],
    plans: Sequence[Sequence[PoolPlan]],
    usable_w: float,
    headroom: float = 1.0,
) -> Evaluation:
    """Judge what `plans` would do within `usable_w`, for comparison with what was chosen.

    InputError if a plan's setting is not offered; replica bounds are not checked.
    """
    rates, served, draws, value = [], [], [], 0.0
    for deployment, chosen in zip(deployments, plans, strict=True):
        rate, draw = evaluate_deployment(deployment, chosen)
        rates.append(rate)
        served.append(min(rate, deployment.demand_rps))
        draws.append(draw)
        value += deployment.priority * min(rate, deployment.demand_rps * headroom)
    booked = fsum(
        pool.booked_w(plan)
        for deployment, chosen in zip(deployments, plans, strict=True)
        for pool, plan in zip(deployment.pools, chosen, strict=True)
    )
    fits = booked <= usable_w + 1e-6
    missing = fsum(d.demand_rps for d in deployments) - fsum(served)
    return Evaluation(
        rate_rps=tuple(rates),
        served_rps=tuple(served),
        value=value,
        booked_w=booked,
        draw_w=fsum(draws),
        fits=fits,
        verdict=_verdict(booked, usable_w, fits, missing),
    )


def evaluate_deployment(
    deployment: DeploymentProblem, plans: Sequence[PoolPlan]
) -> tuple[float, float]:
    """Capacity (requests/s) of one deployment under `plans`, and watts drawn at its demand."""
    indices = [
        setting_index(pool, plan.setting) if plan.replicas else 0
        for pool, plan in zip(deployment.pools, plans, strict=True)
    ]
    rates = [
        plan.replicas * pool.rate_rps[index]
        for pool, plan, index in zip(deployment.pools, plans, indices, strict=True)
    ]
    rate = deployment.rate_rps(rates)
    share = min(1.0, deployment.demand_rps / rate) if rate > 0 else 0.0
    sums = deployment.role_rates_rps(rates)
    paired, _ = path_rates_rps(sums)
    loads = {
        role: share * (own if role is Role.AGGREGATED else paired) / own if own > 0 else 0.0
        for role, own in sums.items()
    }
    draw = fsum(
        pool.expected_draw_w(plan, index, loads[pool.role])
        for pool, plan, index in zip(deployment.pools, plans, indices, strict=True)
    )
    return rate, draw


def _verdict(booked: float, usable_w: float, fits: bool, missing_rps: float) -> str:
    if not fits:
        return f"books {booked:,.0f} W, {booked - usable_w:,.0f} W above the usable budget"
    if missing_rps > 1e-9:
        spare = f"fits with {usable_w - booked:,.0f} W to spare"
        return f"{spare}, but leaves {missing_rps:.3g} requests/s unserved"
    return f"fits with {usable_w - booked:,.0f} W to spare and serves all demand"
