"""`simulate` and `compare`: what they print, what they leave behind, and when."""

from __future__ import annotations

import errno
import gzip
import json
from pathlib import Path
from typing import NoReturn

import pytest
from cli_fixtures import wattline, write_tiny

FIGURES = [
    "policy",
    "budget_w",
    "budget_fraction",
    "seed",
    "requests",
    "completed",
    "rejected",
    "unfinished",
    "goodput_rps",
    "slo_attainment",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "itl_p50_ms",
    "itl_p99_ms",
    "energy_j",
    "j_per_token",
    "output_tokens",
    "peak_booked_w",
    "peak_enforced_w",
    "peak_draw_1s_w",
    "over_budget_enforced_ws",
    "exposure_enforced_ws",
    "over_budget_draw_ws",
    "cap_writes_per_hour",
    "cap_reversals_per_hour",
    "replica_changes",
    "gpus",
    "wall_s",
]
"""What others read from the JSON: names may be added, never taken away."""

KEPT = {"recording.jsonl.gz", "report.html", "results.json", "scenario.yaml"}


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_simulate_prints_a_summary_and_keeps_a_whole_run(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    outcome = wattline("simulate", tiny, "--out", out, "--json", tmp_path / "figures.json")
    assert outcome.code == 0
    assert outcome.err == ""  # no progress bar: this is not a terminal
    assert "Goodput" in outcome.out
    assert f"Report: {out / 'report.html'}" in outcome.out
    assert names(out) == KEPT
    assert names(out.parent) == {"run"}
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(FIGURES) <= set(figures)
    assert figures["requests"] == sum(
        figures[key] for key in ("completed", "rejected", "unfinished")
    )
    assert json.loads((out / "results.json").read_text()) == {"runs": [figures]}
    assert wattline("scenario", "check", out / "scenario.yaml").code == 0


def test_json_on_standard_output_is_nothing_but_json(tiny: Path) -> None:
    outcome = wattline("simulate", tiny, "--json", "-", "--budget", "1000", "--policy", "uncapped")
    figures = json.loads(outcome.out)
    assert figures["policy"] == "uncapped"
    assert figures["budget_w"] == 1000.0
    assert "Goodput" in outcome.err


def test_options_reach_the_run(tiny: Path, tmp_path: Path) -> None:
    base = json.loads(wattline("simulate", tiny, "--json", "-").out)
    other = json.loads(wattline("simulate", tiny, "--json", "-", "--seed", "7").out)
    assert other["seed"] == 7
    assert other["requests"] != base["requests"]
    half = json.loads(wattline("simulate", tiny, "--json", "-", "--until", "7.5").out)
    assert half["requests"] < 0.7 * base["requests"]
    twice = json.loads(wattline("simulate", tiny, "--json", "-", "--scale-load", "2").out)
    assert twice["requests"] > 1.5 * base["requests"]
    percent = json.loads(wattline("simulate", tiny, "--json", "-", "--budget", "75%").out)
    assert percent["budget_w"] == 0.75 * 1400.0
    trace = tmp_path / "own.jsonl"
    trace.write_text('{"time_s": 0.5, "input_tokens": 300, "output_tokens": 30}\n')
    given = json.loads(wattline("simulate", tiny, "--json", "-", "--trace", trace).out)
    assert (given["requests"], given["output_tokens"]) == (1, 30)


def test_the_same_command_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recordings = []
    for _ in range(2):  # the second replaces the first
        assert wattline("simulate", tiny, "--out", out).code == 0
        recordings.append((out / "recording.jsonl.gz").read_bytes())
    assert recordings[0] == recordings[1]
    assert names(tmp_path) == {"run", "tiny.yaml"}


def test_what_others_put_beside_an_earlier_run_stays(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    wattline("simulate", tiny, "--out", out)
    (out / "notes.txt").write_text("mine")
    (out / "report.html").write_text("old")
    assert (
        wattline("compare", tiny, "--policies", "uncapped", "--jobs", "1", "--out", out).code == 0
    )
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "report.html").read_text() != "old"
    assert names(out) == (KEPT | {"notes.txt"}) - {"recording.jsonl.gz"}


@pytest.mark.parametrize("held", ["results.json", "thesis.tex"])
@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_foreign_folder_is_left_alone(
    tiny: Path, tmp_path: Path, command: str, held: str
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / held).write_text("precious")
    outcome = wattline(command, tiny, "--out", foreign)
    assert outcome.code == 2
    assert str(foreign) in outcome.line
    assert names(foreign) == {held}
    assert names(tmp_path) == {"foreign", "tiny.yaml"}


def test_a_run_that_fails_leaves_nothing_but_the_earlier_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out" / "run"
    wattline("simulate", tiny, "--out", out)
    before = {entry.name: entry.read_bytes() for entry in out.iterdir()}

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wattline.recording.record.Recorder.append", full)
    outcome = wattline("simulate", tiny, "--out", out)
    assert outcome.code == 1
    assert "disk full" in outcome.line
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before
    assert names(out.parent) == {"run"}


def test_an_interrupted_run_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("wattline.recording.record.Recorder.append", stop)
    outcome = wattline("simulate", tiny, "--out", tmp_path / "run")
    assert outcome.code == 130
    assert outcome.err.strip() == "wattline: interrupted"
    assert names(tmp_path) == {"tiny.yaml"}


def test_file_names_need_not_be_text(tmp_path: Path) -> None:
    odd = tmp_path / "\udcff \u00fc"  # as Python sees a byte that is no UTF-8
    odd.mkdir()
    assert wattline("simulate", write_tiny(odd), "--out", odd / "run").code == 0
    assert wattline("replay", odd / "run").code == 0
    assert "no such file" in wattline("replay", odd / "a\nb").line


def test_json_goes_straight_into_devices(tiny: Path) -> None:
    assert wattline("simulate", tiny, "--json", "/dev/null").code == 0
    assert not Path("/dev/null").is_file()


def test_compare_runs_every_policy_at_every_budget(tiny: Path, tmp_path: Path) -> None:
    figures, out = tmp_path / "figures.json", tmp_path / "out"
    outcome = wattline(
        *("compare", tiny, "--budgets", "60%, 1000", "--policies", "uniform-cap,wattline"),
        *("--jobs", "1", "--json", figures, "--out", out),
    )
    assert outcome.code == 0
    assert outcome.err == ""
    document = json.loads(figures.read_text())
    assert {"scenario", "load_factor", "notes", "runs"} <= set(document)
    assert [(run["policy"], run["budget_w"]) for run in document["runs"]] == [
        ("uniform-cap", 840.0),
        ("wattline", 840.0),
        ("uniform-cap", 1000.0),
        ("wattline", 1000.0),
    ]
    for run in document["runs"]:
        assert set(FIGURES) <= set(run)
        assert run["budget_fraction"] == pytest.approx(run["budget_w"] / 1400.0)
        assert run["gpus"] == 2
    assert "uniform-cap" in outcome.out
    assert names(out) == KEPT - {"recording.jsonl.gz"}


def test_workers_change_nothing_but_the_time(tiny: Path) -> None:
    arguments = ("compare", tiny, "--policies", "wattline,uncapped", "--json", "-", "--jobs")
    one, two = (json.loads(wattline(*arguments, jobs).out) for jobs in (1, 2))
    for run in (*one["runs"], *two["runs"]):
        del run["wall_s"]
    assert one == two


def test_a_sweep_says_what_it_found(tiny: Path) -> None:
    outcome = wattline("compare", tiny, "--policies", "best-static", "--jobs", "1", "--json", "-")
    document = json.loads(outcome.out)
    assert [run["policy"] for run in document["runs"]] == ["best-static"]
    assert any("best of" in note for note in document["notes"])


def test_a_policy_that_cannot_start_is_left_out_and_named(tiny: Path) -> None:
    arguments = ("compare", tiny, "--jobs", "1", "--budgets", "40%,80%", "--json", "-")
    both = json.loads(wattline(*arguments, "--policies", "dynamo-clamp,uniform-cap").out)
    ran = [(run["policy"], run["budget_fraction"]) for run in both["runs"]]
    assert ("dynamo-clamp", 0.4) not in ran
    assert {("uniform-cap", 0.4), ("uniform-cap", 0.8)} <= set(ran)
    assert any("Left out: policy dynamo-clamp" in note for note in both["notes"])
    none = wattline("compare", tiny, "--budgets", "40%", "--policies", "dynamo-clamp")
    assert none.code == 1
    assert "raise the budget" in none.line


def test_the_recording_says_how_it_was_made(recorded: Path) -> None:
    with gzip.open(recorded / "recording.jsonl.gz", "rt") as file:
        header = json.loads(file.readline())
    assert header["run"]["command"].startswith("wattline simulate ")
    assert header["run"]["seed"] == 1


def test_simulate_keeps_the_best_run_of_a_search(tiny: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "best.json"
    swept = tmp_path / "swept.json"
    assert wattline("simulate", tiny, "--policy", "best-static", "--json", chosen).code == 0
    assert wattline("compare", tiny, "--policies", "best-static", "--json", swept).code == 0
    run = json.loads(chosen.read_text())
    (best,) = json.loads(swept.read_text())["runs"]
    assert run | {"wall_s": 0} == best | {"wall_s": 0}
