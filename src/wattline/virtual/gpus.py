"""The control of the virtual GPUs: make them, load them, break them, and read them without NVML.

Everything works on the state file that the virtual `libnvidia-ml.so.1` of other processes maps.
"""

from __future__ import annotations

import ctypes as c
import uuid
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wattline.core.errors import InputError
from wattline.virtual import library as lib
from wattline.virtual.build import build
from wattline.virtual.gpu_records import (
    Cause,
    Change,
    GpuState,
    Group,
    NvmlCode,
    VirtualProcess,
    change_of,
    process_of,
    spec_of,
    state_of,
)
from wattline.virtual.products import PRODUCTS

__all__ = [
    "Cause",
    "Change",
    "GpuState",
    "Group",
    "NvmlCode",
    "VirtualGpus",
    "VirtualProcess",
]

DRIVER_VERSION = "580.95.05"
_LOG_ROOM = 1024


class _Setting(IntEnum):
    LOAD = 0
    REQUESTED = 1
    CEILING = 2
    FLOOR = 3
    PERSISTENCE = 4
    MIG = 5


class VirtualGpus:
    """The GPUs of one virtual node. A GPU is named by its UUID or by its present NVML index.

    Safe to use from several threads and processes at once.
    """

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        """Open an existing state file; InputError when it is none of this version."""
        self.path = path
        self.library = build(cache)
        self._lib: Any = lib.load(self.library)
        handle = c.c_void_p()
        lib.check(self._lib.wv_open(bytes(path), c.byref(handle)), "virtual node", str(path))
        self._handle: c.c_void_p | None = handle
        self._slots: dict[str, int] = {}
        self._learn()

    @classmethod
    def create(
        cls,
        path: Path,
        products: Sequence[str],
        *,
        persistence: bool = True,
        settle_s: float | None = None,
        seed: int = 0,
        cache: Path | None = None,
    ) -> Self:
        """Make a state file. UUIDs follow from the seed; settle_s None: as the product has."""
        library: Any = lib.load(build(cache))
        code = library.wv_create(bytes(path), DRIVER_VERSION.encode())
        lib.check(code, "virtual node", str(path))
        gpus = cls(path, cache)
        for product in products:
            gpus.add(product, persistence=persistence, settle_s=settle_s, seed=seed)
        return gpus

    def close(self) -> None:
        """Let go of the mapping; the file and other processes stay as they are."""
        if self._handle is not None:
            self._lib.wv_close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What there is

    def uuids(self) -> tuple[str, ...]:
        """UUIDs of the GPUs in the order of their NVML indices."""
        view = self._overview()
        by_slot = {slot: uuid for uuid, slot in self._slots.items()}
        return tuple(by_slot[view.order[i]] for i in range(view.count))

    def clients(self) -> tuple[int, ...]:
        """Process ids that have an NVML session and are alive."""
        return tuple(pid for pid in self._overview().clients if pid)

    def state(self, gpu: str | int, *, at_ns: int | None = None) -> GpuState:
        """Read a GPU's registers now, or as they will be at a later time if nothing happens."""
        slot = self._slot(gpu)
        spec, view = self._spec(slot), lib.View()
        self._call("wv_read_gpu", gpu, slot, at_ns or 0, c.byref(view))
        overview = self._overview()
        order = list(overview.order[: overview.count])
        index = order.index(slot) if slot in order else None
        return state_of(spec, view, index, overview.lost[slot])

    def enforced_mw(self, gpu: str | int) -> int:
        """Only the enforced limit: cheap enough to sample every millisecond."""
        view = lib.View()
        self._call("wv_read_gpu", gpu, self._slot(gpu), 0, c.byref(view))
        return int(view.entry.enforced_mw)

    def obeyed_mw(self, gpu: str | int) -> int:
        """The limit that the chip follows by now: the register of a settle time ago."""
        return int(self._view(gpu).entry.chip_mw)

    def changes(self, gpu: str | int, after: int = 0) -> tuple[list[Change], int]:
        """Log entries after the sequence number `after`, and how many are no longer there."""
        slot = self._slot(gpu)
        uuid = self._spec(slot).uuid.decode()
        room = (lib.Entry * _LOG_ROOM)()
        lost = c.c_uint64()
        count = self._lib.wv_read_log(self._context(), slot, after, room, _LOG_ROOM, c.byref(lost))
        return [change_of(uuid, entry) for entry in room[:count]], lost.value

    def calls(self, gpu: str | int | None, group: Group) -> int:
        """NVML calls of a group so far; `gpu` None: those that concern the node."""
        slot = lib.NODE if gpu is None else self._slot(gpu)
        return int(self._lib.wv_read_calls(self._context(), slot, group))

    def processes(self, gpu: str | int) -> list[VirtualProcess]:
        """The processes that NVML lists."""
        room = (lib.Process * lib.MAX_PROCESSES)()
        count = self._lib.wv_read_processes(self._context(), self._slot(gpu), room)
        return [process_of(found) for found in room[:count]]

    # What happens to it

    def set_load(self, gpu: str | int, watts: float) -> None:
        """What the work would draw at full clocks without a limit."""
        self._set(gpu, _Setting.LOAD, round(watts * 1000), Cause.CONTROL)

    def write_limit(self, gpu: str | int, watts: float, cause: Cause = Cause.CONTROL) -> None:
        """Write a limit past NVML, its faults and its range: as another writer, or by hand."""
        self._set(gpu, _Setting.REQUESTED, round(watts * 1000), cause)

    def hold_below(self, gpu: str | int, watts: float | None) -> None:
        """Hold the enforced limit at `watts` at most, out of band; None ends it."""
        self._set(gpu, _Setting.CEILING, round((watts or 0) * 1000), Cause.OUT_OF_BAND)

    def hold_above(self, gpu: str | int, watts: float | None) -> None:
        """Hold the enforced limit at `watts` at least, out of band; None ends it."""
        self._set(gpu, _Setting.FLOOR, round((watts or 0) * 1000), Cause.OUT_OF_BAND)

    def set_persistence(self, gpu: str | int, on: bool) -> None:
        """Persistence mode, past NVML."""
        self._set(gpu, _Setting.PERSISTENCE, int(on), Cause.CONTROL)

    def set_processes(self, gpu: str | int, processes: Sequence[VirtualProcess]) -> None:
        """The processes that NVML lists from now on."""
        room = (lib.Process * max(1, len(processes)))()
        for place, process in zip(room, processes, strict=False):
            place.pid = process.pid
            place.graphics = int(process.graphics)
            place.gpu_instance = process.gpu_instance
            place.compute_instance = process.compute_instance
            place.memory_bytes = process.memory_bytes
        self._call("wv_set_processes", gpu, self._slot(gpu), room, len(processes))

    def split(self, gpu: str | int, instances: int) -> tuple[str, ...]:
        """Turn MIG on with so many instances, or off with 0. The UUIDs of the instances."""
        slot = self._slot(gpu)
        spec = self._spec(slot)
        room = (lib.Mig * max(1, instances))()
        base = uuid.UUID(spec.uuid.decode().removeprefix("GPU-"))
        names = tuple(f"MIG-{uuid.uuid5(base, str(i))}" for i in range(instances))
        for i, name in enumerate(names):
            room[i].uuid = name.encode()
            room[i].gpu_instance = i + 1
            room[i].memory_bytes = spec.memory_bytes // instances
        self._call("wv_set_migs", gpu, slot, room, instances)
        return names

    def add(
        self,
        product: str,
        *,
        persistence: bool = True,
        settle_s: float | None = None,
        seed: int = 0,
    ) -> str:
        """Add a GPU in a free slot, last in the order. Its UUID."""
        if product not in PRODUCTS:
            raise InputError("product", product, f"use one of {', '.join(PRODUCTS)}")
        self._overview()
        free = [slot for slot in range(lib.MAX_GPUS) if slot not in self._slots.values()]
        if not free:
            raise InputError("product", product, f"a node has {lib.MAX_GPUS} GPUs at most, ever")
        spec = spec_of(product, free[0], persistence, settle_s, seed)
        self._call("wv_add_gpu", product, free[0], c.byref(spec))
        self._slots[spec.uuid.decode()] = free[0]
        return str(spec.uuid.decode())

    def remove(self, gpu: str | int) -> None:
        """Take a GPU away: it is enumerated no more and its handles are lost."""
        self._call("wv_remove_gpu", gpu, self._slot(gpu))

    def bring_back(self, uuid: str) -> None:
        """A GPU that was removed is there again, last in the order, at its default limit."""
        self._call("wv_return_gpu", uuid, self._slot(uuid))

    def renumber(self, uuids: Sequence[str], *, stale_handles: bool = True) -> None:
        """Give the GPUs new indices, in this order."""
        order = (c.c_uint32 * max(1, len(uuids)))(*(self._slot(u) for u in uuids))
        self._call("wv_reorder", list(uuids), order, len(uuids), int(stale_handles))

    def reload(
        self, *, absent_s: float = 0.0, dead_session: NvmlCode = NvmlCode.UNINITIALIZED
    ) -> None:
        """Unload the driver and load it again: default limits, no processes, stale handles.

        Sessions opened before get `dead_session` from every call until they init again, which
        fails with DRIVER_NOT_LOADED while the driver is absent.
        """
        self._call("wv_reload", "driver", int(absent_s * 1e9), int(dead_session))

    # What goes wrong

    def fail(
        self,
        gpu: str | int | None,
        group: Group = Group.ALL,
        code: int = NvmlCode.UNKNOWN,
        *,
        count: int | None = None,
        delay_s: float = 0.0,
    ) -> None:
        """Make the next `count` calls of a group (None: all until cleared) return `code`, late.

        `code` SUCCESS only makes them slow; a negative code lets a limit be written, then fails.
        `gpu` None: calls that concern the node (SESSION, ENUMERATION, EVENTS).
        """
        slot = lib.NODE if gpu is None else self._slot(gpu)
        left = -1 if count is None else count
        self._call("wv_set_fault", gpu, slot, group, int(code), left, int(delay_s * 1e6))

    def lose(self, gpu: str | int, xid: int = 79) -> None:
        """The GPU falls off the bus; 79 is the Xid of that."""
        self._call("wv_set_lost", gpu, self._slot(gpu), xid)

    def recover(self, gpu: str | int) -> None:
        """A lost GPU is back, as it was."""
        self._call("wv_set_lost", gpu, self._slot(gpu), 0)

    def hide_fields(self, gpu: str | int, ids: Sequence[int]) -> None:
        """These field ids are not supported by the GPU from now on."""
        room = (c.c_uint32 * max(1, len(ids)))(*ids)
        self._call("wv_hide_fields", gpu, self._slot(gpu), room, len(ids))

    def rival(
        self,
        gpu: str | int,
        watts: float,
        *,
        period_s: float = 0.0,
        count: int | None = None,
        delay_s: float = 0.0,
    ) -> None:
        """Another writer: once, or every `period_s` and `count` times (None: until cleared).

        Due writes are made, with the times at which they were due, by whoever touches the GPU next.
        """
        first_ns = self._lib.wv_clock() + int(delay_s * 1e9)
        left = (1 if period_s <= 0 else -1) if count is None else count
        self._call(
            "wv_set_rival",
            gpu,
            self._slot(gpu),
            round(watts * 1000),
            first_ns,
            int(period_s * 1e9),
            left,
        )

    def clear(self, gpu: str | int | None = None) -> None:
        """End all faults of a GPU, or (None) of the whole node. Limits stay as they are."""
        names: list[str | int] = list(self._slots) if gpu is None else [gpu]
        slots = [self._slot(name) for name in names] + ([lib.NODE] if gpu is None else [])
        for slot in slots:
            for group in Group:
                self._call("wv_set_fault", gpu, slot, group, 0, 0, 0)
        for name in names:
            self.recover(name)
            self.hide_fields(name, ())
            self._call("wv_set_rival", name, self._slot(name), 0, 0, 0, 0)
            state = self._view(name).entry
            if state.ceiling_mw:
                self.hold_below(name, None)
            if state.floor_mw:
                self.hold_above(name, None)

    # Inside

    def _view(self, gpu: str | int) -> lib.View:
        view = lib.View()
        self._call("wv_read_gpu", gpu, self._slot(gpu), 0, c.byref(view))
        return view

    def _set(self, gpu: str | int, setting: _Setting, value: int, cause: Cause) -> None:
        self._call("wv_set", gpu, self._slot(gpu), setting, value, cause)

    def _call(self, name: str, found: object, *arguments: object) -> None:
        lib.check(getattr(self._lib, name)(self._context(), *arguments), "virtual GPU", found)

    def _context(self) -> c.c_void_p:
        if self._handle is None:
            raise InputError("virtual node", str(self.path), "is closed")
        return self._handle

    def _overview(self) -> lib.Overview:
        view = lib.Overview()
        self._call("wv_read_node", str(self.path), c.byref(view))
        known = self._slots.values()
        if any(present and slot not in known for slot, present in enumerate(view.present)):
            self._learn()
        return view

    def _learn(self) -> None:
        for slot in range(lib.MAX_GPUS):
            if name := self._spec(slot).uuid.decode():
                self._slots[name] = slot

    def _spec(self, slot: int) -> lib.Spec:
        spec = lib.Spec()
        self._call("wv_read_spec", slot, slot, c.byref(spec))
        return spec

    def _slot(self, gpu: str | int) -> int:
        if isinstance(gpu, int):
            view = self._overview()
            if not 0 <= gpu < view.count:
                raise InputError("GPU", gpu, f"the node has {view.count} GPUs")
            return int(view.order[gpu])
        if gpu not in self._slots:
            self._learn()
        if gpu not in self._slots:
            raise InputError("GPU", gpu, "no GPU of the node has this UUID")
        return self._slots[gpu]
