"""The HTML report through its public door: one self-contained, exact, deterministic file."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import fake_comparison, fake_run

from wattline.sim.report import html as report_html
from wattline.sim.report.columns import COLUMNS
from wattline.sim.report.html import render_report, write_report
from wattline.sim.result import Run, RunEvent

VOID = {"meta", "input", "br", "img", "link", "rect", "path"}
LOADING = {"src", "href", "srcset", "action", "formaction", "data", "poster", "background"}


class Page(HTMLParser):
    """Collects what the tests ask about; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.chunks: dict[str, list[str]] = {}
        self.rows: list[list[tuple[str, str]]] = []
        self.policy = ""
        self.in_table = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if tag == "table":
            self.in_table = values.get("id") == "comparison"
        if tag == "tr" and self.in_table:
            self.rows.append([])
        if tag in ("td", "th") and self.in_table:
            self.rows[-1].append((values.get("data-v", ""), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag
        if tag == "table":
            self.in_table = False

    def handle_data(self, data: str) -> None:
        place = self.open[-1] if self.open else ""
        self.chunks.setdefault(place, []).append(data)


def render(runs: list[Run], **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "Made-up runs",
        "runs": runs,
        "scenario_yaml": "name: made-up\n",
        "notes": ["Nothing here happened."],
        "command": "wattline compare made-up",
    }
    return render_report(**(arguments | changes))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    loaded: dict[str, Any] = json.loads(found.group(1))
    return loaded


def unpack(packed: dict[str, Any]) -> list[float | None]:
    """The script's reading of a packed series, written a second time."""
    values: list[float | None] = []
    total = 0
    for entry in packed["d"]:
        if isinstance(entry, list):
            values += [values[-1]] * entry[0]
        elif entry is None:
            values.append(None)
        else:
            total += entry
            values.append(total * packed["s"])
    return values


@pytest.mark.parametrize("runs", [[fake_run()], fake_comparison(steps=40)], ids=["one", "many"])
def test_nothing_is_loaded_from_outside(runs: list[Run]) -> None:
    text = render(runs)
    page = Page(text)
    assert page.open == []
    for tag, name, value in page.attributes:
        if name in LOADING:
            assert value.startswith("#"), (tag, name, value)
        assert name != "style", "the page's policy would refuse inline styles"
        assert not name.startswith("on"), "the page's policy would refuse inline handlers"
    assert "default-src 'none'" in page.policy
    assert "http" not in page.policy
    styles = "".join(page.chunks["style"])
    assert "url(" not in styles
    assert "@import" not in styles
    scripts = "".join(page.chunks["script"])
    for forbidden in ("fetch(", "XMLHttpRequest", "import(", "WebSocket", "eval("):
        assert forbidden not in scripts
    urls = set(re.findall(r"https?://[^\s\"')]+", text))
    assert urls <= {"https://github.com/leeoniya/uPlot", "http://www.w3.org/2000/svg"}


def test_scripts_and_style_match_the_hashes_of_the_policy() -> None:
    text = render([fake_run()])
    page = Page(text)
    bodies = re.findall(r"<script>(.*?)</script>", text, re.S)
    bodies += re.findall(r"<style>(.*?)</style>", text, re.S)
    assert len(bodies) == 3
    for body in bodies:
        assert report_html._digest(body) in page.policy


def test_hostile_words_stay_words() -> None:
    hostile = "</script><img src=x onerror=alert(1)>'\"&<!--"
    run = fake_run(steps=20)
    series = run.series
    pools = [dataclasses.replace(pool, name=hostile) for pool in series.pools]
    served = [dataclasses.replace(d, name=hostile) for d in series.deployments]
    events = [RunEvent(time_s=1.0, kind=hostile, text=hostile, exposure_ws=3.0)]
    run = Run(
        result=dataclasses.replace(run.result, policy=hostile),
        series=dataclasses.replace(series, pools=pools, deployments=served, events=events),
    )
    text = render(
        [run, fake_run(steps=20)],
        title=hostile,
        scenario_yaml=hostile,
        notes=[hostile],
        command=hostile,
    )
    page = Page(text)
    assert page.open == []
    assert not [value for tag, _, value in page.attributes if tag == "img"]
    assert "".join(page.chunks["title"]) == hostile
    assert "".join(page.chunks["pre"]) == hostile * 2
    data = data_of(text)
    assert data["runs"][0]["pools"][0]["name"] == hostile
    assert data["texts"] == [hostile, *data["texts"][1:]]


def test_table_carries_the_exact_figures_of_every_run() -> None:
    runs = fake_comparison(steps=20)
    rows = [row for row in Page(render(runs)).rows if row[0][0]]
    assert len(rows) == len(runs)
    seen = {(row[0][0], float(row[1][0])): [cell for cell, _ in row[2:]] for row in rows}
    for run in runs:
        cells = seen[run.result.policy, run.result.budget_w]
        for column, cell in zip(COLUMNS, cells, strict=True):
            assert float(cell) == column.value(run.result), column.key


def test_a_run_that_measured_nothing_shows_dashes_not_zeros() -> None:
    run = fake_run(steps=20)
    result = dataclasses.replace(
        run.result,
        ttft_p50_ms=None,
        ttft_p99_ms=None,
        itl_p50_ms=None,
        itl_p99_ms=None,
        j_per_token=None,
        output_tokens=0,
        goodput_rps=0.0,
        slo_attainment=0.0,
    )
    nothing: list[float | None] = [None] * 20
    served = dataclasses.replace(
        run.series.deployments[0],
        ttft_p50_s=nothing,
        ttft_p99_s=nothing,
        itl_p50_s=nothing,
        itl_p99_s=nothing,
    )
    series = dataclasses.replace(run.series, deployments=[served])
    text = render([Run(result=result, series=series)])
    row = next(row for row in Page(text).rows if row[0][0])
    figures = dict(zip([column.key for column in COLUMNS], row[2:], strict=True))
    assert figures["ttft_p99_ms"][0] == ""
    assert figures["goodput_rps"][0] == "0.0"
    tiles = {tile[0]: tile[1] for tile in data_of(text)["runs"][0]["tiles"]}
    assert tiles["TTFT p99"] == "-"
    assert tiles["Energy per token"] == "-"
    assert unpack(data_of(text)["runs"][0]["deployments"][0]["ttft_p99"]) == nothing


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_runs_without_steps_or_events_are_drawn(steps: int) -> None:
    text = render([fake_run(steps=steps, events=False)])
    assert Page(text).open == []
    run = data_of(text)["runs"][0]
    assert run["events"] == []
    assert len(unpack(run["time"])) == steps


def test_no_runs_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        render([])


def test_figures_that_are_not_numbers_are_refused() -> None:
    run = fake_run(steps=5)
    series = dataclasses.replace(run.series, draw_w=[float("nan")] * 5)
    with pytest.raises(ValueError, match="NaN"):
        render([Run(result=run.result, series=series)])


def test_thirty_six_long_runs_stay_small() -> None:
    runs = fake_comparison(steps=1500, deployments=2)
    text = render(runs)
    assert len(text.encode("utf-8")) < 6_000_000
    assert len(data_of(text)["runs"]) == 36


def test_same_runs_same_bytes_whatever_the_wall_clock() -> None:
    runs = [fake_run(steps=30), fake_run("dynamo-clamp", steps=30)]
    slower = [
        Run(result=dataclasses.replace(run.result, wall_s=99.0), series=run.series) for run in runs
    ]
    assert render(runs) == render(slower)


def test_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    arguments: dict[str, Any] = {
        "title": "t",
        "runs": [fake_run(steps=5)],
        "scenario_yaml": "",
        "notes": [],
        "command": "c",
    }
    write_report(target, **arguments)
    before = target.read_bytes()
    assert before.startswith(b"<!DOCTYPE html>")

    def refuse(source: str, destination: Path) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk gone"):
        write_report(target, **(arguments | {"title": "another"}))
    assert target.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_opens_with_our_policy_at_the_tightest_budget_beside_its_reference() -> None:
    data = data_of(render(fake_comparison(steps=10)))
    assert data["runs"][data["lead"]]["label"] == "wattline at 60 %"
    assert data["runs"][data["reference"]]["label"] == "dynamo-clamp at 60 %"


def test_runs_of_several_seeds_are_told_apart() -> None:
    data = data_of(render([fake_run(steps=5, seed=1), fake_run(steps=5, seed=2)]))
    assert [run["label"] for run in data["runs"]] == [
        "wattline at 70 %, seed 1",
        "wattline at 70 %, seed 2",
    ]
