"""`explain`, `plan` and `replay` on a recorded run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml
from cli_fixtures import wattline

from wattline.core.settings import Settings
from wattline.recording.codec import settings_from_json, settings_to_json
from wattline.recording.record import Recording
from wattline.sim.scenario import builtin_names, folder_of, load
from wattline.sim.scenario_build import to_engines, to_fleet


def test_explain_gives_an_overview(recorded: Path) -> None:
    outcome = wattline("explain", recorded)
    assert outcome.code == 0
    assert "wattline: 20 decisions" in outcome.out
    assert "prefill:" in outcome.out
    document = json.loads(wattline("explain", recorded, "--json").out)
    assert document["policy"] == "wattline"
    assert document["ticks"] == 20
    assert sum(document["codes"]["decode"].values()) == 20
    assert {"tick", "time_s", "pool", "code", "sentence"} == set(document["changes"][0])


def test_explain_one_tick(recorded: Path) -> None:
    outcome = wattline("explain", recorded / "recording.jsonl.gz", "--tick", 9)
    assert outcome.code == 0
    for heading in ("tick 9 at 9 s", "seen", "considered", "decided", "changed"):
        assert heading in outcome.out
    decision = json.loads(wattline("explain", recorded, "--tick", 9, "--json").out)
    assert decision["tick"] == 9


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_plan_decides_as_the_run_did(recorded: Path, tmp_path: Path, form: str) -> None:
    for tick in (0, 1, 12):
        text = wattline("explain", recorded, "--tick", tick, "--snapshot").out
        file = tmp_path / f"now.{form}"
        file.write_text(text if form == "json" else yaml.safe_dump(json.loads(text)))
        planned = json.loads(wattline("plan", file, "--json").out)
        assert planned == json.loads(wattline("explain", recorded, "--tick", tick, "--json").out)
    shown = wattline("plan", file).out
    assert shown.startswith("budget 840 W")
    assert "decode: 1 x" in shown


def test_why_not_judges_another_plan(recorded: Path) -> None:
    outcome = wattline("explain", recorded, "--tick", 9, "--why-not", "prefill=700,decode=700W")
    assert outcome.code == 0
    assert "above the usable budget" in outcome.out
    arguments = ("explain", recorded, "--tick", 9, "--json", "--why-not")
    same = json.loads(wattline(*arguments, _taken(recorded, 9)).out)
    assert same["taken"] == same["other"]
    between = json.loads(wattline(*arguments, "prefill=1x333@0.9").out)
    assert between["plans"][0] == {"replicas": 1, "setting": {"cap_w": 333.0, "clock": 0.9}}
    assert between["other"]["rate_rps"] != between["taken"]["rate_rps"]


def _taken(recorded: Path, number: int) -> str:
    plans = {tick.snapshot.tick: tick.decision.plan for tick in Recording(recorded).ticks()}[number]
    named = zip(("prefill", "decode"), plans, strict=True)
    return ",".join(f"{name}={plan.replicas}x{plan.setting.cap_w:g}" for name, plan in named)


@pytest.mark.parametrize("policy", ["uniform-cap", "threshold", "slo-scaler", "uncapped"])
def test_runs_of_other_policies_can_be_explained(tiny: Path, tmp_path: Path, policy: str) -> None:
    out = tmp_path / "run"
    assert wattline("simulate", tiny, "--policy", policy, "--out", out).code == 0
    assert wattline("explain", out).out.startswith(policy)
    assert "taken" in wattline("explain", out, "--why-not", "decode=300").out
    assert "all equal" in wattline("replay", out).out


@pytest.mark.parametrize("name", builtin_names())
def test_settings_of_every_scenario_can_be_read_back(name: str) -> None:
    scenario = load(name)
    fleet = to_fleet(scenario)
    settings = Settings(fleet=fleet, engines=to_engines(scenario, fleet, folder_of(name)))
    assert settings_from_json(json.loads(json.dumps(settings_to_json(settings))), "x") == settings


def test_replay_recomputes_every_decision(recorded: Path) -> None:
    outcome = wattline("replay", recorded)
    assert outcome.code == 0
    assert "20 decisions of wattline recomputed: all equal" in outcome.out


def test_replay_shows_the_first_difference(recorded: Path, tmp_path: Path) -> None:
    with gzip.open(recorded / "recording.jsonl.gz", "rb") as file:
        lines = file.readlines()
    decision = json.loads(lines[12])
    decision["plan"][0]["setting"]["cap_w"] += 1.0
    lines[12] = json.dumps(decision, separators=(",", ":")).encode() + b"\n"
    changed = tmp_path / "changed.jsonl.gz"
    changed.write_bytes(gzip.compress(b"".join(lines)))
    outcome = wattline("replay", changed)
    assert outcome.code == 1
    assert "tick 5 (line 13) differs" in outcome.err
    assert '"cap_w":' in outcome.err
    assert outcome.out == ""


def test_damaged_recordings_are_refused(recorded: Path, tmp_path: Path) -> None:
    whole = (recorded / "recording.jsonl.gz").read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    damaged = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:200] + bytes([whole[200] ^ 0x55]) + whole[201:],
        "empty": b"",
        "plain": b"".join(lines),
        "no decision": gzip.compress(b"".join(lines[:2])),
        "cut line": gzip.compress(b"".join(lines[:4])[:-30]),
        "not JSON": gzip.compress(lines[0] + b"{\n" + lines[2]),
        "other schema": gzip.compress(lines[0].replace(b"recording/1", b"recording/9")),
        "no settings": gzip.compress(b'{"schema": "wattline.recording/1"}\n'),
        "not an object": gzip.compress(b"[]\n"),
        "not text": gzip.compress(b"\xff\xfe\n"),
        "swapped": gzip.compress(lines[0] + lines[2] + lines[1]),
        "unknown pool": gzip.compress(
            b"".join(lines[:2]) + lines[2].replace(b'"reasons":[{"pool":0', b'"reasons":[{"pool":7')
        ),
    }
    for name, content in damaged.items():
        file = tmp_path / "damaged.jsonl.gz"
        file.write_bytes(content)
        for command in (("replay", file), ("explain", file), ("explain", file, "--tick", 19)):
            outcome = wattline(*command)
            if name == "unknown pool" and command[0] == "replay":
                assert outcome.code == 1
                continue
            assert outcome.code == 2, (name, command)
            assert str(file) in outcome.line or "--tick" in outcome.line, name
