"""What releases of the driver and of the binding do differently, and what they all get wrong."""

from __future__ import annotations

import sys

import pynvml
import pytest
from fake_nvml import Release
from gpu_rigs import NvmlRig

from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.gpu.nvml import NvmlDevice, NvmlDriver, milliwatts
from wattline.drivers.gpu.nvml_binding import NvmlError, fault_of, field_number
from wattline.drivers.gpu.reasons import reason_names


def first(rig: NvmlRig) -> NvmlDevice:
    device = rig.driver.enumerate()[0]
    assert isinstance(device, NvmlDevice)
    return device


RETURN_CODES = {
    name: getattr(pynvml, name)
    for name in dir(pynvml)
    if name.startswith("NVML_ERROR_") and isinstance(getattr(pynvml, name), int)
}


@pytest.mark.parametrize("name", sorted(RETURN_CODES))
def test_every_return_code_of_the_binding_is_one_line_and_a_fault(name: str) -> None:
    error = NvmlError(RETURN_CODES[name], "nvmlDeviceGetName", "GPU-1", "some words")
    assert isinstance(error.fault, GpuFault)
    assert "\n" not in str(error)
    assert f"NVML code {RETURN_CODES[name]}" in str(error)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("NO_PERMISSION", GpuFault.NO_PERMISSION),
        ("OPERATING_SYSTEM", GpuFault.NO_PERMISSION),
        ("GPU_IS_LOST", GpuFault.LOST),
        ("RESET_REQUIRED", GpuFault.LOST),
        ("NOT_FOUND", GpuFault.LOST),
        ("UNINITIALIZED", GpuFault.STALE_HANDLE),
        ("DRIVER_NOT_LOADED", GpuFault.UNAVAILABLE),
        ("TIMEOUT", GpuFault.UNAVAILABLE),
        ("LIB_RM_VERSION_MISMATCH", GpuFault.UNAVAILABLE),
        ("FUNCTION_NOT_FOUND", GpuFault.NOT_SUPPORTED),
        ("ARGUMENT_VERSION_MISMATCH", GpuFault.NOT_SUPPORTED),
        ("UNKNOWN", GpuFault.UNKNOWN),
    ],
)
def test_return_codes_mean_what_the_agent_acts_on(name: str, fault: GpuFault) -> None:
    assert fault_of(getattr(pynvml, f"NVML_ERROR_{name}")) is fault


def test_a_return_code_of_a_later_release_is_unknown() -> None:
    assert fault_of(12345) is GpuFault.UNKNOWN


@pytest.mark.parametrize("bytes_text", [True, False], ids=["bytes", "text"])
def test_uuids_are_text_whatever_the_binding_returns(bytes_text: bool) -> None:
    # Row 8 of the apply vectors of NVIDIA Dynamo's power agent tests: bytes crashed a loop there.
    rig = NvmlRig(Release(bytes_text=bytes_text))
    identity = first(rig).identity
    assert identity.uuid == rig.node.gpus[0].uuid
    assert identity.product == "NVIDIA H100 80GB HBM3"
    assert identity.bus_id == "00000000:00:00.0"
    assert identity.serial is None


@pytest.mark.parametrize("code", [13, 3, 25, 2], ids=["missing", "unsupported", "version", "scope"])
def test_the_first_setter_is_used_where_the_second_is_not_understood(code: int) -> None:
    rig = NvmlRig(Release(limit_v2_code=code))
    gpu = first(rig)
    gpu.write_limit(400.0)
    gpu.write_limit(410.0)
    assert rig.node.gpus[0].writes == [400.0, 410.0]
    assert rig.binding.calls["v2"] == 1
    assert gpu.sources()["write_limit"].startswith("nvmlDeviceSetPowerManagementLimit (")


def test_the_second_setters_refusal_is_heard_though_the_binding_ignores_it() -> None:
    rig = NvmlRig(Release(limit_v2_code=pynvml.NVML_ERROR_NO_PERMISSION))
    with pytest.raises(GpuError) as caught:
        first(rig).write_limit(400.0)
    assert caught.value.fault is GpuFault.NO_PERMISSION
    assert "CAP_SYS_ADMIN" in str(caught.value)
    assert "nvmlDeviceSetPowerManagementLimit" not in rig.binding.calls


@pytest.mark.parametrize("watts", [199.999, 700.001, 0.001])
def test_a_limit_out_of_range_is_refused_though_the_library_would_take_it(watts: float) -> None:
    rig = NvmlRig(Release(checks_range=False))
    with pytest.raises(GpuError, match="it accepts 200 to 700 W"):
        first(rig).write_limit(watts)
    assert rig.node.gpus[0].writes == []


def test_a_binding_without_the_second_setter_is_enough() -> None:
    rig = NvmlRig()
    del rig.binding.nvmlLib
    gpu = first(rig)
    gpu.write_limit(400.0)
    assert gpu.enforced_w() == 400.0


@pytest.mark.parametrize(("field_mw", "call_mw"), [(500_000, 400_000), (400_000, 500_000)])
def test_the_larger_of_two_enforced_limits_counts_and_the_quarrel_is_told(
    field_mw: int, call_mw: int
) -> None:
    rig = NvmlRig()
    gpu = first(rig)
    rig.binding.field_overrides[190] = field_mw
    rig.binding.overrides["nvmlDeviceGetEnforcedPowerLimit"] = call_mw
    assert gpu.enforced_w() == 500.0
    assert "disagree" in gpu.sources()["enforced_w"]


@pytest.mark.parametrize("nothing", [0, 0xFFFFFFFF], ids=["zero", "all-ones"])
def test_what_is_no_limit_is_not_taken_for_one(nothing: int) -> None:
    rig = NvmlRig()
    gpu = first(rig)
    for field in (189, 190, 192):
        rig.binding.field_overrides[field] = nothing
    assert gpu.enforced_w() == gpu.requested_w() == gpu.default_w() == 700.0
    rig.binding.overrides["nvmlDeviceGetEnforcedPowerLimit"] = nothing
    with pytest.raises(GpuError, match="not reported"):
        gpu.enforced_w()


def test_an_impossible_range_is_no_range() -> None:
    rig = NvmlRig()
    gpu = first(rig)
    rig.binding.overrides["nvmlDeviceGetPowerManagementLimitConstraints"] = [700_000, 200_000]
    for call in (gpu.range, lambda: gpu.write_limit(400.0)):
        with pytest.raises(GpuError, match="cannot be"):
            call()
    assert rig.node.gpus[0].writes == []


def test_the_range_comes_from_fields_where_the_call_is_missing() -> None:
    missing = frozenset({"nvmlDeviceGetPowerManagementLimitConstraints"})
    gpu = first(NvmlRig(Release(missing=missing)))
    assert (gpu.range().min_w, gpu.range().max_w) == (200.0, 700.0)
    gpu = first(NvmlRig(Release(missing=missing, hidden_fields=frozenset({187}))))
    with pytest.raises(GpuError) as caught:
        gpu.range()
    assert caught.value.fault is GpuFault.NOT_SUPPORTED


def test_a_quantity_that_the_gpu_lacks_is_none_and_an_error_is_not() -> None:
    rig = NvmlRig()
    gpu = first(rig)
    rig.node.fail(gpu.identity.uuid, GpuFault.NOT_SUPPORTED)
    assert gpu.draw_w() is None
    assert gpu.energy_j() is None
    assert gpu.sm_clock_mhz() is None
    assert gpu.persistence_mode() is None
    assert gpu.mig_enabled() is None
    assert gpu.default_w() is None
    rig.node.fail(gpu.identity.uuid, GpuFault.UNKNOWN)
    for call in (gpu.draw_w, gpu.energy_j, gpu.persistence_mode, gpu.default_w):
        with pytest.raises(GpuError):
            call()


def test_without_a_library_one_line_says_what_to_install() -> None:
    rig = NvmlRig(Release(library=False))
    with pytest.raises(GpuError) as caught:
        rig.driver.enumerate()
    assert caught.value.fault is GpuFault.UNAVAILABLE
    assert "libnvidia-ml.so.1 is missing" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_binding_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(InputError, match=r"wattline\[agent\]"):
        NvmlDriver()


def test_nvml_is_initialised_once_and_given_back_once() -> None:
    rig = NvmlRig()
    for _ in range(3):
        rig.driver.enumerate()
    assert rig.binding.inits == 1
    rig.driver.close()
    rig.driver.close()
    assert rig.binding.inits == 0


def test_a_timeout_of_one_gpu_never_shuts_nvml_down() -> None:
    # Without persistence mode a shutdown may cost an idle GPU its limit.
    rig = NvmlRig()
    gpu = first(rig)
    rig.node.fail(gpu.identity.uuid, GpuFault.UNAVAILABLE)
    with pytest.raises(GpuError):
        gpu.enforced_w()
    rig.driver.enumerate()
    assert "nvmlShutdown" not in rig.binding.calls


def test_a_gpu_that_is_gone_is_lost_and_its_successor_is_not_written() -> None:
    rig = NvmlRig(Release(handles_move=True))
    gpu = first(rig)
    rig.node.gpus = rig.node.gpus[1:]
    rig.node.enumeration += 1
    with pytest.raises(GpuError) as caught:
        gpu.write_limit(300.0)
    assert caught.value.fault is GpuFault.LOST
    assert all(other.writes == [] for other in rig.node.gpus)


@pytest.mark.parametrize(
    ("kind", "member", "number"),
    [
        ("DOUBLE", "dVal", 12.5),
        ("UNSIGNED_INT", "uiVal", 4_000_000_000),
        ("UNSIGNED_LONG", "ulVal", 2**40),
        ("UNSIGNED_LONG_LONG", "ullVal", 2**50),
        ("SIGNED_LONG_LONG", "sllVal", -(2**40)),
        ("SIGNED_INT", "siVal", -7),
        ("UNSIGNED_SHORT", "usVal", 65535),
    ],
)
def test_field_values_are_read_by_their_own_type(kind: str, member: str, number: float) -> None:
    value = pynvml.c_nvmlFieldValue_t()
    value.value.ullVal = 2**64 - 1  # what the other members would be read from
    value.valueType = getattr(pynvml, f"NVML_VALUE_TYPE_{kind}")
    setattr(value.value, member, number)
    assert field_number(value, "GPU-1") == number


def test_a_field_of_an_unknown_type_is_not_guessed() -> None:
    value = pynvml.c_nvmlFieldValue_t()
    value.valueType = pynvml.NVML_VALUE_TYPE_COUNT
    with pytest.raises(GpuError, match="unknown value type"):
        field_number(value, "GPU-1")


@pytest.mark.parametrize("code", [2, 3, 6, 13, 21, 25, 26])
def test_a_field_that_is_not_there_is_none(code: int) -> None:
    value = pynvml.c_nvmlFieldValue_t()
    value.nvmlReturn = code
    assert field_number(value, "GPU-1") is None


def test_a_field_that_failed_is_an_error() -> None:
    value = pynvml.c_nvmlFieldValue_t()
    value.nvmlReturn = pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(NvmlError) as caught:
        field_number(value, "GPU-1")
    assert caught.value.fault is GpuFault.LOST


@pytest.mark.parametrize(
    ("watts", "expected_mw"),
    [
        (300.0, 300_000),
        (300.0009, 300_000),
        (0.29 * 1000, 290_000),
        (1.001, 1001),
        (435.3, 435_300),
    ],
)
def test_watts_are_rounded_down_to_milliwatts(watts: float, expected_mw: int) -> None:
    assert milliwatts(watts) == expected_mw


def test_reasons_are_named_and_unknown_ones_keep_their_bit() -> None:
    assert reason_names(0) == frozenset()
    assert reason_names(0x4 | 0x80 | 0x40) == {"sw_power_cap", "hw_power_brake", "hw_thermal"}
    assert reason_names(0x800) == {"unknown_0x800"}
