"""GPUs through NVML, by NVIDIA's own binding (nvidia-ml-py)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from wattline.drivers.gpu.device import (
    GpuError,
    GpuFault,
    GpuIdentity,
    GpuProcess,
    LimitRange,
)
from wattline.drivers.gpu.nvml_binding import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    NvmlConnection,
    NvmlError,
    as_text,
    load_binding,
)
from wattline.drivers.gpu.nvml_handle import NO_VALUE_MW, OwnHandle
from wattline.drivers.gpu.reasons import reason_names

_LOG = logging.getLogger(__name__)

# Field ids of nvml.h; powers in milliwatts.
FIELD_POWER_AVERAGE = 185
FIELD_MIN_LIMIT = 187
FIELD_MAX_LIMIT = 188
FIELD_DEFAULT_LIMIT = 189
FIELD_CURRENT_LIMIT = 190
FIELD_REQUESTED_LIMIT = 192

_CLOCK_SM = 1

_AGREE_W = 1.0
"""Two sources of one limit that differ by no more than this agree (drivers round to a watt)."""

_FLOAT_NOISE_MW = 1e-6


def milliwatts(watts: float) -> int:
    """Round a limit down to whole milliwatts, so that never more is written than was granted.

    GpuError OUT_OF_RANGE when it is no finite positive number.
    """
    if not math.isfinite(watts) or watts <= 0:
        raise GpuError(GpuFault.OUT_OF_RANGE, f"limit {watts!r} W: not a positive number of watts")
    return math.floor(watts * 1000 + _FLOAT_NOISE_MW)


class NvmlDriver:
    """NVML on this node. InputError when the binding is missing.

    One connection for all devices: give each GPU a thread of its own, never two threads one GPU.
    """

    name = "nvml"

    def __init__(self, binding: ModuleType | None = None) -> None:
        self._nvml = NvmlConnection(binding if binding is not None else load_binding())
        self.unreachable: tuple[str, ...] = ()
        """One line for each GPU that the last enumeration counted but could not talk to."""

    def enumerate(self) -> Sequence[NvmlDevice]:
        """All GPUs that answer; after a driver reload it connects anew, once.

        GPUs that do not answer are left out and named in `unreachable`. GpuError when NVML itself
        does not answer, or not one of several GPUs does.
        """
        self._nvml.open()
        seen = self._nvml.generation
        try:
            return self._list()
        except GpuError as error:
            if error.fault is GpuFault.NO_PERMISSION:
                raise
            _LOG.warning("NVML is initialised anew: %s", error)
        self._nvml.reopen(seen)
        return self._list()

    def close(self) -> None:
        """Give NVML back. Changes no limit, but see persistence mode in the reference."""
        self._nvml.close()

    def _list(self) -> list[NvmlDevice]:
        found: list[NvmlDevice] = []
        failed: list[GpuError] = []
        for index in range(int(self._nvml.call("nvmlDeviceGetCount"))):
            try:
                found.append(self._device(index))
            except GpuError as error:
                if isinstance(error, NvmlError) and self._nvml.is_dead(error):
                    raise
                _LOG.warning("a GPU is left out: %s", error)
                failed.append(error)
        if failed and not found:
            raise failed[0]
        self.unreachable = tuple(str(error) for error in failed)
        return found

    def _device(self, index: int) -> NvmlDevice:
        nvml, about = self._nvml, f"GPU {index}"
        handle = nvml.call("nvmlDeviceGetHandleByIndex", index, about=about)
        identity = GpuIdentity(
            uuid=as_text(nvml.call("nvmlDeviceGetUUID", handle, about=about)),
            index=index,
            product=as_text(nvml.call("nvmlDeviceGetName", handle, about=about)),
            bus_id=self._optional(lambda: nvml.call("nvmlDeviceGetPciInfo", handle).busId),
            serial=self._optional(lambda: nvml.call("nvmlDeviceGetSerial", handle)),
        )
        return NvmlDevice(nvml, identity, handle)

    @staticmethod
    def _optional(read: Callable[[], Any]) -> str | None:
        """Read a part of the identity that some products do not have."""
        try:
            return as_text(read())
        except GpuError as error:
            if error.fault is GpuFault.NOT_SUPPORTED:
                return None
            raise


class NvmlDevice:
    """One GPU through NVML. All watts are floats made from NVML's milliwatts.

    Every call goes through a handle that is compared with the UUID first.
    """

    def __init__(self, nvml: NvmlConnection, identity: GpuIdentity, handle: object) -> None:
        self._nvml = nvml
        self._identity = identity
        self._own = OwnHandle(nvml, identity.uuid, handle)
        self._has_v2 = True
        self._sources: dict[str, str] = {}

    @property
    def identity(self) -> GpuIdentity:
        """Who it is, as of the enumeration that produced this device."""
        return self._identity

    def sources(self) -> dict[str, str]:
        """Say by which call each quantity was last read or written, and doubts about it."""
        return dict(self._sources)

    def range(self) -> LimitRange:
        """Limits that it accepts now, in watts."""
        low, high = self._range_mw()
        return LimitRange(low / 1000, high / 1000)

    def enforced_w(self) -> float:
        """Limit that the hardware obeys now: the larger of field 190 and GetEnforcedPowerLimit.

        Both are asked each time: a limit counts as low only when both say so, since booked watts
        are freed by it.
        """
        field = self._own.field_mw(FIELD_CURRENT_LIMIT)
        call = self._own.optional_mw("nvmlDeviceGetEnforcedPowerLimit")
        known = [value for value in (field, call) if value is not None]
        if not known:
            raise GpuError(
                GpuFault.NOT_SUPPORTED, f"enforced limit of {self._own.uuid}: not reported"
            )
        if field is None:
            source = "nvmlDeviceGetEnforcedPowerLimit (field 190 is not supported)"
        elif call is None:
            source = "field 190 (nvmlDeviceGetEnforcedPowerLimit is not supported)"
        elif abs(field - call) <= _AGREE_W * 1000:
            source = "field 190, nvmlDeviceGetEnforcedPowerLimit agrees"
        else:
            source = (
                f"the larger of field 190 ({field / 1000:g} W) and "
                f"nvmlDeviceGetEnforcedPowerLimit ({call / 1000:g} W), which disagree"
            )
        self._sources["enforced_w"] = source
        return max(known) / 1000

    def requested_w(self) -> float | None:
        """Limit asked for in-band: field 192, else nvmlDeviceGetPowerManagementLimit."""
        return self._limit_w(
            "requested_w", FIELD_REQUESTED_LIMIT, "nvmlDeviceGetPowerManagementLimit"
        )

    def default_w(self) -> float | None:
        """Limit after a reset: field 189, else nvmlDeviceGetPowerManagementDefaultLimit."""
        return self._limit_w(
            "default_w", FIELD_DEFAULT_LIMIT, "nvmlDeviceGetPowerManagementDefaultLimit"
        )

    def write_limit(self, watts: float) -> None:
        """Ask for a limit; refused with OUT_OF_RANGE before the call outside the live range."""
        wanted = milliwatts(watts)
        low, high = self._range_mw()
        if not low <= wanted <= high:
            raise GpuError(
                GpuFault.OUT_OF_RANGE,
                f"limit {watts:g} W for {self._own.uuid}: it accepts "
                f"{low / 1000:g} to {high / 1000:g} W",
            )
        self._own.use(lambda handle: self._set_limit(handle, wanted))

    def draw_w(self) -> float | None:
        """Measured power: field 185 (mean of 1 s), else nvmlDeviceGetPowerUsage.

        On parts without field 185 (GA100 and older) the latter is an instantaneous value.
        """
        average = self._own.field(FIELD_POWER_AVERAGE)
        if average is not None:
            self._sources["draw_w"] = "field 185, a mean of 1 s"
            return average / 1000
        usage = self._own.optional("nvmlDeviceGetPowerUsage")
        self._sources["draw_w"] = (
            "nvmlDeviceGetPowerUsage: instantaneous on GA100 and older, else a mean of 1 s"
        )
        return None if usage is None else usage / 1000

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded, in joules (the counter is in millijoules)."""
        energy = self._own.optional("nvmlDeviceGetTotalEnergyConsumption")
        return None if energy is None else energy / 1000

    def sm_clock_mhz(self) -> int | None:
        """Present SM clock."""
        clock = self._own.optional("nvmlDeviceGetClockInfo", _CLOCK_SM)
        return None if clock is None else int(clock)

    def max_sm_clock_mhz(self) -> int | None:
        """Highest SM clock of the product."""
        clock = self._own.optional("nvmlDeviceGetMaxClockInfo", _CLOCK_SM)
        return None if clock is None else int(clock)

    def lock_clocks(self, max_mhz: int) -> None:
        """Set a ceiling on the SM clock; the floor stays 0, so that idle clocks may fall."""
        highest = self.max_sm_clock_mhz()
        if max_mhz <= 0 or (highest is not None and max_mhz > highest):
            raise GpuError(
                GpuFault.OUT_OF_RANGE,
                f"clock ceiling {max_mhz} MHz for {self._own.uuid}: "
                f"it accepts 1 to {highest if highest is not None else 'its highest'} MHz",
            )
        self._own.use(
            lambda handle: self._write("nvmlDeviceSetGpuLockedClocks", handle, 0, max_mhz)
        )

    def reset_clocks(self) -> None:
        """Take the ceiling away."""
        self._own.use(lambda handle: self._write("nvmlDeviceResetGpuLockedClocks", handle))

    def throttle_reasons(self) -> frozenset[str]:
        """Why clocks are held back; GpuError NOT_SUPPORTED where the GPU does not tell."""
        bits = self._own.optional("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 know it by its old name only
            bits = self._own.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return reason_names(int(bits))

    def persistence_mode(self) -> bool | None:
        """False: the driver may unload when idle and come back at the default limit."""
        mode = self._own.optional("nvmlDeviceGetPersistenceMode")
        return None if mode is None else bool(mode)

    def mig_enabled(self) -> bool | None:
        """True when the GPU is split into instances now (a pending change does not count)."""
        mode = self._own.optional("nvmlDeviceGetMigMode")
        return None if mode is None else bool(mode[0])

    def mig_uuids(self) -> Sequence[str]:
        """UUIDs of its MIG instances; empty without MIG."""
        return [uuid for uuid, _ in self._mig_handles()]

    def processes(self) -> Sequence[GpuProcess]:
        """Processes that compute on it, those of MIG instances with the instance's UUID."""
        found: dict[int, GpuProcess] = {}
        instances = self._mig_handles()
        for uuid, handle in instances:
            for pid in self._pids(handle):
                found.setdefault(pid, GpuProcess(pid, uuid))
        try:
            for pid in self._own.use(self._pids):
                found.setdefault(pid, GpuProcess(pid))
        except GpuError as error:
            # With MIG on, the parent's aggregate list needs privilege; the instances have told.
            if not instances or error.fault not in (
                GpuFault.NO_PERMISSION,
                GpuFault.NOT_SUPPORTED,
            ):
                raise
        return list(found.values())

    def _mig_handles(self) -> list[tuple[str, object]]:
        if not self.mig_enabled():
            return []
        instances: list[tuple[str, object]] = []
        for place in range(int(self._own.ask("nvmlDeviceGetMaxMigDeviceCount"))):
            try:
                handle = self._own.ask("nvmlDeviceGetMigDeviceHandleByIndex", place)
            except NvmlError as error:
                if error.code in (NOT_FOUND, INVALID_ARGUMENT):  # no instance at this place
                    continue
                raise
            uuid = self._nvml.call("nvmlDeviceGetUUID", handle, about=self._own.uuid)
            instances.append((as_text(uuid), handle))
        return instances

    def _pids(self, handle: object) -> list[int]:
        about = self._own.uuid
        try:
            listed = self._nvml.call("nvmlDeviceGetComputeRunningProcesses_v3", handle, about=about)
        except NvmlError as error:
            if error.fault is not GpuFault.NOT_SUPPORTED:
                raise
            listed = self._nvml.call("nvmlDeviceGetComputeRunningProcesses_v2", handle, about=about)
        return [int(process.pid) for process in listed]

    def _set_limit(self, handle: object, wanted: int) -> None:
        if self._has_v2:
            try:
                self._nvml.set_limit_v2(handle, wanted, self._own.uuid)
            except NvmlError as error:
                # The value is in range and the handle is ours, so an invalid argument can only
                # be a struct or scope that this driver does not know.
                if error.fault is not GpuFault.NOT_SUPPORTED and error.code != INVALID_ARGUMENT:
                    raise
                self._has_v2 = False
                reason = str(error)
            else:
                self._sources["write_limit"] = "nvmlDeviceSetPowerManagementLimit_v2, GPU scope"
                return
            self._sources["write_limit"] = f"nvmlDeviceSetPowerManagementLimit ({reason})"
        self._write("nvmlDeviceSetPowerManagementLimit", handle, wanted)

    def _write(self, name: str, handle: object, *values: int) -> None:
        """Call a setter on a handle that was just seen to be ours."""
        try:
            self._nvml.call(name, handle, *values, about=self._own.uuid)
        except NvmlError as error:
            if error.code == INVALID_ARGUMENT and self._own.is_own(handle):
                raise GpuError(GpuFault.OUT_OF_RANGE, str(error)) from error
            raise

    def _limit_w(self, quantity: str, field: int, call: str) -> float | None:
        value = self._own.field_mw(field)
        self._sources[quantity] = f"field {field}"
        if value is None:
            value = self._own.optional_mw(call)
            self._sources[quantity] = f"{call} (field {field} is not supported)"
        return None if value is None else value / 1000

    def _range_mw(self) -> tuple[float, float]:
        try:
            low, high = self._own.ask("nvmlDeviceGetPowerManagementLimitConstraints")
            self._sources["range"] = "nvmlDeviceGetPowerManagementLimitConstraints"
        except NvmlError as error:
            if error.fault is not GpuFault.NOT_SUPPORTED:
                raise
            low, high = self._own.field(FIELD_MIN_LIMIT), self._own.field(FIELD_MAX_LIMIT)
            self._sources["range"] = "fields 187 and 188"
            if low is None or high is None:
                raise
        if not 0 <= low <= high < NO_VALUE_MW:
            raise GpuError(
                GpuFault.UNKNOWN,
                f"range of limits of {self._own.uuid}: {low} to {high} mW cannot be",
            )
        return low, high
