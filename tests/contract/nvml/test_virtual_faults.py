"""Every fault of the virtual GPUs, as the unmodified nvidia-ml-py meets it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pynvml
import pytest

from wattline.virtual.gpus import Cause, Group, NvmlCode, VirtualProcess
from wattline.virtual.node import VirtualNode

pytest_plugins = ("virtual_fixtures",)

CALLS: dict[Group, Callable[[object], object]] = {
    Group.IDENTITY: pynvml.nvmlDeviceGetUUID,
    Group.LIMIT_READ: pynvml.nvmlDeviceGetEnforcedPowerLimit,
    Group.LIMIT_WRITE: lambda handle: pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000),
    Group.POWER: pynvml.nvmlDeviceGetPowerUsage,
    Group.ENERGY: pynvml.nvmlDeviceGetTotalEnergyConsumption,
    Group.FIELDS: lambda handle: pynvml.nvmlDeviceGetFieldValues(handle, [190]),
    Group.CLOCK_READ: lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
    Group.CLOCK_WRITE: lambda handle: pynvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1200),
    Group.REASONS: pynvml.nvmlDeviceGetCurrentClocksEventReasons,
    Group.PERSISTENCE: pynvml.nvmlDeviceGetPersistenceMode,
    Group.PROCESS_LIST: pynvml.nvmlDeviceGetComputeRunningProcesses,
    Group.MIG: pynvml.nvmlDeviceGetMigMode,
    Group.TELEMETRY: pynvml.nvmlDeviceGetMemoryInfo,
    Group.EVENTS: pynvml.nvmlDeviceGetSupportedEventTypes,
}


@pytest.fixture
def handle(local_node: VirtualNode) -> Iterator[object]:
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


def code_of(call: Callable[[], object]) -> int:
    try:
        call()
    except pynvml.NVMLError as error:
        return int(error.value)
    return 0


@pytest.mark.parametrize("group", CALLS, ids=lambda group: group.name.lower())
def test_a_fault_meets_its_group_only(
    local_node: VirtualNode, handle: object, group: Group
) -> None:
    local_node.gpus.fail(0, group, NvmlCode.UNKNOWN)
    codes = {other: code_of(lambda other=other: CALLS[other](handle)) for other in CALLS}  # type: ignore[misc]
    assert codes == {other: 999 if other is group else 0 for other in CALLS}
    local_node.gpus.clear(0)
    assert code_of(lambda: CALLS[group](handle)) == 0


@pytest.mark.parametrize("group", CALLS, ids=lambda group: group.name.lower())
def test_a_fault_meets_its_gpu_only(local_node: VirtualNode, handle: object, group: Group) -> None:
    local_node.gpus.fail(1, group, NvmlCode.UNKNOWN)
    assert code_of(lambda: CALLS[group](handle)) == 0


def test_a_fault_lasts_for_its_count(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.fail(0, Group.LIMIT_WRITE, NvmlCode.NO_PERMISSION, count=2)
    codes = [code_of(lambda: CALLS[Group.LIMIT_WRITE](handle)) for _ in range(3)]
    assert codes == [4, 4, 0]
    assert local_node.gpus.calls(0, Group.LIMIT_WRITE) == 3


def test_a_refused_write_changes_nothing(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.fail(0, Group.LIMIT_WRITE, NvmlCode.NO_PERMISSION)
    assert code_of(lambda: CALLS[Group.LIMIT_WRITE](handle)) == 4
    assert local_node.gpus.state(0).enforced_w == 700.0


def test_a_write_can_fail_after_the_deed(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.fail(0, Group.LIMIT_WRITE, -NvmlCode.UNKNOWN)
    assert code_of(lambda: CALLS[Group.LIMIT_WRITE](handle)) == 999
    assert local_node.gpus.state(0).enforced_w == 400.0


def test_slow_calls_answer_late_and_hold_nobody_up(local_node: VirtualNode, handle: object) -> None:
    other = pynvml.nvmlDeviceGetHandleByIndex(1)
    local_node.gpus.fail(0, Group.LIMIT_READ, NvmlCode.SUCCESS, delay_s=0.05)
    before = time.monotonic()
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000
    assert time.monotonic() - before >= 0.05
    local_node.gpus.fail(0, Group.LIMIT_READ, NvmlCode.SUCCESS, delay_s=600)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(other) == 700_000
    assert local_node.gpus.state(0).enforced_w == 700.0


def test_faults_of_the_node(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.fail(None, Group.ENUMERATION, NvmlCode.UNKNOWN, count=1)
    assert code_of(pynvml.nvmlDeviceGetCount) == 999
    assert code_of(pynvml.nvmlDeviceGetCount) == 0
    pynvml.nvmlShutdown()
    local_node.gpus.fail(None, Group.SESSION, NvmlCode.DRIVER_NOT_LOADED, count=1)
    assert code_of(pynvml.nvmlInit) == 9
    pynvml.nvmlInit()


def test_a_lost_gpu_is_lost_to_every_call_and_comes_back(
    local_node: VirtualNode, handle: object
) -> None:
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    local_node.gpus.lose(0)
    assert {code_of(lambda call=call: call(handle)) for call in CALLS.values()} == {15}  # type: ignore[misc]
    assert code_of(lambda: pynvml.nvmlDeviceGetHandleByIndex(0)) == 15
    assert pynvml.nvmlDeviceGetCount() == 8
    assert local_node.gpus.state(0).lost_xid == 79
    local_node.gpus.recover(0)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 400_000


def test_hidden_fields_are_not_supported(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.hide_fields(0, [190, 192])
    codes = [v.nvmlReturn for v in pynvml.nvmlDeviceGetFieldValues(handle, [189, 190, 192])]
    assert codes == [0, 3, 3]
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000


def test_a_fault_of_limits_shows_in_their_fields(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.fail(0, Group.LIMIT_READ, NvmlCode.UNKNOWN)
    codes = [v.nvmlReturn for v in pynvml.nvmlDeviceGetFieldValues(handle, [186, 190])]
    assert codes == [0, 999]


@pytest.mark.parametrize(
    ("ceiling_w", "floor_w", "asked_w", "enforced_w"),
    [(500, None, 600, 500), (500, None, 400, 400), (None, 500, 400, 500), (None, 500, 600, 600)],
    ids=["ceiling_holds", "below_ceiling", "floor_holds", "above_floor"],
)
def test_limits_held_out_of_band(
    local_node: VirtualNode,
    handle: object,
    ceiling_w: float | None,
    floor_w: float | None,
    asked_w: int,
    enforced_w: int,
) -> None:
    local_node.gpus.hold_below(0, ceiling_w)
    local_node.gpus.hold_above(0, floor_w)
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, asked_w * 1000)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == enforced_w * 1000
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == asked_w * 1000
    local_node.gpus.clear(0)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == asked_w * 1000


def test_another_writer_once(local_node: VirtualNode, handle: object) -> None:
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    local_node.gpus.rival(0, 650)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 650_000
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 400_000
    assert [c.cause for c in local_node.gpus.changes(0)[0][-3:]] == [
        Cause.NVML,
        Cause.RIVAL,
        Cause.NVML,
    ]


def test_another_writer_again_and_again(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.rival(0, 650, period_s=0.001, count=2000)
    for _ in range(3):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
        deadline = time.monotonic() + 10
        while pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) != 650_000:
            assert time.monotonic() < deadline
    local_node.gpus.clear(0)
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    time.sleep(0.01)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 400_000


def test_a_reload_brings_default_limits_and_stale_handles(
    local_node: VirtualNode, handle: object
) -> None:
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    pynvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 1200)
    local_node.gpus.set_processes(0, [VirtualProcess(7)])
    local_node.gpus.reload()
    for call in CALLS.values():
        assert code_of(lambda call=call: call(handle)) == 1  # type: ignore[misc]
    assert code_of(pynvml.nvmlDeviceGetCount) == 1
    state = local_node.gpus.state(0)
    assert (state.enforced_w, state.clock_ceiling_mhz) == (700.0, None)
    assert local_node.gpus.processes(0) == []
    pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    assert code_of(lambda: pynvml.nvmlDeviceGetUUID(handle)) == 2
    again = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(again) == 700_000
    assert local_node.gpus.changes(0)[0][-1].cause is Cause.RELOAD


def test_an_init_after_a_reload_needs_no_shutdown(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.reload(dead_session=NvmlCode.GPU_IS_LOST)
    assert code_of(pynvml.nvmlDeviceGetCount) == 15
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 8
    pynvml.nvmlShutdown()


def test_an_absent_driver_refuses_to_start(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.reload(absent_s=600)
    pynvml.nvmlShutdown()
    assert code_of(pynvml.nvmlInit) == 9
    local_node.gpus.reload()
    pynvml.nvmlInit()


def test_new_indices_make_handles_stale(local_node: VirtualNode, handle: object) -> None:
    uuids = local_node.gpus.uuids()
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    local_node.gpus.renumber(uuids[::-1])
    assert code_of(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) == 2
    moved = pynvml.nvmlDeviceGetHandleByIndex(7)
    assert pynvml.nvmlDeviceGetUUID(moved) == uuids[0]
    assert pynvml.nvmlDeviceGetIndex(moved) == 7
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(moved) == 400_000


def test_gpus_come_and_go(local_node: VirtualNode, handle: object) -> None:
    uuids = local_node.gpus.uuids()
    local_node.gpus.remove(0)
    assert code_of(lambda: pynvml.nvmlDeviceGetUUID(handle)) == 15
    assert pynvml.nvmlDeviceGetCount() == 7
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)) == uuids[1]
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID(uuids[0])
    added = local_node.gpus.add("b200")
    assert local_node.gpus.uuids() == (*uuids[1:], added)
    assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(7)) == "NVIDIA B200"
    local_node.gpus.bring_back(uuids[0])
    assert local_node.gpus.uuids() == (*uuids[1:], added, uuids[0])
    assert pynvml.nvmlDeviceGetUUID(handle) == uuids[0]
