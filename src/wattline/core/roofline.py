"""Roofline engine: time and watts of a forward pass from a model's shape and a GPU's peaks.

Every pass costs seconds of arithmetic, of memory traffic, and of neither (launches, links); the cap
response turns the three into a clock, a duration and watts. All times are per GPU of a replica of
`tp` x `dp` GPUs: dense weights are cut `tp` ways and copied `dp` times, routed experts are cut over
all GPUs. With n tokens in the pass (m = n / dp per copy), B of them decoding over K tokens of
context, and the prompt tokens attending to S tokens in total:

    arithmetic  2 * dense_params / tp * (m + half) / (peak * gemm_mfu)
                + 2 * expert_params / gpus * (n * k / E + touched * half) / (peak * moe_mfu)
                + 4 * heads * head_dim * layers * (S + factor * K) / gpus / (peak * attention_mfu)
    memory      (weights + activations) / (bandwidth * weight_bandwidth)
                + touched * experts / (bandwidth * expert_bandwidth)
                + (K * cache per token + recurrent state) / (bandwidth * cache_bandwidth)
    other       pass, layer and sequence overheads; all-reduce and all-to-all over the links;
                waiting for the busiest GPU: expert_spread * sqrt(2 ln(gpus) / t) of the time to
                read the touched experts, with t of them per GPU (the expected maximum of scattered
                counts over their mean), at most what one GPU alone would need

`half` is the count of tokens at which a GEMM reaches half its best efficiency, which makes
efficiency gemm_mfu * m / (m + half). touched = 1 - (1 - routing_evenness * k/E)**n is the expected
share of experts that n tokens reach: each picks k of E, and tokens of one pass resemble each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import log, sqrt
from typing import Literal, NamedTuple

from wattline.core.engine import ForwardPass, PassCost
from wattline.core.errors import InputError
from wattline.core.fleet import GpuProduct, ModelSpec, Setting
from wattline.core.power import CapResponse

PRECISION_BYTES = {
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    # A shared scale per group: 8 bits per 32 weights (OCP MX 1.0), 8 per 16 (NVFP4),
    # 16 per 128 (the usual group of AWQ and GPTQ).
    "mxfp4": 0.5 + 1.0 / 32.0,
    "nvfp4": 0.5 + 1.0 / 16.0,
    "int4": 0.5 + 2.0 / 128.0,
}
"""Bytes that one weight occupies, scales included."""

_ARITHMETIC = {
    "bf16": ("bf16",),
    "fp8": ("fp8", "bf16"),
    "int8": ("int8", "bf16"),
    "nvfp4": ("fp4", "bf16"),
    "int4": ("bf16",),
}
"""Arithmetic a weight precision runs in: the first that the GPU has. 4-bit weights are otherwise
widened to bf16 first (Marlin kernels)."""

_ACTIVATION_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParams:
    """Efficiencies and overheads of an engine on one GPU product: everything that is fitted.

    gemm_mfu, moe_mfu, attention_mfu: best share of peak FLOP/s of dense GEMMs, expert GEMMs and
    attention. gemm_half_tokens, moe_half_tokens: tokens (per expert, for experts) at half of it.
    weight_bandwidth, cache_bandwidth: share of peak bytes/s when reading weights and KV cache.
    activation_passes: times a layer reads or writes a token's hidden vector. pass_overhead_s,
    layer_overhead_s: seconds that scheduling a pass and launching a layer take beside the kernels;
    sequence_overhead_s: the same per decoding sequence (sampling, bookkeeping). link_latency_s: of
    one collective; link_efficiency: share of the link's bytes/s. ep_imbalance: work of the busiest
    GPU over the mean under expert parallelism. expert_bandwidth: as weight_bandwidth, for routed
    experts; expert_layer_overhead_s: of a layer with experts, beside layer_overhead_s;
    expert_spread: scatter of touched experts over GPUs (0: even); routing_evenness: independent
    picks of experts per pick made (1: tokens pick evenly). quantised_efficiency: what 8-bit weights
    reach of the efficiencies above. memory_utilisation: share of HBM that the engine may use;
    reserved_bytes: of it, for activations and libraries.
    """

    gemm_mfu: float = 0.72
    gemm_half_tokens: float = 64.0
    moe_mfu: float = 0.55
    moe_half_tokens: float = 16.0
    attention_mfu: float = 0.45
    weight_bandwidth: float = 0.80
    cache_bandwidth: float = 0.65
    activation_passes: float = 14.0
    pass_overhead_s: float = 1.5e-3
    layer_overhead_s: float = 8e-6
    sequence_overhead_s: float = 5e-6
    link_latency_s: float = 1e-5
    link_efficiency: float = 0.7
    ep_imbalance: float = 1.15
    expert_bandwidth: float = 0.80
    expert_layer_overhead_s: float = 0.0
    expert_spread: float = 0.0
    routing_evenness: float = 1.0
    quantised_efficiency: float = 1.0
    memory_utilisation: float = 0.90
    reserved_bytes: float = 4e9


class PassTime(NamedTuple):
    """Seconds of one pass at full clock, by what they are spent on."""

    compute_s: float
    memory_s: float
    other_s: float


@dataclass(frozen=True, slots=True)
class _Terms:
    """Coefficients of `RooflineEngine.time`, in seconds per unit of work."""

    compute_fixed: float
    compute_token: float
    compute_sampled: float
    compute_expert_token: float
    compute_expert_touched: float
    compute_prefill_pair: float
    compute_decode_pair: float
    memory_fixed: float
    memory_token: float
    memory_expert_touched: float
    memory_cached_token: float
    memory_windowed_token: float
    memory_sequence: float
    other_fixed: float
    other_token: float
    other_sequence: float
    other_wait: float
    full_share: float


@dataclass(frozen=True, kw_only=True)
class RooflineEngine:
    """One replica of `model` on `tp * dp` GPUs of product `gpu`. Build it with `roofline_engine`.

    peak_flops, expert_flops and attention_flops are of the arithmetic that dense weights, experts
    and attention run in; kv_bytes is the size of one cached element. `coverage` says what data the
    parameters stand on.
    """

    model: ModelSpec
    gpu: str
    tp: int
    dp: int
    expert_parallel: bool
    precision: str
    kv_bytes: float
    peak_flops: float
    expert_flops: float
    attention_flops: float
    hbm_bytes: float
    hbm_bytes_per_s: float
    interconnect_bytes_per_s: float
    params: EngineParams
    response: CapResponse
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    coverage: str = "defaults: no measurement"
    kind: Literal["roofline"] = field(default="roofline")

    @property
    def gpus(self) -> int:
        """GPUs of the replica."""
        return self.tp * self.dp

    @property
    def idle_w(self) -> float:
        """Watts per GPU with the model loaded and no request in flight."""
        return self.response.idle_w

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of key/value cache of one token over the replica (copies not counted)."""
        return self.model.kv_bytes_per_token(self.kv_bytes)

    @cached_property
    def weight_bytes_per_gpu(self) -> float:
        """Bytes of weights that each GPU holds."""
        model, dense, expert = self.model, *self._weight_precisions()
        tables = (model.embedding_params + model.head_params) * _ACTIVATION_BYTES
        body = self._body_params() * PRECISION_BYTES[dense]
        experts = model.expert_params * PRECISION_BYTES[expert]
        return (tables + body) / self.tp + experts / self.gpus

    @cached_property
    def kv_capacity_tokens(self) -> int:
        """Tokens of context that fit; InputError if the weights leave no room for 1,000."""
        params = self.params
        usable = self.hbm_bytes * params.memory_utilisation - params.reserved_bytes
        states = self.model.state_elements * 4.0 / self.tp * self.max_num_seqs / self.dp
        free = usable - self.weight_bytes_per_gpu - states
        per_gpu = self.kv_bytes_per_token / self._cache_shards()
        tokens = int(free / per_gpu) * self.dp
        if tokens < 1000:
            raise InputError(
                f"{self.model.name} on {self.gpus} x {self.gpu}",
                f"{self.weight_bytes_per_gpu / 1e9:.1f} GB of weights per GPU, "
                f"{usable / 1e9:.1f} GB usable",
                "the model does not fit: use more GPUs per replica or a smaller precision",
            )
        return tokens

    def time(self, work: ForwardPass) -> PassTime:
        """Seconds of a pass at full clock. Negative work is the caller's bug and not checked."""
        terms = self._terms
        prompt, batch = work.prefill_tokens, work.decode_batch
        tokens = prompt + batch
        if tokens <= 0:
            return PassTime(0.0, 0.0, 0.0)
        cached = work.decode_kv_tokens
        pairs = work.prefill_context
        windowed = 0.0
        if terms.full_share < 1.0:
            window = self.model.window_tokens
            windowed = min(cached, batch * window) * (1.0 - terms.full_share)
            pairs *= terms.full_share
            pairs += min(work.prefill_context, prompt * window) * (1.0 - terms.full_share)
        sampled = batch + 1 if prompt else batch
        other_s = terms.other_fixed + terms.other_token * tokens + terms.other_sequence * batch
        compute_s = (
            terms.compute_fixed
            + terms.compute_token * tokens
            + terms.compute_sampled * sampled
            + terms.compute_prefill_pair * pairs
            + terms.compute_decode_pair * (cached * terms.full_share + windowed)
        )
        memory_s = (
            terms.memory_fixed
            + terms.memory_token * tokens
            + terms.memory_cached_token * cached
            + terms.memory_windowed_token * windowed
            + terms.memory_sequence * batch
        )
        if self.model.experts:
            touched = self._touched(tokens)
            compute_s += (
                terms.compute_expert_token * tokens + terms.compute_expert_touched * touched
            )
            memory_s += terms.memory_expert_touched * touched
            alone = (self.gpus - 1) * terms.memory_expert_touched * touched
            other_s += min(terms.other_wait * sqrt(touched), alone)
        return PassTime(compute_s, memory_s, other_s)

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        """Cost of one pass under `setting`; `derate` < 1 lowers the clock that can be reached."""
        compute_s, memory_s, other_s = self.time(work)
        ceiling = setting.clock if setting.clock < derate else derate
        settled = self.response.settle(compute_s, memory_s, other_s, setting.cap_w, ceiling)
        return PassCost(settled.duration_s, settled.power_w, settled.clock)

    def _touched(self, tokens: int) -> float:
        model = self.model
        # Rounded because pow differs in the last bit between processors.
        picked = self.params.routing_evenness * model.experts_per_token / model.experts
        miss = (1.0 - picked) ** tokens
        return round(1.0 - miss, 12)

    def _weight_precisions(self) -> tuple[str, str]:
        """Precisions of dense weights and of experts."""
        if self.model.dense_precision is not None and self.precision == self.model.precision:
            return self.model.dense_precision, self.precision
        return self.precision, self.precision

    def _body_params(self) -> float:
        """Dense parameters of the layers: no experts, no vocabulary."""
        model = self.model
        return model.params - model.expert_params - model.embedding_params - model.head_params

    def _cache_shards(self) -> int:
        """Ways that one copy's cache is cut: heads are copied once tp exceeds them."""
        return min(self.tp, self.model.kv_heads)

    @cached_property
    def _terms(self) -> _Terms:
        model, params = self.model, self.params
        dense, expert = self._weight_precisions()
        body, copies = self._body_params(), self.dp
        quantised = params.quantised_efficiency
        dense_share = quantised if PRECISION_BYTES[dense] == 1.0 else 1.0
        expert_share = quantised if PRECISION_BYTES[expert] == 1.0 else 1.0
        gemm = 2.0 / (self.tp * self.peak_flops * params.gemm_mfu * dense_share)
        imbalance = params.ep_imbalance if self.expert_parallel else 1.0
        moe = 2.0 * imbalance * model.expert_params
        moe /= self.gpus * self.expert_flops * params.moe_mfu * expert_share
        attending = model.layers - model.recurrent_layers
        pair = 4.0 * model.heads * model.head_dim * attending
        pair /= self.gpus * self.attention_flops * params.attention_mfu
        weights = 1.0 / (self.hbm_bytes_per_s * params.weight_bandwidth)
        experts = imbalance * model.expert_params * PRECISION_BYTES[expert] / self.gpus
        experts /= self.hbm_bytes_per_s * params.expert_bandwidth * expert_share
        cache = 1.0 / (self.hbm_bytes_per_s * params.cache_bandwidth)
        elements = 2.0 * model.layers * model.kv_heads * model.head_dim
        per_layer = elements / model.layers * self.kv_bytes / self._cache_shards() / copies
        full_layers = attending - model.windowed_layers
        full_factor = 1.0 if model.windowed_layers else self._full_factor(attending)
        head_bytes = model.head_params * _ACTIVATION_BYTES / self.tp
        hidden_bytes = model.hidden * _ACTIVATION_BYTES
        link_fixed, link_token = self._link_terms()
        touched_share = model.experts_per_token / model.experts if model.experts else 0.0
        layer_s = params.layer_overhead_s
        layer_s += params.expert_layer_overhead_s if model.experts else 0.0
        return _Terms(
            compute_fixed=gemm * (body + model.head_params) * params.gemm_half_tokens,
            compute_token=gemm * body / copies,
            compute_sampled=gemm * model.head_params / copies,
            compute_expert_token=moe * touched_share,
            compute_expert_touched=moe * params.moe_half_tokens,
            compute_prefill_pair=pair,
            compute_decode_pair=pair * model.decode_attention_factor,
            memory_fixed=(body * PRECISION_BYTES[dense] / self.tp + head_bytes) * weights,
            memory_token=hidden_bytes * model.layers * params.activation_passes / copies * weights,
            memory_expert_touched=experts,
            memory_cached_token=per_layer * full_layers * full_factor * cache,
            memory_windowed_token=(per_layer * attending * cache if model.windowed_layers else 0.0),
            # Read and written once per token, in fp32.
            memory_sequence=model.state_elements * 8.0 / self.gpus * cache,
            other_fixed=params.pass_overhead_s + layer_s * model.layers + link_fixed,
            other_token=link_token,
            other_sequence=params.sequence_overhead_s / copies,
            other_wait=experts * params.expert_spread * self._scatter(),
            full_share=full_layers / attending if attending else 1.0,
        )

    def _scatter(self) -> float:
        """Relative excess of the busiest of `gpus` GPUs when every expert is touched."""
        if not self.expert_parallel or not self.model.experts or self.gpus == 1:
            return 0.0
        return round(sqrt(2.0 * log(self.gpus) * self.gpus / self.model.experts), 12)

    def _full_factor(self, attending: int) -> float:
        """Return cached elements per attending layer and token over 2 x kv_heads x head_dim."""
        if attending == 0:
            return 0.0
        return self.model.kv_bytes_per_token_factor * self.model.layers / attending

    def _link_terms(self) -> tuple[float, float]:
        """Seconds on the links per pass and per token of the pass."""
        model, params = self.model, self.params
        rate = self.interconnect_bytes_per_s * params.link_efficiency
        fixed = per_token = 0.0
        vector = model.hidden * _ACTIVATION_BYTES
        if self.tp > 1:
            # Two all-reduces a layer; a ring moves 2 (p - 1) / p of the vector over each link.
            fixed += 2.0 * model.layers * params.link_latency_s
            share = 2.0 * (self.tp - 1) / self.tp / self.dp
            per_token += 2.0 * model.layers * vector * share / rate
        if self.dp > 1 and model.experts:
            # Tokens go to their experts' GPUs and back.
            fixed += 2.0 * model.layers * params.link_latency_s
            share = model.experts_per_token * (self.gpus - 1) / self.gpus / self.gpus
            per_token += 2.0 * model.layers * vector * share / rate
        return fixed, per_token


def roofline_engine(
    model: ModelSpec,
    gpu: GpuProduct,
    *,
    params: EngineParams,
    response: CapResponse,
    tp: int = 1,
    dp: int = 1,
    expert_parallel: bool = False,
    precision: str | None = None,
    kv_precision: str = "bf16",
    max_num_seqs: int = 256,
    max_batched_tokens: int = 8192,
    coverage: str = "defaults: no measurement",
) -> RooflineEngine:
    """Build the engine of one replica; InputError if a number that it needs is unknown.

    `precision` is that of the weights (the model's own when None), `kv_precision` of the cache.
    """
    precision = precision or model.precision
    for name in (precision, kv_precision):
        if name not in PRECISION_BYTES:
            raise InputError("precision", name, f"use one of {', '.join(PRECISION_BYTES)}")
    own = model.dense_precision if precision == model.precision else None
    link = gpu.interconnect_bytes_per_s
    if link is None:
        if tp * dp > 1:
            raise InputError(
                f"GPU product {gpu.name}, interconnect_bytes_per_s",
                None,
                "unknown, but needed by a replica of several GPUs: add it with its source",
            )
        link = 0.0
    return RooflineEngine(
        model=model,
        gpu=gpu.name,
        tp=tp,
        dp=dp,
        expert_parallel=expert_parallel,
        precision=precision,
        kv_bytes=PRECISION_BYTES[kv_precision],
        peak_flops=_peak(gpu, own or precision),
        expert_flops=_peak(gpu, precision),
        attention_flops=_peak(gpu, "bf16"),
        hbm_bytes=gpu.hbm_bytes,
        hbm_bytes_per_s=gpu.hbm_bytes_per_s,
        interconnect_bytes_per_s=link,
        params=params,
        response=response,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        coverage=coverage,
    )


def _peak(gpu: GpuProduct, precision: str) -> float:
    """Peak FLOP/s of the arithmetic that weights of `precision` run in on this product."""
    if precision == "mxfp4":
        # fp8 activations where 4-bit tensor cores exist, widened to bf16 elsewhere.
        choices: tuple[str, ...] = ("fp8", "bf16") if "fp4" in gpu.peak_flops else ("bf16",)
    else:
        choices = _ARITHMETIC[precision]
    for name in choices:
        if name in gpu.peak_flops:
            return gpu.peak_flops[name]
    raise InputError(
        f"GPU product {gpu.name}, peak_flops",
        sorted(gpu.peak_flops),
        f"none of {', '.join(choices)} is known: add it with its source",
    )
