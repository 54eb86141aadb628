"""The page of definitions knows every figure that a run yields."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from wattline.sim.loop import REPAIR_S
from wattline.sim.report.columns import COLUMNS, HINDSIGHT_POLICIES
from wattline.sim.result import RunResult
from wattline.sim.scenario import Scenario

PAGE = Path(__file__).parents[3] / "docs" / "concepts" / "metrics.md"


def test_every_figure_is_defined() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [f.name for f in dataclasses.fields(RunResult) if f"`{f.name}`" not in text]
    assert missing == []


def test_stated_times_and_names_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"at most {REPAIR_S:g} s" in text
    assert f"{Scenario.model_fields['drain_s'].default:g} s unless" in text
    assert all(f"`{policy}`" in text for policy in HINDSIGHT_POLICIES)


def test_columns_are_figures_of_a_run_and_named_once() -> None:
    fields = {field.name for field in dataclasses.fields(RunResult)}
    keys = [column.key for column in COLUMNS]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= fields
    assert all(column.definition.endswith(".") for column in COLUMNS)
