"""Tables on a live run: enforced watts against each budget, and figures beside the simulated ones.

How far the two may lie apart is stated here; docs/guides/demo-live.md says why they differ at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wattline.live.demo_history import History
from wattline.live.demo_record import Measured
from wattline.sim.report.tables import PageTable
from wattline.sim.result import RunResult

TTFT_COST_MS = 20.0
"""What HTTP, the tokenizer and two hops between processes may add to a first token: 13 to 17 ms
were measured at 1,120 prompt tokens on an idle fleet (docs/guides/live-worker.md)."""

SIDE_HEADER = ("Figure", "Simulated", "Live", "Difference", "May differ by", "Within")
_SHOWN = 4
"""Columns of it that are shown where the two fleets were free to grow differently."""
ENFORCED_HEADER = (
    "Budget",
    "From, s",
    "To, s",
    "Watts",
    "Usable, W",
    "Enforced, W",
    "Drawn, W",
    "Under in, ms",
    "Above, W·s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One figure of both runs. May differ by a share of the simulated one and an absolute part."""

    name: str
    simulated: float | None
    live: float | None
    places: int
    relative: float = 0.0
    absolute: float = 0.0
    unit: str = ""

    @property
    def near(self) -> bool:
        """Whether they are as near as stated; a figure that is missing is not."""
        if self.simulated is None or self.live is None:
            return False
        return abs(self.live - self.simulated) <= (
            self.relative * abs(self.simulated) + self.absolute
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        difference = "-"
        if self.simulated is not None and self.live is not None:
            gap = self.live - self.simulated
            difference = f"{gap:+,.{self.places}f}"
            if self.simulated and self.relative:
                difference += f" ({100.0 * gap / self.simulated:+.1f} %)"
        allowed = [f"{100 * self.relative:g} %"] if self.relative else []
        allowed += [f"{self.absolute:g} {self.unit}"] if self.absolute else []
        return (
            self.name,
            _number(self.simulated, self.places),
            _number(self.live, self.places),
            difference,
            " + ".join(allowed),
            "yes" if self.near else "NO",
        )


def sides(simulated: RunResult, live: RunResult, window_s: float) -> list[Side]:
    """The figures of both runs over the same window of so many seconds."""
    a, b = simulated, live
    return [
        Side(
            name="Goodput, req/s",
            simulated=a.goodput_rps,
            live=b.goodput_rps,
            places=2,
            relative=0.1,
        ),
        Side(
            name="Attainment, %",
            simulated=100 * a.slo_attainment,
            live=100 * b.slo_attainment,
            places=1,
            absolute=6.0,
            unit="points",
        ),
        Side(
            name="TTFT p50, ms",
            simulated=a.ttft_p50_ms,
            live=b.ttft_p50_ms,
            places=0,
            relative=0.1,
            absolute=TTFT_COST_MS,
            unit="ms",
        ),
        Side(
            name="TTFT p99, ms",
            simulated=a.ttft_p99_ms,
            live=b.ttft_p99_ms,
            places=0,
            relative=0.2,
        ),
        Side(
            name="ITL p50, ms",
            simulated=a.itl_p50_ms,
            live=b.itl_p50_ms,
            places=1,
            relative=0.1,
        ),
        Side(
            name="ITL p99, ms",
            simulated=a.itl_p99_ms,
            live=b.itl_p99_ms,
            places=1,
            relative=0.1,
        ),
        Side(
            name="Mean power, W",
            simulated=a.energy_j / window_s,
            live=b.energy_j / window_s,
            places=0,
            relative=0.05,
        ),
        Side(
            name="Energy, Wh",
            simulated=a.energy_j / 3600.0,
            live=b.energy_j / 3600.0,
            places=1,
            relative=0.05,
        ),
    ]


def side_table(found: Sequence[Side], window_s: float, *, judged: bool) -> PageTable:
    """The comparison for the page.

    judged: also say how far apart they may lie; only for fleets whose replicas stay the same,
    because one that grows a tick earlier serves other requests.
    """
    columns = len(SIDE_HEADER) if judged else _SHOWN
    return PageTable(
        title="Live beside simulated",
        note=f"The same requests, budgets and first replicas on real processes and in the "
        f"simulator, over {window_s:g} s. Latencies are per request; live ones are the client's.",
        header=SIDE_HEADER[:columns],
        rows=[side.cells[:columns] for side in found],
        bad=frozenset((row, 5) for row, side in enumerate(found) if judged and not side.near),
    )


def enforced_table(measured: Measured) -> PageTable:
    """What the registers enforced under each budget."""
    rows: list[tuple[str, ...]] = []
    bad: set[tuple[int, int]] = set()
    for number, span in enumerate(measured.budgets):
        start_s = max(span.start_s, measured.start_s)
        end_s = min(span.end_s, measured.start_s + measured.end_s)
        if end_s <= start_s:
            continue
        under_s = measured.levels.under_after_s(start_s, end_s, span.usable_w)
        above_ws = sum(
            max(0.0, watts - span.total_w) * (b - a)
            for a, b, watts in measured.levels.steps(start_s, end_s)
        )
        cut = number > 0 and span.total_w < measured.budgets[number - 1].total_w
        most_w = measured.levels.most_w(start_s + (under_s or 0.0), end_s)
        drawn_w = measured.energy.joules_between(start_s, end_s) / (end_s - start_s)
        if above_ws > 0.0 and not cut:
            bad.add((len(rows), 8))
        rows.append(
            (
                span.cause,
                f"{start_s - measured.start_s:.1f}",
                f"{end_s - measured.start_s:.1f}",
                f"{span.total_w:,.0f}",
                f"{span.usable_w:,.0f}",
                f"{most_w:,.0f}",
                f"{drawn_w:,.0f}",
                "never" if under_s is None else f"{under_s * 1000:.0f}",
                f"{above_ws:.1f}",
            )
        )
    ours_ws = measured.verdict.ours_watt_seconds
    return PageTable(
        title="Enforced watts against the budget",
        note="Limits as the registers of the GPUs had them, every change of every limit. Usable: "
        "less the guard band. Enforced: the most, once limits were under what is usable, and how "
        "long that took. Drawn: the mean. Above: what limits stood above the budget, which right "
        f"after a cut is the cut's doing until it is enforced; by our doing: {ours_ws:.1f} W·s.",
        header=ENFORCED_HEADER,
        rows=rows,
        bad=frozenset(bad),
    )


def history_lines(history: History, measured: Measured) -> list[str]:
    """What Prometheus kept of the same minutes, beside what we measured."""
    ended = len(measured.rows)
    ttft_s = [row.ttft_s for row in measured.rows if row.ttft_s is not None]
    mean_ms = 1000 * sum(ttft_s) / len(ttft_s) if ttft_s else None
    seen_ms = None if history.ttft_s is None else 1000 * history.ttft_s
    lag_ms = None if history.lag_s is None else 1000 * history.lag_s
    most_w = measured.levels.most_w(measured.levels.at_s[0], measured.start_s + measured.end_s)
    return [
        f"Prometheus kept {_number(history.series, 0)} series. In it: "
        f"{_number(history.requests, 0)} requests finished (clients: {ended}), mean TTFT "
        f"{_number(seen_ms, 0)} ms at the frontend (clients: {_number(mean_ms, 0)} ms), at most "
        f"{_number(history.enforced_w, 0)} W enforced (registers: {_number(most_w, 0)} W). "
        f"Workers woke up at most {_number(lag_ms, 0)} ms late."
    ]


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:,.{places}f}"
