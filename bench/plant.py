"""Speed and memory of the plant, alone or against Dynamo's own offline replay.

    python bench/plant.py                          # the plant alone
    python bench/plant.py --with-dynamo            # builds .cache/dynamo-1.4.2 first (1.5 GB)
    python bench/plant.py --million                # also a million requests: time and memory
    python bench/plant.py --profile                # cProfile of the simulation phase

The workload: 20,000 requests of 2,048 input and 256 output tokens, Poisson arrivals at 40/s, round
robin over 8 aggregated workers with the mock engine's timing. The replay runs the same by its own
generator (`python -m dynamo.replay`, offline, default mock engine), without any power. Simulation
phase: building the plant and running it, power samples at 0.1 s included, against the wall time
that the replay reports. Process: from start to exit of a Python process. Best of `--repeats` runs,
the two taking turns. Exit code 1 if the plant is slower or its mean TTFT or ITL is over 5 % off.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RELEASE = "1.4.2"
HERE = Path(__file__).resolve()
HOME = HERE.parents[1] / ".cache" / f"dynamo-{RELEASE}"
REQUIREMENTS = [
    f"ai-dynamo=={RELEASE}",
    "aiconfigurator-core==0.12.0",
    "filterpy",
    "httpx",
    "pandas",
    "plotly",
    "pmdarima",
    "prometheus-api-client",
    "prophet",
    "pyyaml",
    "scikit-learn",
    "scipy",
]
REQUESTS = 20_000
RATE_RPS = 40.0
WORKERS = 8
INPUT_TOKENS = 2048
OUTPUT_TOKENS = 256
TOLERANCE = 0.05


def simulate(count: int, profile: bool = False) -> dict[str, Any]:
    """One run of the plant; imports are inside, because only child processes need them."""
    import numpy as np

    from wattline.catalog.engines import engine_polynomial
    from wattline.catalog.products import gpu
    from wattline.core.decision import PoolPlan
    from wattline.core.fleet import Deployment, Fleet, Pool, Role, Setting, Slo
    from wattline.sim.plant import Plant, PlantConfig, Routing
    from wattline.sim.request import Request

    product = gpu("H100-80GB-HBM3")
    pool = Pool(
        name="workers",
        deployment="chat",
        role=Role.AGGREGATED,
        gpu=product.name,
        gpus=WORKERS,
        gpus_per_replica=1,
        min_replicas=1,
        max_replicas=WORKERS,
        startup_s=60.0,
    )
    fleet = Fleet(
        products=(product,),
        deployments=(Deployment(name="chat", model="mock", slo=Slo(1.0, 0.05)),),
        pools=(pool,),
    )
    random = np.random.default_rng(7)

    def requests() -> Iterator[Request]:
        now, block = 0.0, 1000
        for _ in range(0, count, block):
            for gap_s in random.exponential(1.0 / RATE_RPS, block).tolist():
                now += gap_s
                yield Request(now, INPUT_TOKENS, OUTPUT_TOKENS)

    engine = engine_polynomial(product.name)
    profiler = cProfile.Profile() if profile else None
    started = time.perf_counter()
    if profiler:
        profiler.enable()
    plant = Plant(
        fleet,
        (engine,),
        requests(),
        seed=1,
        config=PlantConfig(routing=Routing.ROUND_ROBIN),
        initial=(PoolPlan(WORKERS, Setting(product.max_limit_w)),),
    )
    samples = 0
    while plant.next_arrival_s != float("inf"):
        plant.advance(plant.now_s + 600.0)
        samples += len(plant.power_samples().fleet_w)
    if profiler:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    simulation_s = time.perf_counter() - started
    totals = plant.totals()
    return {
        "simulation_s": simulation_s,
        "requests": totals.offered,
        "completed": totals.completed,
        "power_samples": samples,
        "mean_ttft_ms": float(np.nanmean(totals.ttft_s)) * 1e3,
        "mean_itl_ms": float(np.nanmean(totals.itl_s)) * 1e3,
        "energy_kj": totals.energy_j / 1e3,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    }


def run_plant(count: int) -> dict[str, Any]:
    """Run the plant in a process of its own, timed from outside."""
    started = time.perf_counter()
    command = [sys.executable, str(HERE), "--child", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    result["process_s"] = time.perf_counter() - started
    return result


def build_dynamo() -> Path:
    """Build the environment of the release, once; returns its interpreter."""
    python = HOME / "bin" / "python"
    ready = HOME / ".ready"
    if not ready.exists():
        print(f"building {HOME} (about 1.5 GB, minutes)", file=sys.stderr)
        venv.create(HOME, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *REQUIREMENTS], check=True)
        ready.touch()
    return python


def run_replay(python: Path) -> dict[str, Any]:
    """Run Dynamo's replay of the same workload in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        arguments = {
            "--replay-mode": "offline",
            "--router-mode": "round_robin",
            "--num-workers": WORKERS,
            "--request-count": REQUESTS,
            "--request-rate": RATE_RPS,
            "--input-tokens": INPUT_TOKENS,
            "--output-tokens": OUTPUT_TOKENS,
            "--report-json": report,
        }
        command = [str(python), "-m", "dynamo.replay"]
        command += [str(word) for pair in arguments.items() for word in pair]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder)
        process_s = time.perf_counter() - started
        figures = json.loads(report.read_text())
    return {
        "simulation_s": figures["wall_time_ms"] / 1e3,
        "process_s": process_s,
        "completed": figures["completed_requests"],
        "mean_ttft_ms": figures["mean_ttft_ms"],
        "mean_itl_ms": figures["mean_itl_ms"],
    }


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Take the least of each time; the rest is the same in every run."""
    least = {key: min(run[key] for run in runs) for key in ("simulation_s", "process_s")}
    return runs[0] | least


def compare(plant: dict[str, Any], replay: dict[str, Any]) -> dict[str, Any]:
    """Ratios of the replay's times over the plant's, and how far the latencies are apart."""
    return {
        "simulation_speedup": replay["simulation_s"] / plant["simulation_s"],
        "process_speedup": replay["process_s"] / plant["process_s"],
        "mean_ttft_error": plant["mean_ttft_ms"] / replay["mean_ttft_ms"] - 1.0,
        "mean_itl_error": plant["mean_itl_ms"] / replay["mean_itl_ms"] - 1.0,
    }


def show(results: dict[str, Any]) -> None:
    head = ("", "simulation s", "process s", "TTFT ms", "ITL ms", "completed", "peak MiB")
    print(f"{head[0]:<22}" + "".join(f"{name:>14}" for name in head[1:]))
    for name in ("plant", "replay", "million"):
        if name in results:
            row = results[name]
            rss = f"{row['peak_rss_mib']:.0f}" if "peak_rss_mib" in row else "-"
            label = {"replay": f"dynamo.replay {RELEASE}", "million": "plant, 1,000,000"}
            print(
                f"{label.get(name, 'plant'):<22}{row['simulation_s']:>14.3f}"
                f"{row['process_s']:>14.3f}{row['mean_ttft_ms']:>14.2f}{row['mean_itl_ms']:>14.3f}"
                f"{row['completed']:>14,}{rss:>14}"
            )
    if "ratios" in results:
        ratios = results["ratios"]
        print(
            f"{'replay / plant':<22}{ratios['simulation_speedup']:>13.2f}x"
            f"{ratios['process_speedup']:>13.2f}x"
            f"{ratios['mean_ttft_error']:>+14.2%}{ratios['mean_itl_error']:>+14.2%}"
        )


def failures(results: dict[str, Any]) -> list[str]:
    """Say what falls short."""
    found = []
    ratios = results.get("ratios")
    if ratios:
        for name in ("simulation_speedup", "process_speedup"):
            if ratios[name] < 1.0:
                found.append(f"{name} {ratios[name]:.2f} is under 1")
        for name in ("mean_ttft_error", "mean_itl_error"):
            if abs(ratios[name]) > TOLERANCE:
                found.append(f"{name} {ratios[name]:+.1%} is over {TOLERANCE:.0%}")
    if "million" in results and results["million"]["peak_rss_mib"] > 1024.0:
        found.append("a million requests take more than 1 GiB")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--with-dynamo", action="store_true", help="compare with dynamo.replay")
    parser.add_argument("--million", action="store_true", help="also run a million requests")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, the best counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--child", type=int, metavar="COUNT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(simulate(options.child)))
        return 0
    if options.profile:
        simulate(REQUESTS, profile=True)
        return 0
    python = build_dynamo() if options.with_dynamo else None
    plant_runs, replay_runs = [], []
    for _ in range(max(1, options.repeats)):
        plant_runs.append(run_plant(REQUESTS))
        if python is not None:
            replay_runs.append(run_replay(python))
    results: dict[str, Any] = {"plant": best(plant_runs)}
    if replay_runs:
        results["replay"] = best(replay_runs)
        results["ratios"] = compare(results["plant"], results["replay"])
    if options.million:
        results["million"] = run_plant(1_000_000)
    show(results)
    if options.json is not None:
        partial = options.json.with_name(options.json.name + ".partial")
        partial.write_text(json.dumps(results, indent=2) + "\n")
        partial.replace(options.json)
    for line in failures(results):
        print(line, file=sys.stderr)
    return 1 if failures(results) else 0


if __name__ == "__main__":
    sys.exit(main())
