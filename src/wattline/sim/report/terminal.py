"""Tables, summaries and progress bars for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from wattline.sim.report import text
from wattline.sim.report.columns import (
    HINDSIGHT_POLICIES,
    best_cells,
    budget_groups,
    by_key,
    holds_budget,
)
from wattline.sim.result import Run, RunResult, RunSeries

_BLOCKS = "▁▂▃▄▅▆▇█"
_HEADERS = {
    "goodput_rps": "Goodput\nreq/s",
    "slo_attainment": "Attain.\n%",
    "ttft_p99_ms": "TTFT p99\nms",
    "itl_p99_ms": "ITL p99\nms",
    "energy_j": "Energy\nkWh",
    "j_per_token": "J per\ntoken",
    "peak_enforced_w": "Enforced\npeak kW",
    "over_budget_enforced_ws": "Over\nW·s",
    "exposure_enforced_ws": "Exposure\nW·s",
    "cap_writes_per_hour": "Writes\nper h",
}
"""Columns in reading order, with their two-line headers."""

_KEPT_LONGEST = (
    "goodput_rps",
    "slo_attainment",
    "over_budget_enforced_ws",
    "ttft_p99_ms",
    "itl_p99_ms",
    "j_per_token",
    "peak_enforced_w",
    "exposure_enforced_ws",
    "energy_j",
    "cap_writes_per_hour",
)
"""The same columns; a narrow terminal gives up the last one first."""


def comparison_table(results: Sequence[RunResult], *, width: int | None = None) -> RenderableType:
    """Policies under each budget; the best figure of a budget is bold and starred.

    Columns that do not fit in `width` characters (None: all are shown) are left out, the least
    important first, and named below the table.
    """
    best = best_cells(results)
    cells = {key: _cells(key, results, best) for key in _HEADERS}
    keys = _fitting(results, cells, width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("Budget\n  Policy", no_wrap=True)
    for key in keys:
        # Headers are padded like the cells, whose last place is for the star.
        header = "\n".join(f"{line} " for line in _HEADERS[key].split("\n"))
        table.add_column(header, justify="right", no_wrap=True)
    for number, group in enumerate(budget_groups(results)):
        if number:
            table.add_row()
        table.add_row(Text(_budget_label(results[group[0]]), style="bold"))
        for index in group:
            result = results[index]
            style = "dim" if result.policy in HINDSIGHT_POLICIES else ""
            row = [Text(f"  {result.policy}", style=style)]
            row += [_styled(cells[key][index], key, (index, key) in best, result) for key in keys]
            table.add_row(*row)
    return Group(table, _caption(results, keys, best))


def _cells(key: str, results: Sequence[RunResult], best: set[tuple[int, str]]) -> list[str]:
    column = by_key(key)
    places = column.places_for(results)
    return [
        column.cell(result, places) + ("*" if (index, key) in best else " ")
        for index, result in enumerate(results)
    ]


def _budget_label(result: RunResult) -> str:
    return f"{text.whole_percent(result.budget_fraction)}  {text.watts(result.budget_w)}"


def _styled(cell: str, key: str, is_best: bool, result: RunResult) -> Text:
    if is_best:
        return Text(cell, style="bold green")
    if key == "over_budget_enforced_ws" and not holds_budget(result):
        return Text(cell, style="bold red")
    return Text(cell)


def _fitting(
    results: Sequence[RunResult], cells: dict[str, list[str]], width: int | None
) -> list[str]:
    """The columns that fit, in reading order; goodput and attainment always stay."""
    if width is None:
        return list(_HEADERS)
    labels = [_budget_label(r) for r in results] + [f"  {r.policy}" for r in results]
    left = width - max((len(label) for label in labels), default=8)
    chosen: set[str] = set()
    for position, key in enumerate(_KEPT_LONGEST):
        header = max(len(line) + 1 for line in _HEADERS[key].split("\n"))
        left -= 2 + max([header, *(len(cell) for cell in cells[key])])
        if left < -2 and position >= 2:  # the last column needs no gap after it
            break
        chosen.add(key)
    return [key for key in _HEADERS if key in chosen]


def _caption(
    results: Sequence[RunResult], keys: Sequence[str], best: set[tuple[int, str]]
) -> RenderableType:
    lines = []
    if best:
        lines.append("* best of its budget among policies that held it and do not know the future")
    if any(r.policy in HINDSIGHT_POLICIES for r in results):
        names = sorted({r.policy for r in results} & HINDSIGHT_POLICIES)
        lines.append(f"Set with hindsight: {', '.join(names)}")
    hidden = [by_key(key).label for key in _HEADERS if key not in keys]
    if hidden:
        lines.append(f"Not shown for lack of width: {', '.join(hidden)}")
    return Text("\n".join(lines), style="dim")


def run_summary(run: Run, *, width: int = 80) -> RenderableType:
    """Key figures of one run, with its draw against the budget as a line of blocks."""
    result = run.result
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        ("Policy", result.policy),
        ("Budget", f"{text.watts(result.budget_w)} ({_budget_share(result)})"),
        ("Requests", _requests(result)),
        (
            "Goodput",
            f"{text.rate(result.goodput_rps)} req/s, "
            f"{text.percent(result.slo_attainment)} of requests within both targets",
        ),
        ("TTFT", f"p50 {text.latency(result.ttft_p50_ms)}, p99 {text.latency(result.ttft_p99_ms)}"),
        ("ITL", f"p50 {text.latency(result.itl_p50_ms)}, p99 {text.latency(result.itl_p99_ms)}"),
        ("Energy", _energy(result)),
        (
            "Peaks",
            f"booked {text.watts(result.peak_booked_w)}, enforced "
            f"{text.watts(result.peak_enforced_w)}, drawn {text.watts(result.peak_draw_1s_w)}",
        ),
    ]
    for label, shown in rows:
        table.add_row(label, shown)
    over = text.watt_seconds(result.over_budget_enforced_ws)
    table.add_row("Over budget", Text(over, style="" if holds_budget(result) else "bold red"))
    table.add_row("Exposure", text.watt_seconds(result.exposure_enforced_ws))
    line = power_line(run.series, width=max(10, min(width - 16, 60)))
    if line:
        table.add_row("Draw / budget", line)
    return table


def _budget_share(result: RunResult) -> str:
    return f"{text.whole_percent(result.budget_fraction)} of the maximum of {result.gpus} GPUs"


def _requests(result: RunResult) -> str:
    return (
        f"{result.requests:,} offered, {result.completed:,} completed, "
        f"{result.rejected:,} rejected, {result.unfinished:,} unfinished"
    )


def _energy(result: RunResult) -> str:
    shown = text.energy(result.energy_j)
    if result.j_per_token is None:
        return shown
    return f"{shown}, {result.j_per_token:.3g} J per output token"


def power_line(series: RunSeries, *, width: int) -> str:
    """Draw as a share of the budget in `width` blocks, a full block being the whole budget.

    Each block is the mean over its part of the run; empty when the run has no steps.
    """
    steps = len(series.time_s)
    columns = min(width, steps)
    blocks = []
    for column in range(columns):
        start, stop = column * steps // columns, (column + 1) * steps // columns
        budget = sum(series.budget_w[start:stop])
        share = sum(series.draw_w[start:stop]) / budget if budget > 0 else 1.0
        blocks.append(_BLOCKS[min(len(_BLOCKS) - 1, int(share * len(_BLOCKS)))])
    return "".join(blocks)


@contextmanager
def progress(
    description: str, total: float, *, console: Console | None = None
) -> Iterator[Callable[[float], None]]:
    """A bar on standard error while the body runs; call the yielded function to advance it.

    Nothing is written when standard error is not a terminal.
    """
    out = console if console is not None else Console(stderr=True)
    if not out.is_terminal:
        yield _ignore
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=out,
        transient=True,
    )
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda step: bar.advance(task, step)


def _ignore(step: float) -> None:
    """Progress for nobody."""
