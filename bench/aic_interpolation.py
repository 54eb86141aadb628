"""How far engines built from AIConfigurator's tables lie from what it says between their points.

Needs an interpreter with aiconfigurator 0.12:

    python bench/aic_interpolation.py --python .cache/aiconfigurator-0.12.0/bin/python
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from wattline.catalog import engine_profile
from wattline.controller.model_engines import profile_of
from wattline.core.engine import ForwardPass
from wattline.core.fleet import Pool, Role
from wattline.drivers.aic import Aic, Request, Table

TOKENS = tuple(2**power for power in range(7, 16))
BATCHES = tuple(2**power for power in range(10))
CASES = (
    ("Qwen/Qwen3-32B", "h200_sxm", 2, None),
    ("meta-llama/Meta-Llama-3.1-8B", "h200_sxm", 1, None),
    ("Qwen/Qwen3-30B-A3B", "b200_sxm", 2, (2, 1)),
    ("Qwen/Qwen3-235B-A22B", "h200_sxm", 8, (1, 8)),
)


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of one case, absolute values."""

    model: str
    system: str
    gpus: int
    prefill_points: int
    prefill_median: float
    prefill_largest: float
    decode_points: int
    decode_median: float
    decode_p90: float
    decode_largest: float
    power_coverage: float


def measure(aic: Aic, seed: int = 1) -> list[Errors]:
    """Ask for the usual points and for random ones between, and compare."""
    chance = random.Random(seed)
    found = []
    for model, system, gpus, moe in CASES:
        usual = Request(
            models=(model,),
            system=system,
            backend="vllm",
            backend_version=None,
            tp=gpus,
            moe_tp=None if moe is None else moe[0],
            moe_ep=None if moe is None else moe[1],
            prefill_tokens=TOKENS,
            contexts=TOKENS,
            batches=BATCHES,
        )
        between = replace(
            usual,
            prefill_tokens=tuple(sorted(chance.sample(range(128, 32_768), 40))),
            contexts=tuple(sorted(chance.sample(range(128, 16_384), 14))),
            batches=tuple(sorted(chance.sample(range(1, 257), 8))),
        )
        table, asked = aic.sweep([usual, between])
        found.append(_errors(model, system, gpus, table, asked))
    return found


def _errors(model: str, system: str, gpus: int, table: Table, asked: Table) -> Errors:
    pool = Pool(
        name="pool",
        deployment="one",
        role=Role.AGGREGATED,
        gpu="H200",
        gpus=gpus,
        gpus_per_replica=gpus,
        min_replicas=0,
        max_replicas=1,
        startup_s=0.0,
    )
    engine = engine_profile(profile_of(table), pool)
    prefill = sorted(
        abs(
            engine.measured_s(ForwardPass(point.tokens, point.tokens * (point.tokens + 1) / 2.0))
            / point.seconds
            - 1.0
        )
        for point in asked.prefill
    )
    decode = sorted(
        abs(
            engine.measured_s(
                ForwardPass(
                    decode_batch=point.batch, decode_kv_tokens=float(point.batch * point.tokens)
                )
            )
            / point.seconds
            - 1.0
        )
        for point in asked.decode
    )
    coverage = [point.coverage or 0.0 for point in (*asked.prefill, *asked.decode)]
    return Errors(
        model=model,
        system=system,
        gpus=gpus,
        prefill_points=len(prefill),
        prefill_median=median(prefill),
        prefill_largest=prefill[-1],
        decode_points=len(decode),
        decode_median=median(decode),
        decode_p90=decode[int(0.9 * len(decode))],
        decode_largest=decode[-1],
        power_coverage=max(coverage),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, help="Interpreter that has aiconfigurator.")
    parser.add_argument("--json", type=Path, help="Write the figures to a file.")
    arguments = parser.parse_args()
    rows = measure(Aic(python=arguments.python, limit_s=120.0, cache=None))
    print("| model | system | GPUs | prefill: median, largest | decode: median, p90, largest | W |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.model} | {row.system} | {row.gpus} "
            f"| {row.prefill_median:.1%}, {row.prefill_largest:.1%} ({row.prefill_points}) "
            f"| {row.decode_median:.1%}, {row.decode_p90:.1%}, {row.decode_largest:.1%} "
            f"({row.decode_points}) | {row.power_coverage:.0%} |"
        )
    if arguments.json is not None:
        document = {"schema": "wattline.bench.aic/1", "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
