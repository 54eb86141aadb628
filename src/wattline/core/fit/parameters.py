"""Parameters of an engine on one GPU product: what is believed before data, and what was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log

from wattline.core.fit.workload import OTHER_TASK
from wattline.core.fleet import GpuProduct
from wattline.core.power import CapResponse
from wattline.core.roofline import EngineParams


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of a parameter before any data.

    A typical value, the spread of its logarithm, and the further spread between GPU products (0:
    the same for all). A `share` lies between 0 and 1.
    """

    value: float
    spread: float
    product_spread: float = 0.0
    share: bool = False

    def fitted(self, value: float) -> float:
        """Return what is fitted in place of a value: its logarithm or its log-odds."""
        return log(value / (1.0 - value)) if self.share else log(value)

    def fitted_spread(self, spread: float) -> float:
        """Return the spread of what is fitted: that of the log-odds is wider."""
        return spread / (1.0 - self.value) if self.share else spread


EFFICIENCIES: Mapping[str, Belief] = {
    "gemm_mfu": Belief(0.70, 0.15, 0.10, share=True),
    "moe_mfu": Belief(0.40, 0.40, 0.15, share=True),
    "attention_mfu": Belief(0.40, 0.30, 0.10, share=True),
    "weight_bandwidth": Belief(0.78, 0.10, 0.10, share=True),
    "expert_bandwidth": Belief(0.65, 0.25, 0.15, share=True),
    "cache_bandwidth": Belief(0.65, 0.20, 0.15, share=True),
    "link_efficiency": Belief(0.60, 0.20, 0.10, share=True),
}
"""Shares of a datasheet peak: the more, the faster."""

OVERHEADS: Mapping[str, Belief] = {
    "pass_overhead_s": Belief(1e-3, 0.7, 0.4),
    "layer_overhead_s": Belief(20e-6, 0.5, 0.2),
    "expert_layer_overhead_s": Belief(40e-6, 0.5, 0.2),
    "sequence_overhead_s": Belief(30e-6, 0.5, 0.2),
    "link_latency_s": Belief(12e-6, 0.4, 0.2),
    "expert_spread": Belief(0.7, 0.4),
}
"""Costs beside the peaks: the more, the slower."""

HALVES: Mapping[str, Belief] = {
    "gemm_half_tokens": Belief(64.0, 0.7),
    "moe_half_tokens": Belief(16.0, 1.0),
}
"""Tokens at which a GEMM reaches half its best efficiency."""

QUANTISED = Belief(0.75, 0.30, share=True)
EVENNESS = Belief(0.75, 0.20, share=True)
OVERLAP = Belief(0.70, 0.50, share=True)

WATTS: Mapping[str, Belief] = {
    "base": Belief(0.25, 0.20, 0.20),
    "memory": Belief(0.50, 0.30, 0.15),
    "compute": Belief(0.90, 0.30, 0.15),
}
"""Watts as shares of the default limit: of a pass that moves and computes nothing, added by
saturated memory, added by fully busy arithmetic units."""

REQUEST_S: Mapping[str, Belief] = {
    "gpqa": Belief(0.002, 0.7),
    "lm-arena-chat": Belief(0.004, 0.7),
    "sourcegraph-fim": Belief(0.003, 0.7),
    "image-chat": Belief(0.03, 0.7),
    "video-chat": Belief(0.05, 0.7),
    OTHER_TASK: Belief(0.004, 0.7),
}
HOST_S: Mapping[str, Belief] = dict.fromkeys(REQUEST_S, Belief(0.003, 1.5, 1.5))
HOST_REQUEST_S: Mapping[str, Belief] = {
    task: Belief(0.05 if task in ("image-chat", "video-chat") else 0.005, 1.5, 1.5)
    for task in REQUEST_S
}
PROMPT_STALL = Belief(4.0, 1.0)

STATIC_SHARE = 0.12
"""Static watts over the default limit where the catalog has no idle watts of a loaded GPU (H100
0.16, B200 0.19, H200 0.17 have)."""

HBM_J_PER_BYTE = 32e-12
"""Joules per byte that HBM itself takes: 3.9 pJ per bit (O'Connor et al., Fine-Grained DRAM, MICRO
2017, for HBM2), rounded up to 4 for the interface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductParams:
    """Everything fitted for one GPU product.

    base_share, memory_share, compute_share: watts over the default limit (see `WATTS`). request_s,
    host_s and host_request_s by task, the last two for one replica per GPU (see `Surroundings`).
    based_on: products whose measurements stand behind it.
    """

    engine: EngineParams
    base_share: float
    memory_share: float
    compute_share: float
    overlap: float
    request_s: Mapping[str, float]
    host_s: Mapping[str, float]
    host_request_s: Mapping[str, float]
    prompt_stall: float
    based_on: tuple[str, ...]

    def response(self, gpu: GpuProduct, shape: CapResponse | None = None) -> CapResponse:
        """Cap response of `gpu`: watts from the fit, the rest from `shape`.

        At one cap the static watts and those of stalled units cannot be told apart: static are the
        idle watts of a loaded GPU from the catalog, the rest of the base belongs to stalled units.
        Nor can the watts of memory itself be told from those that moving its bytes costs on the
        chip: memory takes `HBM_J_PER_BYTE`, the rest follows the clock.
        """
        limit_w = gpu.default_limit_w
        base_w = self.base_share * limit_w
        idle_w = STATIC_SHARE * limit_w if gpu.loaded_idle_w is None else gpu.loaded_idle_w
        static_w = min(idle_w, base_w)
        compute_w = self.compute_share * limit_w + base_w - static_w
        memory_w = self.memory_share * limit_w
        stream_w = HBM_J_PER_BYTE * gpu.hbm_bytes_per_s * self.engine.weight_bandwidth
        watts = {
            "static_w": round(static_w, 3),
            "compute_w": round(compute_w, 3),
            "memory_w": round(memory_w, 3),
            "memory_clocked": round(max(0.0, 1.0 - stream_w / memory_w), 6),
            "idle_w": round(static_w, 3),
            "stall": round((base_w - static_w) / compute_w, 6),
            "overlap": self.overlap,
        }
        return CapResponse(**watts) if shape is None else replace(shape, **watts)
