"""The connection to a DCGM host engine through DCGM's own Python bindings.

The bindings are files that come with DCGM, not a package that can be depended on. What is known of
their behaviour here was read in their source (DCGM 4.x); no real host engine was at hand.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuError, GpuFault

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT_MS = 5000

# Return codes of dcgm_structs.h (dcgmReturn_t).
OK = 0
BADPARAM = -1
CONNECTION_NOT_VALID = -21
LIBRARY_NOT_FOUND = -25

_FAULTS = MappingProxyType(
    {
        BADPARAM: GpuFault.STALE_HANDLE,  # an id that the engine does not know (any more)
        -4: GpuFault.UNAVAILABLE,  # memory
        -6: GpuFault.NOT_SUPPORTED,
        -7: GpuFault.UNAVAILABLE,  # initialisation error
        -9: GpuFault.UNAVAILABLE,  # pending
        -10: GpuFault.UNAVAILABLE,  # uninitialised
        -11: GpuFault.UNAVAILABLE,  # timeout
        -12: GpuFault.NOT_SUPPORTED,  # version mismatch
        -13: GpuFault.NOT_SUPPORTED,  # unknown field
        -14: GpuFault.UNAVAILABLE,  # no data
        -15: GpuFault.UNAVAILABLE,  # stale data
        -16: GpuFault.UNAVAILABLE,  # not watched
        -17: GpuFault.NO_PERMISSION,
        -18: GpuFault.LOST,
        -19: GpuFault.LOST,  # reset required
        -20: GpuFault.NOT_SUPPORTED,  # function not found
        CONNECTION_NOT_VALID: GpuFault.UNAVAILABLE,
        -22: GpuFault.NOT_SUPPORTED,  # GPU not supported
        -24: GpuFault.UNAVAILABLE,  # limit of objects (groups)
        LIBRARY_NOT_FOUND: GpuFault.UNAVAILABLE,
        -29: GpuFault.NO_PERMISSION,  # the engine does not run as root
        -32: GpuFault.NOT_SUPPORTED,  # field unsupported by the call
        -33: GpuFault.NOT_SUPPORTED,  # module not loaded
        -34: GpuFault.UNAVAILABLE,  # in use
        -44: GpuFault.NOT_SUPPORTED,  # driver too old
        -49: GpuFault.UNAVAILABLE,  # resources
        -54: GpuFault.UNAVAILABLE,  # paused
        -56: GpuFault.UNAVAILABLE,  # the engine could not load NVML
        -57: GpuFault.UNAVAILABLE,  # driver timeout
    }
)

_ABSENT_STATUS = frozenset({-6, -13, -14, -16, -20, -32})
"""Statuses of one field value that mean: not to be had here."""

INT32_BLANK = 0x7FFFFFF0
"""Integers from here on are DCGM's blanks (not found, not supported, not permitted)."""

INT64_BLANK = 0x7FFFFFFFFFFFFFF0
FP64_BLANK = 140737488355328.0  # 2^47

_BINDINGS_FOLDER = "/usr/share/datacenter-gpu-manager-4/bindings/python3"


class DcgmError(GpuError):
    """A failed DCGM call; `code` is DCGM's own return code."""

    def __init__(self, code: int, call: str, about: str, words: str) -> None:
        fault = _FAULTS.get(code, GpuFault.UNKNOWN)
        super().__init__(fault, f"{call} on {about}: {words} (DCGM code {code})")
        self.code = code


@dataclass(frozen=True, slots=True)
class DcgmBinding:
    """The four modules of DCGM's bindings that are used, as imported or as a test gives them."""

    pydcgm: Any
    agent: Any
    structs: Any
    fields: Any


def load_binding() -> DcgmBinding:
    """Import DCGM's bindings. InputError: they are missing, or are older than DCGM 4."""
    try:
        binding = DcgmBinding(
            pydcgm=importlib.import_module("pydcgm"),
            agent=importlib.import_module("dcgm_agent"),
            structs=importlib.import_module("dcgm_structs"),
            fields=importlib.import_module("dcgm_fields"),
        )
    except ImportError as error:
        raise InputError(
            "GPU driver dcgm",
            str(error),
            "DCGM's Python bindings come with DCGM 4, no package index has them: "
            f"put {_BINDINGS_FOLDER} on PYTHONPATH, or use the nvml driver",
        ) from error
    check_binding(binding)
    return binding


def check_binding(binding: DcgmBinding) -> None:
    """Refuse bindings that lack what a write needs, before the first GPU is written."""
    if not hasattr(binding.structs, "c_dcgmDeviceConfig_v2"):
        raise InputError(
            "GPU driver dcgm",
            getattr(binding.structs, "__file__", "dcgm_structs"),
            "c_dcgmDeviceConfig_v2 is missing: these are bindings of DCGM 3 or older, "
            "use those of DCGM 4",
        )


def text_or_none(value: str | bytes | None) -> str | None:
    """Decode a string of DCGM; its blanks (`<<<NULL>>>` and the like) and empty ones are None."""
    if value is None:
        return None
    text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
    text = text.strip()
    return None if not text or text.startswith("<<<") else text


def int_or_none(value: int) -> int | None:
    """Drop DCGM's integer blanks."""
    return None if value >= INT32_BLANK else int(value)


def field_number(value: Any, about: str) -> float | None:
    """Decode one dcgmFieldValue_v2; None: blank, or not to be had here. DcgmError: it failed."""
    status = int(value.status)
    if status in _ABSENT_STATUS:
        return None
    if status != OK:
        raise DcgmError(status, f"field {int(value.fieldId)}", about, "could not be read")
    if chr(value.fieldType) == "d":
        double = float(value.value.dbl)
        return None if double >= FP64_BLANK else double
    whole = int(value.value.i64)
    # Blanks of both widths: the engine stores 32-bit blanks of NVML in 64-bit fields, too.
    if whole >= INT64_BLANK or INT32_BLANK <= whole <= 0x7FFFFFFF:
        return None
    return float(whole)


class DcgmConnection:
    """One TCP connection to a host engine, shared by the devices of one driver."""

    def __init__(self, host: str, port: int, binding: DcgmBinding) -> None:
        self.binding = binding
        self._address = f"{host}:{port}"
        self._lock = threading.Lock()
        self._handle: Any = None
        self.generation = 0
        """Counts connections: GPU ids of an earlier one must be looked up anew."""

    def once_more(self, do: Callable[[Any], T]) -> T:
        """Do something with the engine's handle; after a lost connection connect and retry once."""
        seen, handle = self._open()
        try:
            return do(handle)
        except DcgmError as error:
            if error.code != CONNECTION_NOT_VALID:
                raise
            _LOG.warning("the DCGM host engine at %s is connected anew: %s", self._address, error)
        self._drop(seen)
        return do(self._open()[1])

    def call(self, function: Callable[..., T], *arguments: object, about: str) -> T:
        """Call one function of the bindings; its DCGMError becomes a DcgmError."""
        try:
            return function(*arguments)
        except self.binding.structs.DCGMError as error:
            name = getattr(function, "__name__", "DCGM")
            raise DcgmError(int(error.value), name, about, str(error)) from error

    def close(self) -> None:
        """Disconnect. Changes no limit."""
        self._drop(self.generation)

    def _open(self) -> tuple[int, Any]:
        with self._lock:
            if self._handle is None:
                self._handle = self._connect()
                self.generation += 1
            return self.generation, self._handle.handle

    def _connect(self) -> Any:
        structs = self.binding.structs
        try:
            return self.binding.pydcgm.DcgmHandle(
                ipAddress=self._address,
                opMode=structs.DCGM_OPERATION_MODE_AUTO,
                persistAfterDisconnect=False,
                timeoutMs=CONNECT_TIMEOUT_MS,
            )
        except structs.DCGMError as error:
            raise GpuError(
                GpuFault.UNAVAILABLE,
                f"DCGM host engine at {self._address}: {error} (DCGM code {error.value}): start "
                "nv-hostengine there or correct the address; there is no fallback to NVML",
            ) from error

    def _drop(self, seen: int) -> None:
        with self._lock:
            if self._handle is None or self.generation != seen:
                return
            handle, self._handle = self._handle, None
        try:
            handle.Shutdown()
        except self.binding.structs.DCGMError as error:
            _LOG.info("the DCGM connection was not shut down: %s", error)
