"""AIConfigurator's latencies and the built-in roofline against published serving measurements.

Both are taken as bare engines: nothing is added for hosts and requests, which `wattline profile
fit` learns from these very data. DATA is a CSV of serving runs as `profile fit` takes it:

    python bench/aic_measured.py DATA --python .cache/aiconfigurator-0.12.0/bin/python
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from wattline import catalog
from wattline.catalog.measurements import read_measurements
from wattline.controller.model_engines import profile_of
from wattline.core.errors import WattlineError
from wattline.core.fit.workload import ServingRun, Surroundings, steady_state
from wattline.core.fleet import Deployment, Pool, Role, Slo
from wattline.core.profile import ProfileEngine
from wattline.core.roofline import RooflineEngine
from wattline.drivers.aic import SYSTEMS, Aic, Request

MODELS = {
    "Qwen3-8B": "Qwen/Qwen3-8B",
    "Qwen3-32B": "Qwen/Qwen3-32B",
    "Qwen3-30B-A3B": "Qwen/Qwen3-30B-A3B",
    "Qwen3-235B-A22B": "Qwen/Qwen3-235B-A22B",
    "Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
    "Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
}
TOKENS = tuple(2**power for power in range(7, 16))
BATCHES = tuple(2**power for power in range(12))


@dataclass(frozen=True, slots=True)
class Row:
    """Errors over the runs of one model on one product: of tokens per second, and of watts."""

    model: str
    gpu: str
    runs: int
    aic_rate_error: float
    aic_rate_bias: float
    roofline_rate_error: float
    roofline_rate_bias: float
    aic_watts_error: float
    roofline_watts_error: float


def engines_of(run: ServingRun, aic: Aic) -> tuple[ProfileEngine, RooflineEngine]:
    """The two engines of a run's replica."""
    pool = Pool(
        name="pool",
        deployment="one",
        role=Role.AGGREGATED,
        gpu=run.gpu.name,
        gpus=run.gpus,
        gpus_per_replica=run.gpus,
        min_replicas=0,
        max_replicas=1,
        startup_s=0.0,
    )
    deployment = Deployment(name="one", model=run.model.name, slo=Slo(1.0, 1.0))
    roofline = catalog.engine(
        pool,
        deployment,
        precision=run.precision,
        expert_parallel=run.expert_parallel,
        max_num_seqs=4096,
    )
    experts = (1, run.gpus) if run.expert_parallel else (run.gpus, 1)
    request = Request(
        models=(MODELS[run.model.name],),
        system=SYSTEMS[run.gpu.name],
        backend="vllm",
        backend_version=None,
        tp=run.gpus,
        moe_tp=experts[0] if run.model.is_moe else None,
        moe_ep=experts[1] if run.model.is_moe else None,
        prefill_tokens=TOKENS,
        contexts=TOKENS,
        batches=BATCHES,
        max_num_seqs=4096,
    )
    table = aic.sweep([request])[0]
    return catalog.engine_profile(profile_of(table), pool, split=roofline), roofline


def compare(runs: list[ServingRun], aic: Aic) -> list[Row]:
    """Bare engines against measurements; runs that the library has no data for are left out."""
    built: dict[tuple[str, str, int, bool], tuple[ProfileEngine, RooflineEngine] | None] = {}
    errors: dict[tuple[str, str], list[tuple[float, float, float, float]]] = defaultdict(list)
    for run in runs:
        key = (run.model.name, run.gpu.name, run.gpus, run.expert_parallel)
        if key not in built:
            try:
                built[key] = engines_of(run, aic)
            except WattlineError as error:
                print(f"left out: {key}: {str(error)[:120]}")
                built[key] = None
        pair = built[key]
        if pair is None or run.rate is None or run.watts is None:
            continue
        figures = []
        for engine in pair:
            bare = Surroundings(
                request_s=0.0,
                host_s=0.0,
                host_request_s=0.0,
                prompt_stall=1.0,
                host_w=engine.idle_w,
            )
            watts, rate = steady_state(run, engine, bare)
            figures += [rate / run.rate - 1.0, watts / run.watts - 1.0]
        errors[(run.model.name, run.gpu.name)].append(
            (figures[0], figures[1], figures[2], figures[3])
        )
    return [_row(model, gpu, found) for (model, gpu), found in sorted(errors.items())]


def _row(model: str, gpu: str, found: list[tuple[float, float, float, float]]) -> Row:
    columns = list(zip(*found, strict=True))
    sizes = [median(abs(value) for value in column) for column in columns]
    return Row(
        model=model,
        gpu=gpu,
        runs=len(found),
        aic_rate_error=sizes[0],
        aic_rate_bias=median(columns[0]),
        roofline_rate_error=sizes[2],
        roofline_rate_bias=median(columns[2]),
        aic_watts_error=sizes[1],
        roofline_watts_error=sizes[3],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="Serving runs, CSV.")
    parser.add_argument("--python", type=Path, help="Interpreter that has aiconfigurator.")
    parser.add_argument("--json", type=Path, help="Write the figures to a file.")
    arguments = parser.parse_args()
    runs = [
        run
        for run in read_measurements(arguments.data).serving
        if run.model.name in MODELS
        and run.shape_known
        and run.dp == 1
        and run.precision == "bf16"
        and run.rate is not None
    ]
    rows = compare(runs, Aic(python=arguments.python, limit_s=120.0, cache=None))
    print("| model | GPU | runs | tokens/s: predicted | tokens/s: roofline | W: predicted | W |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.model} | {row.gpu} | {row.runs} "
            f"| {row.aic_rate_error:.0%} ({row.aic_rate_bias:+.0%}) "
            f"| {row.roofline_rate_error:.0%} ({row.roofline_rate_bias:+.0%}) "
            f"| {row.aic_watts_error:.0%} | {row.roofline_watts_error:.0%} |"
        )
    if arguments.json is not None:
        document = {
            "schema": "wattline.bench.aic_measured/1",
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
