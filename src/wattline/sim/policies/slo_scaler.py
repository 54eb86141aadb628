"""Replicas scaled on latency against its targets, as KEDA and an HPA do it for llm-d.

After llm-d's slo-aware guide: saturation is P90 latency over its target; above 0.55 the HPA grows
the pool in proportion, below 0.40 it shrinks by one. Caps stay at their defaults; replicas are
bounded so that cap x GPUs of all of them fits the budget. GPUs without a replica keep their default
limit and are not counted.
"""

from __future__ import annotations

from collections import deque
from math import ceil, fsum

from wattline.core.decision import Decision, PoolPlan, ReasonCode
from wattline.core.fleet import Role, Setting
from wattline.core.settings import Settings
from wattline.core.snapshot import Budget, DemandView, Snapshot
from wattline.sim.policies.common import (
    decided,
    direct_steps,
    gpu_targets,
    most_replicas,
    replica_steps,
)
from wattline.sim.policies.context import PolicyContext
from wattline.sim.policies.dynamo_engine import Shape, balanced_replicas

THETA_UP = 0.55
THETA_DOWN = 0.40
CLAMP = 2.0
SMOOTHING_S = 45.0
UP_PERIOD_S = 60.0
"""In one such period the HPA adds at most as many pods as there are, or `UP_PODS` if more."""
UP_PODS = 4
DOWN_PERIOD_S = 120.0
"""In one such period the HPA removes at most one pod."""
INTERVAL_S = 15.0
"""Sync period of the HPA."""


class _Pool:
    """What the scaler remembers of one pool."""

    def __init__(self) -> None:
        self.samples: deque[tuple[float, float]] = deque()
        self.added: deque[tuple[float, int]] = deque()
        self.removed_s: float | None = None

    def smooth(self, now_s: float, sample: float | None) -> float | None:
        """Mean of the samples of the smoothing time, the newest included."""
        if sample is not None:
            self.samples.append((now_s, sample))
        while self.samples and self.samples[0][0] <= now_s - SMOOTHING_S:
            self.samples.popleft()
        if not self.samples:
            return None
        return fsum(value for _, value in self.samples) / len(self.samples)

    def may_add(self, now_s: float, standing: int) -> int:
        """Pods that the scale-up policy still allows in this period."""
        while self.added and self.added[0][0] <= now_s - UP_PERIOD_S:
            self.added.popleft()
        recent = sum(count for _, count in self.added)
        return max(0, max(standing - recent, UP_PODS) - recent)


class SloScaler:
    """Replicas by saturation, within the budget at default caps."""

    name = "slo-scaler"
    interval_s = INTERVAL_S
    uses_ledger = False

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        self._settings = settings
        self._fleet = settings.fleet
        self._caps = [
            Setting(self._fleet.product_of(pool).default_limit_w) for pool in self._fleet.pools
        ]
        self._deployment = {d.name: i for i, d in enumerate(self._fleet.deployments)}
        self._pools = [_Pool() for _ in self._fleet.pools]

    def _replica_w(self, pool: int) -> float:
        return self._caps[pool].cap_w * self._fleet.pools[pool].gpus_per_replica

    def _minimum(self, pool: int) -> int:
        return max(1, self._fleet.pools[pool].min_replicas)

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """Replicas in the ratio that the expected request needs, as many as fit at default caps."""
        most = self._balanced()
        counts = [self._minimum(i) for i in range(len(most))]
        while True:
            room = [
                i
                for i, count in enumerate(counts)
                if count < most[i]
                and self._requested_w(counts) + self._replica_w(i) <= budget.usable_w
            ]
            if not room:
                break
            emptiest = min(room, key=lambda i: (counts[i] / most[i], i))
            counts[emptiest] += 1
        return tuple(PoolPlan(n, cap) for n, cap in zip(counts, self._caps, strict=True))

    def _balanced(self) -> list[int]:
        counts: dict[int, int] = {}
        for index, deployment in enumerate(self._fleet.deployments):
            pools = [i for i, p in enumerate(self._fleet.pools) if p.deployment == deployment.name]
            mix = self._settings.expected_mix(index)
            shape = Shape(ceil(mix.input_tokens), ceil(mix.output_tokens), mix.cached_fraction)
            counts |= balanced_replicas(self._settings, pools, self._caps, shape, deployment.slo)
        return [counts[i] for i in range(len(self._fleet.pools))]

    def _requested_w(self, counts: list[int]) -> float:
        return fsum(n * self._replica_w(i) for i, n in enumerate(counts))

    def decide(self, snapshot: Snapshot) -> Decision:
        """Scale each pool by its own saturation, the most saturated first."""
        now_s = snapshot.time_s
        standing = [view.ready + view.starting for view in snapshot.pools]
        saturation = [self._saturation(i, snapshot) for i in range(len(standing))]
        wanted = [
            self._wanted(i, snapshot, standing[i], saturation[i]) for i in range(len(standing))
        ]
        counts = self._fit(standing, wanted, saturation, snapshot.budget.usable_w)
        for i, count in enumerate(counts):
            if count > standing[i]:
                self._pools[i].added.append((now_s, count - standing[i]))
            elif count < standing[i]:
                self._pools[i].removed_s = now_s
        plan = [PoolPlan(n, cap) for n, cap in zip(counts, self._caps, strict=True)]
        return decided(
            snapshot,
            plan,
            [
                self._saying(i, standing[i], wanted[i], counts[i], saturation[i])
                for i in range(len(counts))
            ],
            caps=direct_steps(snapshot, gpu_targets(snapshot, self._caps, self._caps)),
            replicas=replica_steps(snapshot, self._fleet, plan),
            recommended=[PoolPlan(n, cap) for n, cap in zip(wanted, self._caps, strict=True)],
        )

    def _saturation(self, pool: int, snapshot: Snapshot) -> float | None:
        """Smoothed saturation with credit for starting pods; None without measurements."""
        spec, view = self._fleet.pools[pool], snapshot.pools[pool]
        index = self._deployment[spec.deployment]
        slo = self._fleet.deployments[index].slo
        sample = _sample(snapshot.demand[index], spec.role, slo.ttft_s, slo.itl_s)
        smooth = self._pools[pool].smooth(snapshot.time_s, sample)
        if smooth is None:
            return None
        return smooth * view.ready / max(1, view.ready + view.starting)

    def _wanted(
        self, pool: int, snapshot: Snapshot, standing: int, saturation: float | None
    ) -> int:
        memory, now_s = self._pools[pool], snapshot.time_s
        if saturation is None:
            return max(standing, self._minimum(pool))
        wanted = standing
        if saturation > THETA_UP:
            grown = ceil(standing * saturation / THETA_UP)
            wanted = min(grown, standing + memory.may_add(now_s, standing))
        elif saturation < THETA_DOWN and (
            memory.removed_s is None or now_s - memory.removed_s >= DOWN_PERIOD_S
        ):
            wanted = standing - 1
        return min(most_replicas(self._fleet.pools[pool]), max(wanted, self._minimum(pool)))

    def _fit(
        self,
        standing: list[int],
        wanted: list[int],
        saturation: list[float | None],
        usable_w: float,
    ) -> list[int]:
        """Grant falls, give up what exceeds the budget, then grow, one replica at a time.

        Shares count first: the pool that kept most of its replicas gives one up, the one that got
        least of what it wants gets one. Saturation breaks ties.
        """
        counts = [min(s, w) for s, w in zip(standing, wanted, strict=True)]
        urgency = [0.0 if value is None else value for value in saturation]
        while self._requested_w(counts) > usable_w:
            able = [i for i, n in enumerate(counts) if n > self._minimum(i)]
            if not able:
                return counts
            counts[max(able, key=lambda i: (counts[i] / standing[i], -urgency[i], -i))] -= 1
        while True:
            able = [
                i
                for i, n in enumerate(counts)
                if n < wanted[i] and self._requested_w(counts) + self._replica_w(i) <= usable_w
            ]
            if not able:
                return counts
            counts[min(able, key=lambda i: (counts[i] / wanted[i], -urgency[i], i))] += 1

    def _saying(
        self, pool: int, standing: int, wanted: int, count: int, saturation: float | None
    ) -> tuple[ReasonCode, str]:
        name = self._fleet.pools[pool].name
        if saturation is None:
            sentence = f"{name}: {count} replicas held: no latencies measured"
            return ReasonCode.HELD_METRICS_OUTAGE, sentence
        seen = f"{name}: saturation {saturation:.2f}"
        if count < wanted:
            sentence = f"{seen} asks for {wanted} replicas, {count} fit the budget"
            return ReasonCode.BUDGET_BOUND, sentence
        if count != standing:
            code = ReasonCode.STARTING if count > standing else ReasonCode.DRAINING
            return code, f"{seen}, {standing} to {count} replicas"
        return ReasonCode.DEMAND_MET, f"{seen}, {count} replicas kept"


def _sample(demand: DemandView, role: Role, ttft_s: float, itl_s: float) -> float | None:
    """Worst latency over its target, clamped; a pool answers for the latency that it makes.

    P99 stands for P90, which snapshots do not carry. Measured idleness is zero, an outage is None.
    """
    if demand.arrivals is None or demand.completions is None:
        return None
    ratios = []
    if role is not Role.DECODE and demand.ttft_p99_s is not None:
        ratios.append(demand.ttft_p99_s / ttft_s)
    if role is not Role.PREFILL and demand.itl_p99_s is not None:
        ratios.append(demand.itl_p99_s / itl_s)
    if ratios:
        return min(CLAMP, max(ratios))
    return 0.0 if demand.arrivals == 0 and demand.completions == 0 else None
