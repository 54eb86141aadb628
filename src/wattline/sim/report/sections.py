"""The parts of the page that read without a script: headline, tiles, bars, table, definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from wattline.sim.report import text
from wattline.sim.report.columns import (
    COLUMNS,
    HINDSIGHT_POLICIES,
    OWN_POLICY,
    REFERENCE_POLICIES,
    best_cells,
    budget_groups,
    by_key,
    holds_budget,
    winner,
)
from wattline.sim.result import Run, RunResult


def budget_label(result: RunResult) -> str:
    """A budget as share and watts: `70 % (15.68 kW)`."""
    return f"{text.whole_percent(result.budget_fraction)} ({text.watts(result.budget_w)})"


def run_label(result: RunResult, results: Sequence[RunResult]) -> str:
    """Policy and budget, and the seed where runs differ in it."""
    label = f"{result.policy} at {text.whole_percent(result.budget_fraction)}"
    seeds = {other.seed for other in results}
    return f"{label}, seed {result.seed}" if len(seeds) > 1 else label


def lead_run(results: Sequence[RunResult]) -> int:
    """Index of the run that the page opens with.

    At the tightest budget: our own policy if it ran, else the winner, else the first.
    """
    group = budget_groups(results)[0]
    own = [index for index in group if results[index].policy == OWN_POLICY]
    if own:
        return own[0]
    best = winner(results, group)
    return group[0] if best is None else best


def reference_run(results: Sequence[RunResult], lead: int) -> int | None:
    """Index of the run that `lead` is compared with under the same budget; None if alone."""
    peers = {
        results[index].policy: index
        for group in budget_groups(results)
        if lead in group
        for index in group
        if index != lead
    }
    for policy in REFERENCE_POLICIES:
        if policy in peers:
            return peers[policy]
    return min(peers.values(), default=None)


def headline(runs: Sequence[Run]) -> str:
    """What was asked and who answered best, in at most four sentences of plain text."""
    results = [run.result for run in runs]
    if len(results) == 1:
        return _single_headline(results[0])
    groups = budget_groups(results)
    best = winner(results, groups[0])
    label = budget_label(results[groups[0][0]])
    if best is None:
        return f"No policy held the budget of {label} without knowing the future."
    top = results[best]
    broken = sorted({r.policy for r in results if not holds_budget(r)})
    tightest = "" if len(groups) == 1 else "the tightest budget, "
    where = f"Of the policies that held {tightest}" if broken else f"Within {tightest}"
    sentences = [
        f"{where}{label}, {top.policy} served the most: {text.rate(top.goodput_rps)} requests "
        f"per second within both latency targets, {text.percent(top.slo_attainment)} of all "
        f"offered{_ratios(results, groups[0], best)}."
    ]
    if len(groups) > 1:
        led = [
            group
            for group in groups
            if (w := winner(results, group)) is not None and results[w].policy == top.policy
        ]
        sentences.append(f"It led at {len(led)} of {len(groups)} budgets.")
    if broken:
        sentences.append(f"Budgets were broken by {', '.join(broken)}.")
    else:
        sentences.append("Every policy held its budget.")
    return " ".join(sentences)


def _single_headline(result: RunResult) -> str:
    held = (
        "Enforced limits never stood above the budget through its own doing"
        if holds_budget(result)
        else f"Its own actions put {text.watt_seconds(result.over_budget_enforced_ws)} of enforced "
        "limits above the budget"
    )
    exposed = (
        f"; outside events exposed {text.watt_seconds(result.exposure_enforced_ws)}"
        if result.exposure_enforced_ws > 0
        else ""
    )
    return (
        f"Within {budget_label(result)}, {result.policy} served {text.rate(result.goodput_rps)} "
        f"requests per second within both latency targets: "
        f"{text.percent(result.slo_attainment)} of {result.requests:,} offered. {held}{exposed}."
    )


def _ratios(results: Sequence[RunResult], group: Sequence[int], best: int) -> str:
    parts = []
    for policy in ("dynamo-clamp", "uniform-cap", "best-static", "oracle"):
        for index in group:
            other = results[index]
            if other.policy == policy and index != best and other.goodput_rps > 0:
                ratio = results[best].goodput_rps / other.goodput_rps
                held = "" if holds_budget(other) else " (which broke it)"
                parts.append(f"{ratio:.2f} \u00d7 {policy}{held}")
    if not parts:
        return ""
    return ": " + " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


def subtitle(runs: Sequence[Run]) -> str:
    """What ran: policies, budgets, requests, GPUs, length."""
    results = [run.result for run in runs]
    policies = len({r.policy for r in results})
    budgets = len({r.budget_w for r in results})
    series = runs[0].series
    span = series.time_s[-1] - series.time_s[0] + series.step_s if series.time_s else 0.0
    parts = [
        f"{policies} {'policy' if policies == 1 else 'policies'}",
        f"{budgets} {'budget' if budgets == 1 else 'budgets'}",
        f"{results[0].requests:,} requests",
        f"{results[0].gpus:,} GPUs of {text.watts(_fleet_w(results[0]))} at most",
        text.duration(round(span)),
    ]
    return " · ".join(parts)


def _fleet_w(result: RunResult) -> float:
    return result.budget_w / result.budget_fraction if result.budget_fraction else result.budget_w


_MOST_EXPOSURES = 40

Tile = tuple[str, str, str, str]
"""Label, figure, note under it, and state: `good`, `bad` or empty."""


def tiles(run: Run, reference: RunResult | None) -> list[Tile]:
    """Key figures of one run; ratios are to `reference` under the same budget."""
    result = run.result
    served = run.series.deployments
    versus = ""
    if reference is not None and reference.goodput_rps > 0:
        ratio = result.goodput_rps / reference.goodput_rps
        versus = f"{ratio:.2f} \u00d7 {reference.policy}"
        if not holds_budget(reference):
            versus += ", over budget"
    peak_share = result.peak_enforced_w / result.budget_w if result.budget_w else 0.0
    held = holds_budget(result)
    spiked = held and peak_share > 1 and result.exposure_enforced_ws > 0
    ttft = _target_note([d.ttft_target_s * 1e3 for d in served], result.ttft_p99_ms)
    itl = _target_note([d.itl_target_s * 1e3 for d in served], result.itl_p99_ms)
    per_token = text.NO_VALUE if result.j_per_token is None else f"{result.j_per_token:.3g} J"
    return [
        ("Goodput", f"{text.rate(result.goodput_rps)} req/s", versus, ""),
        (
            "Within both targets",
            text.percent(result.slo_attainment),
            f"of {result.requests:,} offered",
            "",
        ),
        ("TTFT p99", text.latency(result.ttft_p99_ms), *ttft),
        ("ITL p99", text.latency(result.itl_p99_ms), *itl),
        (
            "Peak enforced",
            text.watts(result.peak_enforced_w),
            f"{text.percent(peak_share)} of budget" + (", from outside" if spiked else ""),
            "",
        ),
        (
            "Over budget",
            text.watt_seconds(result.over_budget_enforced_ws),
            "held throughout" if held else "by its own actions",
            "good" if held else "bad",
        ),
        ("Exposure", text.watt_seconds(result.exposure_enforced_ws), "by outside events", ""),
        ("Energy per token", per_token, f"{text.energy(result.energy_j)} in all", ""),
    ]


def _target_note(targets_ms: Sequence[float], value_ms: float | None) -> tuple[str, str]:
    distinct = sorted(set(targets_ms))
    if len(distinct) != 1:
        return ("all deployments together", "") if distinct else ("", "")
    if value_ms is None:
        return "nothing measured", ""
    met = value_ms <= distinct[0]
    note = f"{'within' if met else 'above'} target {text.latency(distinct[0])}"
    return note, "good" if met else "bad"


def tile_list(shown: Sequence[Tile], css: str) -> str:
    """Tiles as a description list."""
    items = "".join(
        f'<div class="tile {state}"><dt>{escape(label)}</dt><dd><b>{escape(figure)}</b>'
        f"<span>{escape(note)}</span></dd></div>"
        for label, figure, note, state in shown
    )
    return f'<dl class="{css}">{items}</dl>'


def tone(result: RunResult) -> str:
    """CSS class that gives a policy the same look everywhere."""
    if not holds_budget(result):
        return "broke"
    if result.policy == OWN_POLICY:
        return "own"
    if result.policy in HINDSIGHT_POLICIES:
        return "bound"
    return "plain"


def bars(results: Sequence[RunResult], key: str, note: Callable[[RunResult], str]) -> str:
    """One card of horizontal bars per budget, all on one scale that starts at zero."""
    column = by_key(key)
    places = column.places_for(results)
    known = [value for r in results if (value := column.value(r)) is not None]
    top = max(known, default=0.0) or 1.0
    best = best_cells(results)
    cards = []
    for group in budget_groups(results):
        rows = []
        for index in group:
            result = results[index]
            value = column.value(result)
            width = 0.0 if value is None else 100 * max(value, 0.0) / top
            mark = " best" if (index, key) in best else ""
            rows.append(
                f'<div class="bar {tone(result)}{mark}"><span class="who">'
                f"{escape(result.policy)}</span>"
                f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
                f'<rect class="track" width="100" height="10"/>'
                f'<rect class="fill" width="{width:.2f}" height="10"/></svg>'
                f'<span class="val">{column.cell(result, places)}'
                f"<small>{escape(note(result))}</small></span></div>"
            )
        cards.append(
            f'<section class="card"><h4>{escape(budget_label(results[group[0]]))}</h4>'
            f"{''.join(rows)}</section>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def table(results: Sequence[RunResult]) -> str:
    """The comparison as an HTML table; `data-v` carries the exact value that sorting uses."""
    best = best_cells(results)
    places = {column.key: column.places_for(results) for column in COLUMNS}
    head = _header("Policy", "") + _header("Budget", "kW")
    head += "".join(_header(column.label, column.unit) for column in COLUMNS)
    body = []
    order = [index for group in budget_groups(results) for index in group]
    previous: float | None = None
    for index in order:
        result = results[index]
        first = " first" if previous is not None and result.budget_w != previous else ""
        previous = result.budget_w
        share = text.whole_percent(result.budget_fraction)
        cells = [
            f'<th scope="row" data-v="{escape(result.policy)}"><span class="dot"></span>'
            f'<button type="button" class="pick" data-run="{index}" '
            f'title="Show this run over time">{escape(result.policy)}</button></th>',
            f'<td data-v="{result.budget_w!r}">{share}'
            f"<small>{result.budget_w / 1e3:,.2f}</small></td>",
        ]
        for column in COLUMNS:
            value = column.value(result)
            mark = ' class="best"' if (index, column.key) in best else ""
            if column.key == "over_budget_enforced_ws" and not holds_budget(result):
                mark = ' class="bad"'
            data = "" if value is None else repr(value)
            cells.append(
                f'<td data-v="{data}"{mark}>{column.cell(result, places[column.key])}</td>'
            )
        body.append(f'<tr class="{tone(result)}{first}">{"".join(cells)}</tr>')
    return (
        '<table id="comparison"><caption>Every run with all its figures. Best of a budget among '
        "policies that held it and do not know the future: bold, with a star.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _header(label: str, unit: str) -> str:
    shown = f"<small>{escape(unit)}</small>" if unit else ""
    return f'<th scope="col"><button type="button">{escape(label)}</button>{shown}</th>'


def definitions() -> str:
    """What every column means."""
    return "".join(
        f"<dt>{escape(column.label)} <small>{escape(column.unit)}</small></dt>"
        f"<dd>{escape(column.definition)}</dd>"
        for column in COLUMNS
    )


def exposures(run: Run, label: str) -> str:
    """Outside events of one run that exposed watts, in order of time, with their sum."""
    found = [event for event in run.series.events if event.exposure_ws]
    if not found:
        return f"<p>{escape(label)}: no outside event put enforced limits above the budget.</p>"
    rows = "".join(
        f"<tr><td>{event.time_s:,.0f}</td><td>{escape(event.kind)}</td>"
        f"<td>{escape(event.text)}</td><td>{event.exposure_ws:,.0f}</td></tr>"
        for event in found[:_MOST_EXPOSURES]
    )
    rest = len(found) - _MOST_EXPOSURES
    more = f"<p>{rest:,} later ones are not listed.</p>" if rest > 0 else ""
    return (
        f"<p>{escape(label)}: {text.watt_seconds(run.result.exposure_enforced_ws)} in all. "
        "The events of any run are listed under its plots.</p>"
        '<div class="scroll" tabindex="0"><table class="list"><thead><tr><th scope="col">Time'
        '<small>s</small></th><th scope="col">Kind</th><th scope="col">Event</th>'
        f'<th scope="col">Exposure<small>W·s</small></th></tr></thead><tbody>{rows}</tbody>'
        f"</table></div>{more}"
    )
