"""`wattline scenario`: list, show and check scenarios."""

from __future__ import annotations

import json

import click

from wattline.sim.scenario import builtin_names, builtin_text, folder_of, load


@click.group()
def scenario() -> None:
    """List, show and check scenarios.

    \b
    wattline scenario list
    wattline scenario show demo > mine.yaml
    wattline scenario check mine.yaml
    """  # noqa: D301  # click wants the backspace itself


@scenario.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_scenarios(as_json: bool) -> None:
    """List the scenarios that ship with Wattline, one line each."""
    rows = [{"name": name, "description": load(name).description} for name in builtin_names()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['description']}")


@scenario.command("show")
@click.argument("name")
def show_scenario(name: str) -> None:
    """Print the YAML of a built-in scenario, comments included: a start for one of your own."""
    click.echo(builtin_text(name), nl=False)


@scenario.command("check")
@click.argument("file")
def check_scenario(file: str) -> None:
    """Check a scenario file (or a built-in name): exit code 0 if it is usable, else 2."""
    # Imported here: `list` and `show` need no engines.
    from wattline.sim.scenario_build import check_targets, to_engines, to_fleet

    checked = load(file)
    fleet = to_fleet(checked)
    to_engines(checked, fleet, folder_of(file))
    check_targets(checked, fleet)
    click.echo(
        f"{file}: ok ({len(checked.deployments)} deployments, {len(fleet.pools)} pools, "
        f"{fleet.gpu_count} GPUs, {fleet.max_limit_w:g} W at most)"
    )
