"""A small fleet, an engine that can be computed by hand, and snapshots made to order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from wattline.core.decision import PoolPlan
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
from wattline.sim.policies.context import PolicyContext

LOW_W, HIGH_W = 200.0, 700.0


@dataclass(frozen=True)
class LinearEngine:
    """A pass takes 10 ms, 0.1 ms a prompt token, 1 us a token of context; caps do nothing."""

    kv_capacity_tokens: int = 100_000
    kv_bytes_per_token: float = 1.0
    max_num_seqs: int = 64
    max_batched_tokens: int = 4096
    idle_w: float = 100.0

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        duration_s = 0.01 + 1e-4 * work.prefill_tokens + 1e-6 * work.decode_kv_tokens
        return PassCost(duration_s / derate, setting.cap_w, setting.clock)


H200 = GpuProduct(
    name="H200",
    architecture="hopper",
    min_limit_w=LOW_W,
    default_limit_w=HIGH_W,
    max_limit_w=HIGH_W,
    idle_w=75.0,
    peak_flops={"fp8": 1e15},
    hbm_bytes=141e9,
    hbm_bytes_per_s=4.8e12,
    interconnect_bytes_per_s=4.5e11,
    min_clock_mhz=345.0,
    max_clock_mhz=1980.0,
    settle_s=2.0,
)


def pool(name: str, role: Role, gpus: int, per_replica: int = 1, deployment: str = "chat") -> Pool:
    return Pool(
        name=name,
        deployment=deployment,
        role=role,
        gpu="H200",
        gpus=gpus,
        gpus_per_replica=per_replica,
        min_replicas=1,
        max_replicas=gpus // per_replica,
        startup_s=60.0,
    )


def settings_of(*pools: Pool, engine: LinearEngine | None = None) -> Settings:
    names = list(dict.fromkeys(p.deployment for p in pools))
    return Settings(
        fleet=Fleet(
            products=(H200,),
            deployments=tuple(
                Deployment(name=name, model="m", slo=Slo(ttft_s=1.0, itl_s=0.05)) for name in names
            ),
            pools=pools,
        ),
        engines=tuple(engine or LinearEngine() for _ in pools),
        expected=tuple(Mix(1000.0, 100.0) for _ in names),
    )


def disaggregated(prefill: int = 8, decode: int = 8) -> Settings:
    return settings_of(pool("prefill", Role.PREFILL, prefill), pool("decode", Role.DECODE, decode))


def context(**values: object) -> PolicyContext:
    roles = {Role.PREFILL: 0.714, Role.DECODE: 0.607, Role.AGGREGATED: 0.661}
    return replace(PolicyContext(role_caps=roles), **values)  # type: ignore[arg-type]


def budget(total_w: float, guard_w: float = 0.0) -> Budget:
    return Budget(total_w=total_w, guard_w=guard_w, version=1)


QUIET = DemandView(
    window_s=5.0,
    arrivals=0,
    input_tokens_sum=0,
    cached_tokens_sum=0,
    completions=0,
    output_tokens_sum=0,
    rejected=0,
    ttft_p50_s=None,
    ttft_p99_s=None,
    itl_p50_s=None,
    itl_p99_s=None,
    age_s=0.0,
)

OUTAGE = replace(
    QUIET,
    arrivals=None,
    input_tokens_sum=None,
    cached_tokens_sum=None,
    completions=None,
    output_tokens_sum=None,
    rejected=None,
)


def traffic(rps: float, window_s: float = 5.0, **values: float) -> DemandView:
    """Steady traffic of 1,000 prompt and 100 output tokens."""
    count = round(rps * window_s)
    view = replace(
        QUIET,
        window_s=window_s,
        arrivals=count,
        input_tokens_sum=count * 1000,
        completions=count,
        output_tokens_sum=count * 100,
    )
    return replace(view, **values)  # type: ignore[arg-type]


@dataclass
class Load:
    """What the workers of one pool report; None is an outage."""

    queued: float | None = 0.0
    kv_tokens: float | None = 0.0
    running: float | None = 0.0


@dataclass
class World:
    """A fleet that carries decisions out at once: enough to drive a policy through ticks."""

    settings: Settings
    budget: Budget
    plan: tuple[PoolPlan, ...]
    time_s: float = 0.0
    tick: int = 0
    starting: dict[int, int] = field(default_factory=dict)
    draining: dict[int, int] = field(default_factory=dict)
    caps_w: dict[int, float] = field(default_factory=dict)
    booked_w: dict[int, float] = field(default_factory=dict)
    draw_w: float | None = 300.0

    def snapshot(
        self, loads: Sequence[Load] | None = None, demand: Sequence[DemandView] | None = None
    ) -> Snapshot:
        fleet = self.settings.fleet
        table = self._gpus()
        views = []
        for index, want in enumerate(self.plan):
            load = Load() if loads is None else loads[index]
            views.append(
                PoolView(
                    ready=want.replicas,
                    starting=self.starting.get(index, 0),
                    draining=self.draining.get(index, 0),
                    setting=want.setting,
                    queued_prefill_tokens=load.queued,
                    active_kv_tokens=load.kv_tokens,
                    running=load.running,
                )
            )
        return Snapshot(
            schema=SCHEMA,
            tick=self.tick,
            time_s=self.time_s,
            budget=self.budget,
            gpus=table,
            pools=tuple(views),
            demand=tuple(demand or [QUIET] * len(fleet.deployments)),
            missing=(),
            state=None,
        )

    def _gpus(self) -> GpuTable:
        rows: list[tuple[int, int, Phase, float, float]] = []
        for index, spec in enumerate(self.settings.fleet.pools):
            serving = self.plan[index].replicas + self.starting.get(index, 0)
            for slot in range(spec.gpus):
                replica = slot // spec.gpus_per_replica
                used = replica < serving
                gpu = len(rows)
                cap = self.caps_w.get(gpu, self.plan[index].setting.cap_w if used else HIGH_W)
                rows.append(
                    (
                        index,
                        replica if used else -1,
                        Phase.READY if used else Phase.PARKED,
                        cap,
                        self.booked_w.get(gpu, cap),
                    )
                )
        count = len(rows)
        return GpuTable(
            uuid=tuple(f"gpu-{i}" for i in range(count)),
            pool=tuple(row[0] for row in rows),
            replica=tuple(row[1] for row in rows),
            phase=tuple(row[2] for row in rows),
            enforced_w=tuple(row[3] for row in rows),
            granted_w=tuple(row[3] for row in rows),
            booked_w=tuple(row[4] for row in rows),
            draw_w=(self.draw_w,) * count,
            clock=(1.0,) * count,
            derate=(1.0,) * count,
        )
