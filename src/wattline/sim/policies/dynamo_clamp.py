"""NVIDIA Dynamo's planner in `sla` mode with the power clamp that release 1.6.1 ships.

Throughput scaling every 180 s sets lower bounds, load scaling every 5 s moves one replica up or
down and is held while anything is scaling, and the final boundary keeps requested watts (cap x GPUs
of every replica) inside the budget. Caps never change and GPUs without a replica keep their default
limit: neither is counted. How faithful this is stands in docs/reference/policies.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor

from wattline.core.decision import Decision, PoolPlan, ReasonCode
from wattline.core.errors import InfeasibleError, InputError
from wattline.core.fleet import Role, Setting, Slo
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
from wattline.sim.policies.dynamo_boundary import (
    BoundaryConfig,
    Workers,
    final_targets,
)
from wattline.sim.policies.dynamo_budget import ClampReason, Roles, minimum_fits, shrink_pair
from wattline.sim.policies.dynamo_engine import Shape, balanced_replicas, engine_rps
from wattline.sim.policies.dynamo_load import (
    LoadAdvice,
    LoadInput,
    aggregated_advice,
    decode_advice,
    prefill_advice,
)
from wattline.sim.policies.fixed import stated_caps

THROUGHPUT_INTERVAL_S = 180.0
LOAD_INTERVAL_S = 5.0
MAX_THROUGHPUT_CHANGE = 8
"""`max_throughput_scaling_replicas`: largest change of one throughput decision per role."""

_ADVICE = {
    Role.PREFILL: prefill_advice,
    Role.DECODE: decode_advice,
    Role.AGGREGATED: aggregated_advice,
}


@dataclass(slots=True)
class _Window:
    """Traffic of one deployment since the last throughput decision."""

    seconds: float = 0.0
    arrivals: float = 0.0
    input_tokens: float = 0.0
    cached_tokens: float = 0.0
    completions: float = 0.0
    output_tokens: float = 0.0

    def add(self, demand: DemandView, elapsed_s: float) -> None:
        """Add what was counted, as a rate over the time since the last look; outages add none."""
        if demand.arrivals is None or demand.window_s <= 0.0:
            return
        share = elapsed_s / demand.window_s
        self.seconds += elapsed_s
        self.arrivals += demand.arrivals * share
        self.input_tokens += (demand.input_tokens_sum or 0) * share
        self.cached_tokens += (demand.cached_tokens_sum or 0) * share
        self.completions += (demand.completions or 0) * share
        self.output_tokens += (demand.output_tokens_sum or 0) * share


@dataclass(slots=True)
class _Graph:
    """One deployment graph with its own planner: at most one pool a role."""

    deployment: int
    pools: tuple[int | None, int | None]
    roles: Roles
    share: float
    shape: Shape
    window: _Window = field(default_factory=_Window)
    lower_bound: list[int] = field(default_factory=lambda: [0, 0])


@dataclass(slots=True)
class _Verdict:
    """What one planner says about one of its pools."""

    code: ReasonCode
    raw: int
    target: int
    sentence: str


class DynamoClamp:
    """The planner at the caps it was deployed with: the default limit of each product."""

    name = "dynamo-clamp"
    interval_s = LOAD_INTERVAL_S
    uses_ledger = False

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        self._settings = settings
        self._fleet = settings.fleet
        self._idle = [
            Setting(self._fleet.product_of(pool).default_limit_w) for pool in self._fleet.pools
        ]
        self._caps = [Setting(cap) for cap in self.deployed_caps(settings, context)]
        self._graphs = [self._graph(index) for index in range(len(self._fleet.deployments))]
        self._desired: list[int] = []
        self._last_s: float | None = None
        self._next_throughput_s: float | None = None

    def deployed_caps(self, settings: Settings, context: PolicyContext) -> tuple[float, ...]:
        """Cap per pool for the life of the planner."""
        return tuple(settings.fleet.product_of(p).default_limit_w for p in settings.fleet.pools)

    def _graph(self, index: int) -> _Graph:
        fleet, name = self._fleet, self._fleet.deployments[index].name
        members = [i for i, pool in enumerate(fleet.pools) if pool.deployment == name]
        prefill = [i for i in members if fleet.pools[i].role is Role.PREFILL]
        decode = [i for i in members if fleet.pools[i].role is not Role.PREFILL]
        if len(prefill) > 1 or len(decode) > 1:
            raise InputError(
                f"policy {self.name}",
                [fleet.pools[i].name for i in members],
                "Dynamo's planner has one prefill and one decode pool; split the deployment",
            )
        pools = (prefill[0] if prefill else None, decode[0] if decode else None)
        mix = self._settings.expected_mix(index)
        return _Graph(
            deployment=index,
            pools=pools,
            roles=Roles(
                prefill_watts=self._replica_w(pools[0]),
                decode_watts=self._replica_w(pools[1]),
                prefill_min=self._minimum(pools[0]),
                decode_min=self._minimum(pools[1]),
            ),
            share=sum(
                fleet.pools[i].gpus * fleet.product_of(fleet.pools[i]).max_limit_w for i in members
            )
            / fleet.max_limit_w,
            shape=Shape(ceil(mix.input_tokens), ceil(mix.output_tokens), mix.cached_fraction),
        )

    def _replica_w(self, pool: int | None) -> int | None:
        if pool is None:
            return None
        return ceil(self._caps[pool].cap_w) * self._fleet.pools[pool].gpus_per_replica

    def _minimum(self, pool: int | None) -> int:
        return 1 if pool is None else max(1, self._fleet.pools[pool].min_replicas)

    def _most(self, pool: int) -> int:
        return most_replicas(self._fleet.pools[pool])

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """Replicas balanced for the expected request, shrunk in proportion to fit the budget.

        InfeasibleError where the minimum footprint does not fit: the planner refuses to start.
        """
        plan = [PoolPlan(0, cap) for cap in self._caps]
        for graph in self._graphs:
            members = [pool for pool in graph.pools if pool is not None]
            balanced = balanced_replicas(
                self._settings, members, self._caps, graph.shape, self._slo(graph)
            )
            wanted = [
                0 if pool is None else max(balanced[pool], self._minimum(pool))
                for pool in graph.pools
            ]
            limit_w = self._limit_w(graph, budget)
            if not minimum_fits(limit_w, graph.roles):
                name = self._fleet.deployments[graph.deployment].name
                raise InfeasibleError(
                    f"policy {self.name}: deployment {name} needs more than its {limit_w} W for "
                    "the minimum replicas at their caps: raise the budget or lower the caps"
                )
            counts = shrink_pair((wanted[0], wanted[1]), graph.roles, limit_w)
            for pool, count in zip(graph.pools, counts, strict=True):
                if pool is not None:
                    plan[pool] = PoolPlan(count, self._caps[pool])
        return tuple(plan)

    def _limit_w(self, graph: _Graph, budget: Budget) -> int:
        """`total_gpu_power_limit` of one planner: its deployment's share of budget less guard."""
        return max(0, floor(budget.usable_w * graph.share))

    def decide(self, snapshot: Snapshot) -> Decision:
        """Run the loops that are due and hold the result to the power budget."""
        if not self._desired:
            self._start(snapshot)
        last_s = snapshot.time_s - self.interval_s if self._last_s is None else self._last_s
        elapsed_s = snapshot.time_s - last_s
        self._last_s = snapshot.time_s
        if self._next_throughput_s is None:
            self._next_throughput_s = snapshot.time_s + THROUGHPUT_INTERVAL_S
        throughput_due = snapshot.time_s >= self._next_throughput_s
        if throughput_due:
            self._next_throughput_s += THROUGHPUT_INTERVAL_S
        verdicts: dict[int, _Verdict] = {}
        for graph in self._graphs:
            graph.window.add(snapshot.demand[graph.deployment], elapsed_s)
            if throughput_due:
                self._scale_for_throughput(graph, snapshot)
            verdicts |= self._scale(graph, snapshot)
        return self._decision(snapshot, [verdicts[i] for i in range(len(self._fleet.pools))])

    def _start(self, snapshot: Snapshot) -> None:
        """Take what is there as wanted, and keep it until the first throughput decision.

        A planner that has run for a while has lower bounds; without them it would shed replicas
        for its first three minutes.
        """
        self._desired = [view.ready + view.starting for view in snapshot.pools]
        for graph in self._graphs:
            for side, pool in enumerate(graph.pools):
                if pool is not None:
                    graph.lower_bound[side] = self._desired[pool]

    def _decision(self, snapshot: Snapshot, verdicts: Sequence[_Verdict]) -> Decision:
        pools = range(len(verdicts))
        plan = [PoolPlan(verdicts[i].target, self._caps[i]) for i in pools]
        return decided(
            snapshot,
            plan,
            [(verdict.code, verdict.sentence) for verdict in verdicts],
            caps=direct_steps(snapshot, gpu_targets(snapshot, self._caps, self._idle)),
            replicas=replica_steps(snapshot, self._fleet, plan),
            recommended=[PoolPlan(verdicts[i].raw, self._caps[i]) for i in pools],
        )

    def _scale_for_throughput(self, graph: _Graph, snapshot: Snapshot) -> None:
        """Set the lower bounds from the mean traffic of the last interval (constant predictor)."""
        window, graph.window = graph.window, _Window()
        if window.seconds <= 0.0:
            return
        graph.shape = _shape_of(window, graph.shape)
        demand_rps = window.arrivals / window.seconds
        slo = self._slo(graph)
        for side, pool in enumerate(graph.pools):
            if pool is None:
                continue
            current = snapshot.pools[pool].ready
            rate = engine_rps(
                self._settings.engines[pool],
                self._caps[pool],
                self._fleet.pools[pool].role,
                graph.shape,
                slo,
            )
            desired = ceil(demand_rps / rate) if rate > 0.0 else current
            bounded = min(
                max(desired, current - MAX_THROUGHPUT_CHANGE), current + MAX_THROUGHPUT_CHANGE
            )
            minimum = (graph.roles.prefill_min, graph.roles.decode_min)[side]
            graph.lower_bound[side] = min(self._most(pool), max(bounded, minimum))

    def _slo(self, graph: _Graph) -> Slo:
        return self._fleet.deployments[graph.deployment].slo

    def _scale(self, graph: _Graph, snapshot: Snapshot) -> dict[int, _Verdict]:
        """Load scaling above the lower bounds, then the final boundary."""
        advice = [self._advice(graph, side, snapshot) for side in (0, 1)]
        moving = any(self._moving(pool, snapshot) for pool in graph.pools if pool is not None)
        wanted: list[int | None] = [None, None]
        if not moving and any(one is not None and one.estimate_s is not None for one in advice):
            for side, pool in enumerate(graph.pools):
                if pool is not None:
                    one = advice[side]
                    asked = None if one is None else one.desired
                    base = snapshot.pools[pool].ready if asked is None else asked
                    wanted[side] = min(self._most(pool), max(base, graph.lower_bound[side]))
        limit_w = self._limit_w(graph, snapshot.budget)
        targets, reason = self._clamp(graph, (wanted[0], wanted[1]), moving, limit_w, snapshot)
        verdicts = {}
        for side, pool in enumerate(graph.pools):
            if pool is None:
                continue
            raw, target, desired = wanted[side], targets[side], self._desired[pool]
            self._desired[pool] = desired if target is None else target
            code, sentence = _saying(desired, (raw, target), moving, advice[side], reason, limit_w)
            verdicts[pool] = _Verdict(
                code=code,
                raw=desired if raw is None else raw,
                target=self._desired[pool],
                sentence=f"{self._fleet.pools[pool].name}: {sentence}",
            )
        return verdicts

    def _moving(self, pool: int, snapshot: Snapshot) -> bool:
        """Say whether the graph is unsettled: pods start, drain, or are missing."""
        view = snapshot.pools[pool]
        return bool(view.starting or view.draining) or view.ready != self._desired[pool]

    def _advice(self, graph: _Graph, side: int, snapshot: Snapshot) -> LoadAdvice | None:
        pool = graph.pools[side]
        if pool is None:
            return None
        role = self._fleet.pools[pool].role
        return _ADVICE[role](
            LoadInput(
                engine=self._settings.engines[pool],
                setting=self._caps[pool],
                view=snapshot.pools[pool],
                shape=_shape_of(graph.window, graph.shape),
                slo=self._slo(graph),
                minimum=(graph.roles.prefill_min, graph.roles.decode_min)[side],
            )
        )

    def _clamp(
        self,
        graph: _Graph,
        wanted: tuple[int | None, int | None],
        moving: bool,
        limit_w: int,
        snapshot: Snapshot,
    ) -> tuple[tuple[int | None, int | None], ClampReason | None]:
        """Apply the final boundary; where not even the minimum fits, the planner does nothing."""
        if not minimum_fits(limit_w, graph.roles):
            return (None, None), None
        prefill, decode = (None if p is None else snapshot.pools[p].ready for p in graph.pools)
        ready = (prefill, decode)
        workers = Workers(ready=ready, expected=(None, None) if moving else ready, scaling=moving)
        gpus = [0 if p is None else self._fleet.pools[p].gpus_per_replica for p in graph.pools]
        config = BoundaryConfig(
            mode="prefill" if decode is None else "decode" if prefill is None else "disagg",
            roles=graph.roles,
            prefill_gpus=gpus[0],
            decode_gpus=gpus[1],
            power_budget_w=limit_w,
            max_gpu_budget=sum(self._fleet.pools[p].gpus for p in graph.pools if p is not None),
        )
        # A target that equals the ready count is no proposal: its role is charged, never adjusted.
        asked = [w is not None and w != r for w, r in zip(wanted, ready, strict=True)]
        boundary = final_targets(wanted, (asked[0], asked[1]), workers, config)
        return boundary.targets, boundary.reason


class DynamoClampBest(DynamoClamp):
    """The same planner with the caps that a sweep in hindsight found best."""

    name = "dynamo-clamp-best"

    def deployed_caps(self, settings: Settings, context: PolicyContext) -> tuple[float, ...]:
        """Caps of the sweep's candidate."""
        return stated_caps(settings.fleet, context)


class DynamoClampParked(DynamoClamp):
    """The same planner held to the promise that Wattline keeps: a budget over enforced limits.

    Unused GPUs are parked at their lowest limit and charged at it, so a replica costs the watts
    between that limit and its cap. Not a mode of the release: what its clamp would serve if the
    budget were meant for the hardware and not for requests.
    """

    name = "dynamo-clamp-parked"

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        super().__init__(settings, context)
        self._idle = [Setting(self._parked_w(pool)) for pool in range(len(self._fleet.pools))]

    def _parked_w(self, pool: int) -> float:
        return self._fleet.product_of(self._fleet.pools[pool]).min_limit_w

    def _replica_w(self, pool: int | None) -> int | None:
        if pool is None:
            return None
        above_w = ceil(self._caps[pool].cap_w - self._parked_w(pool))
        return above_w * self._fleet.pools[pool].gpus_per_replica

    def _limit_w(self, graph: _Graph, budget: Budget) -> int:
        parked_w = sum(
            self._fleet.pools[pool].gpus * self._parked_w(pool)
            for pool in graph.pools
            if pool is not None
        )
        return max(0, floor(budget.usable_w * graph.share - parked_w))


def _shape_of(window: _Window, last: Shape) -> Shape:
    """Mean request of the window; where it has none, the last one known."""
    if window.arrivals <= 0.0:
        return last
    output = last.output_tokens
    if window.completions > 0.0:
        output = max(1, round(window.output_tokens / window.completions))
    hit_rate = window.cached_tokens / window.input_tokens if window.input_tokens > 0.0 else 0.0
    return Shape(max(1, round(window.input_tokens / window.arrivals)), output, hit_rate)


def _saying(
    standing: int,
    counts: tuple[int | None, int | None],
    moving: bool,
    advice: LoadAdvice | None,
    reason: ClampReason | None,
    limit_w: int,
) -> tuple[ReasonCode, str]:
    """Code and sentence on what was asked for, what was allowed, and why."""
    raw, target = counts
    if moving:
        sentence = f"{standing} replicas wanted; held while replicas start, drain or are missing"
        return ReasonCode.WAITING_FOR_REPORT, sentence
    if advice is None or advice.estimate_s is None:
        return ReasonCode.HELD_METRICS_OUTAGE, f"{standing} replicas held: no worker metrics"
    estimate = f"estimated latency {advice.estimate_s * 1000.0:.0f} ms"
    if raw is None or raw == standing:
        return ReasonCode.DEMAND_MET, f"{standing} replicas, no change ({estimate})"
    allowed = standing if target is None else target
    if allowed != raw:
        why = "the minimum does not fit" if reason is None else reason.value
        return ReasonCode.BUDGET_BOUND, (
            f"{raw} replicas asked for ({estimate}), {allowed} within {limit_w} W ({why})"
        )
    code = ReasonCode.STARTING if allowed > standing else ReasonCode.DRAINING
    return code, f"{standing} to {allowed} replicas ({estimate}), within {limit_w} W"
