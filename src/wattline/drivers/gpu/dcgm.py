"""GPUs through a standalone DCGM host engine on the same node.

Limits are written with dcgmConfigSet and never with Enforce: the engine keeps what was set as its
target and applies it again after a reset of the GPU, so nothing else on the node should write
limits by NVML. What DCGM cannot tell (processes, MIG UUIDs) comes from NVML, joined by UUID.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from wattline.drivers.gpu.companion import Companion
from wattline.drivers.gpu.dcgm_binding import (
    BADPARAM,
    CONNECTION_NOT_VALID,
    INT32_BLANK,
    OK,
    DcgmBinding,
    DcgmConnection,
    DcgmError,
    check_binding,
    field_number,
    int_or_none,
    load_binding,
    text_or_none,
)
from wattline.drivers.gpu.device import (
    GpuDriver,
    GpuError,
    GpuFault,
    GpuIdentity,
    GpuProcess,
    LimitRange,
)
from wattline.drivers.gpu.reasons import reason_names

_LOG = logging.getLogger(__name__)

DEFAULT_PORT = 5555

# Field ids of dcgm_fields.h.
FIELD_SM_CLOCK = 100
FIELD_CLOCK_EVENT_REASONS = 112
FIELD_MAX_SM_CLOCK = 113
FIELD_POWER_USAGE = 155
FIELD_TOTAL_ENERGY_MJ = 156
FIELD_ENFORCED_LIMIT = 164

_FLOAT_NOISE_W = 1e-9


class DcgmDriver:
    """A host engine at `host:port`. InputError: bindings missing or too old.

    `readings` tells processes and MIG instances, which DCGM has no call for; None: they are
    NOT_SUPPORTED. It is asked for devices by UUID and never writes.
    """

    name = "dcgm"

    def __init__(
        self,
        host: str,
        port: int = DEFAULT_PORT,
        *,
        binding: DcgmBinding | None = None,
        readings: Callable[[], GpuDriver] | None = None,
    ) -> None:
        if binding is None:
            binding = load_binding()
        else:
            check_binding(binding)
        self._engine = DcgmConnection(host, port, binding)
        self._companion = Companion(readings)
        self.unreachable: tuple[str, ...] = ()
        """One line for each GPU that the last enumeration found but could not talk to."""

    def enumerate(self) -> Sequence[DcgmDevice]:
        """All GPUs that answer; `identity.index` is DCGM's GPU id. GpuError: no engine there.

        GPUs that do not answer are left out and named in `unreachable`.
        """
        self._companion.forget()
        return self._engine.once_more(self._list)

    def close(self) -> None:
        """Disconnect. Changes no limit."""
        self._companion.close()
        self._engine.close()

    def _list(self, handle: Any) -> list[DcgmDevice]:
        found: list[DcgmDevice] = []
        failed: list[GpuError] = []
        for gpu_id in _gpu_ids(self._engine, handle):
            try:
                found.append(self._device(handle, gpu_id))
            except GpuError as error:
                if isinstance(error, DcgmError) and error.code == CONNECTION_NOT_VALID:
                    raise
                _LOG.warning("a GPU is left out: %s", error)
                failed.append(error)
        if failed and not found:
            raise failed[0]
        self.unreachable = tuple(str(error) for error in failed)
        return found

    def _device(self, handle: Any, gpu_id: int) -> DcgmDevice:
        about = f"DCGM GPU {gpu_id}"
        ids = _attributes(self._engine, handle, gpu_id, about=about).identifiers
        uuid = text_or_none(ids.uuid)
        if uuid is None:
            raise GpuError(GpuFault.UNKNOWN, f"{about}: the engine tells no UUID")
        identity = GpuIdentity(
            uuid=uuid,
            index=gpu_id,
            product=text_or_none(ids.deviceName) or "unknown",
            bus_id=text_or_none(ids.pciBusId),
            serial=text_or_none(ids.serial),
        )
        return DcgmDevice(self._engine, identity, self._companion)


class DcgmDevice:
    """One GPU through DCGM. Limits are whole watts there; what is written is rounded down.

    DCGM's GPU id is only a way to the UUID: it is compared in the same answer that carries the
    limits, before each write, and looked up anew when another GPU has it.
    """

    def __init__(self, engine: DcgmConnection, identity: GpuIdentity, companion: Companion) -> None:
        self._engine = engine
        self._identity = identity
        self._companion = companion
        self._gpu_id = identity.index
        self._generation = -1

    @property
    def identity(self) -> GpuIdentity:
        """Who it is; `index` is DCGM's GPU id at the enumeration."""
        return self._identity

    def sources(self) -> dict[str, str]:
        """Say by which call each quantity is read or written."""
        attributes = "dcgmGetDeviceAttributes (live, whole watts)"
        return {
            "range": attributes,
            "enforced_w": f"the larger of {attributes} and live field {FIELD_ENFORCED_LIMIT}",
            "requested_w": attributes,
            "default_w": attributes,
            "write_limit": "dcgmConfigSet without Enforce, rounded down to whole watts",
            "draw_w": f"live field {FIELD_POWER_USAGE}",
            "energy_j": f"live field {FIELD_TOTAL_ENERGY_MJ}",
            "sm_clock_mhz": f"live field {FIELD_SM_CLOCK}",
            "lock_clocks": "not supported: DCGM sets application clocks, which are no ceiling",
            "processes": "NVML, joined by UUID: DCGM has no call for it",
            "mig_uuids": "NVML, joined by UUID",
        }

    def range(self) -> LimitRange:
        """Limits that it accepts now, in whole watts."""
        return self._range_of(self._attributes())

    def enforced_w(self) -> float:
        """Limit that the hardware obeys: the larger of the attributes' and the live field 164.

        The attributes drop fractions of a watt that another writer may have set; the field keeps
        them.
        """
        known = [
            _limit_or_none(self._attributes().powerLimits.enforcedPowerLimit),
            self._field(FIELD_ENFORCED_LIMIT),
        ]
        told = [float(watts) for watts in known if watts is not None]
        if not told:
            raise GpuError(GpuFault.NOT_SUPPORTED, f"enforced limit of {self._uuid}: not reported")
        return max(told)

    def requested_w(self) -> float | None:
        """Limit asked for in-band, in whole watts."""
        return _limit_or_none(self._attributes().powerLimits.curPowerLimit)

    def default_w(self) -> float | None:
        """Limit after a reset, in whole watts."""
        return _limit_or_none(self._attributes().powerLimits.defaultPowerLimit)

    def write_limit(self, watts: float) -> None:
        """Ask for a limit, rounded down to whole watts; OUT_OF_RANGE outside the live range."""
        if not math.isfinite(watts) or watts <= 0:
            raise GpuError(GpuFault.OUT_OF_RANGE, f"limit {watts!r} W: not a positive number")
        whole = math.floor(watts + _FLOAT_NOISE_W)

        def write(handle: Any) -> None:
            attributes = self._verified(handle, always=True)
            limits = self._range_of(attributes)
            if not limits.min_w <= whole <= limits.max_w:
                raise GpuError(
                    GpuFault.OUT_OF_RANGE,
                    f"limit {watts:g} W for {self._uuid}: it accepts whole watts from "
                    f"{limits.min_w:g} to {limits.max_w:g} W",
                )
            self._config_set(handle, whole)

        self._engine.once_more(write)

    def draw_w(self) -> float | None:
        """Measured power; DCGM reads it from NVML, with the same meaning per product."""
        return self._field(FIELD_POWER_USAGE)

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded (the field is in millijoules)."""
        energy = self._field(FIELD_TOTAL_ENERGY_MJ)
        return None if energy is None else energy / 1000

    def sm_clock_mhz(self) -> int | None:
        """Present SM clock."""
        return _whole(self._field(FIELD_SM_CLOCK))

    def max_sm_clock_mhz(self) -> int | None:
        """Highest SM clock of the product."""
        return _whole(self._field(FIELD_MAX_SM_CLOCK))

    def lock_clocks(self, max_mhz: int) -> None:
        """Not supported: DCGM's target clocks are application clocks, no ceiling."""
        raise GpuError(
            GpuFault.NOT_SUPPORTED,
            f"clock ceiling {max_mhz} MHz for {self._uuid}: DCGM has no clock ceilings, "
            "use the nvml driver for them",
        )

    def reset_clocks(self) -> None:
        """Not supported, as no ceiling can have been set."""
        raise GpuError(GpuFault.NOT_SUPPORTED, f"clocks of {self._uuid}: DCGM has no ceilings")

    def throttle_reasons(self) -> frozenset[str]:
        """Why clocks are held back; GpuError NOT_SUPPORTED where the GPU does not tell."""
        bits = self._field(FIELD_CLOCK_EVENT_REASONS)
        if bits is None:
            raise GpuError(GpuFault.NOT_SUPPORTED, f"clock events of {self._uuid}: not reported")
        return reason_names(int(bits))

    def persistence_mode(self) -> bool | None:
        """False: the driver may unload when idle; DCGM's own connection usually prevents that."""
        mode = int_or_none(self._attributes().settings.persistenceModeEnabled)
        return None if mode is None else bool(mode)

    def mig_enabled(self) -> bool | None:
        """True when the GPU is split into instances."""
        mode = int_or_none(self._attributes().settings.migModeEnabled)
        return None if mode is None else bool(mode)

    def mig_uuids(self) -> Sequence[str]:
        """UUIDs of its MIG instances, by NVML; empty without MIG."""
        return self._companion.device(self._uuid).mig_uuids() if self.mig_enabled() else []

    def processes(self) -> Sequence[GpuProcess]:
        """Processes that compute on it, by NVML."""
        return self._companion.device(self._uuid).processes()

    @property
    def _uuid(self) -> str:
        return self._identity.uuid

    def _attributes(self) -> Any:
        """Attributes of this very GPU, read now."""
        return self._engine.once_more(lambda handle: self._verified(handle, always=True))

    def _field(self, field: int) -> float | None:
        return self._engine.once_more(lambda handle: self._read_field(handle, field))

    def _read_field(self, handle: Any, field: int) -> float | None:
        self._verified(handle, always=False)
        engine, about = self._engine, self._uuid
        pair = engine.binding.structs.c_dcgmGroupEntityPair_t()
        pair.entityGroupId = engine.binding.fields.DCGM_FE_GPU
        pair.entityId = self._gpu_id
        read = engine.binding.agent.dcgmEntitiesGetLatestValues
        # Live, since the engine's cache holds only what somebody watches.
        live = engine.binding.structs.DCGM_FV_FLAG_LIVE_DATA
        values = engine.call(read, handle, [pair], [field], live, about=about)
        return field_number(values[0], about)

    def _verified(self, handle: Any, *, always: bool) -> Any:
        """See that the GPU id is ours and return its attributes; else look it up by UUID.

        Within one connection the engine keeps ids to UUIDs, so reads that need no attributes ask
        once per connection (`always` False), writes and limits every time. LOST: it is not there.
        """
        if not always and self._generation == self._engine.generation:
            return None
        generation = self._engine.generation
        others = [gpu_id for gpu_id in _gpu_ids(self._engine, handle) if gpu_id != self._gpu_id]
        for gpu_id in (self._gpu_id, *others):
            try:
                attributes = _attributes(self._engine, handle, gpu_id, about=self._uuid)
            except DcgmError as error:
                elsewhere = gpu_id != self._gpu_id and error.code != CONNECTION_NOT_VALID
                if elsewhere or error.code == BADPARAM:  # another GPU's trouble, or no such id
                    continue
                raise
            if text_or_none(attributes.identifiers.uuid) == self._uuid:
                self._gpu_id, self._generation = gpu_id, generation
                return attributes
        raise GpuError(GpuFault.LOST, f"{self._uuid}: the DCGM host engine has no such GPU")

    def _range_of(self, attributes: Any) -> LimitRange:
        low = _limit_or_none(attributes.powerLimits.minPowerLimit)
        high = _limit_or_none(attributes.powerLimits.maxPowerLimit)
        if low is None or high is None:
            raise GpuError(GpuFault.NOT_SUPPORTED, f"range of {self._uuid}: not reported")
        return LimitRange(low, high)

    def _config_set(self, handle: Any, watts: int) -> None:
        """Set the limit by a group of this one GPU that lives for the call only.

        By the low-level call: the bindings' DcgmGroup.config.Set drops the call's own error and
        succeeds when the engine has put no detail into the status (read in DCGM 4's source).
        """
        engine, agent, about = self._engine, self._engine.binding.agent, self._uuid
        structs = engine.binding.structs
        name = f"wattline-{self._uuid}"
        group = engine.call(
            agent.dcgmGroupCreate, handle, structs.DCGM_GROUP_EMPTY, name, about=about
        )
        try:
            engine.call(agent.dcgmGroupAddDevice, handle, group, self._gpu_id, about=about)
            status = engine.call(agent.dcgmStatusCreate, about=about)
            try:
                config = _power_limit_only(structs, watts)
                engine.call(agent.dcgmConfigSet, handle, group, config, status, about=about)
            except DcgmError as error:
                raise self._refusal(error, agent.dcgmStatusPopError(status)) from error
            finally:
                self._tidy(agent.dcgmStatusDestroy, status)
        finally:
            self._tidy(agent.dcgmGroupDestroy, handle, group)

    def _tidy(self, function: Callable[..., Any], *arguments: object) -> None:
        """Clean up after a write; a failure must not hide how the write itself went."""
        try:
            self._engine.call(function, *arguments, about=self._uuid)
        except DcgmError as error:
            _LOG.info("left behind in the DCGM host engine: %s", error)

    def _refusal(self, error: DcgmError, detail: Any) -> GpuError:
        """Prefer the engine's own status for the GPU over the call's general one."""
        code = error.code if detail is None or int(detail.status) == OK else int(detail.status)
        if code == BADPARAM:  # id and range were just seen to be good
            return GpuError(GpuFault.OUT_OF_RANGE, str(error))
        return DcgmError(code, "dcgmConfigSet", self._uuid, str(error))


def _gpu_ids(engine: DcgmConnection, handle: Any) -> list[int]:
    read = engine.binding.agent.dcgmGetAllDevices
    return sorted(int(gpu) for gpu in engine.call(read, handle, about="the host engine"))


def _attributes(engine: DcgmConnection, handle: Any, gpu_id: int, *, about: str) -> Any:
    read = engine.binding.agent.dcgmGetDeviceAttributes
    return engine.call(read, handle, gpu_id, about=about)


def _power_limit_only(structs: Any, watts: int) -> Any:
    """Build a configuration in which everything but the limit is blank, hence left as it is.

    The profiles too: an array of zeros would clear the workload power profiles of others.
    """
    config = structs.c_dcgmDeviceConfig_v2()
    config.version = structs.dcgmDeviceConfig_version2
    config.gpuId = INT32_BLANK
    config.mEccMode = INT32_BLANK
    config.mComputeMode = INT32_BLANK
    config.mPerfState.syncBoost = INT32_BLANK
    config.mPerfState.targetClocks.memClock = INT32_BLANK
    config.mPerfState.targetClocks.smClock = INT32_BLANK
    for place in range(structs.DCGM_WORKLOAD_POWER_PROFILE_ARRAY_SIZE):
        config.mWorkloadPowerProfiles[place] = INT32_BLANK
    config.mPowerLimit.type = structs.DCGM_CONFIG_POWER_CAP_INDIVIDUAL
    config.mPowerLimit.val = watts
    return config


def _limit_or_none(watts: int) -> float | None:
    known = int_or_none(watts)
    return float(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
