"""Words of the virtual GPUs' control: groups of calls, causes, codes, states and log entries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from uuid import NAMESPACE_OID, uuid5

from wattline.virtual import library as lib
from wattline.virtual.products import PRODUCTS


class Group(IntEnum):
    """Groups of NVML calls that share faults and counters; field values count for their group."""

    ALL = 0
    SESSION = 1
    ENUMERATION = 2
    IDENTITY = 3
    LIMIT_READ = 4
    LIMIT_WRITE = 5
    POWER = 6
    ENERGY = 7
    FIELDS = 8
    CLOCK_READ = 9
    CLOCK_WRITE = 10
    REASONS = 11
    PERSISTENCE = 12
    PROCESS_LIST = 13
    MIG = 14
    TELEMETRY = 15
    EVENTS = 16


class Cause(IntEnum):
    """Who or what made a change."""

    CREATED = 1
    NVML = 2
    CONTROL = 3
    RIVAL = 4
    RELOAD = 5
    UNLOAD = 6
    OUT_OF_BAND = 7


class NvmlCode(IntEnum):
    """NVML's return codes that faults use."""

    SUCCESS = 0
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    IN_USE = 19
    UNKNOWN = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A virtual GPU at one moment, as its registers have it."""

    uuid: str
    index: int | None
    """Present NVML index; None: removed."""
    product: str
    enforced_w: float
    requested_w: float
    default_w: float
    min_w: float
    max_w: float
    load_w: float
    draw_w: float
    instant_w: float
    """One sample of the draw, with the limiter's deviations; energy and mean have none."""
    average_w: float
    energy_j: float
    clock_mhz: int
    clock_ceiling_mhz: int | None
    capped: bool
    persistence: bool
    mig: bool
    lost_xid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry of a GPU's log. Entries that leave the limit as it is are part of it."""

    uuid: str
    sequence: int
    time_ns: int
    """On CLOCK_MONOTONIC."""
    cause: Cause
    pid: int
    before_mw: int
    enforced_mw: int
    requested_mw: int
    load_mw: int
    clock_ceiling_mhz: int


@dataclass(frozen=True, slots=True)
class VirtualProcess:
    """A process on a GPU, as NVML lists it. Instances matter on a split GPU only."""

    pid: int
    memory_bytes: int = 1 << 30
    gpu_instance: int = 0xFFFFFFFF
    compute_instance: int = 0xFFFFFFFF
    graphics: bool = False


def change_of(uuid: str, entry: lib.Entry) -> Change:
    """A log entry as it is told."""
    return Change(
        uuid=uuid,
        sequence=entry.seq,
        time_ns=entry.t_ns,
        cause=Cause(entry.cause),
        pid=entry.pid,
        before_mw=entry.before_mw,
        enforced_mw=entry.enforced_mw,
        requested_mw=entry.requested_mw,
        load_mw=entry.load_mw,
        clock_ceiling_mhz=entry.clock_max_mhz,
    )


def process_of(found: lib.Process) -> VirtualProcess:
    """A process as it is told."""
    return VirtualProcess(
        pid=found.pid,
        memory_bytes=found.memory_bytes,
        gpu_instance=found.gpu_instance,
        compute_instance=found.compute_instance,
        graphics=bool(found.graphics),
    )


def state_of(spec: lib.Spec, view: lib.View, index: int | None, lost_xid: int) -> GpuState:
    """Registers as they are told."""
    entry = view.entry
    return GpuState(
        uuid=spec.uuid.decode(),
        index=index,
        product=spec.name.decode(),
        enforced_w=entry.enforced_mw / 1000,
        requested_w=entry.requested_mw / 1000,
        default_w=spec.default_mw / 1000,
        min_w=spec.min_mw / 1000,
        max_w=spec.max_mw / 1000,
        load_w=entry.load_mw / 1000,
        draw_w=view.draw_mw / 1000,
        instant_w=view.instant_mw / 1000,
        average_w=view.average_mw / 1000,
        energy_j=view.energy_mj / 1000,
        clock_mhz=view.clock_mhz,
        clock_ceiling_mhz=entry.clock_max_mhz or None,
        capped=bool(view.capped),
        persistence=bool(entry.persistence),
        mig=bool(entry.mig),
        lost_xid=lost_xid or None,
    )


def spec_of(
    product: str, slot: int, persistence: bool, settle_s: float | None, seed: int
) -> lib.Spec:
    """A new GPU of a product in a slot. Its UUID follows from seed, slot and product."""
    what = PRODUCTS[product]
    own = uuid5(NAMESPACE_OID, f"wattline virtual GPU {seed} {slot} {product}")
    settle = what.settle_s if settle_s is None else settle_s
    bus = 0x18 + 8 * slot
    return lib.Spec(
        uuid=f"GPU-{own}".encode(),
        name=what.nvml_name.encode(),
        serial=f"165{seed % 10000:04d}{slot:06d}".encode(),
        bus_id=f"00000000:{bus % 256:02X}:00.0".encode(),
        pci_bus=bus % 256,
        pci_device_id=what.pci_device_id,
        minor=slot,
        architecture=what.architecture,
        min_mw=what.min_limit_w * 1000,
        max_mw=what.max_limit_w * 1000,
        default_mw=what.default_limit_w * 1000,
        idle_mw=what.idle_w * 1000,
        min_mhz=what.min_clock_mhz,
        max_mhz=what.max_clock_mhz,
        memory_mhz=what.memory_clock_mhz,
        persistence=int(persistence),
        memory_bytes=what.memory_bytes,
        settle_ns=int(settle * 1e9),
    )
