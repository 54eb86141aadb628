"""Small fleets and an engine whose times can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wattline.core.decision import PoolPlan
from wattline.core.engine import EngineModel, ForwardPass, PassCost
from wattline.core.fleet import Deployment, Fleet, GpuProduct, Pool, Role, Setting, Slo
from wattline.core.polynomial import PolynomialEngine
from wattline.core.power import CapResponse
from wattline.sim.plant import LimiterNoise, Plant, PlantConfig, Routing
from wattline.sim.request import Request

QUIET = LimiterNoise(mean_fraction=1.0, sample_sigma=0.0)

PRODUCT = GpuProduct(
    name="test-gpu",
    architecture="test",
    min_limit_w=200.0,
    default_limit_w=700.0,
    max_limit_w=700.0,
    idle_w=75.0,
    peak_flops={},
    hbm_bytes=80e9,
    hbm_bytes_per_s=3e12,
    interconnect_bytes_per_s=None,
    min_clock_mhz=None,
    max_clock_mhz=None,
    settle_s=2.0,
)


@dataclass(frozen=True, kw_only=True)
class LinearEngine:
    """Times affine in the work and inverse to the cap; draws the cap while it works."""

    kv_capacity_tokens: int = 4096
    kv_bytes_per_token: float = 1e6
    max_num_seqs: int = 8
    max_batched_tokens: int = 256
    idle_w: float = 100.0

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        """1 ms + 0.1 ms per prompt token + a little per pair; 5 ms + batch + context to decode."""
        seconds = 0.0
        if work.prefill_tokens:
            seconds += 1e-3 + 1e-4 * work.prefill_tokens + 1e-7 * work.prefill_context
        if work.decode_batch:
            seconds += 5e-3 + 2e-4 * work.decode_batch + 1e-6 * work.decode_kv_tokens
        speed = setting.cap_w / 700.0 * setting.clock * derate
        return PassCost(seconds / speed, setting.cap_w, speed)


def mock_engine() -> PolynomialEngine:
    """Dynamo's mock engine on a GPU that never reaches its limit."""
    return PolynomialEngine(
        response=CapResponse(
            static_w=100.0, compute_w=400.0, memory_w=150.0, idle_w=100.0, overlap=0.0
        )
    )


def pool(role: Role, gpus: int, *, per_replica: int = 1, startup_s: float = 30.0) -> Pool:
    """All GPUs of one role of the only deployment."""
    return Pool(
        name=role.value,
        deployment="chat",
        role=role,
        gpu=PRODUCT.name,
        gpus=gpus,
        gpus_per_replica=per_replica,
        min_replicas=1,
        max_replicas=gpus // per_replica,
        startup_s=startup_s,
    )


def make_plant(
    requests: Iterable[Request],
    pools: tuple[Pool, ...],
    *,
    engine: EngineModel | None = None,
    ready: tuple[int, ...] | None = None,
    cap_w: float = 700.0,
    seed: int = 1,
    routing: Routing = Routing.ROUND_ROBIN,
    config: PlantConfig | None = None,
) -> Plant:
    """Plant of one deployment on test GPUs; all replicas ready unless `ready` says how many."""
    engine = engine or LinearEngine()
    fleet = Fleet(
        products=(PRODUCT,),
        deployments=(Deployment(name="chat", model="test", slo=Slo(1.0, 0.05)),),
        pools=pools,
    )
    counts = ready or tuple(p.gpus // p.gpus_per_replica for p in pools)
    return Plant(
        fleet,
        (engine,) * len(pools),
        requests,
        seed=seed,
        config=config or PlantConfig(routing=routing, noise=QUIET),
        initial=tuple(PoolPlan(count, Setting(cap_w)) for count in counts),
    )
