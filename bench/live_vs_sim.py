"""The same requests, budgets and fleet on real processes and in the simulator, side by side.

    python bench/live_vs_sim.py [--seeds recorded,1,2] [--seconds 90] [--json FILE]

Replicas are fixed (two of prefill, two of decode), so that both runs serve with the same GPUs: what
remains are the caps, the admission, and the difference between a model and processes. Needs
Dynamo's environment (`python -m wattline.live.environment`). Exit code 1 where a figure lies
farther apart than stated, or the live run broke a promise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from wattline.core.errors import WattlineError
from wattline.live import environment
from wattline.live.demo import Demo
from wattline.live.demo_plan import DemoPlan, load_plan, own_scenario
from wattline.live.demo_report import Results, terminal_table
from wattline.live.demo_view import PlainView
from wattline.sim.scenario import Scenario

RECORDED = "recorded"
"""The demonstration's slice of a recorded trace."""


def scenario() -> Scenario:
    """The demonstration's, with a load that stays and replicas that are fixed."""
    document: dict[str, Any] = own_scenario().model_dump(mode="json", exclude_defaults=True)
    document["name"] = "live-vs-sim"
    for pool in document["deployments"][0]["pools"]:
        if pool["role"] == "decode":
            pool["gpus"] = 2
        pool["min_replicas"] = 2
    document["traffic"] = [{"kind": "conversation", "mean_rps": 5.0}]
    document["deployments"][0]["slo"]["itl_s"] = 0.05
    document["budget"] = {"total_percent": 75.0}
    document["faults"][0]["to_fraction"] = 0.7
    return Scenario.model_validate(document)


def one(plan: DemoPlan, console: Console) -> Results:
    """Both runs of one seed."""
    folder = Path(tempfile.mkdtemp(prefix="wattline-live-"))
    view = PlainView(lambda line: console.print(line, end="", highlight=False, soft_wrap=True))
    try:
        with view:
            return Results(Demo(folder, plan, environment.require(), view).run(), judged=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run all seeds, print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", default=RECORDED, help=f"generated traffic, or `{RECORDED}`, with commas between"
    )
    parser.add_argument("--seconds", type=float, default=None, help="length of the traffic")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    console = Console()
    good = True
    found = []
    for word in arguments.seeds.split(","):
        seed = None if word == RECORDED else int(word)
        results = one(load_plan(scenario(), seconds=arguments.seconds, seed=seed), console)
        console.print(f"\nTraffic: {word}")
        for table in (results.enforced, results.beside):
            console.print(terminal_table(table.header, table.rows, table.bad))
        for promise in results.outcome.promises:
            console.print(f"{'kept' if promise.held else 'BROKEN'}: {promise.text}")
        good = good and results.outcome.passed and all(side.near for side in results.sides)
        found.append(
            {
                "traffic": word,
                "simulated": asdict(results.simulated.result),
                "live": asdict(results.live.result),
            }
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WattlineError as error:
        print(f"live_vs_sim: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
