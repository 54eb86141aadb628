"""`wattline plan`: one decision on one snapshot."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  wattline explain out/run --tick 120 --snapshot > now.json
  wattline plan now.json
  wattline plan now.json --json
"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the whole decision as JSON.")
def plan(file: Path, as_json: bool) -> None:
    """Decide on the snapshot in FILE (YAML or JSON) and say why.

    FILE holds `settings` (fleet, engines, how to decide) and `snapshot` (what is seen now);
    `wattline explain RUN --tick N --snapshot` writes one. Nothing is written anywhere.
    """
    from wattline.core.decide import decide
    from wattline.recording.codec import decision_to_json
    from wattline.recording.values import computable
    from wattline.sim.snapshot_file import read_plan_input

    given = read_plan_input(file)
    with computable(str(file)):
        decision = decide(given.snapshot, given.settings)
    if as_json:
        click.echo(json.dumps(json.loads(decision_to_json(decision)), indent=2))
        return
    booked_w = sum(given.snapshot.gpus.booked_w)
    budget = given.snapshot.budget
    click.echo(f"budget {budget.total_w:,.0f} W, booked {booked_w:,.0f} W")
    for pool, chosen, reason in zip(
        given.settings.fleet.pools, decision.plan, decision.reasons, strict=True
    ):
        clock = "" if chosen.setting.clock == 1.0 else f", clock <= {chosen.setting.clock:.0%}"
        click.echo(f"{pool.name}: {chosen.replicas} x {chosen.setting.cap_w:.0f} W{clock}")
        click.echo(f"  {reason.code}: {reason.sentence}")
    lowered = sum(
        cap_w < given.snapshot.gpus.granted_w[gpu]
        for gpu, cap_w in zip(decision.caps.gpu, decision.caps.cap_w, strict=True)
    )
    click.echo(
        f"now: {lowered} caps to lower, {len(decision.caps.gpu) - lowered} to raise, "
        f"{len(decision.replicas)} changes of replicas"
    )
