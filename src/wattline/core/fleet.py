"""What a fleet is made of: GPU products, language models, deployments and their pools.

Everything here is static for one run; what changes from tick to tick is in `snapshot`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What the replicas of a pool do."""

    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProduct:
    """One GPU product as its vendor sells it. `None` means that no public source was found.

    Peak FLOP/s are dense (no sparsity), keyed by precision: `bf16`, `fp8`, `fp4`, `int8`.
    `interconnect_bytes_per_s` is per GPU and direction. `idle_w` is drawn with nothing loaded,
    `loaded_idle_w` with a model loaded and no request in flight.
    """

    name: str
    architecture: str
    min_limit_w: float
    default_limit_w: float
    max_limit_w: float
    idle_w: float | None
    peak_flops: Mapping[str, float]
    hbm_bytes: float
    hbm_bytes_per_s: float
    interconnect_bytes_per_s: float | None
    min_clock_mhz: float | None
    max_clock_mhz: float | None
    settle_s: float
    loaded_idle_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Shape of a language model; parameters are counts, not bytes.

    `active_params` equals `params` for a dense model. `kv_bytes_per_token_factor` covers
    architectures whose cache is not layers x 2 x kv_heads x head_dim (MLA, sliding windows): it is
    the number of cached elements per token over that product.

    experts_per_token of the `experts` of a layer work on a token; `expert_params` are those of all
    routed experts of all layers. `embedding_params` are looked up, never multiplied; `head_params`
    map to the vocabulary, for sampled tokens only. `dense_precision` is that of everything but
    routed experts, where it differs from `precision`. `windowed_layers` attend to the newest
    `window_tokens` only, `recurrent_layers` not at all: they keep `state_elements` per sequence.
    `decode_attention_factor` is the arithmetic of decode attention over 4 x heads x head_dim per
    token and layer (MLA computes in its latent space).
    """

    name: str
    params: float
    active_params: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    precision: str
    architecture: str
    kv_bytes_per_token_factor: float = 1.0
    experts_per_token: int = 0
    expert_params: float = 0.0
    embedding_params: float = 0.0
    head_params: float = 0.0
    dense_precision: str | None = None
    windowed_layers: int = 0
    window_tokens: int = 0
    recurrent_layers: int = 0
    state_elements: float = 0.0
    decode_attention_factor: float = 1.0

    @property
    def is_moe(self) -> bool:
        """True for a mixture of experts."""
        return self.experts > 0

    def kv_bytes_per_token(self, kv_precision_bytes: float) -> float:
        """Bytes of key/value cache that one token of context occupies over the whole replica."""
        elements = 2.0 * self.layers * self.kv_heads * self.head_dim
        return elements * self.kv_bytes_per_token_factor * kv_precision_bytes


@dataclass(frozen=True, slots=True)
class Setting:
    """What every GPU of a replica is told to obey.

    `cap_w` is the power limit in watts; `clock` a ceiling on the SM clock as a fraction of the
    product's maximum, 1.0 meaning no ceiling.
    """

    cap_w: float
    clock: float = 1.0


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency targets of a deployment, in seconds."""

    ttft_s: float
    itl_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Replicas of one role of one deployment on GPUs of one product.

    `gpus` GPUs are set aside for the pool, so that it holds at most
    `gpus // gpus_per_replica` replicas. `startup_s` is the time from the order to start a replica
    until it serves.
    """

    name: str
    deployment: str
    role: Role
    gpu: str
    gpus: int
    gpus_per_replica: int
    min_replicas: int
    max_replicas: int
    startup_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One served model with its targets. A higher `priority` weight is served first."""

    name: str
    model: str
    slo: Slo
    priority: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All that shares one budget. Orders are significant: snapshots refer to pools by index."""

    products: tuple[GpuProduct, ...]
    deployments: tuple[Deployment, ...]
    pools: tuple[Pool, ...]

    def product_of(self, pool: Pool) -> GpuProduct:
        """The GPU product of `pool`; KeyError if the fleet does not hold it."""
        for product in self.products:
            if product.name == pool.gpu:
                return product
        raise KeyError(pool.gpu)

    @property
    def gpu_count(self) -> int:
        """GPUs of all pools."""
        return sum(pool.gpus for pool in self.pools)

    @property
    def max_limit_w(self) -> float:
        """Sum of the largest limits of all GPUs: the base of budgets given as a percentage."""
        return sum(pool.gpus * self.product_of(pool).max_limit_w for pool in self.pools)
