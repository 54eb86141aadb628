"""`wattline compare`: several policies at several budgets."""

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

DEFAULT_POLICIES = (
    "uncapped,uniform-cap,static-caps,dynamo-clamp,dynamo-clamp-parked,threshold,slo-scaler,"
    "wattline"
)


@click.command(
    epilog="""\b
Examples:
  wattline compare demo --out out/demo
  wattline compare azure-conv-h200 --trace conv.csv --scale-load saturate \\
      --budgets 60%,80%,100% --policies wattline,dynamo-clamp,oracle --out out/azure
"""
)
@scenario_argument
@traffic_options
@click.option(
    "--budgets", metavar="B,B,...", help="Budgets: watts or percentages [the scenario's]."
)
@click.option("--policies", default=DEFAULT_POLICIES, show_default=True, metavar="P,P,...")
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=lambda: len(os.sched_getaffinity(0)),
    show_default="number of cores",
    help="Runs at a time.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for figures and report."
)
@json_option
def compare(
    scenario: str,
    budgets: str | None,
    policies: str,
    jobs: int,
    out: Path | None,
    json_path: Path | None,
    **traffic: Any,
) -> None:
    """Run several policies at several budgets on the traffic of SCENARIO [demo].

    All of them get the same plant, GPUs, models, traffic and admission rule. Prints a table; with
    --out also writes an HTML report.
    """
    from rich.console import Console

    from wattline.sim.compare import compare as run_comparison
    from wattline.sim.policies.registry import check_name
    from wattline.sim.report.terminal import comparison_table, progress
    from wattline.sim.rundir import RunFolder

    names = _listed("--policies", policies)
    for name in names:
        check_name(name)
    experiment = experiment_from(scenario, **traffic)
    budgets_w = [
        experiment.budget_w(budget)
        for budget in (_listed("--budgets", budgets) if budgets is not None else [None])
    ]
    command = command_line()
    with RunFolder(out) as folder:
        with progress(experiment.scenario.name, 1.0) as advance:
            comparison = run_comparison(
                experiment, names, budgets_w, workers=jobs, progress=advance
            )
        if out is not None:
            folder.write(comparison.runs, experiment, command, comparison.notes)
    results = [run.result for run in comparison.runs]
    if json_path is not None:
        write_json(
            json_path,
            {
                "scenario": experiment.scenario.name,
                "load_factor": experiment.load_factor,
                "notes": [*experiment.notes, *comparison.notes],
                "runs": [asdict(result) for result in results],
            },
        )
    console = Console(stderr=str(json_path) == "-")
    console.print(comparison_table(results, width=console.width))
    for note in comparison.notes:
        console.print(note, style="dim", highlight=False)
    if out is not None:
        console.print(f"Report: {out / 'report.html'}", highlight=False, soft_wrap=True)


def _listed(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise click.BadParameter("give at least one, separated by commas", param_hint=option)
    return list(dict.fromkeys(items))
