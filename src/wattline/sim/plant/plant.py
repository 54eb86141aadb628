"""The plant: a fleet that serves requests under power limits, one event at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop
from math import inf, isfinite

import numpy as np

from wattline.core.decision import Admission, PoolPlan
from wattline.core.engine import EngineModel
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet, Role
from wattline.core.snapshot import Phase
from wattline.sim.plant.config import PlantConfig
from wattline.sim.plant.frontend import Frontend, Stage
from wattline.sim.plant.gpus import GpuBank
from wattline.sim.plant.kernel import Kernel
from wattline.sim.plant.outcomes import DemandCounters, Outcomes, Sequence, Totals, Window
from wattline.sim.plant.power import PowerSampler, PowerSamples
from wattline.sim.plant.replica import Replica
from wattline.sim.plant.workers import BiasSignal, Workers
from wattline.sim.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuColumns:
    """One entry per GPU; a GPU's index is its identity. The truth, before any telemetry.

    replica is -1 on GPUs that hold none. enforced_w and clock are the registers. draw_w is the mean
    over the 0.1 s samples since the last call; the whole column is None before the first sample.
    """

    pool: list[int]
    node: list[int]
    replica: list[int]
    phase: list[Phase]
    enforced_w: list[float]
    clock: list[float]
    derate: list[float]
    draw_w: list[float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounters:
    """Replicas of a pool by phase, and the load of the ready ones.

    queued_prefill_tokens: prompt tokens waiting or running. active_kv_tokens: context held, and
    that of prompts that wait. running, waiting: sequences. starts: number of every replica that
    loads and the seconds since it began.
    """

    ready: int
    starting: int
    draining: int
    lost: int
    queued_prefill_tokens: int
    active_kv_tokens: int
    running: int
    waiting: int
    starts: tuple[tuple[int, float], ...]


class Plant:
    """Simulated fleet. `engines` and `initial` hold one entry per pool of `fleet`, in order.

    At time 0 the first `initial[p].replicas` replicas of pool p serve under `initial[p].setting`;
    every other GPU is parked at its product's lowest limit. `requests` must be in order of time and
    is consumed lazily; InputError names the first one that cannot be used. Equal arguments and
    equal calls give equal results, to the bit.
    """

    def __init__(
        self,
        fleet: Fleet,
        engines: tuple[EngineModel, ...],
        requests: Iterable[Request],
        *,
        seed: int,
        config: PlantConfig,
        initial: tuple[PoolPlan, ...],
    ) -> None:
        self._fleet = fleet
        self._config = config
        self._now_s = 0.0
        self._outcomes = Outcomes(len(fleet.deployments))
        self._kernel = Kernel(self._outcomes)
        self._bank = GpuBank(fleet, config.gpus_per_node)
        self._frontends = _frontends(fleet, config)
        names = [deployment.name for deployment in fleet.deployments]
        self._deployment_of = [names.index(pool.deployment) for pool in fleet.pools]
        self._retried = 0
        self._moving: dict[int, Sequence] = {}
        self._window_start_s = [0.0] * len(fleet.deployments)
        self._workers = Workers(
            fleet=fleet,
            engines=engines,
            config=config,
            kernel=self._kernel,
            bank=self._bank,
            on_prefilled=self._move_cache,
            on_members=self._update_members,
        )
        for pool, plan in enumerate(initial):
            self._workers.start_ready(pool, plan.replicas, plan.setting)
        self._bank.note_total(0.0)
        self._sampler = PowerSampler(
            row_gpus=self._workers.row_gpus,
            row_pool=self._workers.row_pool,
            idle_w=self._workers.row_idle_w,
            pools=len(fleet.pools),
            step_s=config.sample_s,
            noise=config.noise,
            seed=seed,
        )
        self._requests: Iterator[Request] = iter(requests)
        self._next_request: Request | None = None
        self._next_arrival_s = 0.0
        self._read_request()

    # Time

    @property
    def now_s(self) -> float:
        """Simulated seconds since the start."""
        return self._now_s

    @property
    def next_arrival_s(self) -> float:
        """When the next request arrives; infinity after the last one."""
        return self._next_arrival_s

    def advance(self, until_s: float) -> None:
        """Let everything up to and at `until_s` happen."""
        if until_s < self._now_s:
            raise ValueError(f"cannot go back from {self._now_s} s to {until_s} s")
        while self._now_s < until_s:
            stop_s = min(until_s, self._now_s + self._sampler.flush_span_s)
            self._run_until(stop_s)
            self._now_s = stop_s
            kernel = self._kernel
            self._sampler.flush(stop_s, kernel.segment_row, kernel.segment_s, kernel.segment_w)
            kernel.segment_row.clear()
            kernel.segment_s.clear()
            kernel.segment_w.clear()

    def _run_until(self, until_s: float) -> None:
        heap = self._kernel.heap
        while True:
            event_s = heap[0][0] if heap else inf
            if event_s <= self._next_arrival_s:
                if event_s > until_s:
                    return
                now, _, handler, tag = heappop(heap)
                handler(now, tag)
            elif self._next_arrival_s > until_s:
                return
            else:
                self._arrive()

    # Requests

    def _read_request(self) -> None:
        request = next(self._requests, None)
        self._next_request = request
        if request is None:
            self._next_arrival_s = inf
            return
        where = f"request {len(self._outcomes.arrival_s)}"
        time_s = round(request.time_s, 9)
        if not isfinite(time_s) or time_s < self._next_arrival_s:
            raise InputError(
                f"{where}, time_s", request.time_s, "sort the requests by time, from 0"
            )
        if request.input_tokens < 1 or request.output_tokens < 1:
            found = (request.input_tokens, request.output_tokens)
            raise InputError(f"{where}, tokens", found, "both counts must be at least 1")
        if not 0 <= request.deployment < len(self._frontends):
            remedy = f"the fleet has deployments 0 to {len(self._frontends) - 1}"
            raise InputError(f"{where}, deployment", request.deployment, remedy)
        self._next_arrival_s = time_s

    def _arrive(self) -> None:
        request, now = self._next_request, self._next_arrival_s
        assert request is not None
        deployment = request.deployment
        outcomes = self._outcomes
        index = outcomes.arrive(now, deployment, request.input_tokens, request.output_tokens)
        sequence = Sequence(
            index,
            deployment,
            request.input_tokens,
            request.output_tokens,
            request.prefix_hashes,
        )
        worker = self._frontends[deployment].admit(sequence, now)
        if worker is None:
            outcomes.reject(index, deployment)
        else:
            worker.enqueue(sequence, now)
        self._read_request()

    def _move_cache(self, sequence: Sequence, source: Replica, now: float) -> None:
        """Send a finished prompt's cache on its way to a decode replica."""
        config = self._config
        rate = config.kv_bytes_per_s_per_gpu * len(source.gpus)
        seconds = source.engine.kv_bytes_per_token * sequence.prompt / rate + config.kv_latency_s
        self._moving[sequence.index] = sequence
        self._kernel.push(now + seconds, self._cache_arrived, sequence.index)

    def _cache_arrived(self, now: float, index: int) -> None:
        sequence = self._moving.pop(index)
        self._place(self._frontends[sequence.deployment].decode, sequence, now)

    def _place(self, stage: Stage, sequence: Sequence, now: float) -> None:
        """Give an admitted request to a worker; without any it waits for the next one."""
        worker = self._frontends[sequence.deployment].place(stage, sequence, now)
        if worker is None:
            stage.held.append(sequence)
        else:
            worker.enqueue(sequence, now)

    def _update_members(self, pool: int, now: float) -> None:
        """Tell its frontend that the ready replicas of `pool` changed, and serve who waited."""
        deployment = self._deployment_of[pool]
        frontend = self._frontends[deployment]
        decodes_only = self._fleet.pools[pool].role is Role.DECODE
        stage = frontend.decode if decodes_only else frontend.entry
        stage.ready = [
            replica
            for index, replicas in enumerate(self._workers.pools)
            if self._deployment_of[index] == deployment
            and (self._fleet.pools[index].role is Role.DECODE) == decodes_only
            for replica in replicas
            if replica.phase is Phase.READY
        ]
        for _ in range(len(stage.held)):
            self._place(stage, stage.held.popleft(), now)

    # Actuators

    def write_limit(self, gpu: int, cap_w: float, clock: float = 1.0) -> float:
        """Write a power limit and a clock ceiling; returns the limit now enforced.

        The limit is clamped to the product's range, and may be refused or raised by a fault. The
        register changes at once, the draw and the speed `settle_s` later.
        """
        return self._workers.write(gpu, cap_w, clock, self._now_s)

    def start_replicas(self, pool: int, count: int) -> int:
        """Begin to load replicas on parked GPUs; returns how many could be begun.

        They serve after the pool's `startup_s`, and draw loading power until then.
        """
        return self._workers.start(pool, count, self._now_s)

    def stop_replicas(self, pool: int, count: int) -> int:
        """Stop replicas, starting ones first, then the least loaded; returns how many.

        What is in flight on them is finished; then their GPUs idle, at the limits they have.
        """
        return self._workers.stop(pool, count, self._now_s)

    def set_admission(self, deployment: int, admission: Admission) -> None:
        """Set the busy thresholds of one deployment's frontends, from now on."""
        self._frontends[deployment].set_admission(admission)

    # Sensors

    def gpu_columns(self) -> GpuColumns:
        """State of every GPU now, and its mean draw since the last call."""
        bank, workers = self._bank, self._workers
        replica, phase = [], []
        for gpu, node in enumerate(bank.node):
            owner = workers.replica_of(gpu)
            if workers.node_lost[node]:
                state = Phase.LOST
            elif owner is None or owner.phase is Phase.LOST:
                state = Phase.PARKED
            else:
                state = owner.phase
            held = owner is not None and state not in (Phase.PARKED, Phase.LOST)
            replica.append(owner.number if held and owner is not None else -1)
            phase.append(state)
        return GpuColumns(
            pool=list(bank.pool),
            node=list(bank.node),
            replica=replica,
            phase=phase,
            enforced_w=list(bank.enforced_w),
            clock=list(bank.clock),
            derate=list(bank.derate),
            draw_w=self._sampler.take_gpu_means(),
        )

    def enforced_w(self) -> list[float]:
        """Enforced limit of every GPU now."""
        return list(self._bank.enforced_w)

    def pool_view(self, pool: int) -> PoolCounters:
        """Replicas and load of one pool now."""
        replicas = self._workers.pools[pool]
        ready = [replica for replica in replicas if replica.phase is Phase.READY]
        phases = [replica.phase for replica in replicas]
        running = sum(replica.running for replica in ready)
        return PoolCounters(
            ready=len(ready),
            starting=phases.count(Phase.STARTING),
            draining=phases.count(Phase.DRAINING),
            lost=phases.count(Phase.LOST),
            queued_prefill_tokens=sum(replica.prefill_tokens for replica in ready),
            active_kv_tokens=sum(replica.active_kv_tokens(self._now_s) for replica in ready),
            running=running,
            waiting=sum(replica.load for replica in ready) - running,
            starts=tuple(
                (replica.number, round(self._now_s - replica.phase_since_s, 6))
                for replica in replicas
                if replica.phase is Phase.STARTING
            ),
        )

    def demand_view(self, deployment: int) -> DemandCounters:
        """Return what one deployment's frontends counted since the last call for it."""
        window = self._outcomes.windows[deployment]
        self._outcomes.windows[deployment] = Window()
        start_s = self._window_start_s[deployment]
        self._window_start_s[deployment] = self._now_s
        return DemandCounters(
            window_s=round(self._now_s - start_s, 9),
            arrivals=window.arrivals,
            input_tokens_sum=window.input,
            cached_tokens_sum=window.cached,
            completions=window.completions,
            output_tokens_sum=window.output,
            rejected=window.rejected,
            ttft_s=tuple(window.ttft),
            itl_s=tuple(window.itl),
        )

    def power_samples(self) -> PowerSamples:
        """Return samples of the draw, whole ones only, since the last call."""
        return self._sampler.take()

    @property
    def enforced_changes(self) -> list[tuple[float, float]]:
        """Every change of the sum of the enforced limits: (seconds, watts), from time 0 on."""
        return self._bank.changes

    def totals(self) -> Totals:
        """Figures of the run until now."""
        outcomes = self._outcomes
        offered = len(outcomes.arrival_s)
        replicas = [replica for pool in self._workers.pools for replica in pool]
        return Totals(
            offered=offered,
            completed=outcomes.completed,
            rejected=outcomes.rejected,
            unfinished=offered - outcomes.completed - outcomes.rejected,
            energy_j=self._sampler.energy_j,
            generated_tokens=sum(replica.generated_tokens(self._now_s) for replica in replicas),
            preemptions=self._kernel.preemptions,
            retried=self._retried,
            arrival_s=np.array(outcomes.arrival_s, dtype=np.float64),
            ttft_s=np.array(outcomes.ttft_s, dtype=np.float64),
            itl_s=np.array(outcomes.itl_s, dtype=np.float64),
            finished_s=np.array(outcomes.finished_s, dtype=np.float64),
            output_tokens=np.array(outcomes.output_tokens, dtype=np.int64),
            deployment=np.array(outcomes.deployment, dtype=np.int16),
            status=np.array(outcomes.status, dtype=np.int8),
        )

    # Faults

    def set_bias(self, signal: BiasSignal, pool: int, factor: float) -> None:
        """Make the plant differ from its engine model: durations or watts times `factor`."""
        self._workers.set_bias(signal, pool, factor, self._now_s)

    def set_derate(self, gpu: int, factor: float) -> None:
        """Leave a GPU `factor` of its speed (1.0: healthy), and so its replica."""
        self._workers.set_derate(gpu, factor, self._now_s)

    def lose_node(self, node: int) -> None:
        """Take a node down. What it served starts again on other workers, behind what they have."""
        for sequence in self._workers.lose_node(node, self._now_s):
            self._retried += 1
            self._place(self._frontends[sequence.deployment].entry, sequence, self._now_s)

    def return_node(self, node: int) -> None:
        """Bring a node back: empty, its GPUs at their default limits."""
        self._workers.return_node(node, self._now_s)

    def block_startup(self, pool: int, blocked: bool) -> None:
        """While blocked, replicas that are started load for ever, until they are stopped."""
        self._workers.block_startup(pool, blocked)

    def refuse_writes(self, gpu: int, refuses: bool) -> None:
        """While set, writes to this GPU change nothing."""
        self._bank.refuses[gpu] = refuses

    def clamp_writes(self, gpu: int, floor_w: float | None) -> None:
        """Raise writes below `floor_w` to it; None ends that. The present limit stays."""
        self._bank.write_floor_w[gpu] = floor_w


def _frontends(fleet: Fleet, config: PlantConfig) -> list[Frontend]:
    """One frontend per deployment; InputError for roles that cannot serve together."""
    frontends = []
    for deployment in fleet.deployments:
        roles = {pool.role for pool in fleet.pools if pool.deployment == deployment.name}
        if roles not in ({Role.AGGREGATED}, {Role.PREFILL, Role.DECODE}):
            found = ", ".join(sorted(roles)) or "no pools"
            raise InputError(
                f"deployment {deployment.name}, roles of its pools",
                found,
                "use aggregated pools only, or prefill and decode pools",
            )
        frontends.append(Frontend(config.routing, disaggregated=Role.PREFILL in roles))
    return frontends
