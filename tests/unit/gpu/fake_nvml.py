"""A stand-in for the module `pynvml` over simulated hardware, with releases' differences as knobs.

Structs, constants and the exception are those of the real binding, so the driver decodes what it
would decode on a node; the library behind the binding is what is played here.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.gpu.simulated import ANY_CALL, SimulatedGpu, SimulatedNode

CODES: Mapping[GpuFault, int] = {
    GpuFault.NO_PERMISSION: pynvml.NVML_ERROR_NO_PERMISSION,
    GpuFault.NOT_SUPPORTED: pynvml.NVML_ERROR_NOT_SUPPORTED,
    GpuFault.OUT_OF_RANGE: pynvml.NVML_ERROR_INVALID_ARGUMENT,
    GpuFault.LOST: pynvml.NVML_ERROR_GPU_IS_LOST,
    GpuFault.STALE_HANDLE: pynvml.NVML_ERROR_UNINITIALIZED,
    GpuFault.UNAVAILABLE: pynvml.NVML_ERROR_TIMEOUT,
    GpuFault.UNKNOWN: pynvml.NVML_ERROR_UNKNOWN,
}


@dataclass(eq=False)
class Handle:
    """What NVML would hand out: a place in the table of the initialisation that made it."""

    place: int
    enumeration: int
    mig: str | None = None


@dataclass
class Release:
    """What a release of driver and binding has, and how it behaves.

    missing: functions that its library lacks. hidden_fields: ids that it does not know.
    limit_v2_code: what the second setter answers, None: it works. handles_move: after a
    re-enumeration an old handle silently means the GPU that is now at its place.
    """

    bytes_text: bool = False
    missing: frozenset[str] = frozenset()
    hidden_fields: frozenset[int] = frozenset()
    limit_v2_code: int | None = None
    handles_move: bool = False
    library: bool = True
    checks_range: bool = True


class FakeNvml(types.ModuleType):
    """The module. `calls` counts what was called; `inits` is NVML's own reference count.

    overrides: what a function returns instead, or an exception that it raises.
    """

    def __init__(self, node: SimulatedNode, release: Release | None = None) -> None:
        super().__init__("pynvml")
        self.node = node
        self.release = release or Release()
        self.inits = 0
        self.calls: dict[str, int] = {}
        self.overrides: dict[str, object] = {}
        self.field_overrides: dict[int, float] = {}
        for name in (
            "NVMLError",
            "c_nvmlPowerValue_v2_t",
            "nvmlPowerValue_v2",
            "NVML_POWER_SCOPE_GPU",
        ):
            setattr(self, name, getattr(pynvml, name))
        self.nvmlLib = types.SimpleNamespace(nvmlDeviceSetPowerManagementLimit_v2=self.set_v2)
        functions: dict[str, Callable[..., Any]] = {
            "nvmlInit": self.init,
            "nvmlShutdown": self.shutdown,
            "nvmlSystemGetDriverVersion": lambda: self.text("580.95.05"),
            "nvmlDeviceGetCount": lambda: len(self.node.gpus),
            "nvmlDeviceGetHandleByIndex": self.by_index,
            "nvmlDeviceGetHandleByUUID": self.by_uuid,
            "nvmlDeviceGetUUID": self.uuid,
            "nvmlDeviceGetName": lambda handle: self.text(self.gpu(handle).product.name),
            "nvmlDeviceGetSerial": self.no_serial,
            "nvmlDeviceGetPciInfo": lambda handle: types.SimpleNamespace(
                busId=self.text(f"00000000:{handle.place:02X}:00.0")
            ),
            "nvmlDeviceGetFieldValues": self.fields,
            "nvmlDeviceGetPowerManagementLimitConstraints": self.getter(
                "range", lambda gpu: [gpu.product.min_w * 1000, gpu.product.max_w * 1000]
            ),
            "nvmlDeviceGetEnforcedPowerLimit": self.getter("enforced_w", enforced_mw),
            "nvmlDeviceGetPowerManagementLimit": self.getter("requested_w", requested_mw),
            "nvmlDeviceGetPowerManagementDefaultLimit": self.getter("default_w", default_mw),
            "nvmlDeviceGetPowerUsage": self.getter("draw_w", draw_mw),
            "nvmlDeviceGetTotalEnergyConsumption": self.getter(
                "energy_j", lambda gpu: round(gpu.energy_j * 1000)
            ),
            "nvmlDeviceGetClockInfo": self.getter(
                "sm_clock_mhz",
                lambda gpu: gpu.clock_ceiling_mhz or gpu.product.max_sm_clock_mhz,
            ),
            "nvmlDeviceGetMaxClockInfo": self.getter(
                "max_sm_clock_mhz", lambda gpu: gpu.product.max_sm_clock_mhz
            ),
            "nvmlDeviceGetCurrentClocksEventReasons": self.getter("throttle_reasons", reasons),
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.getter("throttle_reasons", reasons),
            "nvmlDeviceGetPersistenceMode": self.getter(
                "persistence_mode", lambda gpu: int(gpu.persistence)
            ),
            "nvmlDeviceGetMigMode": self.getter("mig_enabled", mig_mode),
            "nvmlDeviceGetMaxMigDeviceCount": self.getter("mig_uuids", lambda gpu: 7),
            "nvmlDeviceGetMigDeviceHandleByIndex": self.mig_handle,
            "nvmlDeviceGetComputeRunningProcesses_v3": self.processes,
            "nvmlDeviceGetComputeRunningProcesses_v2": self.processes,
            "nvmlDeviceSetPowerManagementLimit": self.set_v1,
            "nvmlDeviceSetGpuLockedClocks": self.lock_clocks,
            "nvmlDeviceResetGpuLockedClocks": self.reset_clocks,
        }
        for name, function in functions.items():
            setattr(self, name, self.recorded(name, function))

    def recorded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.release.missing:
                self.fail(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            if name not in ("nvmlInit", "nvmlShutdown") and self.inits == 0:
                self.fail(pynvml.NVML_ERROR_UNINITIALIZED)
            result = self.overrides.get(name)
            if isinstance(result, BaseException):
                raise result
            return function(*arguments) if result is None else result

        return call

    def reload(self) -> None:
        """The driver is loaded anew under the library: it forgets its clients."""
        self.node.reload()
        self.inits = 0

    @staticmethod
    def fail(code: int) -> None:
        raise pynvml.NVMLError(code)

    def text(self, value: str) -> str | bytes:
        return value.encode() if self.release.bytes_text else value

    def init(self) -> None:
        if not self.release.library:
            self.fail(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.inits += 1

    def shutdown(self) -> None:
        if self.inits == 0:
            self.fail(pynvml.NVML_ERROR_UNINITIALIZED)
        self.inits -= 1

    def by_index(self, index: int) -> Handle:
        if index >= len(self.node.gpus):
            self.fail(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if self.node.gpus[index].faults.get(ANY_CALL) is GpuFault.LOST:
            self.fail(pynvml.NVML_ERROR_GPU_IS_LOST)
        return Handle(index, self.node.enumeration)

    def by_uuid(self, uuid: str) -> Handle:
        for place, gpu in enumerate(self.node.gpus):
            if gpu.uuid == uuid:
                return Handle(place, self.node.enumeration)
        self.fail(pynvml.NVML_ERROR_NOT_FOUND)
        raise AssertionError

    def gpu(self, handle: Handle) -> SimulatedGpu:
        if handle.enumeration != self.node.enumeration and not self.release.handles_move:
            self.fail(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if handle.place >= len(self.node.gpus):
            self.fail(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.node.gpus[handle.place]

    def uuid(self, handle: Handle) -> str | bytes:
        return self.text(handle.mig or self.gpu(handle).uuid)

    def no_serial(self, handle: Handle) -> str:
        self.gpu(handle)
        self.fail(pynvml.NVML_ERROR_NOT_SUPPORTED)
        raise AssertionError

    def enter(self, handle: Handle, name: str) -> Any:
        """Reach the hardware as one call of the seam would, with its faults and delays."""
        return self.node.call(self.gpu(handle).uuid, name, self.node.enumeration)

    def getter(self, name: str, read: Callable[[SimulatedGpu], Any]) -> Callable[..., Any]:
        def get(handle: Handle, *_: object) -> Any:
            try:
                with self.enter(handle, name) as gpu:
                    return read(gpu)
            except GpuError as error:
                self.fail(CODES[error.fault])

        return get

    def fields(self, handle: Handle, ids: list[int]) -> Any:
        values = (pynvml.c_nvmlFieldValue_t * len(ids))()
        for value, field in zip(values, ids, strict=True):
            value.fieldId = field
            value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
            if field in self.release.hidden_fields or field not in FIELDS:
                value.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
                continue
            name, read = FIELDS[field]
            try:
                with self.enter(handle, name) as gpu:
                    value.value.uiVal = int(self.field_overrides.get(field, read(gpu)))
            except GpuError as error:
                value.nvmlReturn = CODES[error.fault]
        return values

    def mig_handle(self, handle: Handle, place: int) -> Handle:
        instances = self.gpu(handle).mig_uuids
        if place >= len(instances):
            self.fail(pynvml.NVML_ERROR_NOT_FOUND)
        return Handle(handle.place, handle.enumeration, mig=instances[place])

    def processes(self, handle: Handle) -> list[Any]:
        found: list[Any] = []
        try:
            with self.enter(handle, "processes") as gpu:
                found = [
                    types.SimpleNamespace(pid=process.pid, usedGpuMemory=None)
                    for process in gpu.processes
                    if handle.mig is None or process.mig_uuid == handle.mig
                ]
                if handle.mig is None and gpu.mig_uuids:
                    self.fail(pynvml.NVML_ERROR_NO_PERMISSION)
        except GpuError as error:
            self.fail(CODES[error.fault])
        return found

    def set_v1(self, handle: Handle, milliwatts: int) -> None:
        code = self.write(handle, milliwatts)
        if code:
            self.fail(code)

    def set_v2(self, handle: Handle, reference: Any) -> int:
        self.calls["v2"] = self.calls.get("v2", 0) + 1
        value = reference._obj
        if value.version != pynvml.nvmlPowerValue_v2 or ctypes.sizeof(value) != 12:
            return int(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
        if value.powerScope != pynvml.NVML_POWER_SCOPE_GPU:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        if self.release.limit_v2_code is not None:
            return self.release.limit_v2_code
        return self.write(handle, value.powerValueMw)

    def write(self, handle: Handle, milliwatts: int) -> int:
        try:
            with self.enter(handle, "write_limit") as gpu:
                low, high = gpu.product.min_w * 1000, gpu.product.max_w * 1000
                if self.release.checks_range and not low <= milliwatts <= high:
                    return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
                gpu.requested_w = milliwatts / 1000
                gpu.writes.append(gpu.requested_w)
        except pynvml.NVMLError as error:
            return int(error.value)
        except GpuError as error:
            return CODES[error.fault]
        return 0

    def lock_clocks(self, handle: Handle, _low: int, high: int) -> None:
        try:
            with self.enter(handle, "lock_clocks") as gpu:
                gpu.clock_ceiling_mhz = high
        except GpuError as error:
            self.fail(CODES[error.fault])

    def reset_clocks(self, handle: Handle) -> None:
        try:
            with self.enter(handle, "reset_clocks") as gpu:
                gpu.clock_ceiling_mhz = None
        except GpuError as error:
            self.fail(CODES[error.fault])


def enforced_mw(gpu: SimulatedGpu) -> int:
    return round(gpu.enforced_w * 1000)


def requested_mw(gpu: SimulatedGpu) -> int:
    return round(gpu.requested_w * 1000)


def default_mw(gpu: SimulatedGpu) -> int:
    return round(gpu.product.default_w * 1000)


def draw_mw(gpu: SimulatedGpu) -> int:
    return round(gpu.draw_w * 1000)


def reasons(gpu: SimulatedGpu) -> int:
    return 0x4 if gpu.load_w > gpu.enforced_w else 0


def mig_mode(gpu: SimulatedGpu) -> list[int]:
    return [int(bool(gpu.mig_uuids)), 0]


FIELDS: Mapping[int, tuple[str, Callable[[SimulatedGpu], float]]] = {
    185: ("draw_w", draw_mw),
    187: ("range", lambda gpu: gpu.product.min_w * 1000),
    188: ("range", lambda gpu: gpu.product.max_w * 1000),
    189: ("default_w", default_mw),
    190: ("enforced_w", enforced_mw),
    192: ("requested_w", requested_mw),
}
