"""Synthetic measurements: runs and kernels of a known model, and the CSV they would come in."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wattline.catalog import gpu, model
from wattline.core.fit.parameters import ProductParams
from wattline.core.fit.serving import ServingFit as Fit
from wattline.core.fit.validation import model_family
from wattline.core.fit.workload import ServingRun
from wattline.core.roofline import EngineParams

TASKS = ("gpqa", "lm-arena-chat", "sourcegraph-fim", "image-chat", "video-chat", "other")

TRUTH = ProductParams(
    engine=EngineParams(
        gemm_mfu=0.62,
        gemm_half_tokens=50.0,
        moe_mfu=0.35,
        moe_half_tokens=12.0,
        attention_mfu=0.35,
        weight_bandwidth=0.72,
        expert_bandwidth=0.60,
        cache_bandwidth=0.58,
        pass_overhead_s=1.4e-3,
        layer_overhead_s=15e-6,
        expert_layer_overhead_s=50e-6,
        sequence_overhead_s=25e-6,
        link_latency_s=10e-6,
        link_efficiency=0.55,
        expert_spread=0.5,
        quantised_efficiency=0.70,
        routing_evenness=0.85,
        ep_imbalance=1.0,
    ),
    base_share=0.28,
    memory_share=0.35,
    compute_share=0.60,
    overlap=0.6,
    request_s=dict.fromkeys(TASKS, 0.003),
    host_s=dict.fromkeys(TASKS, 0.002),
    host_request_s=dict.fromkeys(TASKS, 0.002),
    prompt_stall=1.0,
    based_on=("made up",),
)
"""Not the priors: a fit must move to find it."""

RUNS_OF = (
    ("Qwen/Qwen3-8B", 1, "lm-arena-chat", 600.0),
    ("Qwen/Qwen3-14B", 1, "gpqa", 7000.0),
    ("meta-llama/Llama-3.1-70B-Instruct", 4, "lm-arena-chat", 400.0),
    ("Qwen/Qwen3-30B-A3B-Instruct-2507", 2, "sourcegraph-fim", 250.0),
    ("deepseek-ai/DeepSeek-V3.1", 8, "gpqa", 9000.0),
    ("openai/gpt-oss-20b", 1, "gpqa", 2000.0),
)
BATCHES = (8, 16, 32, 64, 128, 256, 512)


def truth(products: Sequence[str]) -> Fit:
    """The fit that would be exact."""
    known = {gpu(name).name: gpu(name) for name in products}
    return Fit(
        products={name: replace(TRUTH, based_on=(name,)) for name in known},
        architectures={name: product.architecture for name, product in known.items()},
        shared=TRUTH,
        runs=0,
    )


def serving_runs(products: Sequence[str] = ("H100", "B200")) -> list[ServingRun]:
    """Runs whose watts and rate are exactly those of `TRUTH`."""
    exact = truth(products)
    runs = []
    for product in products:
        for name, gpus, task, output in RUNS_OF:
            for batch in BATCHES:
                spec = model(name)
                run = ServingRun(
                    name=name,
                    family=model_family(name),
                    task=task,
                    model=spec,
                    gpu=gpu(product),
                    precision=spec.precision,
                    gpus=gpus,
                    dp=1,
                    expert_parallel=spec.is_moe and gpus > 1,
                    batch=float(batch),
                    output_tokens=output,
                    watts=None,
                    rate=None,
                )
                watts, rate = exact.predict(run)
                runs.append(replace(run, watts=watts, rate=rate))
    return runs


def serving_rows(runs: Sequence[ServingRun]) -> list[dict[str, str]]:
    """The rows of a table that holds `runs`, forbidden columns included."""
    words = {"bf16": "bfloat16"}
    return [
        {
            "model": run.name,
            "task": run.task,
            "precision": words.get(run.precision, run.precision),
            "total_params_b": f"{run.model.params / 1e9:.1f}",
            "active_params_b": f"{run.model.active_params / 1e9:.1f}",
            "architecture": "MoE" if run.model.is_moe else "Dense Transformer",
            "gpu": run.gpu.name,
            "num_gpus": str(run.gpus),
            "tp": "1",
            "ep": str(run.gpus if run.expert_parallel else 1),
            "dp": str(run.dp),
            "max_num_seqs": f"{run.batch:.0f}",
            "avg_batch": repr(run.batch),
            "avg_output_len": repr(run.output_tokens),
            "avg_power_w": repr((run.watts or 0.0) * run.gpus),
            "output_tok_s": repr(run.rate),
            "j_per_token": "1.5",
            "itl_p50_ms": "20.1",
            "itl_p99_ms": "40.2",
        }
        for run in runs
    ]


def kernel_rows(limit_w: float, scale: float = 1.0) -> list[dict[str, str]]:
    """GEMMs and decode attention whose watts are a plain function of rates, cut at the limit."""
    rows = []
    for power in range(4, 14):
        for n, k in ((2048, 2048), (4096, 4096), (8192, 2048), (4096, 16384)):
            tokens = 2**power
            seconds = 2.0 * tokens * n * k / 1.2e15 + n * k * 2.0 / 5e12 + 4e-6
            busy = 2.0 * tokens * n * k / 1.2e15 / seconds
            watts = scale * (250.0 + 450.0 * busy + 250.0 * (1.0 - busy))
            rows.append(_kernel("gemm", seconds, min(watts, limit_w), limit_w, m=tokens, n=n, k=k))
            cache = 2.0 * tokens * 1024 * 8 * 128 * 2.0
            seconds = cache / 5e12 + 5e-6
            watts = scale * (250.0 + 300.0 * cache / 5e12 / seconds)
            shape = {"batch": tokens, "isl": 1, "step": 1023, "kv_heads": 8, "head_dim": 128}
            heads = 8 * (n // 2048)
            rows.append(
                _kernel(
                    "decode_attention", seconds, min(watts, limit_w), limit_w, heads=heads, **shape
                )
            )
    return rows


def _kernel(
    op: str, seconds: float, watts: float, limit_w: float, **shape: float
) -> dict[str, str]:
    columns = ("m", "n", "k", "batch", "isl", "step", "heads", "kv_heads", "head_dim")
    return {
        "op": op,
        "dtype": "bfloat16",
        "kv_dtype": "" if op == "gemm" else "bfloat16",
        **{name: str(shape[name]) if name in shape else "" for name in columns},
        "latency_ms": repr(seconds * 1e3),
        "power_w": repr(watts),
        "power_limit_w": repr(limit_w),
    }


def csv_text(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as CSV, the header from the first."""
    target = io.StringIO()
    writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return target.getvalue()
