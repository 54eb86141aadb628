"""Single kernels as measured: what they compute and move, in what time, at how many watts."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from wattline.core.fleet import GpuProduct

_DTYPES = (
    ("nvfp4", 0.5 + 1.0 / 16.0, "fp4"),
    ("mxfp4", 0.5 + 1.0 / 32.0, "fp4"),
    ("fp8", 1.0, "fp8"),
    ("float8", 1.0, "fp8"),
    ("int8", 1.0, "int8"),
    ("int4", 0.5, "bf16"),
)
"""Bytes per element and the arithmetic used, by how the name of a data type starts."""


@dataclass(frozen=True, slots=True)
class KernelWork:
    """FLOP and bytes of a kernel, the arithmetic it runs in, and its shape.

    `shape` holds base-2 logarithms of the dimensions, so that kernels can be compared; `family`
    names the dimensions that a model fixes, without those that its load varies.
    """

    flop: float
    bytes: float
    arithmetic: str
    shape: tuple[float, ...]
    family: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRun:
    """One measured kernel, run back to back. watts is per GPU, None where not measured."""

    gpu: GpuProduct
    op: str
    dtype: str
    work: KernelWork
    latency_s: float
    limit_w: float
    watts: float | None


def gemm_work(m: float, n: float, k: float, dtype: str) -> KernelWork:
    """(m, k) times (k, n): 2 m n k FLOP; both inputs are read, the bf16 output is written."""
    size, arithmetic = _dtype(dtype)
    return KernelWork(
        flop=2.0 * m * n * k,
        bytes=(n * k + m * k) * size + m * n * 2.0,
        arithmetic=arithmetic,
        shape=(log2(m), log2(n), log2(k)),
        family=f"gemm {n:g} x {k:g}",
    )


def attention_work(
    batch: float,
    tokens: float,
    past: float,
    heads: float,
    kv_heads: float,
    head_dim: float,
    dtype: str,
    kv_dtype: str,
) -> KernelWork:
    """`tokens` new tokens per sequence attend to themselves and to `past` cached ones.

    FLOP are 4 x head_dim per head and pair, causal among the new tokens; cache and queries are
    read, outputs written. Attention multiplies in bf16 whatever its inputs are stored in. A sliding
    window is not in the tables, so its kernels look faster than any peak: see `ops`.
    """
    pairs = tokens * past + (tokens * (tokens + 1.0) / 2.0)
    size, _ = _dtype(dtype)
    cache_size, _ = _dtype(kv_dtype)
    cache = 2.0 * batch * (past + tokens) * kv_heads * head_dim * cache_size
    return KernelWork(
        flop=4.0 * batch * heads * head_dim * pairs,
        bytes=cache + batch * tokens * heads * head_dim * (size + 2.0),
        arithmetic="bf16",
        shape=(
            log2(batch),
            log2(tokens),
            log2(1.0 + past),
            log2(heads),
            log2(kv_heads),
            log2(head_dim),
            cache_size,
            size,
        ),
        family=f"attention {heads:g} / {kv_heads:g} x {head_dim:g}",
    )


def peak_flops(gpu: GpuProduct, arithmetic: str) -> float:
    """Peak FLOP/s of `arithmetic` on `gpu`, of the next wider one that it has otherwise."""
    for name in (arithmetic, "fp8" if arithmetic == "fp4" else "bf16", "bf16"):
        if name in gpu.peak_flops:
            return gpu.peak_flops[name]
    return max(gpu.peak_flops.values())


def _dtype(name: str) -> tuple[float, str]:
    for start, size, arithmetic in _DTYPES:
        if start in name.lower():
            return size, arithmetic
    return 2.0, "bf16"
