"""The control's calls in the built library, and its structures, as ctypes.

The layout is that of `nvml/state.h`. These calls are not part of NVML.
"""

from __future__ import annotations

import ctypes as c
import os
from functools import cache
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError, WattlineError

MAX_GPUS = 32
NODE = MAX_GPUS
MAX_CLIENTS = 128
MAX_PROCESSES = 16
MAX_MIGS = 8
MAX_HIDDEN_FIELDS = 8


class Entry(c.LittleEndianStructure):
    """A GPU from `t_ns` on (`wv_entry`)."""

    _fields_ = (
        ("seq", c.c_uint64),
        ("t_ns", c.c_int64),
        ("cause", c.c_uint32),
        ("pid", c.c_uint32),
        ("before_mw", c.c_uint32),
        ("enforced_mw", c.c_uint32),
        ("requested_mw", c.c_uint32),
        ("load_mw", c.c_uint32),
        ("clock_min_mhz", c.c_uint32),
        ("clock_max_mhz", c.c_uint32),
        ("ceiling_mw", c.c_uint32),
        ("floor_mw", c.c_uint32),
        ("persistence", c.c_uint32),
        ("mig", c.c_uint32),
        ("chip_mw", c.c_double),
        ("energy_mj", c.c_double),
        ("capped_ns", c.c_double),
    )


class Spec(c.LittleEndianStructure):
    """What a GPU is (`wv_spec`)."""

    _fields_ = (
        ("uuid", c.c_char * 96),
        ("name", c.c_char * 96),
        ("serial", c.c_char * 32),
        ("bus_id", c.c_char * 32),
        ("pci_bus", c.c_uint32),
        ("pci_device_id", c.c_uint32),
        ("minor", c.c_uint32),
        ("architecture", c.c_uint32),
        ("min_mw", c.c_uint32),
        ("max_mw", c.c_uint32),
        ("default_mw", c.c_uint32),
        ("idle_mw", c.c_uint32),
        ("min_mhz", c.c_uint32),
        ("max_mhz", c.c_uint32),
        ("memory_mhz", c.c_uint32),
        ("persistence", c.c_uint32),
        ("memory_bytes", c.c_uint64),
        ("settle_ns", c.c_int64),
    )


class Process(c.LittleEndianStructure):
    """A process on a GPU (`wv_process`)."""

    _fields_ = (
        ("pid", c.c_uint32),
        ("graphics", c.c_uint32),
        ("gpu_instance", c.c_uint32),
        ("compute_instance", c.c_uint32),
        ("memory_bytes", c.c_uint64),
    )


class Mig(c.LittleEndianStructure):
    """A MIG instance (`wv_mig`)."""

    _fields_ = (
        ("uuid", c.c_char * 96),
        ("gpu_instance", c.c_uint32),
        ("compute_instance", c.c_uint32),
        ("memory_bytes", c.c_uint64),
    )


class View(c.LittleEndianStructure):
    """A GPU at one moment (`wv_view`)."""

    _fields_ = (
        ("entry", Entry),
        ("draw_mw", c.c_double),
        ("instant_mw", c.c_double),
        ("average_mw", c.c_double),
        ("energy_mj", c.c_double),
        ("capped_ns", c.c_double),
        ("chip_mw", c.c_double),
        ("clock_mhz", c.c_uint32),
        ("capped", c.c_uint32),
    )


class Overview(c.LittleEndianStructure):
    """The node at one moment (`wv_overview`)."""

    _fields_ = (
        ("count", c.c_uint32),
        ("order", c.c_uint32 * MAX_GPUS),
        ("present", c.c_uint32 * MAX_GPUS),
        ("lost", c.c_uint32 * MAX_GPUS),
        ("clients", c.c_uint32 * MAX_CLIENTS),
    )


_U32, _U64, _I32, _I64 = c.c_uint32, c.c_uint64, c.c_int32, c.c_int64
_CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "wv_create": (c.c_int, (c.c_char_p, c.c_char_p)),
    "wv_open": (c.c_int, (c.c_char_p, c.POINTER(c.c_void_p))),
    "wv_close": (None, (c.c_void_p,)),
    "wv_clock": (_I64, ()),
    "wv_add_gpu": (c.c_int, (c.c_void_p, c.c_int, c.POINTER(Spec))),
    "wv_remove_gpu": (c.c_int, (c.c_void_p, c.c_int)),
    "wv_return_gpu": (c.c_int, (c.c_void_p, c.c_int)),
    "wv_reorder": (c.c_int, (c.c_void_p, c.POINTER(_U32), _U32, c.c_int)),
    "wv_reload": (c.c_int, (c.c_void_p, _I64, c.c_int)),
    "wv_set": (c.c_int, (c.c_void_p, c.c_int, c.c_int, _U32, _U32)),
    "wv_set_processes": (c.c_int, (c.c_void_p, c.c_int, c.POINTER(Process), _U32)),
    "wv_set_migs": (c.c_int, (c.c_void_p, c.c_int, c.POINTER(Mig), _U32)),
    "wv_set_fault": (c.c_int, (c.c_void_p, c.c_int, c.c_int, c.c_int, _I32, _U32)),
    "wv_set_lost": (c.c_int, (c.c_void_p, c.c_int, _U32)),
    "wv_hide_fields": (c.c_int, (c.c_void_p, c.c_int, c.POINTER(_U32), _U32)),
    "wv_set_rival": (c.c_int, (c.c_void_p, c.c_int, _U32, _I64, _I64, _I32)),
    "wv_read_node": (c.c_int, (c.c_void_p, c.POINTER(Overview))),
    "wv_read_spec": (c.c_int, (c.c_void_p, c.c_int, c.POINTER(Spec))),
    "wv_read_gpu": (c.c_int, (c.c_void_p, c.c_int, _I64, c.POINTER(View))),
    "wv_read_processes": (_U32, (c.c_void_p, c.c_int, c.POINTER(Process))),
    "wv_read_calls": (_U64, (c.c_void_p, c.c_int, c.c_int)),
    "wv_read_log": (_U32, (c.c_void_p, c.c_int, _U64, c.POINTER(Entry), _U32, c.POINTER(_U64))),
    "wv_hold_lock": (c.c_int, (c.c_void_p,)),
}


@cache
def load(library: Path) -> Any:
    """The library with the types of its control calls."""
    loaded = c.CDLL(str(library))
    for name, (result, arguments) in _CALLS.items():
        call = getattr(loaded, name)
        call.restype, call.argtypes = result, arguments
    return loaded


def check(code: int, where: str, found: object) -> None:
    """Turn an errno of the control into an error."""
    if code == 0:
        return
    text = os.strerror(code)
    if text == os.strerror(71):  # EPROTO
        raise InputError(where, found, "not a virtual node of this version: create it anew")
    if code in (2, 13, 17, 22):  # ENOENT, EACCES, EEXIST, EINVAL
        raise InputError(where, found, text.lower())
    raise WattlineError(f"{where}: {found!r}: {text.lower()}")
