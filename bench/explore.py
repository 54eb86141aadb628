"""Explore the grant protocol: every interleaving within stated bounds, and every broken variant.

    python bench/explore.py                  # all of it, some minutes on two cores
    python bench/explore.py --quick          # without the largest ones
    python bench/explore.py --jobs 1         # one process
    python bench/explore.py --json FILE      # also write the figures

A row is one configuration of `wattline.verification.configurations`: its faults, its bounds, how
many distinct states there are, and whether the search ended by itself. A violation of the protocol
is printed as the shortest trace that leads to it. Below, the broken variants: each must be caught,
with the number of events of the shortest trace. Times are wall times of one process among `--jobs`.

Exit code 1 if a rule breaks, a search does not end, a variant is not caught, or the whole run sees
fewer than a million states (without --quick).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from wattline.verification.bounds import Bounds
from wattline.verification.configurations import configurations, more
from wattline.verification.runs import Run, run_configuration, run_variant
from wattline.verification.variants import variants

FEWEST_STATES = 1_000_000


def explore_one(bounds: Bounds) -> dict[str, Any]:
    """Explore one configuration in this process."""
    began_s = time.perf_counter()

    def progress(states: int, left: int) -> None:
        spent_s = time.perf_counter() - began_s
        line = f"  {bounds.name}: {states:,} states, {left:,} to look at, {spent_s:.0f} s"
        print(f"\r{line:<100}", end="", file=sys.stderr, flush=True)

    run = run_configuration(bounds, progress=progress)
    return row(run, time.perf_counter() - began_s)


def try_variant(name: str) -> dict[str, Any]:
    """Search one broken variant until it is caught."""
    began_s = time.perf_counter()
    variant = next(each for each in variants() if each.name == name)
    found = row(run_variant(variant), time.perf_counter() - began_s)
    return {**found, "rule": variant.rule.value}


def row(run: Run, seconds: float) -> dict[str, Any]:
    found, bounds = run.exploration, run.bounds
    trace = None if found.violation is None else found.violation
    return {
        "name": bounds.name,
        "nodes": bounds.nodes,
        "gpus_per_node": bounds.gpus_per_node,
        "replans": bounds.replans,
        "in_flight": bounds.in_flight,
        "faults": {fault.value: times for fault, times in bounds.faults.items()},
        "most_faults": min(bounds.most_faults, sum(bounds.faults.values())),
        "states": found.states,
        "transitions": found.transitions,
        "depth": found.depth,
        "exhaustive": found.exhaustive,
        "longest_exchanges": run.longest_exchanges,
        "seconds": seconds,
        "states_per_s": found.states / seconds,
        "violation": None if trace is None else trace.what,
        "trace_events": None if trace is None else len(trace.events),
        "trace": [] if trace is None else list(trace.lines),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def explorations(pool: ProcessPoolExecutor, quick: bool) -> Iterator[dict[str, Any]]:
    print(
        f"{'configuration':<34}{'fleet':>6}{'moves':>6}{'msgs':>5}{'faults':>7}{'states':>11}"
        f"{'steps':>12}{'depth':>6}{'settles in':>11}{'s':>7}{'states/s':>10}  exhaustive"
    )
    chosen = more() if quick else configurations()
    for found in pool.map(explore_one, chosen):
        size = f"{found['nodes']}x{found['gpus_per_node']}"
        print(f"\r{'':<100}\r", end="", file=sys.stderr, flush=True)
        print(
            f"{found['name']:<34}{size:>6}{found['replans']:>6}{found['in_flight']:>5}"
            f"{found['most_faults']:>7}{found['states']:>11,}{found['transitions']:>12,}"
            f"{found['depth']:>6}{found['longest_exchanges']:>11}{found['seconds']:>7.1f}"
            f"{found['states_per_s']:>10,.0f}  {'yes' if found['exhaustive'] else 'NO'}",
            flush=True,
        )
        yield found


def broken(pool: ProcessPoolExecutor) -> Iterator[dict[str, Any]]:
    print(f"\n{'broken variant':<42}{'states':>9}{'events':>8}  caught by")
    for found in pool.map(try_variant, [variant.name for variant in variants()]):
        events = "-" if found["trace_events"] is None else found["trace_events"]
        what = found["violation"] or "NOT CAUGHT"
        print(f"{found['name']:<42}{found['states']:>9,}{events:>8}  {what}", flush=True)
        yield found


def failures(results: dict[str, Any], quick: bool) -> list[str]:
    """Say what falls short."""
    found = []
    for each in results["configurations"]:
        if each["violation"] is not None:
            found.append("\n".join([f"{each['name']}:", *each["trace"], f"=> {each['violation']}"]))
        elif not each["exhaustive"]:
            found.append(f"{each['name']}: not exhaustive, {each['states']:,} states seen")
    for each in results["variants"]:
        if each["violation"] is None:
            found.append(f"{each['name']}: not caught")
    if not quick and results["states"] < FEWEST_STATES:
        found.append(f"{results['states']:,} states, {FEWEST_STATES:,} are wanted")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="without the largest ones")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    began_s = time.perf_counter()
    with ProcessPoolExecutor(max_workers=options.jobs, max_tasks_per_child=1) as pool:
        explored = list(explorations(pool, options.quick))
        caught = list(broken(pool))
    states = sum(each["states"] for each in explored)
    wall_s = time.perf_counter() - began_s
    results = {
        "states": states,
        "wall_s": wall_s,
        "jobs": options.jobs,
        "peak_mib": max(each["peak_mib"] for each in explored),
        "configurations": explored,
        "variants": caught,
    }
    print(
        f"\n{states:,} distinct states in {wall_s:.0f} s with {options.jobs} processes of at most "
        f"{results['peak_mib']:.0f} MiB"
    )
    if options.json is not None:
        partial = options.json.with_name(options.json.name + ".partial")
        partial.write_text(json.dumps(results, indent=2) + "\n")
        partial.replace(options.json)
    short = failures(results, options.quick)
    for line in short:
        print(line, file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
