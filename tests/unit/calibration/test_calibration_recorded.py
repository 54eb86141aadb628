"""Calibration is recorded: a calibrated run replays to the byte, an older recording is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from calibration_world import World

from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.errors import InputError
from wattline.core.settings import Settings
from wattline.recording.codec import (
    Header,
    decision_to_json,
    header_from_json,
    header_to_json,
    settings_from_json,
    settings_to_json,
    snapshot_from_json,
    snapshot_to_json,
)
from wattline.recording.record import Recorder, Recording
from wattline.sim.experiment import Traffic, prepare
from wattline.sim.loop import ClosedLoop
from wattline.sim.policies.registry import build
from wattline.sim.replay import replay
from wattline.sim.scenario import load


def header(world: World) -> Header:
    return Header(
        policy="wattline",
        settings=world.settings,
        policy_context={"role_caps": {}, "pool_caps_w": None, "pool_replicas": None},
        scenario={"name": "test"},
        run={},
    )


def test_settings_come_back(tmp_path: Path) -> None:
    plain = prepare(load("demo"), Traffic()).settings
    for calibration in (None, CalibrationSettings(window_s=3.0, apply_power=False)):
        given = Settings(
            fleet=plain.fleet, engines=plain.engines, calibration=calibration, headroom=1.2
        )
        assert settings_from_json(settings_to_json(given), "x") == given
    document = settings_to_json(given)
    document["calibration"]["step"] = 7
    with pytest.raises(InputError, match=r"calibration\.step"):
        settings_from_json(document, "x")


def test_a_calibrated_state_comes_back() -> None:
    world = World(slower=1.4, hungrier=1.1)
    world.run(60)
    snapshot, decision = world.decisions[-1]
    again = snapshot_from_json(snapshot_to_json(snapshot), "x")
    assert again == snapshot
    assert decision_to_json(world.decisions[-1][1]) == decision_to_json(decision)


def test_hostile_factors_are_refused_in_one_line() -> None:
    world = World(slower=1.4)
    world.run(30)
    snapshot, _ = world.decisions[-1]
    document = json.loads(snapshot_to_json(snapshot))
    document["state"]["calibration"][0]["roles"][0]["in_force"]["itl"] = 0.0
    with pytest.raises(InputError, match="factor of itl"):
        snapshot_from_json(json.dumps(document), "x")


def test_an_older_recording_is_refused_with_a_clear_word(tmp_path: Path) -> None:
    world = World(settings=prepare(load("demo"), Traffic()).settings)
    line = header_to_json(header(world)).replace(b"wattline.snapshot/2", b"wattline.snapshot/1")
    with pytest.raises(InputError, match=r"this version reads wattline\.snapshot/2"):
        header_from_json(line, "old")
    path = tmp_path / "recording.jsonl.gz"
    path.write_bytes(gzip.compress(line + b"\n"))
    with pytest.raises(InputError, match="snapshot_schema"):
        replay(Recording(path))


def test_a_recorded_simulation_with_calibration_replays(tmp_path: Path) -> None:
    experiment = prepare(load("demo"), Traffic(until_s=60.0))
    settings = replace(experiment.settings, calibration=CalibrationSettings())
    experiment = replace(experiment, settings=settings)
    policy = build("wattline", settings, experiment.context)
    path = tmp_path / "recording.jsonl.gz"
    made = header(World(settings=settings))
    with Recorder(path, made) as recorder:
        budget_w = experiment.budget_w(None)
        ClosedLoop(experiment, policy, budget_w=budget_w, recorder=recorder).run()
    outcome = replay(Recording(path))
    assert outcome.difference is None
    assert outcome.decisions > 60
    last = Recording(path).last_tick()
    assert last is not None
    assert last.decision.next_state is not None
    assert any(entry.windows for entry in last.decision.next_state.calibration[0].roles)
