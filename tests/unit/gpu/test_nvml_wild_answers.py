"""Whatever NVML answers, the driver says a plausible quantity, None, or a GpuError."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pynvml
from gpu_rigs import NvmlRig
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_conformance import CALLS, failure_of
from wattline.drivers.gpu.nvml_binding import NvmlError, field_number

UINTS = st.one_of(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 200_000, 700_000, 2**31, 2**32 - 1])
)
GETTERS = {
    "nvmlDeviceGetPowerManagementLimitConstraints": st.lists(UINTS, min_size=2, max_size=2),
    "nvmlDeviceGetEnforcedPowerLimit": UINTS,
    "nvmlDeviceGetPowerManagementLimit": UINTS,
    "nvmlDeviceGetPowerUsage": UINTS,
    "nvmlDeviceGetTotalEnergyConsumption": st.integers(0, 2**64 - 1),
    "nvmlDeviceGetClockInfo": UINTS,
    "nvmlDeviceGetMaxClockInfo": UINTS,
    "nvmlDeviceGetCurrentClocksEventReasons": st.integers(0, 2**64 - 1),
    "nvmlDeviceGetPersistenceMode": UINTS,
    "nvmlDeviceGetMigMode": st.lists(UINTS, min_size=2, max_size=2),
    "nvmlDeviceGetMaxMigDeviceCount": st.integers(0, 20),
}
CODES = st.one_of(st.integers(1, 35), st.sampled_from([255, 999, 1000, -1]))


@settings(max_examples=200)
@given(data=st.data())
def test_wild_answers_lead_to_no_crash_and_no_write_out_of_range(data: st.DataObject) -> None:
    rig = NvmlRig()
    gpu = rig.driver.enumerate()[0]
    for name in data.draw(st.sets(st.sampled_from(sorted(GETTERS)), max_size=5)):
        code = data.draw(st.one_of(st.none(), CODES))
        answer: Any = pynvml.NVMLError(code) if code is not None else data.draw(GETTERS[name])
        rig.binding.overrides[name] = answer
    for field in data.draw(st.sets(st.sampled_from([185, 187, 188, 189, 190, 192]), max_size=3)):
        rig.binding.field_overrides[field] = data.draw(UINTS)
    for _, call in CALLS:
        error = failure_of(partial(call, gpu))
        assert error is None or len(str(error).splitlines()) == 1
    if failure_of(gpu.enforced_w) is None:
        assert math.isfinite(gpu.enforced_w())
        assert gpu.enforced_w() > 0
    assert all(200.0 <= watts <= 700.0 for watts in rig.node.gpus[0].writes)


@settings(max_examples=300)
@given(
    kind=st.integers(0, 2**32 - 1) | st.integers(0, 8),
    code=st.integers(0, 2**31 - 1) | st.integers(0, 30),
    raw=st.binary(min_size=8, max_size=8),
)
def test_any_field_value_is_a_number_none_or_an_error(kind: int, code: int, raw: bytes) -> None:
    value = pynvml.c_nvmlFieldValue_t()
    value.valueType, value.nvmlReturn = kind, code
    value.value.ullVal = int.from_bytes(raw, "little")
    read: list[float | None] = []
    error = failure_of(lambda: read.append(field_number(value, "GPU-1")))
    if error is not None:
        assert isinstance(error, NvmlError) == (code != 0)
    else:
        assert read[0] is None or isinstance(read[0], float)
