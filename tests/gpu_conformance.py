"""What every GPU driver must do, whatever is below it.

A test module imports `*` from here and gives a fixture `rig`; the checks then run against its
driver. The rig is the hardware's side: it breaks, clamps, reorders and reads registers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import pytest

from wattline.drivers.gpu.device import GpuDevice, GpuDriver, GpuError, GpuFault

__all__ = [
    "test_a_clock_ceiling_holds_until_it_is_reset_or_is_said_to_be_unsupported",
    "test_a_fault_is_named_and_stays_with_its_gpu",
    "test_a_limit_held_down_out_of_band_is_enforced_and_not_what_was_requested",
    "test_a_limit_is_enforced_and_read_back",
    "test_a_limit_outside_the_range_is_refused_and_nothing_is_written",
    "test_a_load_above_the_limit_is_held_down_and_says_so",
    "test_a_lost_gpu_is_left_out_and_the_others_go_on",
    "test_a_refused_write_changes_nothing",
    "test_after_a_reload_limits_are_at_default_and_can_be_written_again",
    "test_after_a_reordering_no_call_reaches_another_gpu",
    "test_another_writers_limit_is_read_back",
    "test_closing_changes_no_limit",
    "test_every_call_answers_or_says_how_it_failed",
    "test_gpus_are_enumerated_in_order_with_text_uuids",
    "test_instances_of_a_split_gpu_are_told_with_their_processes",
    "test_limits_begin_at_the_default_inside_the_range",
    "test_never_more_than_asked_for_is_written",
    "test_processes_are_told",
    "test_threads_of_their_own_write_to_their_own_gpus",
]

CALLS: Sequence[tuple[str, Callable[[GpuDevice], object]]] = (
    ("range", lambda gpu: gpu.range()),
    ("enforced_w", lambda gpu: gpu.enforced_w()),
    ("requested_w", lambda gpu: gpu.requested_w()),
    ("default_w", lambda gpu: gpu.default_w()),
    ("write_limit", lambda gpu: gpu.write_limit(400.0)),
    ("draw_w", lambda gpu: gpu.draw_w()),
    ("energy_j", lambda gpu: gpu.energy_j()),
    ("sm_clock_mhz", lambda gpu: gpu.sm_clock_mhz()),
    ("max_sm_clock_mhz", lambda gpu: gpu.max_sm_clock_mhz()),
    ("lock_clocks", lambda gpu: gpu.lock_clocks(1500)),
    ("reset_clocks", lambda gpu: gpu.reset_clocks()),
    ("throttle_reasons", lambda gpu: gpu.throttle_reasons()),
    ("persistence_mode", lambda gpu: gpu.persistence_mode()),
    ("mig_enabled", lambda gpu: gpu.mig_enabled()),
    ("mig_uuids", lambda gpu: gpu.mig_uuids()),
    ("processes", lambda gpu: gpu.processes()),
)

FAULTS = (GpuFault.LOST, GpuFault.UNKNOWN, GpuFault.UNAVAILABLE, GpuFault.NO_PERMISSION)


class Rig(Protocol):
    """Four GPUs that accept 200 to 700 W, with their driver."""

    @property
    def driver(self) -> GpuDriver:
        """The driver under test."""

    step_w: float
    """Limits are kept to a multiple of this; 0: exactly."""
    clock_ceilings: bool

    def fail(self, uuid: str, fault: GpuFault | None) -> None:
        """Let every call on a GPU fail, or (None) work again."""

    def refuse_writes(self, uuid: str) -> None:
        """Let writes of limits fail for lack of permission."""

    def hold_below(self, uuid: str, watts: float) -> None:
        """Clamp out of band."""

    def rival(self, uuid: str, watts: float) -> None:
        """Write as somebody else."""

    def load(self, uuid: str, watts: float) -> None:
        """Say what the GPU would draw without a limit."""

    def reload(self) -> None:
        """Load the driver anew."""

    def reorder(self, uuids: Sequence[str]) -> None:
        """Give the GPUs new indices."""

    def split(self, uuid: str, pid: int) -> Sequence[str]:
        """Turn MIG on, with a process on the first of the instances; their UUIDs."""

    def run(self, uuid: str, pids: Sequence[int]) -> None:
        """Let processes compute on a GPU."""

    def enforced_w(self, uuid: str) -> float:
        """The register, read past the driver."""


def by_uuid(rig: Rig) -> dict[str, GpuDevice]:
    return {gpu.identity.uuid: gpu for gpu in rig.driver.enumerate()}


def failure_of(call: Callable[[], object]) -> GpuError | None:
    """The way in which a call failed; None: it did not."""
    try:
        call()
    except GpuError as error:
        return error
    return None


def test_gpus_are_enumerated_in_order_with_text_uuids(rig: Rig) -> None:
    gpus = rig.driver.enumerate()
    assert [gpu.identity.index for gpu in gpus] == [0, 1, 2, 3]
    assert all(type(gpu.identity.uuid) is str for gpu in gpus)
    assert all(gpu.identity.uuid.startswith("GPU-") for gpu in gpus)
    assert len({gpu.identity.uuid for gpu in gpus}) == 4
    assert all("H100" in gpu.identity.product for gpu in gpus)


def test_limits_begin_at_the_default_inside_the_range(rig: Rig) -> None:
    for gpu in rig.driver.enumerate():
        limits = gpu.range()
        assert (limits.min_w, limits.max_w) == (200.0, 700.0)
        assert gpu.default_w() == gpu.requested_w() == gpu.enforced_w() == 700.0


def test_a_limit_is_enforced_and_read_back(rig: Rig) -> None:
    gpus = rig.driver.enumerate()
    gpus[1].write_limit(345.0)
    assert [gpu.enforced_w() for gpu in gpus] == [700.0, 345.0, 700.0, 700.0]
    assert gpus[1].requested_w() == 345.0
    assert rig.enforced_w(gpus[1].identity.uuid) == 345.0
    gpus[1].write_limit(700.0)
    assert gpus[1].enforced_w() == 700.0


@pytest.mark.parametrize("watts", [350.7, 350.7004, 333.3333333, 299.99999999999994, 200.0005])
def test_never_more_than_asked_for_is_written(rig: Rig, watts: float) -> None:
    gpu = rig.driver.enumerate()[0]
    gpu.write_limit(watts)
    enforced_w = rig.enforced_w(gpu.identity.uuid)
    assert watts - rig.step_w - 1e-9 < enforced_w <= watts + 1e-9
    assert gpu.enforced_w() == pytest.approx(enforced_w, abs=1e-9)


@pytest.mark.parametrize(
    "watts", [199.999, 701.0, 0.0, -300.0, 1e12, math.nan, math.inf, -math.inf]
)
def test_a_limit_outside_the_range_is_refused_and_nothing_is_written(
    rig: Rig, watts: float
) -> None:
    gpu = rig.driver.enumerate()[0]
    gpu.write_limit(500.0)
    with pytest.raises(GpuError) as caught:
        gpu.write_limit(watts)
    assert caught.value.fault is GpuFault.OUT_OF_RANGE
    assert "\n" not in str(caught.value)
    assert rig.enforced_w(gpu.identity.uuid) == 500.0


def test_a_limit_held_down_out_of_band_is_enforced_and_not_what_was_requested(rig: Rig) -> None:
    gpu = rig.driver.enumerate()[2]
    rig.hold_below(gpu.identity.uuid, 300.0)
    gpu.write_limit(600.0)
    assert gpu.enforced_w() == 300.0
    assert gpu.requested_w() == 600.0


def test_another_writers_limit_is_read_back(rig: Rig) -> None:
    gpu = rig.driver.enumerate()[0]
    gpu.write_limit(400.0)
    rig.rival(gpu.identity.uuid, 650.0)
    assert gpu.enforced_w() == 650.0
    gpu.write_limit(400.0)
    assert gpu.enforced_w() == 400.0


def test_a_refused_write_changes_nothing(rig: Rig) -> None:
    gpu = rig.driver.enumerate()[0]
    rig.refuse_writes(gpu.identity.uuid)
    with pytest.raises(GpuError) as caught:
        gpu.write_limit(400.0)
    assert caught.value.fault is GpuFault.NO_PERMISSION
    assert gpu.enforced_w() == rig.enforced_w(gpu.identity.uuid) == 700.0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_stays_with_its_gpu(rig: Rig, fault: GpuFault) -> None:
    gpus = rig.driver.enumerate()
    rig.fail(gpus[0].identity.uuid, fault)
    for call in (gpus[0].enforced_w, lambda: gpus[0].write_limit(300.0)):
        with pytest.raises(GpuError) as caught:
            call()
        assert caught.value.fault is fault
        assert gpus[0].identity.uuid in str(caught.value)
    gpus[1].write_limit(300.0)
    assert gpus[1].enforced_w() == 300.0
    rig.fail(gpus[0].identity.uuid, None)
    assert gpus[0].enforced_w() == 700.0


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_every_call_answers_or_says_how_it_failed(rig: Rig, fault: GpuFault | None) -> None:
    gpu = rig.driver.enumerate()[0]
    rig.fail(gpu.identity.uuid, fault)
    for name, call in CALLS:
        error = failure_of(partial(call, gpu))
        if error is not None:
            assert "\n" not in str(error), name
            assert fault is not None or error.fault is GpuFault.NOT_SUPPORTED, name


def test_a_lost_gpu_is_left_out_and_the_others_go_on(rig: Rig) -> None:
    uuids = [gpu.identity.uuid for gpu in rig.driver.enumerate()]
    rig.fail(uuids[1], GpuFault.LOST)
    left = by_uuid(rig)
    assert set(left) == {uuids[0], uuids[2], uuids[3]}
    left[uuids[3]].write_limit(250.0)
    assert rig.enforced_w(uuids[3]) == 250.0
    rig.fail(uuids[1], None)
    assert set(by_uuid(rig)) == set(uuids)


def test_after_a_reordering_no_call_reaches_another_gpu(rig: Rig) -> None:
    old = by_uuid(rig)
    uuids = list(old)
    for watts, uuid in zip((300.0, 400.0, 500.0, 600.0), uuids, strict=True):
        old[uuid].write_limit(watts)
    order = [uuids[2], uuids[0], uuids[3], uuids[1]]
    rig.reorder(order)
    for uuid, expected_w in zip(uuids, (300.0, 400.0, 500.0, 600.0), strict=True):
        before = {other: rig.enforced_w(other) for other in uuids}
        error = failure_of(old[uuid].enforced_w)
        if error is None:
            assert old[uuid].enforced_w() == expected_w
        failed = [error, failure_of(partial(old[uuid].write_limit, expected_w + 50))]
        assert {error.fault for error in failed if error} <= {GpuFault.STALE_HANDLE}
        after = {other: rig.enforced_w(other) for other in uuids}
        assert {other for other in uuids if after[other] != before[other]} <= {uuid}
    new = rig.driver.enumerate()
    assert [gpu.identity.uuid for gpu in new] == order
    for gpu in new:
        gpu.write_limit(700.0)
    assert all(rig.enforced_w(uuid) == 700.0 for uuid in uuids)


def test_after_a_reload_limits_are_at_default_and_can_be_written_again(rig: Rig) -> None:
    gpus = rig.driver.enumerate()
    gpus[0].write_limit(300.0)
    rig.reload()
    again = rig.driver.enumerate()
    assert [gpu.enforced_w() for gpu in again] == [700.0] * 4
    again[0].write_limit(300.0)
    assert rig.enforced_w(again[0].identity.uuid) == 300.0


def test_threads_of_their_own_write_to_their_own_gpus(rig: Rig) -> None:
    gpus = rig.driver.enumerate()
    failed: list[BaseException] = []

    def write_and_read(gpu: GpuDevice, base_w: float) -> None:
        try:
            for step in range(25):
                gpu.write_limit(base_w + step)
                assert gpu.enforced_w() == base_w + step
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=write_and_read, args=(gpu, 200.0 + 100 * place))
        for place, gpu in enumerate(gpus)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failed
    assert [gpu.enforced_w() for gpu in gpus] == [224.0, 324.0, 424.0, 524.0]


def test_a_load_above_the_limit_is_held_down_and_says_so(rig: Rig) -> None:
    gpu = rig.driver.enumerate()[0]
    rig.load(gpu.identity.uuid, 650.0)
    assert "sw_power_cap" not in gpu.throttle_reasons()
    gpu.write_limit(300.0)
    assert "sw_power_cap" in gpu.throttle_reasons()
    draw_w = gpu.draw_w()
    assert draw_w is not None
    assert 0.0 < draw_w <= 700.0
    assert (gpu.energy_j() or 0.0) >= 0.0


def test_a_clock_ceiling_holds_until_it_is_reset_or_is_said_to_be_unsupported(rig: Rig) -> None:
    gpu = rig.driver.enumerate()[0]
    highest = gpu.max_sm_clock_mhz()
    assert highest is not None
    if not rig.clock_ceilings:
        with pytest.raises(GpuError) as caught:
            gpu.lock_clocks(1200)
        assert caught.value.fault is GpuFault.NOT_SUPPORTED
        return
    rig.load(gpu.identity.uuid, 600.0)
    gpu.lock_clocks(1200)
    clock = gpu.sm_clock_mhz()
    assert clock is not None
    assert clock <= 1200
    for wrong in (0, -5, highest + 1):
        with pytest.raises(GpuError) as caught:
            gpu.lock_clocks(wrong)
        assert caught.value.fault is GpuFault.OUT_OF_RANGE
    gpu.reset_clocks()
    clock = gpu.sm_clock_mhz()
    assert clock is not None
    assert clock > 1200


def test_processes_are_told(rig: Rig) -> None:
    gpus = rig.driver.enumerate()
    rig.run(gpus[1].identity.uuid, [4321, 77])
    assert sorted(process.pid for process in gpus[1].processes()) == [77, 4321]
    assert all(process.mig_uuid is None for process in gpus[1].processes())
    assert list(gpus[0].processes()) == []
    assert gpus[1].mig_enabled() is False
    assert list(gpus[1].mig_uuids()) == []


def test_instances_of_a_split_gpu_are_told_with_their_processes(rig: Rig) -> None:
    gpu = rig.driver.enumerate()[0]
    instances = rig.split(gpu.identity.uuid, 4321)
    assert gpu.mig_enabled() is True
    assert list(gpu.mig_uuids()) == list(instances)
    assert [(found.pid, found.mig_uuid) for found in gpu.processes()] == [(4321, instances[0])]
    gpu.write_limit(400.0)
    assert gpu.enforced_w() == 400.0


def test_closing_changes_no_limit(rig: Rig) -> None:
    gpu = rig.driver.enumerate()[0]
    gpu.write_limit(400.0)
    rig.driver.close()
    assert rig.enforced_w(gpu.identity.uuid) == 400.0
