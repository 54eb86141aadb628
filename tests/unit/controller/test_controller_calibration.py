"""The controller calibrates by default: seen in the state, switched off by a reload, replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controller_world import World

from wattline.controller.state_page import state_page
from wattline.core.calibration.state import DeploymentCalibration, RoleCalibration
from wattline.core.decision import ReasonCode
from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.drivers.dynamo.sources import DemandReading
from wattline.recording.record import Recording
from wattline.sim.explain import last_tick, reasons_of
from wattline.sim.replay import replay


class SlowFleet(World):
    """Its answers come `itl_s` apart, and its prompts take `ttft_s`."""

    ttft_s, itl_s = 0.4, 0.028
    running = False

    def start(self, *, advisory: bool = False) -> Any:
        made = super().start(advisory=advisory)
        plain = self.demand.read

        def read(now_s: float) -> DemandReading:
            reading = plain(now_s)
            return DemandReading(
                view=replace(reading.view, ttft_mean_s=self.ttft_s, itl_mean_s=self.itl_s)
            )

        self.demand.read = read  # type: ignore[method-assign]
        self.running = True
        return made

    def stop(self) -> None:
        if self.running:
            self.running = False
            super().stop()

    @property
    def calibration(self) -> DeploymentCalibration:
        view = self.assembly.controller.view
        assert view is not None
        assert view.decision is not None
        assert view.decision.next_state is not None
        (entry,) = view.decision.next_state.calibration
        return entry

    def role(self, role: Role) -> RoleCalibration:
        return next(entry for entry in self.calibration.roles if entry.role is role)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SlowFleet]:
    made = SlowFleet(tmp_path, sources={"call_s": 2.0})
    made.start()
    yield made
    made.stop()


def test_a_slow_fleet_is_corrected_shown_explained_and_replayed(world: SlowFleet) -> None:
    world.run(70)
    decode = world.role(Role.DECODE)
    assert decode.factors.itl > 1.5
    assert decode.in_force.itl > 1.5
    assert decode.windows > 2
    view = world.assembly.controller.view
    assert view is not None
    assert view.decision is not None
    site = world.assembly.controller.parts.site
    page = json.loads(state_page(view, site.fleet, view.made_s))
    shown = {role["role"]: role for role in page["deployments"][0]["calibration"]["roles"]}
    assert shown["decode"]["factors"]["itl"] == decode.factors.itl
    assert shown["decode"]["in_force"]["itl"] == decode.in_force.itl
    assert page["deployments"][0]["calibration"]["drifts"] == 0
    assert sum(view.caps.booked_w) <= 2000.0 * 0.98
    world.stop()
    recording = Recording(world.settings.recording_folder)
    (_, _, sentence) = reasons_of(last_tick(recording))[1]
    assert "calibration: decode is planned at" in sentence
    outcome = replay(recording)
    assert outcome.difference is None
    assert outcome.decisions == 70


def test_drift_is_a_reason_of_one_tick(tmp_path: Path) -> None:
    world = SlowFleet(tmp_path, calibration={"drift_interval_s": 40.0, "window_s": 5.0})
    world.itl_s = 0.05
    world.start()
    drifts = []
    for tick in range(120):
        world.run(1)
        view = world.assembly.controller.view
        assert view is not None
        assert view.decision is not None
        if any(reason.code is ReasonCode.MODEL_DRIFT for reason in view.decision.reasons):
            drifts.append(tick)
    world.stop()
    assert world.calibration.drift.fired == len(drifts) == 2
    assert drifts[0] >= 40 + 10
    assert drifts[1] - drifts[0] >= 40 + 10
    assert replay(Recording(world.settings.recording_folder)).difference is None


def test_a_reload_switches_it_off_and_on(world: SlowFleet) -> None:
    world.run(70)
    world.write_config(calibration={"enabled": False})
    assert "changed: calibration.enabled" in world.assembly.reload()
    world.run(2)
    view = world.assembly.controller.view
    assert view is not None
    assert view.decision is not None
    assert view.decision.next_state is not None
    assert view.decision.next_state.calibration == ()
    world.write_config(calibration={"window_s": 5.0})
    world.assembly.reload()
    world.run(40)
    assert world.role(Role.DECODE).factors.itl > 1.3
    world.stop()
    assert replay(Recording(world.settings.recording_folder)).difference is None


def test_a_restart_goes_on_with_the_factors(world: SlowFleet) -> None:
    world.run(70)
    before = world.role(Role.DECODE)
    world.stop()
    world.start()
    world.run(1)
    assert world.role(Role.DECODE).factors == before.factors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"least": 1.5}, "least"),
        ({"most": 0.5}, "most"),
        ({"drift_windows": 0}, "drift_windows"),
        ({"windows": 3}, "windows"),
    ],
)
def test_a_bad_section_is_refused(tmp_path: Path, given: dict[str, float], said: str) -> None:
    world = World(tmp_path)
    world.write_config(calibration=given)
    with pytest.raises(InputError, match=said):
        _ = world.settings
