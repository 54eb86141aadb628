"""Bounds for settings and snapshots that come from files: what no fleet can have is refused.

Types are checked where the values are read; here are magnitudes, references between parts, and
lengths of columns, so that a decision never meets a number that it cannot compute with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np

from wattline.core.errors import InputError
from wattline.core.fleet import Fleet
from wattline.core.snapshot import Snapshot

_BY_NAME: dict[str, tuple[float, float]] = {
    name: bounds
    for bounds, names in {
        (1, 1e7): "tp dp layers heads kv_heads head_dim hidden gpus gpus_per_replica max_num_seqs",
        (16, 1e7): "max_batched_tokens",
        (0, 1e7): "experts experts_per_token windowed_layers recurrent_layers window_tokens "
        "min_replicas max_replicas ready starting draining",
        (1, 1e5): "min_limit_w default_limit_w max_limit_w cap_w cap_step_w pinned_w",
        (0, 1e6): "idle_w loaded_idle_w static_w compute_w memory_w enforced_w granted_w booked_w "
        "gemm_half_tokens moe_half_tokens startup_s settle_s",
        (0, 1e10): "reserved_w total_w guard_w rise_w_per_s",
        (1e9, 1e18): "peak_flops expert_flops attention_flops bf16 fp8 fp4 int8",
        (1e3, 1e15): "params active_params",
        (0, 1e15): "embedding_params head_params expert_params state_elements reserved_bytes",
        (1e6, 1e15): "hbm_bytes hbm_bytes_per_s interconnect_bytes_per_s",
        (0.1, 16): "kv_bytes",
        (1e-3, 1e3): "kv_bytes_per_token_factor decode_attention_factor",
        (1e-3, 2): "gemm_mfu moe_mfu attention_mfu weight_bandwidth cache_bandwidth "
        "expert_bandwidth link_efficiency quantised_efficiency memory_utilisation",
        (0, 10): "pass_overhead_s layer_overhead_s sequence_overhead_s link_latency_s "
        "expert_layer_overhead_s",
        (1e-9, 1e5): "ttft_s itl_s",
        (1e-4, 1e5): "history_bin_s future_step_s",
        (0, 1e5): "window_s",
        (1e-6, 1e6): "priority",
        (1e-2, 1): "clock",
        (0, 1): "derate",
        (0, 1e12): "input_tokens_sum cached_tokens_sum output_tokens_sum queued_prefill_tokens "
        "active_kv_tokens prompt_tokens prompt_cached_tokens answer_tokens mix_in_force",
        (0, 1e9): "arrivals completions rejected running fast_s fast_arrivals calm_s calm_arrivals "
        "prompt_count answer_count demand_rps bins_rps bin_arrivals bin_s floor_rps future_rps "
        "input_tokens output_tokens spread spread_in_force starts",
        (-1, 1e7): "pool replica",
    }.items()
    for name in names.split()
}
_ELSE = (-1e15, 1e15)


def check_numbers(value: Any, where: str, name: str = "") -> None:
    """InputError for the first number of plain JSON values outside the bounds of its field."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_numbers(inner, f"{where}.{key}", str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_numbers(inner, f"{where}[{index}]", name)
    elif isinstance(value, int | float) and (name in _BY_NAME or not isinstance(value, bool)):
        low, high = _BY_NAME.get(name, _ELSE)
        if isinstance(value, bool) or not low <= value <= high:
            raise InputError(where, value, f"must be from {low:g} to {high:g}")


def check_fleet(fleet: Fleet, where: str) -> None:
    """InputError if parts of `fleet` refer to parts that are not there, or limits cross."""
    deployments = {deployment.name for deployment in fleet.deployments}
    products = {product.name for product in fleet.products}
    for index, pool in enumerate(fleet.pools):
        if pool.deployment not in deployments:
            known = ", ".join(sorted(deployments))
            raise InputError(f"{where}.pools[{index}].deployment", pool.deployment, f"of: {known}")
        if pool.gpu not in products:
            known = ", ".join(sorted(products))
            raise InputError(f"{where}.pools[{index}].gpu", pool.gpu, f"of: {known}")
    for index, product in enumerate(fleet.products):
        if product.min_limit_w > product.max_limit_w:
            raise InputError(
                f"{where}.products[{index}].min_limit_w",
                product.min_limit_w,
                f"must not exceed max_limit_w, {product.max_limit_w:g}",
            )


def check_columns(snapshot: Snapshot, where: str) -> None:
    """InputError if the columns of the GPU table differ in length."""
    want = len(snapshot.gpus.uuid)
    for field in fields(snapshot.gpus):
        count = len(getattr(snapshot.gpus, field.name))
        if count != want:
            raise InputError(
                f"{where}.gpus.{field.name}", f"{count} values", f"{want} GPUs have a uuid"
            )


@contextmanager
def computable(where: str) -> Iterator[None]:
    """Turn what the arithmetic of a decision cannot take into InputError.

    The last resort for numbers from a file that are each possible, and together are not.
    """
    try:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            yield
    except (ArithmeticError, LookupError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(where, found, "these values do not make up a fleet: check them") from error
