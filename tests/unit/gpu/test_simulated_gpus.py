"""The simulated GPUs themselves: their clock, their energy, their faults; and opening by name."""

from __future__ import annotations

import pytest

from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.gpu.open import DRIVERS, open_driver
from wattline.drivers.gpu.simulated import SimulatedDriver, SimulatedNode


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.waited_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.waited_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(clock: Clock) -> SimulatedNode:
    return SimulatedNode(("NVIDIA H200", "NVIDIA B200"), clock=clock, wait=clock.wait)


def test_energy_is_draw_over_time_and_draw_obeys_the_limit(
    node: SimulatedNode, clock: Clock
) -> None:
    gpu = SimulatedDriver(node).enumerate()[0]
    node.load(gpu.identity.uuid, 600.0)
    before_j = gpu.energy_j() or 0.0
    clock.now_s += 2.0
    gpu.write_limit(300.0)
    clock.now_s += 3.0
    assert gpu.energy_j() == pytest.approx(before_j + 600.0 * 2 + 300.0 * 3)
    node.reload()
    assert SimulatedDriver(node).enumerate()[0].energy_j() == 0.0


def test_a_slow_call_waits_and_others_do_not(node: SimulatedNode, clock: Clock) -> None:
    gpu, other = SimulatedDriver(node).enumerate()
    node.delay(gpu.identity.uuid, 1.5, "write_limit")
    gpu.write_limit(300.0)
    gpu.enforced_w()
    other.write_limit(300.0)
    assert clock.waited_s == [1.5]


def test_ranges_are_of_the_product(node: SimulatedNode) -> None:
    h200, b200 = SimulatedDriver(node).enumerate()
    b200.write_limit(1000.0)
    with pytest.raises(GpuError) as caught:
        h200.write_limit(1000.0)
    assert caught.value.fault is GpuFault.OUT_OF_RANGE
    assert [gpu.writes for gpu in node.gpus] == [[], [1000.0]]


def test_old_devices_are_stale_after_a_reload_and_after_a_reordering(node: SimulatedNode) -> None:
    driver = SimulatedDriver(node)
    for change in (node.reload, lambda: node.reenumerate([1, 0])):
        device = driver.enumerate()[0]
        change()
        with pytest.raises(GpuError) as caught:
            device.write_limit(300.0)
        assert caught.value.fault is GpuFault.STALE_HANDLE
    assert all(gpu.writes == [] for gpu in node.gpus)


def test_a_fault_of_one_call_leaves_the_others(node: SimulatedNode) -> None:
    gpu = SimulatedDriver(node).enumerate()[0]
    node.fail(gpu.identity.uuid, GpuFault.UNKNOWN, "draw_w")
    with pytest.raises(GpuError):
        gpu.draw_w()
    assert gpu.enforced_w() == 700.0
    node.fail(gpu.identity.uuid, None, "draw_w")
    assert gpu.draw_w() == 75.0


def test_a_gpu_can_be_plugged_in(node: SimulatedNode) -> None:
    node.add("NVIDIA H200", uuid="GPU-new")
    assert [gpu.identity.uuid for gpu in SimulatedDriver(node).enumerate()][-1] == "GPU-new"


@pytest.mark.parametrize("name", ["nvml", "simulated"])
def test_a_driver_is_opened_by_its_name(name: str) -> None:
    assert open_driver(name).name == name


def test_an_unknown_driver_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InputError, match=", ".join(DRIVERS)):
        open_driver("cuda")
