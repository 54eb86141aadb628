"""Predicted engines in a running controller: they change between ticks, and it replays."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from controller_world import World

from aic_standin import StandIn
from wattline.core.profile import ProfileEngine
from wattline.recording.record import Recording
from wattline.sim.replay import replay


@pytest.fixture(name="standin")
def _standin(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "env")


@pytest.fixture(name="world")
def _world(tmp_path: Path, standin: StandIn) -> Iterator[World]:
    world = World(tmp_path, models={"aic": {"python": str(standin.python), "limit_s": 60.0}})
    world.start()
    yield world
    world.stop()


def settle(world: World) -> None:
    """Tick until the sweep that runs has ended and its outcome was taken in."""
    for _ in range(1200):
        world.run(1)
        view = world.assembly.controller.view
        assert view is not None
        if not view.models.deployments[0].sweeping:
            return
        threading.Event().wait(0.05)
    pytest.fail("the sweep did not end")


def order(world: World, action: str) -> None:
    body = {"by": "ann", "why": "test", "action": action}
    world.assembly.desk("models", json.dumps(body).encode())


def test_engines_change_between_ticks_and_every_decision_replays(
    world: World, standin: StandIn, tmp_path: Path
) -> None:
    controller = world.assembly.controller
    declared = controller.parts.site.settings
    settle(world)
    world.run(3)
    first = controller.parts.site.settings
    assert all(isinstance(engine, ProfileEngine) for engine in first.engines)
    assert first.fleet == declared.fleet
    # Another version of the library says something else: slower by half.
    standin.set_version("0.13.0")
    standin.behave(token_ms=0.03, step_ms=9.0)
    order(world, "retry")
    world.run(1)
    settle(world)
    world.run(3)
    second = controller.parts.site.settings
    assert second.engines != first.engines
    recording = Recording(tmp_path / "state" / "recording")
    outcome = replay(recording)
    assert outcome.difference is None
    assert outcome.decisions > 10
    engines: list[object] = []
    for tick in recording.ticks():
        if not engines or tick.header.settings.engines != engines[-1]:
            engines.append(tick.header.settings.engines)
    assert engines == [declared.engines, first.engines, second.engines]


def test_a_reload_keeps_predicted_engines(world: World) -> None:
    settle(world)
    before = world.assembly.controller.parts.site.settings.engines
    aic = world.settings.models.model_dump(mode="json", exclude_none=True)
    world.write_config(models=aic, decision={"headroom": 1.3})
    assert "decision" in world.assembly.reload()
    after = world.assembly.controller.parts.site.settings
    assert after.headroom == 1.3
    assert after.engines == before


def test_a_predictor_that_fails_leaves_the_declared_engines_and_is_said(
    tmp_path: Path, standin: StandIn
) -> None:
    standin.behave(what="raises")
    world = World(tmp_path, models={"aic": {"python": str(standin.python), "limit_s": 60.0}})
    world.start()
    declared = world.assembly.controller.parts.site.settings
    settle(world)
    view = world.assembly.controller.view
    assert view is not None
    assert view.models.deployments[0].disabled_reason == "startup_exception"
    assert any("no data for this system" in problem for problem in view.problems)
    assert world.assembly.controller.parts.site.settings is declared
    standin.behave()
    order(world, "enable")
    world.run(1)
    settle(world)
    assert world.assembly.controller.parts.site.settings.engines != declared.engines
    audit = (tmp_path / "state" / "audit.jsonl").read_text()
    assert "models enable" in audit
    world.stop()


def test_the_end_does_not_wait_for_a_sweep_that_hangs(tmp_path: Path, standin: StandIn) -> None:
    standin.behave(what="hangs")
    world = World(tmp_path, models={"aic": {"python": str(standin.python), "limit_s": 600.0}})
    world.start()
    world.run(1)
    for _ in range(600):
        if (standin.folder / "hanging").exists():
            break
        threading.Event().wait(0.05)
    pid = int((standin.folder / "hanging").read_text())
    world.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_was_kept_is_in_force_from_the_first_tick(tmp_path: Path, standin: StandIn) -> None:
    models = {"aic": {"python": str(standin.python), "limit_s": 60.0}}
    world = World(tmp_path, models=models)
    world.start()
    settle(world)
    swept = world.assembly.controller.parts.site.settings.engines
    world.stop()
    standin.behave(what="raises")
    world.start()
    assert world.assembly.controller.parts.site.settings.engines == swept
    world.run(2)
    recording = Recording(tmp_path / "state" / "recording")
    assert [*recording.ticks()][-1].header.settings.engines == swept
    world.stop()
