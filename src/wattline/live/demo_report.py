"""What a live demonstration leaves behind: the simulator's page, measured, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from wattline.live.demo import Demo, Outcome
from wattline.live.demo_plan import DemoPlan, simulate
from wattline.live.demo_tables import Side, enforced_table, history_lines, side_table, sides
from wattline.sim.report import text
from wattline.sim.report.tables import PageTable, PageWords
from wattline.sim.report.terminal import run_summary
from wattline.sim.result import Run
from wattline.sim.rundir import RunFolder


class Results:
    """The live run beside the simulated one, which is run now."""

    def __init__(self, outcome: Outcome, *, judged: bool = False) -> None:
        """`judged`: say of each figure whether the two lie as near as stated."""
        measured = outcome.measured
        self.outcome = outcome
        self.plan: DemoPlan = measured.plan
        self.live: Run = measured.run()
        self.simulated: Run = simulate(self.plan, measured.plan_at_start())
        self.sides: list[Side] = sides(self.simulated.result, self.live.result, measured.end_s)
        self.beside: PageTable = side_table(self.sides, measured.end_s, judged=judged)
        self.enforced: PageTable = enforced_table(measured)

    def keep(self, demo: Demo, folder: RunFolder, command: str) -> None:
        """Put page, figures, recording, requests and logs into the folder."""
        work = folder.work
        assert work is not None
        folder.write(
            [self.live, self.simulated],
            self.plan.experiment,
            command,
            notes=self._notes(),
            words=PageWords(subtitle=self._subtitle(), headline=self.headline()),
            tables=[self.enforced, self.beside],
        )
        demo.keep(work)

    def headline(self) -> str:
        """What was run and what came of it."""
        measured, live = self.outcome.measured, self.live.result
        held = (
            "The limits that the GPUs enforced never stood above the budget by our doing"
            if measured.verdict.ours_watt_seconds == 0.0
            else f"Actions of ours put {text.watt_seconds(live.over_budget_enforced_ws)} of limits "
            "above the budget"
        )
        words = (
            f"Live: NVIDIA Dynamo's frontend and real worker processes on virtual GPUs. {held}"
            f"{self._cut()}. {text.percent(live.slo_attainment)} of {live.requests:,} requests met "
            f"both targets ({text.rate(live.goodput_rps)} a second); in the simulated run of the "
            f"same requests, {text.percent(self.simulated.result.slo_attainment)}."
        )
        return words.replace(" %", "\u00a0%")

    def _cut(self) -> str:
        """How fast the first cut was enforced."""
        measured = self.outcome.measured
        for before, span in pairwise(measured.budgets):
            if span.total_w < before.total_w:
                under_s = measured.levels.under_after_s(span.start_s, span.end_s, span.usable_w)
                if under_s is not None:
                    return (
                        f", and a cut to {text.watts(span.total_w)} was enforced "
                        f"{under_s * 1000:.0f} ms after it was ordered"
                    )
        return ""

    def _subtitle(self) -> str:
        live = self.live.result
        return (
            f"live and simulated · {live.requests:,} requests · {live.gpus} GPUs of "
            f"{text.watts(self.plan.experiment.fleet.max_limit_w)} at most · "
            f"{text.duration(self.outcome.measured.end_s)}"
        )

    def _notes(self) -> list[str]:
        measured = self.outcome.measured
        notes = [
            "The run called wattline is live: virtual GPUs whose engines run in real time and "
            "compute nothing, behind NVIDIA Dynamo 1.6.1's frontend. Draw is what these engines "
            "want under the limits that the GPUs obey; no hardware was measured.",
            "Latencies and outcomes are the client's, limits the observer's of the GPUs' "
            "registers, draw and energy the GPUs' counters; the rest is the controller's "
            "recording (folder recording, for `wattline explain` and `wattline replay`).",
            "Of the live run, tokens of requests that had not finished are not counted.",
        ]
        notes.append(self._cores())
        broken = measured.broken
        if broken:
            notes.append(f"{len(broken)} requests broke and count as rejected: {broken[0].why}.")
        if self.outcome.history is not None:
            notes += history_lines(self.outcome.history, measured)
        else:
            notes.append(f"Prometheus: {self.outcome.history_missing}.")
        return notes

    def _cores(self) -> str:
        used = ", ".join(f"{name} {cores:.2f}" for name, cores in self.outcome.cores.items())
        return f"Processor cores used on average: {used}."

    def show(self, console: Console) -> None:
        """Print all of it."""
        measured = self.outcome.measured
        console.print()
        console.print(run_summary(self.live, width=console.width))
        for table in (self.enforced, self.beside):
            console.print()
            console.print(Text(table.title, style="bold"))
            console.print(Text(table.note, style="dim"))
            console.print(terminal_table(table.header, table.rows, table.bad))
        console.print()
        if self.outcome.history is not None:
            for line in history_lines(self.outcome.history, measured):
                console.print(line, highlight=False)
        else:
            console.print(f"Prometheus: {self.outcome.history_missing}", highlight=False)
        console.print(self._cores(), highlight=False)
        console.print()
        for promise in self.outcome.promises:
            mark = Text("kept    ", style="green") if promise.held else Text("BROKEN  ", "bold red")
            console.print(mark + Text(promise.text), soft_wrap=True)


def terminal_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], bad: frozenset[tuple[int, int]]
) -> RenderableType:
    """A table without lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right")
    for number, row in enumerate(rows):
        table.add_row(
            *(
                Text(cell, style="bold red" if (number, place) in bad else "")
                for place, cell in enumerate(row)
            )
        )
    return table


def report_file(out: Path) -> Path:
    """The page in a kept folder."""
    return out / "report.html"
