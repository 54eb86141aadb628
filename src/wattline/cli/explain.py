"""`wattline explain`: why a recorded run did what it did."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wattline.core.decision import Decision
    from wattline.core.fleet import Fleet
    from wattline.core.problem import Evaluation
    from wattline.core.snapshot import Snapshot
    from wattline.recording.record import Recording, Tick


@click.command(
    epilog="""\b
Examples:
  wattline explain out/run
  wattline explain out/run --tick 120
  wattline explain out/run --tick 120 --why-not prefill=650,decode=8x300
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tick", type=click.IntRange(0), help="One tick: seen, considered, bound, changed.")
@click.option(
    "--why-not",
    metavar="SETTING",
    help="Judge another plan on that tick (default: the last): POOL=[Nx]WATTS[@CLOCK],...",
)
@click.option(
    "--snapshot", is_flag=True, help="Print settings and snapshot of that tick for `wattline plan`."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    run: Path, tick: int | None, why_not: str | None, snapshot: bool, as_json: bool
) -> None:
    """Say why RUN (a folder or recording) did what it did.

    Without options: how often each reason held, and when reasons and plans changed.
    """
    from wattline.recording.record import Recording
    from wattline.recording.values import computable
    from wattline.sim.explain import find_tick, last_tick

    recording = Recording(run)
    with computable(str(recording.path)):
        if tick is None and why_not is None and not snapshot:
            _overview(recording, as_json)
            return
        if tick is None:
            found, before = last_tick(recording), None
        else:
            found, before = find_tick(recording, tick)
        if snapshot:
            _snapshot(recording, found)
        elif why_not is not None:
            _why_not(recording, found, why_not, as_json)
        else:
            _tick(recording, found, before, as_json)


def _snapshot(recording: Recording, tick: Tick) -> None:
    from wattline.recording.codec import settings_to_json, snapshot_to_json

    document = {
        "settings": settings_to_json(tick.header.settings),
        "snapshot": json.loads(snapshot_to_json(tick.snapshot)),
    }
    click.echo(json.dumps(document, indent=1))


def _overview(recording: Recording, as_json: bool) -> None:
    from wattline.sim.explain import overview

    seen = overview(recording)
    if as_json:
        click.echo(json.dumps(asdict(seen), indent=2))
        return
    for note in seen.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{seen.policy}: {seen.ticks} decisions")
    for pool, codes in seen.codes.items():
        shares = ", ".join(f"{code} {count / seen.ticks:.0%}" for code, count in codes.items())
        click.echo(f"  {pool}: {shares}")
    click.echo(f"\n{len(seen.changes)} changes of reason or plan")
    for change in seen.changes:
        click.echo(f"  tick {change.tick:>5}  {change.time_s:>8.0f} s  {change.sentence}")


def _tick(recording: Recording, tick: Tick, before: Tick | None, as_json: bool) -> None:
    if as_json:
        click.echo(tick.decision_json.decode())
        return
    settings = tick.header.settings
    snapshot, decision = tick.snapshot, tick.decision
    click.echo(f"tick {snapshot.tick} at {snapshot.time_s:.0f} s, {recording.header.policy}")
    _seen(snapshot, settings.fleet)
    _considered(decision)
    click.echo("decided")
    for index, pool in enumerate(settings.fleet.pools):
        plan, raw = decision.plan[index], decision.recommended[index]
        held = "" if raw == plan else f" (recommended {raw.replicas} x {raw.setting.cap_w:.0f} W)"
        clock = "" if plan.setting.clock == 1.0 else f", clock <= {plan.setting.clock:.0%}"
        click.echo(f"  {pool.name}: {plan.replicas} x {plan.setting.cap_w:.0f} W{clock}{held}")
    for reason in decision.reasons:
        click.echo(f"  {reason.code}: {reason.sentence}")
    for ordered in () if tick.carried is None else tick.carried.reasons:
        click.echo(f"  {ordered.code}: {ordered.sentence}")
    _changed(decision, None if before is None else before.decision, settings.fleet)


def _seen(snapshot: Snapshot, fleet: Fleet) -> None:
    budget = snapshot.budget
    booked_w = sum(snapshot.gpus.booked_w)
    click.echo("seen")
    click.echo(
        f"  budget {budget.total_w:,.0f} W, guard {budget.guard_w:,.0f} W, booked {booked_w:,.0f} W"
    )
    for name in snapshot.missing:
        click.echo(f"  missing: {name}")
    for deployment, view in zip(fleet.deployments, snapshot.demand, strict=True):
        if view.arrivals is None:
            continue
        latency = ", ".join(
            f"{label} {value * 1000:.0f} ms"
            for label, value in (("TTFT p99", view.ttft_p99_s), ("ITL p99", view.itl_p99_s))
            if value is not None
        )
        click.echo(
            f"  {deployment.name}: {view.arrivals} requests in {view.window_s:.0f} s, "
            f"{view.rejected} rejected, {view.age_s:.0f} s old{', ' + latency if latency else ''}"
        )
    for pool, state in zip(fleet.pools, snapshot.pools, strict=True):
        queue = state.queued_prefill_tokens
        waiting = "" if queue is None else f", {queue:,.0f} prompt tokens queued"
        click.echo(
            f"  {pool.name}: {state.ready} ready, {state.starting} starting, "
            f"{state.draining} draining{waiting}"
        )


def _considered(decision: Decision) -> None:
    facts = decision.facts
    if facts is None:
        return
    click.echo("considered")
    click.echo(
        f"  usable {facts.usable_w:,.0f} W, of it {facts.unavailable_w:,.0f} W out of reach; "
        f"planned {facts.planned_w:,.0f} W; at most {facts.gap:.2%} from the optimum; "
        f"{'replicas and watts' if facts.replanned else 'watts'}"
    )
    for entry in facts.deployments:
        click.echo(
            f"  demand {entry.seen_rps:.3g} rps seen, {entry.demand_rps:.3g} planned for, "
            f"{entry.ahead_rps:.3g} ahead; {entry.input_tokens:.0f} + {entry.output_tokens:.0f} "
            f"tokens, {entry.cached_fraction:.0%} cached; capacity {entry.capacity_rps:.3g} rps, "
            f"bound by {entry.bound}"
        )


def _changed(decision: Decision, before: Decision | None, fleet: Fleet) -> None:
    click.echo("changed")
    moves = 0
    for index, pool in enumerate(fleet.pools):
        if before is not None and before.plan[index] != decision.plan[index]:
            old, new = before.plan[index], decision.plan[index]
            click.echo(
                f"  {pool.name}: {old.replicas} x {old.setting.cap_w:.0f} W -> "
                f"{new.replicas} x {new.setting.cap_w:.0f} W"
            )
            moves += 1
    if decision.caps.gpu:
        click.echo(f"  {len(decision.caps.gpu)} caps sent")
    for step in decision.replicas:
        verb = "started" if step.change > 0 else "stopped"
        click.echo(f"  {fleet.pools[step.pool].name}: {abs(step.change)} replicas {verb}")
    if not (moves or decision.caps.gpu or decision.replicas):
        click.echo("  nothing")


def _why_not(recording: Recording, tick: Tick, text: str, as_json: bool) -> None:
    from wattline.sim.explain import why_not

    found = why_not(tick.snapshot, tick.decision, tick.header.settings, text)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    click.echo(f"tick {tick.snapshot.tick} at {tick.snapshot.time_s:.0f} s")
    _judged("taken", found.taken)
    _judged("other", found.other)


def _judged(label: str, evaluation: Evaluation) -> None:
    rates = ", ".join(f"{rate:.4g}" for rate in evaluation.rate_rps)
    served = ", ".join(f"{rate:.4g}" for rate in evaluation.served_rps)
    click.echo(
        f"  {label}: capacity {rates} rps, serves {served} rps, "
        f"books {evaluation.booked_w:,.0f} W, draws about {evaluation.draw_w:,.0f} W: "
        f"{evaluation.verdict}"
    )
