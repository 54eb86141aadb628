"""Tables for a terminal: exact, foldable, honest about who is best."""

from __future__ import annotations

import dataclasses
import io

import pytest
from report_fixtures import fake_comparison, fake_run
from rich.console import Console

from wattline.sim.report.columns import best_cells, winner
from wattline.sim.report.terminal import comparison_table, power_line, progress, run_summary
from wattline.sim.result import RunResult


def shown(results: list[RunResult], width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(comparison_table(results, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(width: int) -> None:
    results = [run.result for run in fake_comparison(steps=2)]
    lines = shown(results, width)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert not [line for line in lines if "…" in line]
    own = [line for line in lines if line.strip().startswith("wattline")]
    assert len(own) == 4
    assert all("*" in line for line in own)
    hidden = "Not shown for lack of width" in "\n".join(lines)
    assert hidden == (width < 120)


def test_a_policy_that_breaks_its_budget_or_knows_the_future_is_never_best() -> None:
    base = fake_run(steps=2).result
    honest = dataclasses.replace(base, policy="uniform-cap", goodput_rps=10.0)
    rows = [
        honest,
        dataclasses.replace(base, policy="slo-scaler", goodput_rps=9.0),
        dataclasses.replace(base, policy="oracle", goodput_rps=20.0),
        dataclasses.replace(base, policy="uncapped", goodput_rps=30.0, over_budget_enforced_ws=1.0),
    ]
    assert winner(rows, range(4)) == 0
    assert {index for index, key in best_cells(rows) if key == "goodput_rps"} == {0}
    assert winner(rows, [2, 3]) is None


def test_equal_figures_are_not_called_best() -> None:
    base = fake_run(steps=2).result
    assert best_cells([base, dataclasses.replace(base, policy="other")]) == set()


def test_missing_figures_are_dashes() -> None:
    result = dataclasses.replace(fake_run(steps=2).result, ttft_p99_ms=None, j_per_token=None)
    line = next(line for line in shown([result], 200) if "wattline" in line)
    assert line.split().count("-") == 2


def test_summary_names_every_key_figure() -> None:
    run = fake_run(steps=50)
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(run_summary(run))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    requests = f"{run.result.requests:,} offered"
    for words in ("21.7 req/s", "15.68 kW (70 %", "0 W·s", "1.84 kW·s", requests):
        assert words in text
    assert max(len(line.rstrip()) for line in text.split("\n")) <= 80


def test_power_line_shows_a_share_of_the_budget() -> None:
    series = fake_run(steps=4).series
    flat = dataclasses.replace(series, budget_w=[100.0] * 4, draw_w=[0.0, 50.0, 100.0, 130.0])
    assert power_line(flat, width=4) == "▁▅██"
    assert power_line(flat, width=2) == "▃█"
    empty = dataclasses.replace(series, time_s=[], budget_w=[], draw_w=[])
    assert power_line(empty, width=10) == ""


def test_no_progress_bar_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with progress("Simulating", 3, console=console) as advance:
        advance(1)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_progress_bar_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress("Simulating", 3, console=console) as advance:
        advance(3)
    assert isinstance(console.file, io.StringIO)
    assert "Simulating" in console.file.getvalue()
