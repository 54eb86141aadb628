"""The NVML driver with the unmodified binding over the virtual library, in this process."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings

from gpu_conformance import *  # noqa: F403 - the checks themselves
from gpu_histories import HISTORIES, Step, check_history
from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.gpu.nvml import NvmlDevice, NvmlDriver
from wattline.virtual.gpus import Group, NvmlCode, VirtualProcess
from wattline.virtual.node import GPUS_VARIABLE, VirtualNode

pytest_plugins = ("virtual_fixtures",)

CODES = {
    GpuFault.NO_PERMISSION: NvmlCode.NO_PERMISSION,
    GpuFault.UNKNOWN: NvmlCode.UNKNOWN,
    GpuFault.UNAVAILABLE: NvmlCode.TIMEOUT,
    GpuFault.NOT_SUPPORTED: NvmlCode.NOT_SUPPORTED,
    GpuFault.OUT_OF_RANGE: NvmlCode.INVALID_ARGUMENT,
    GpuFault.STALE_HANDLE: NvmlCode.UNINITIALIZED,
}


class VirtualRig:
    """The NVML driver on four virtual H100."""

    step_w = 0.001
    clock_ceilings = True

    def __init__(self, node: VirtualNode) -> None:
        # Only now: pytest has to be the first to import what it loads as a plugin.
        from virtual_fixtures import refuse_real_nvml

        refuse_real_nvml()
        self.gpus = node.gpus
        self.driver = NvmlDriver()

    def fail(self, uuid: str, fault: GpuFault | None) -> None:
        if fault is None:
            self.gpus.clear(uuid)
        elif fault is GpuFault.LOST:
            self.gpus.lose(uuid)
        else:
            self.gpus.fail(uuid, Group.ALL, CODES[fault])

    def refuse_writes(self, uuid: str) -> None:
        self.gpus.fail(uuid, Group.LIMIT_WRITE, NvmlCode.NO_PERMISSION)

    def hold_below(self, uuid: str, watts: float) -> None:
        self.gpus.hold_below(uuid, watts)

    def rival(self, uuid: str, watts: float) -> None:
        self.gpus.rival(uuid, watts)

    def load(self, uuid: str, watts: float) -> None:
        self.gpus.set_load(uuid, watts)

    def reload(self) -> None:
        self.gpus.reload()

    def reorder(self, uuids: Sequence[str]) -> None:
        self.gpus.renumber(uuids)

    def split(self, uuid: str, pid: int) -> Sequence[str]:
        instances = self.gpus.split(uuid, 2)
        self.gpus.set_processes(uuid, [VirtualProcess(pid, gpu_instance=1, compute_instance=0)])
        return instances

    def run(self, uuid: str, pids: Sequence[int]) -> None:
        self.gpus.set_processes(uuid, [VirtualProcess(pid) for pid in pids])

    def enforced_w(self, uuid: str) -> float:
        return self.gpus.state(uuid).enforced_w


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualRig]:
    with VirtualNode(tmp_path / "node", ("h100",) * 4, settle_s=0.0) as node:
        monkeypatch.setenv(GPUS_VARIABLE, str(node.gpus_file))
        made = VirtualRig(node)
        yield made
        made.driver.close()


@settings(max_examples=40)
@given(steps=HISTORIES)
def test_a_write_lands_where_it_was_meant_or_nowhere(steps: list[Step]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        VirtualNode(Path(folder), ("h100",) * 4, settle_s=0.0) as node,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(GPUS_VARIABLE, str(node.gpus_file))
        made = VirtualRig(node)
        try:
            check_history(made, steps)
        finally:
            made.driver.close()


def test_limits_are_written_by_the_second_setter_and_enforced_by_two_sources(
    rig: VirtualRig,
) -> None:
    gpu = rig.driver.enumerate()[0]
    gpu.write_limit(400.0)
    assert gpu.enforced_w() == 400.0
    assert gpu.sources()["write_limit"] == "nvmlDeviceSetPowerManagementLimit_v2, GPU scope"
    assert gpu.sources()["enforced_w"] == "field 190, nvmlDeviceGetEnforcedPowerLimit agrees"
    assert gpu.draw_w() is not None
    assert gpu.sources()["draw_w"] == "field 185, a mean of 1 s"


def test_without_power_fields_the_calls_are_asked(rig: VirtualRig) -> None:
    gpu = rig.driver.enumerate()[0]
    rig.gpus.hide_fields(gpu.identity.uuid, range(185, 193))
    gpu.write_limit(400.0)
    assert gpu.enforced_w() == gpu.requested_w() == 400.0
    assert gpu.default_w() == 700.0
    assert gpu.draw_w() is not None
    assert "instantaneous on GA100" in gpu.sources()["draw_w"]
    assert "field 190 is not supported" in gpu.sources()["enforced_w"]


@pytest.mark.parametrize("answer", [NvmlCode.UNINITIALIZED, NvmlCode.UNKNOWN])
def test_a_device_of_before_a_reload_finds_its_gpu_again(rig: VirtualRig, answer: NvmlCode) -> None:
    gpus = rig.driver.enumerate()
    gpus[0].write_limit(300.0)
    rig.gpus.reload(dead_session=answer)
    assert gpus[0].enforced_w() == 700.0
    gpus[1].write_limit(300.0)
    assert [gpu.enforced_w() for gpu in gpus] == [700.0, 300.0, 700.0, 700.0]


@pytest.mark.parametrize("answer", [NvmlCode.UNINITIALIZED, NvmlCode.UNKNOWN])
def test_while_the_driver_is_away_calls_say_so_and_then_work(
    rig: VirtualRig, answer: NvmlCode
) -> None:
    gpu = rig.driver.enumerate()[0]
    rig.gpus.reload(absent_s=0.3, dead_session=answer)
    with pytest.raises(GpuError) as caught:
        gpu.enforced_w()
    assert caught.value.fault is GpuFault.UNAVAILABLE
    with pytest.raises(GpuError) as caught:
        rig.driver.enumerate()
    assert caught.value.fault is GpuFault.UNAVAILABLE
    assert "kernel driver" in str(caught.value)
    gpu = first_gpu_within(rig, seconds=20.0)
    gpu.write_limit(300.0)
    assert gpu.enforced_w() == 300.0


def first_gpu_within(rig: VirtualRig, seconds: float) -> NvmlDevice:
    """The first GPU, as soon as the driver enumerates again."""
    until = time.monotonic() + seconds
    while True:
        try:
            return rig.driver.enumerate()[0]
        except GpuError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def test_handles_that_come_to_mean_another_gpu_are_not_used(rig: VirtualRig) -> None:
    gpus = rig.driver.enumerate()
    uuids = [gpu.identity.uuid for gpu in gpus]
    rig.gpus.renumber([uuids[1], uuids[0], *uuids[2:]], stale_handles=False)
    gpus[0].write_limit(300.0)
    assert gpus[0].enforced_w() == 300.0
    assert [rig.enforced_w(uuid) for uuid in uuids] == [300.0, 700.0, 700.0, 700.0]


def test_a_gpu_taken_away_is_lost_and_a_new_one_is_found(rig: VirtualRig) -> None:
    gpus = rig.driver.enumerate()
    gone = gpus[1].identity.uuid
    rig.gpus.remove(gone)
    for call in (gpus[1].enforced_w, lambda: gpus[1].write_limit(300.0)):
        with pytest.raises(GpuError) as caught:
            call()
        assert caught.value.fault is GpuFault.LOST
    gpus[2].write_limit(300.0)
    assert gpus[2].enforced_w() == 300.0
    added = rig.gpus.add("b200", settle_s=0.0)
    found = {gpu.identity.uuid: gpu for gpu in rig.driver.enumerate()}
    assert gone not in found
    found[added].write_limit(900.0)
    assert found[added].enforced_w() == 900.0


def test_enumerating_again_costs_an_idle_gpu_without_persistence_no_limit(
    rig: VirtualRig,
) -> None:
    gpu = rig.driver.enumerate()[0]
    rig.gpus.set_persistence(gpu.identity.uuid, False)
    assert gpu.persistence_mode() is False
    gpu.write_limit(300.0)
    for _ in range(3):
        rig.driver.enumerate()
    rig.gpus.lose(rig.gpus.uuids()[1])
    rig.driver.enumerate()
    assert rig.enforced_w(gpu.identity.uuid) == 300.0


def test_two_drivers_share_the_library_until_both_are_closed(rig: VirtualRig) -> None:
    other = NvmlDriver()
    gpu = rig.driver.enumerate()[0]
    other.enumerate()
    other.close()
    other.close()
    gpu.write_limit(300.0)
    assert gpu.enforced_w() == 300.0
    rig.driver.close()
    assert os.getpid() not in rig.gpus.clients()
