"""What the loop makes of results that come in an unlucky order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wattline.agent.actuator import Actuator
from wattline.agent.brake import BrakeCall, Braked, BrakeSwitch
from wattline.agent.device_calls import Order, Readings, Written, take_readings
from wattline.agent.gpus import GpuEntry
from wattline.agent.journal import Journal
from wattline.agent.lanes import BRAKE_SERIAL, Lane
from wattline.agent.settings import AgentSettings
from wattline.drivers.gpu.simulated import SimulatedDriver, SimulatedNode

BRAKE_W = 300.0


def nothing(event: object) -> None:
    """Results are handed over by the test, in the order that it wants."""


def no_time() -> float:
    return 0.0


@contextmanager
def one_gpu(folder: Path) -> Iterator[tuple[Actuator, GpuEntry, Callable[[int], Readings]]]:
    """An actuator that knows one GPU at 700 W, and how to read that after so many brakes."""
    settings = AgentSettings(
        node="n1", state_dir=folder, grants=folder / "grants", brake_w=BRAKE_W, driver="simulated"
    )
    actuator = Actuator(
        settings, Journal(folder), incarnation=7, switch=BrakeSwitch(nothing), now=no_time
    )
    [device] = SimulatedDriver(SimulatedNode(["NVIDIA H200"])).enumerate()
    entry = actuator.add_device(device, lambda found: Lane(found, post=nothing, now=no_time))

    def read(brakes: int) -> Readings:
        return take_readings(device, entry.uuid, facts=True, brakes=brakes, now=no_time)

    try:
        actuator.on_readings(read(0))
        actuator.pump()
        yield actuator, entry, read
    finally:
        assert entry.lane.close(20.0)


@pytest.mark.parametrize("written_first", [True, False])
def test_what_a_brake_left_never_passes_for_what_was_found(
    tmp_path: Path, written_first: bool
) -> None:
    with one_gpu(tmp_path) as (actuator, entry, read):
        # The lane has braked, and has read the GPU once more, before the loop hears of the brake.
        entry.lane.brake(BRAKE_W, 1)
        assert entry.lane.close(20.0)
        written = Written(
            uuid=entry.uuid,
            order=Order(serial=BRAKE_SERIAL, brakes=1, watts=BRAKE_W),
            braking=True,
            done_s=0.0,
            enforced_w=BRAKE_W,
            requested_w=BRAKE_W,
        )
        if written_first:
            actuator.on_written(written)
        actuator.on_readings(read(1))
        actuator.pump()
        call = BrakeCall(trigger="signal", by="test")
        actuator.on_braked(Braked(call=call, count=1, targets={entry.uuid: BRAKE_W}))
        if not written_first:
            actuator.on_written(written)
        actuator.pump()
        record = Journal(tmp_path).load().gpus[entry.uuid]
        assert (record.original_w, record.ours_w) == (700.0, (BRAKE_W,))
        assert entry.write is None
        assert actuator.node.report(entry.uuid, 0.0).enforced_w == BRAKE_W
