"""Watches the registers of virtual GPUs from outside, and misses no change.

Reads the mapped state file of each node itself: no code of the agent, the ledger, the coordinator
or the virtual library's own tools. Every change of an enforced limit is an entry in its GPU's ring,
with its time, its cause and the process that made it; the rings are emptied every few milliseconds,
and an overrun ends the campaign. As a second way, the limit in force is sampled directly and
compared with the changes seen.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 0.005

# The layout of src/wattline/virtual/nvml/state.h, version 1; see there for the meaning.
_MAGIC, _VERSION = 0x3130555047564C57, 1
_GPUS, _RING, _CLIENTS, _PROCESSES, _MIGS, _HIDDEN, _GROUPS = 32, 1024, 128, 16, 8, 8, 17


class _Entry(ctypes.Structure):
    _fields_ = (
        ("seq", ctypes.c_uint64),
        ("t_ns", ctypes.c_int64),
        ("cause", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("before_mw", ctypes.c_uint32),
        ("enforced_mw", ctypes.c_uint32),
        ("requested_mw", ctypes.c_uint32),
        ("load_mw", ctypes.c_uint32),
        ("clock_min_mhz", ctypes.c_uint32),
        ("clock_max_mhz", ctypes.c_uint32),
        ("ceiling_mw", ctypes.c_uint32),
        ("floor_mw", ctypes.c_uint32),
        ("persistence", ctypes.c_uint32),
        ("mig", ctypes.c_uint32),
        ("chip_mw", ctypes.c_double),
        ("energy_mj", ctypes.c_double),
        ("capped_ns", ctypes.c_double),
    )


class _Spec(ctypes.Structure):
    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("serial", ctypes.c_char * 32),
        ("bus_id", ctypes.c_char * 32),
        ("numbers", ctypes.c_uint32 * 12),
        ("memory_bytes", ctypes.c_uint64),
        ("settle_ns", ctypes.c_int64),
    )


class _Process(ctypes.Structure):
    _fields_ = (("numbers", ctypes.c_uint32 * 4), ("memory_bytes", ctypes.c_uint64))


class _Mig(ctypes.Structure):
    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("numbers", ctypes.c_uint32 * 2),
        ("memory_bytes", ctypes.c_uint64),
    )


class _Fault(ctypes.Structure):
    _fields_ = (("remaining", ctypes.c_int32), ("code", ctypes.c_int32), ("us", ctypes.c_uint32))


class _Rival(ctypes.Structure):
    _fields_ = (
        ("limit_mw", ctypes.c_uint32),
        ("remaining", ctypes.c_int32),
        ("period_ns", ctypes.c_int64),
        ("next_ns", ctypes.c_int64),
    )


class _Gpu(ctypes.Structure):
    _fields_ = (
        ("spec", _Spec),
        ("present", ctypes.c_uint32),
        ("lost", ctypes.c_uint32),
        ("xid_count", ctypes.c_uint32),
        ("hidden_fields", ctypes.c_uint32 * _HIDDEN),
        ("rival", _Rival),
        ("process_count", ctypes.c_uint32),
        ("processes", _Process * _PROCESSES),
        ("mig_count", ctypes.c_uint32),
        ("migs", _Mig * _MIGS),
        ("newest", ctypes.c_uint64),
        ("ring", _Entry * _RING),
    )


class _Client(ctypes.Structure):
    _fields_ = (("ticks", ctypes.c_uint64), ("pid", ctypes.c_uint32), ("used", ctypes.c_uint32))


class _Map(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("driver_version", ctypes.c_char * 80),
        ("nvml_version", ctypes.c_char * 80),
        ("lock", ctypes.c_uint64 * 5),
        ("enumeration", ctypes.c_uint32),
        ("driver_load", ctypes.c_uint32),
        ("dead_session", ctypes.c_int32),
        ("driver_absent_until_ns", ctypes.c_int64),
        ("count", ctypes.c_uint32),
        ("order", ctypes.c_uint32 * _GPUS),
        ("clients", _Client * _CLIENTS),
        ("faults", (_Fault * _GROUPS) * (_GPUS + 1)),
        ("calls", (ctypes.c_uint64 * _GROUPS) * (_GPUS + 1)),
        ("gpus", _Gpu * _GPUS),
    )


CAUSES = {
    1: "created",
    2: "nvml",
    3: "control",
    4: "rival",
    5: "reload",
    6: "unload",
    7: "out_of_band",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One change of an enforced or requested limit; `at_s` is monotonic; `pid` 0: none."""

    at_s: float
    node: str
    gpu: str
    cause: str
    pid: int
    before_mw: int
    enforced_mw: int
    requested_mw: int


class ObserverError(Exception):
    """The observation has a hole: its figures must not be used."""


class NodeView:
    """The state file of one node, mapped for reading."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        with path.open("r+b") as file:
            # Python can lay a structure over memory only where it may write; nothing here does.
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(_Map))
        self._map = _Map.from_buffer(self._memory)
        found = (self._map.magic, self._map.version, self._map.size)
        if found != (_MAGIC, _VERSION, ctypes.sizeof(_Map)):
            raise ObserverError(f"{path}: another layout of the state: {found}")
        self._slots = {
            self._map.gpus[slot].spec.uuid.decode(): slot
            for slot in range(_GPUS)
            if self._map.gpus[slot].spec.uuid
        }
        # From one entry per GPU: a change between two looks would be counted twice.
        first = {uuid: self._newest(uuid) for uuid in self._slots}
        self._seen = {uuid: int(entry.seq) for uuid, entry in first.items()}
        self._requested_mw = {uuid: int(entry.requested_mw) for uuid, entry in first.items()}
        self.start_mw = {uuid: int(entry.enforced_mw) for uuid, entry in first.items()}

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of all GPUs that the file has a place for."""
        return tuple(self._slots)

    def _newest(self, uuid: str) -> _Entry:
        gpu = self._map.gpus[self._slots[uuid]]
        return self._entry(gpu, gpu.newest)

    def _entry(self, gpu: _Gpu, seq: int) -> _Entry:
        for _ in range(100):
            entry = _Entry.from_buffer_copy(gpu.ring[seq % _RING])
            if entry.seq == seq:
                return entry
        raise ObserverError(f"{self.name}: entry {seq} of a ring was overwritten unread")

    def enforced_mw(self, uuid: str) -> int:
        """The limit in force now, as sampled."""
        return int(self._newest(uuid).enforced_mw)

    def drain(self) -> list[Change]:
        """All changes of enforced or requested limits since the last call, in order per GPU."""
        changes = []
        for uuid, slot in self._slots.items():
            gpu = self._map.gpus[slot]
            newest = int(gpu.newest)
            for seq in range(self._seen[uuid] + 1, newest + 1):
                entry = self._entry(gpu, seq)
                changed = entry.before_mw != entry.enforced_mw
                if changed or entry.requested_mw != self._requested_mw[uuid]:
                    changes.append(self._change(uuid, entry))
                self._requested_mw[uuid] = entry.requested_mw
            self._seen[uuid] = newest
        return changes

    def _change(self, uuid: str, entry: _Entry) -> Change:
        return Change(
            entry.t_ns / 1e9,
            self.name,
            uuid,
            CAUSES.get(entry.cause, f"cause {entry.cause}"),
            entry.pid,
            entry.before_mw,
            entry.enforced_mw,
            entry.requested_mw,
        )


class Observer:
    """Watches several nodes from a thread of its own until it is stopped."""

    def __init__(self, states: Mapping[str, Path]) -> None:
        self.start_s = time.monotonic()
        self._nodes = [NodeView(name, path) for name, path in states.items()]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self.start_mw = {uuid: mw for node in self._nodes for uuid, mw in node.start_mw.items()}
        self.node_of = {uuid: node.name for node in self._nodes for uuid in node.gpus}
        self.changes: list[Change] = []
        self.samples = 0
        self.longest_gap_s = 0.0
        self.most_sampled_mw = 0
        self.problem: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after one more look; ObserverError if the observation has a hole."""
        self._stop.set()
        self._thread.join()
        if self.problem is not None:
            raise ObserverError(self.problem)

    def _run(self) -> None:
        last_s = time.monotonic()
        try:
            while True:
                ending = self._stop.is_set()
                self._look()
                now_s = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now_s - last_s)
                last_s = now_s
                if ending:
                    break
                self._stop.wait(PERIOD_S)
            self._cross_check()
        except ObserverError as error:
            self.problem = str(error)

    def _look(self) -> None:
        total_mw = 0
        for node in self._nodes:
            self.changes.extend(node.drain())
            total_mw += sum(node.enforced_mw(uuid) for uuid in node.gpus)
        self.samples += 1
        self.most_sampled_mw = max(self.most_sampled_mw, total_mw)

    def _cross_check(self) -> None:
        """The changes, added up, must lead to the limits that are in force now."""
        level_mw = dict(self.start_mw)
        for change in self.changes:
            if level_mw[change.gpu] != change.before_mw:
                self.problem = f"{change}: but {level_mw[change.gpu]} mW was in force"
                return
            level_mw[change.gpu] = change.enforced_mw
        for node in self._nodes:
            for change in node.drain():
                level_mw[change.gpu] = change.enforced_mw
                self.changes.append(change)
            for uuid in node.gpus:
                if node.enforced_mw(uuid) != level_mw[uuid]:
                    self.problem = f"{uuid}: the ring does not lead to the limit in force"
