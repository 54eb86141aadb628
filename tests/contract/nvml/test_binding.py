"""The unmodified nvidia-ml-py on the virtual GPUs, in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pynvml
import pytest

from wattline.virtual.gpus import Cause, VirtualProcess
from wattline.virtual.node import GPUS_VARIABLE, VirtualNode

pytest_plugins = ("virtual_fixtures",)


@pytest.fixture
def handle(local_node: VirtualNode) -> Iterator[object]:
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


def raw(name: str) -> Callable[..., int]:
    """A call without the binding's own checks."""
    return getattr(pynvml.nvmlLib, name)  # type: ignore[no-any-return]


def test_without_a_session_every_call_is_refused(local_node: VirtualNode) -> None:
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlShutdown()


def test_sessions_are_counted(local_node: VirtualNode) -> None:
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 8
    pynvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()


def test_without_a_node_there_is_no_driver(
    local_node: VirtualNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(GPUS_VARIABLE)
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()


def test_a_file_of_another_layout_is_refused(
    local_node: VirtualNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = local_node.folder / "other.state"
    other.write_bytes(b"\0" * local_node.gpus_file.stat().st_size)
    monkeypatch.setenv(GPUS_VARIABLE, str(other))
    with pytest.raises(pynvml.NVMLError_LibRmVersionMismatch):
        pynvml.nvmlInit()


def test_identity_is_told_in_every_way(local_node: VirtualNode, handle: object) -> None:
    uuids = local_node.gpus.uuids()
    assert len(set(uuids)) == 8
    for index, uuid in enumerate(uuids):
        found = pynvml.nvmlDeviceGetHandleByIndex(index)
        assert pynvml.nvmlDeviceGetUUID(found) == uuid
        assert pynvml.nvmlDeviceGetIndex(found) == index
        assert pynvml.nvmlDeviceGetMinorNumber(found) == index
        bus_id = pynvml.nvmlDeviceGetPciInfo(found).busId
        for again in (
            pynvml.nvmlDeviceGetHandleByUUID(uuid),
            pynvml.nvmlDeviceGetHandleByPciBusId(bus_id),
        ):
            assert pynvml.nvmlDeviceGetUUID(again) == uuid
    assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA H100 80GB HBM3"
    assert pynvml.nvmlDeviceGetArchitecture(handle) == pynvml.NVML_DEVICE_ARCH_HOPPER
    other = pynvml.nvmlDeviceGetHandleByIndex(1)
    assert pynvml.nvmlDeviceGetSerial(handle) != pynvml.nvmlDeviceGetSerial(other)
    assert pynvml.nvmlSystemGetDriverVersion() == "580.95.05"
    assert pynvml.nvmlSystemGetNVMLVersion() == "13.580.95.05"


@pytest.mark.parametrize("index", [8, 2**31])
def test_an_index_too_large_is_an_invalid_argument(handle: object, index: int) -> None:
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetHandleByIndex(index)


def test_unknown_names_are_not_found(handle: object) -> None:
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000")
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByPciBusId("00000000:FF:00.0")


@pytest.mark.parametrize("number", [0, 1, 0x57 << 56 | 0xFF00, 2**64 - 1])
def test_a_handle_that_was_never_given_out_is_refused(handle: object, number: int) -> None:
    limit = ctypes.c_uint()
    call = raw("nvmlDeviceGetEnforcedPowerLimit")
    assert call(ctypes.c_void_p(number), ctypes.byref(limit)) == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_a_limit_in_range_is_enforced(local_node: VirtualNode, handle: object) -> None:
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle) == [200_000, 700_000]
    assert pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) == 700_000
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 400_000
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == 400_000
    state = local_node.gpus.state(0)
    assert (state.enforced_w, state.requested_w) == (400.0, 400.0)


@pytest.mark.parametrize("limit_mw", [0, 199_999, 700_001, 2**32 - 1])
def test_a_limit_out_of_range_changes_nothing(handle: object, limit_mw: int) -> None:
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, limit_mw)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000


def set_v2(handle: object, scope: int, limit_mw: int, version: int | None = None) -> int:
    """The second setter, whose return code the binding drops."""
    value = pynvml.c_nvmlPowerValue_v2_t()
    value.version = pynvml.nvmlPowerValue_v2 if version is None else version
    value.powerScope = scope
    value.powerValueMw = limit_mw
    return raw("nvmlDeviceSetPowerManagementLimit_v2")(handle, ctypes.byref(value))


def test_the_second_setter_sets_the_gpu_scope(handle: object) -> None:
    assert set_v2(handle, pynvml.NVML_POWER_SCOPE_GPU, 300_000) == pynvml.NVML_SUCCESS
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 300_000


@pytest.mark.parametrize(
    ("scope", "limit_mw", "version", "code"),
    [
        (0, 300_000, 1, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH),
        (0, 300_000, 0x0100000C, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH),
        (1, 300_000, None, pynvml.NVML_ERROR_NOT_SUPPORTED),
        (4, 300_000, None, pynvml.NVML_ERROR_INVALID_ARGUMENT),
        (0, 100_000, None, pynvml.NVML_ERROR_INVALID_ARGUMENT),
    ],
    ids=["version_1", "version_of_v1", "module_scope", "no_such_scope", "out_of_range"],
)
def test_the_second_setter_refuses(
    handle: object, scope: int, limit_mw: int, version: int | None, code: int
) -> None:
    assert set_v2(handle, scope, limit_mw, version) == code
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000


def test_field_values_agree_with_the_calls(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.hold_below(0, 500)
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 600_000)
    ids = [187, 188, 189, 190, 192]
    values = pynvml.nvmlDeviceGetFieldValues(handle, ids)
    assert [v.nvmlReturn for v in values] == [0] * len(ids)
    assert {v.valueType for v in values} == {pynvml.NVML_VALUE_TYPE_UNSIGNED_INT}
    found = {v.fieldId: v.value.uiVal for v in values}
    assert found == {187: 200_000, 188: 700_000, 189: 700_000, 190: 500_000, 192: 600_000}


def test_counters_are_64_bits_wide(handle: object) -> None:
    values = pynvml.nvmlDeviceGetFieldValues(handle, [74, 83, 191, 269, 270, 271])
    assert [v.nvmlReturn for v in values] == [0] * 6
    assert {v.valueType for v in values} == {pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG}


@pytest.mark.parametrize(
    ("field", "code"),
    [
        (9999, pynvml.NVML_ERROR_NOT_SUPPORTED),
        ((190, pynvml.NVML_POWER_SCOPE_MODULE), pynvml.NVML_ERROR_NOT_SUPPORTED),
        ((190, pynvml.NVML_POWER_SCOPE_COUNT), pynvml.NVML_ERROR_INVALID_ARGUMENT),
    ],
    ids=["unknown", "module_scope", "no_such_scope"],
)
def test_each_field_has_a_code_of_its_own(handle: object, field: object, code: int) -> None:
    good, bad = pynvml.nvmlDeviceGetFieldValues(handle, [192, field])
    assert (good.nvmlReturn, good.value.uiVal) == (0, 700_000)
    assert bad.nvmlReturn == code


def test_a_ceiling_on_the_clock_lowers_the_draw(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.set_load(0, 650)
    pynvml.nvmlDeviceSetGpuLockedClocks(handle, 345, 990)
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 990
    assert pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1980
    state = local_node.gpus.state(0)
    assert state.draw_w == pytest.approx(70 + (650 - 70) / 4)
    assert state.clock_ceiling_mhz == 990
    pynvml.nvmlDeviceResetGpuLockedClocks(handle)
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1980


def test_reasons_tell_why_clocks_are_low(local_node: VirtualNode, handle: object) -> None:
    reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons
    assert reasons(handle) == pynvml.nvmlClocksEventReasonGpuIdle
    local_node.gpus.set_load(0, 650)
    assert reasons(handle) == pynvml.nvmlClocksEventReasonNone
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    assert reasons(handle) == pynvml.nvmlClocksEventReasonSwPowerCap
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == reasons(handle)
    assert reasons(handle) & ~pynvml.nvmlDeviceGetSupportedClocksEventReasons(handle) == 0


def test_processes_are_listed_whole(local_node: VirtualNode, handle: object) -> None:
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []
    pids = list(range(1000, 1012))
    local_node.gpus.set_processes(0, [VirtualProcess(pid) for pid in pids])
    listed = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    assert [process.pid for process in listed] == pids
    assert listed[0].usedGpuMemory == 1 << 30
    assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle) == []
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).used == 12 << 30
    assert pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used == 12 << 30


def test_a_split_gpu_has_instances_and_one_limit(local_node: VirtualNode, handle: object) -> None:
    assert pynvml.nvmlDeviceGetMigMode(handle) == [0, 0]
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)
    names = local_node.gpus.split(0, 2)
    assert pynvml.nvmlDeviceGetMigMode(handle) == [1, 1]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) == 7
    instances = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i) for i in range(2)]
    assert tuple(pynvml.nvmlDeviceGetUUID(i) for i in instances) == names
    assert pynvml.nvmlDeviceIsMigDeviceHandle(instances[0]).value == 1
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instances[1])
    assert pynvml.nvmlDeviceGetUUID(parent) == local_node.gpus.uuids()[0]
    by_name = pynvml.nvmlDeviceGetHandleByUUID(names[1])
    assert pynvml.nvmlDeviceGetUUID(by_name) == names[1]
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 2)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceSetPowerManagementLimit(instances[0], 400_000)
    local_node.gpus.set_processes(0, [VirtualProcess(7, gpu_instance=2)])
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(instances[0]) == []
    assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(instances[1])] == [7]


def test_versioned_structures_are_checked(handle: object) -> None:
    memory = pynvml.c_nvmlMemory_v2_t()
    memory.version = 0x01000028
    code = raw("nvmlDeviceGetMemoryInfo_v2")(handle, ctypes.byref(memory))
    assert code == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    degrees = pynvml.c_nvmlTemperature_v1_t()
    degrees.version = 0x0200000C
    code = raw("nvmlDeviceGetTemperatureV")(handle, ctypes.byref(degrees))
    assert code == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    assert 20 < pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU) < 90
    assert 20 < pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU) < 90


def test_what_is_not_modelled_is_not_supported(handle: object) -> None:
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)


def test_an_xid_is_an_event(local_node: VirtualNode, handle: object) -> None:
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 0)
    local_node.gpus.lose(0, xid=79)
    event = pynvml.nvmlEventSetWait_v2(events, 1000)
    assert (event.eventType, event.eventData) == (pynvml.nvmlEventTypeXidCriticalError, 79)
    pynvml.nvmlEventSetFree(events)


def test_every_write_is_logged_with_its_process(local_node: VirtualNode, handle: object) -> None:
    before = local_node.gpus.changes(0)[0][-1].sequence
    for limit_mw in (400_000, 300_000, 500_000):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, limit_mw)
    changes, lost = local_node.gpus.changes(0, before)
    assert lost == 0
    assert [(c.before_mw, c.enforced_mw) for c in changes] == [
        (700_000, 400_000),
        (400_000, 300_000),
        (300_000, 500_000),
    ]
    assert {c.cause for c in changes} == {Cause.NVML}
    assert [c.time_ns for c in changes] == sorted(c.time_ns for c in changes)


def test_error_texts_exist_for_every_code(handle: object) -> None:
    for code in (1, 2, 3, 4, 6, 7, 9, 10, 15, 18, 23, 25):
        text = pynvml.nvmlErrorString(code)
        assert text
        assert text != "Unknown Error"
    assert pynvml.nvmlErrorString(999) == "Unknown Error"
