"""A small fleet, and snapshots of it, for tests of the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from wattline.core.engine import ForwardPass, PassCost
from wattline.core.fleet import Deployment, Fleet, GpuProduct, Pool, Role, Setting, Slo
from wattline.core.mix import Mix
from wattline.core.settings import Settings
from wattline.core.snapshot import (
    SCHEMA,
    Budget,
    DemandView,
    GpuTable,
    Phase,
    PoolView,
    Snapshot,
)
from wattline.core.state import State

PRODUCT = GpuProduct(
    name="X1",
    architecture="test",
    min_limit_w=200.0,
    default_limit_w=700.0,
    max_limit_w=700.0,
    idle_w=100.0,
    peak_flops={"fp8": 1e15},
    hbm_bytes=1e11,
    hbm_bytes_per_s=4e12,
    interconnect_bytes_per_s=4e11,
    min_clock_mhz=400.0,
    max_clock_mhz=2000.0,
    settle_s=2.0,
)
MIX = Mix(1000.0, 200.0)


@dataclass(frozen=True, slots=True)
class PlainEngine:
    """Prompt tokens and decode steps whose speed is the clock that a cap allows: (cap / 700)."""

    kind: str = "plain"
    prompt_tokens_per_s: float = 20_000.0
    step_s: float = 0.010
    sequence_s: float = 0.0002
    kv_capacity_tokens: int = 200_000
    kv_bytes_per_token: float = 1e5
    max_num_seqs: int = 128
    max_batched_tokens: int = 8192
    idle_w: float = 110.0

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        clock = min(setting.clock, derate, setting.cap_w / 700.0)
        seconds = work.prefill_tokens / self.prompt_tokens_per_s / clock
        if work.decode_batch:
            seconds += self.step_s + self.sequence_s * work.decode_batch / clock
        return PassCost(seconds, min(setting.cap_w, 700.0 * clock), clock)


@dataclass
class Site:
    """One or more equal deployments of a prefill and a decode pool, and what is seen of them."""

    settings: Settings
    budget_w: float = 4000.0
    guard_w: float = 0.0
    rise_w_per_s: float | None = None
    ready: list[int] = field(default_factory=list)
    starting: list[int] = field(default_factory=list)
    granted_w: list[float] = field(default_factory=list)
    booked_w: list[float] | None = None
    silent: set[int] = field(default_factory=set)
    derate: dict[int, float] = field(default_factory=dict)
    rate_rps: float = 20.0
    mix: Mix = MIX
    queued: float = 0.0

    @property
    def fleet(self) -> Fleet:
        return self.settings.fleet

    def phases(self) -> tuple[list[int], list[int], list[Phase]]:
        pools, replicas, phases = [], [], []
        for index, pool in enumerate(self.fleet.pools):
            for gpu in range(pool.gpus):
                replica = gpu // pool.gpus_per_replica
                pools.append(index)
                if replica < self.ready[index]:
                    replicas.append(replica)
                    phases.append(Phase.READY)
                elif replica < self.ready[index] + self.starting[index]:
                    replicas.append(replica)
                    phases.append(Phase.STARTING)
                else:
                    replicas.append(-1)
                    phases.append(Phase.PARKED)
        return pools, replicas, phases

    def table(self) -> GpuTable:
        pools, replicas, phases = self.phases()
        count = len(pools)
        return GpuTable(
            uuid=tuple(f"GPU-{gpu}" for gpu in range(count)),
            pool=tuple(pools),
            replica=tuple(replicas),
            phase=tuple(phases),
            enforced_w=tuple(
                None if gpu in self.silent else watts for gpu, watts in enumerate(self.granted_w)
            ),
            granted_w=tuple(self.granted_w),
            booked_w=tuple(self.granted_w if self.booked_w is None else self.booked_w),
            draw_w=(None,) * count,
            clock=(1.0,) * count,
            derate=tuple(self.derate.get(gpu, 1.0) for gpu in range(count)),
        )

    def demand(self, seconds: float = 1.0) -> DemandView:
        count = round(self.rate_rps * seconds)
        return DemandView(
            window_s=seconds,
            arrivals=count,
            input_tokens_sum=round(count * self.mix.input_tokens),
            cached_tokens_sum=round(count * self.mix.input_tokens * self.mix.cached_fraction),
            completions=count,
            output_tokens_sum=round(count * self.mix.output_tokens),
            rejected=0,
            ttft_p50_s=None,
            ttft_p99_s=None,
            itl_p50_s=None,
            itl_p99_s=None,
            age_s=0.0,
        )

    def snapshot(
        self,
        time_s: float,
        state: State | None = None,
        demand: Sequence[DemandView] | None = None,
        settings: Sequence[Setting] | None = None,
    ) -> Snapshot:
        if settings is None:
            settings = [Setting(400.0)] * len(self.fleet.pools)
            if state is not None:
                settings = [pool.setting for pool in state.pools]
        return Snapshot(
            schema=SCHEMA,
            tick=round(time_s),
            time_s=time_s,
            budget=Budget(
                total_w=self.budget_w,
                guard_w=self.guard_w,
                version=1,
                rise_w_per_s=self.rise_w_per_s,
            ),
            gpus=self.table(),
            pools=tuple(
                PoolView(
                    ready=self.ready[index],
                    starting=self.starting[index],
                    draining=0,
                    setting=setting,
                    queued_prefill_tokens=self.queued,
                    active_kv_tokens=0.0,
                    running=0.0,
                )
                for index, setting in enumerate(settings)
            ),
            demand=tuple(demand or [self.demand()] * len(self.fleet.deployments)),
            missing=(),
            state=state,
        )


def make_site(deployments: int = 1, replicas: int = 4, **changes: object) -> Site:
    """Return a site with all replicas (of one GPU each) serving at 400 W."""
    fleet = Fleet(
        products=(PRODUCT,),
        deployments=tuple(
            Deployment(name=f"d{index}", model="m", slo=Slo(2.0, 0.05))
            for index in range(deployments)
        ),
        pools=tuple(
            Pool(
                name=f"d{index}-{role}",
                deployment=f"d{index}",
                role=role,
                gpu="X1",
                gpus=replicas,
                gpus_per_replica=1,
                min_replicas=1,
                max_replicas=replicas,
                startup_s=60.0,
            )
            for index in range(deployments)
            for role in (Role.PREFILL, Role.DECODE)
        ),
    )
    pools = len(fleet.pools)
    settings = Settings(
        fleet=fleet, engines=(PlainEngine(),) * pools, expected=(MIX,) * deployments
    )
    return Site(
        settings=replace(settings, **changes),  # type: ignore[arg-type]
        ready=[replicas] * pools,
        starting=[0] * pools,
        granted_w=[400.0] * (pools * replicas),
        budget_w=400.0 * pools * replicas,
    )
