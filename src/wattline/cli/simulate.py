"""`wattline simulate`: one policy in closed loop."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from wattline.cli.options import (
    command_line,
    experiment_from,
    json_option,
    scenario_argument,
    traffic_options,
    write_json,
)


@click.command(
    epilog="""\b
Examples:
  wattline simulate demo --out out/run
  wattline simulate azure-conv-h200 --trace conv.csv --policy uniform-cap --budget 60%
  wattline simulate faults --json - | jq .over_budget_enforced_ws
"""
)
@scenario_argument
@traffic_options
@click.option("--policy", default="wattline", show_default=True, help="Who decides.")
@click.option("--budget", metavar="W|N%", help="Watts, or percent of the sum of maximum limits.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the recording, figures and the report; must not exist, or be an earlier run.",
)
@json_option
def simulate(
    scenario: str,
    policy: str,
    budget: str | None,
    out: Path | None,
    json_path: Path | None,
    **traffic: Any,
) -> None:
    """Run one policy in closed loop on the traffic of SCENARIO [demo].

    Prints a summary; with --out also keeps a recording that `explain` and `replay` read, and an
    HTML report. A policy that is a search in hindsight (`best-static`) is searched first, and the
    best run is kept.
    """
    from rich.console import Console

    from wattline.sim.compare import chosen_job
    from wattline.sim.policies.registry import check_name
    from wattline.sim.report.terminal import progress, run_summary
    from wattline.sim.rundir import RunFolder
    from wattline.sim.runs import run

    check_name(policy)
    experiment = experiment_from(scenario, **traffic)
    budget_w = experiment.budget_w(budget)
    command = command_line()
    console = Console(stderr=str(json_path) == "-")
    with RunFolder(out) as folder:
        job = chosen_job(experiment, policy, budget_w, workers=len(os.sched_getaffinity(0)))
        with progress(f"{policy} on {experiment.scenario.name}", 1.0) as advance:
            finished = run(
                experiment, job, record=folder.recording, progress=advance, command=command
            )
        if out is not None:
            folder.write([finished], experiment, command, notes=())
    result = asdict(finished.result)
    if json_path is not None:
        write_json(json_path, result)
    console.print(run_summary(finished, width=console.width))
    if out is not None:
        console.print(f"Report: {out / 'report.html'}", highlight=False, soft_wrap=True)
