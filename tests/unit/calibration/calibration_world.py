"""A deployment whose engines are other than their models say, and decisions that are obeyed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wattline.core.calibration.state import DeploymentCalibration, RoleCalibration
from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.decide import decide
from wattline.core.decision import Decision
from wattline.core.engine import ForwardPass, PassCost
from wattline.core.fleet import Deployment, Fleet, GpuProduct, Pool, Role, Setting, Slo
from wattline.core.mix import Mix
from wattline.core.settings import Settings
from wattline.core.snapshot import SCHEMA, Budget, DemandView, GpuTable, Phase, PoolView, Snapshot
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
GPUS = 4


@dataclass(frozen=True, slots=True)
class PlainEngine:
    """Prompts and decode steps whose speed is the clock that a cap allows (cap / 700 W)."""

    kind: str = "plain"
    kv_capacity_tokens: int = 200_000
    kv_bytes_per_token: float = 1e5
    max_num_seqs: int = 128
    max_batched_tokens: int = 8192
    idle_w: float = 110.0

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        clock = min(setting.clock, derate, setting.cap_w / 700.0)
        seconds = work.prefill_tokens / 20_000.0 / clock
        if work.decode_batch:
            seconds += 0.010 + 0.0002 * work.decode_batch / clock
        return PassCost(seconds, 0.8 * min(setting.cap_w, 700.0 * clock), clock)


ENGINE = PlainEngine()


def make_settings(*roles: Role, **changes: object) -> Settings:
    """One deployment with a pool of four GPUs, one a replica, per role."""
    fleet = Fleet(
        products=(PRODUCT,),
        deployments=(Deployment(name="chat", model="m", slo=Slo(2.0, 0.05)),),
        pools=tuple(
            Pool(
                name=f"{role}",
                deployment="chat",
                role=role,
                gpu="X1",
                gpus=GPUS,
                gpus_per_replica=1,
                min_replicas=1,
                max_replicas=GPUS,
                startup_s=60.0,
            )
            for role in roles or (Role.PREFILL, Role.DECODE)
        ),
    )
    made = Settings(
        fleet=fleet,
        engines=(ENGINE,) * len(fleet.pools),
        expected=(MIX,),
        calibration=CalibrationSettings(),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class World:
    """What is served: `slower` times as slow and `hungrier` times as hungry as modelled.

    queued: prompt tokens waiting per pool. completions: that end per tick (None: all that arrive).
    edit: last word on every snapshot.
    """

    settings: Settings = field(default_factory=make_settings)
    rate_rps: float = 40.0
    slower: float = 1.0
    hungrier: float = 1.0
    queued: float = 0.0
    completions: int | None = None
    budget_w: float = 5600.0
    derate: float = 1.0
    edit: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot
    limits_w: list[float] = field(default_factory=list)
    state: State | None = None
    now_s: float = 0.0
    decisions: list[tuple[Snapshot, Decision]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.limits_w:
            self.limits_w = [500.0] * (GPUS * len(self.settings.fleet.pools))

    def run(self, ticks: int) -> Decision:
        """So many seconds; the last decision."""
        for _ in range(ticks):
            snapshot = self.edit(self.snapshot())
            decision = decide(snapshot, self.settings)
            self.decisions.append((snapshot, decision))
            self.state = decision.next_state
            for gpu, cap_w in zip(decision.caps.gpu, decision.caps.cap_w, strict=True):
                self.limits_w[gpu] = cap_w
            self.now_s += 1.0
        return self.decisions[-1][1]

    @property
    def calibration(self) -> DeploymentCalibration:
        """Of the only deployment."""
        assert self.state is not None
        (entry,) = self.state.calibration
        return entry

    def role(self, role: Role) -> RoleCalibration:
        """Of one of its roles."""
        return next(entry for entry in self.calibration.roles if entry.role is role)

    def snapshot(self) -> Snapshot:
        """What is seen now."""
        pools = [pool for pool in range(len(self.settings.fleet.pools)) for _ in range(GPUS)]
        return Snapshot(
            schema=SCHEMA,
            tick=round(self.now_s),
            time_s=self.now_s,
            budget=Budget(total_w=self.budget_w, guard_w=0.0, version=1),
            gpus=GpuTable(
                uuid=tuple(f"GPU-{gpu}" for gpu in range(len(pools))),
                pool=tuple(pools),
                replica=tuple(gpu % GPUS for gpu in range(len(pools))),
                phase=(Phase.READY,) * len(pools),
                enforced_w=tuple(self.limits_w),
                granted_w=tuple(self.limits_w),
                booked_w=tuple(self.limits_w),
                draw_w=tuple(self.hungrier * self._draw_w(gpu) for gpu in range(len(pools))),
                clock=(1.0,) * len(pools),
                derate=(self.derate, *[1.0] * (len(pools) - 1)),
            ),
            pools=tuple(self._view(pool) for pool in range(len(self.settings.fleet.pools))),
            demand=(self._demand(),),
            missing=(),
            state=self.state,
        )

    def _limit(self, role: Role) -> Setting:
        for index, pool in enumerate(self.settings.fleet.pools):
            if pool.role is role:
                return Setting(self.limits_w[index * GPUS])
        return Setting(700.0)

    def _batch(self) -> float:
        """Sequences per decode replica: by Little's law at the real pace."""
        batch = 1.0
        for _ in range(100):
            batch = min(128.0, self.rate_rps * MIX.output_tokens * self._step_s(batch) / GPUS)
        return batch

    def _step_s(self, batch: float) -> float:
        work = ForwardPass(decode_batch=max(1, round(batch)), decode_kv_tokens=batch * 1100.0)
        return self.slower * ENGINE.cost(work, self._limit(Role.DECODE)).duration_s

    def _prompt_s(self) -> float:
        work = ForwardPass(prefill_tokens=1000, prefill_context=1000.0)
        return self.slower * ENGINE.cost(work, self._limit(Role.PREFILL)).duration_s

    def _draw_w(self, gpu: int) -> float:
        limit_w = self.limits_w[gpu]
        if self.settings.fleet.pools[gpu // GPUS].role is Role.DECODE:
            return 0.8 * limit_w
        busy = min(1.0, self.rate_rps * self._prompt_s() / GPUS)
        return ENGINE.idle_w + (0.8 * limit_w - ENGINE.idle_w) * busy

    def _view(self, pool: int) -> PoolView:
        state = self.state
        running = GPUS * self._batch() if self.rate_rps else 0.0
        role = self.settings.fleet.pools[pool].role
        return PoolView(
            ready=GPUS,
            starting=0,
            draining=0,
            setting=Setting(500.0) if state is None else state.pools[pool].setting,
            queued_prefill_tokens=0.0 if role is Role.DECODE else self.queued,
            active_kv_tokens=0.0 if role is Role.PREFILL else running * 1100.0,
            running=0.0 if role is Role.PREFILL else running,
        )

    def _demand(self) -> DemandView:
        count = round(self.rate_rps)
        ended = count if self.completions is None else self.completions
        step_s = self._step_s(self._batch())
        queue_s = self.queued / GPUS / 1000.0 * self._prompt_s()
        ttft_s = queue_s + self._prompt_s() + step_s + 0.004
        return DemandView(
            window_s=1.0,
            arrivals=count,
            input_tokens_sum=round(count * MIX.input_tokens),
            cached_tokens_sum=0,
            completions=ended,
            output_tokens_sum=round(ended * MIX.output_tokens),
            rejected=0,
            ttft_p50_s=ttft_s if ended else None,
            ttft_p99_s=2.0 * ttft_s if ended else None,
            itl_p50_s=step_s if ended else None,
            itl_p99_s=step_s if ended else None,
            age_s=0.0,
        )
