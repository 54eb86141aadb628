"""The connection to NVML through nvidia-ml-py: loading, opening, return codes and field values.

Everything that must be known about the library and its binding before a quantity can be trusted is
here; what the quantities mean is in `nvml.py`.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import threading
from types import MappingProxyType, ModuleType
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuError, GpuFault

_LOG = logging.getLogger(__name__)

# Return codes of nvml.h (nvmlReturn_t). They are part of NVML's ABI and the same in every release.
SUCCESS = 0
UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
OPERATING_SYSTEM = 17
LIB_RM_VERSION_MISMATCH = 18
NO_DATA = 21
ARGUMENT_VERSION_MISMATCH = 25
DEPRECATED = 26
UNKNOWN = 999

_FAULTS = MappingProxyType(
    {
        UNINITIALIZED: GpuFault.STALE_HANDLE,
        INVALID_ARGUMENT: GpuFault.STALE_HANDLE,  # what a handle of another enumeration meets
        NOT_SUPPORTED: GpuFault.NOT_SUPPORTED,
        NO_PERMISSION: GpuFault.NO_PERMISSION,
        5: GpuFault.UNKNOWN,  # already initialised: only very old libraries say so
        NOT_FOUND: GpuFault.LOST,
        7: GpuFault.UNKNOWN,  # insufficient size
        8: GpuFault.UNAVAILABLE,  # external power cables
        DRIVER_NOT_LOADED: GpuFault.UNAVAILABLE,
        10: GpuFault.UNAVAILABLE,  # timeout
        11: GpuFault.UNAVAILABLE,  # interrupt issue
        LIBRARY_NOT_FOUND: GpuFault.UNAVAILABLE,
        FUNCTION_NOT_FOUND: GpuFault.NOT_SUPPORTED,
        14: GpuFault.UNKNOWN,  # corrupted inforom
        15: GpuFault.LOST,  # GPU has fallen off the bus
        16: GpuFault.LOST,  # reset required
        OPERATING_SYSTEM: GpuFault.NO_PERMISSION,  # device node blocked by the cgroup
        LIB_RM_VERSION_MISMATCH: GpuFault.UNAVAILABLE,
        19: GpuFault.UNAVAILABLE,  # in use
        20: GpuFault.UNAVAILABLE,  # memory
        NO_DATA: GpuFault.UNAVAILABLE,
        22: GpuFault.NOT_SUPPORTED,  # vGPU with ECC
        23: GpuFault.UNAVAILABLE,  # insufficient resources
        24: GpuFault.OUT_OF_RANGE,  # frequency not supported
        ARGUMENT_VERSION_MISMATCH: GpuFault.NOT_SUPPORTED,
        DEPRECATED: GpuFault.NOT_SUPPORTED,
        27: GpuFault.UNAVAILABLE,  # not ready
        28: GpuFault.LOST,  # GPU not found
        29: GpuFault.UNAVAILABLE,  # invalid state
        30: GpuFault.NOT_SUPPORTED,  # reset type
        UNKNOWN: GpuFault.UNKNOWN,
    }
)

_REMEDIES = MappingProxyType(
    {
        NO_PERMISSION: "limits are written as root or with CAP_SYS_ADMIN only",
        OPERATING_SYSTEM: "the container may not open the GPU's device node: give it the device",
        DRIVER_NOT_LOADED: "load the NVIDIA kernel driver (nvidia-smi must work on the host)",
        LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 is missing: install the NVIDIA driver, or run the "
        "container with NVIDIA's runtime and NVIDIA_DRIVER_CAPABILITIES=utility",
        LIB_RM_VERSION_MISMATCH: "driver and library are of different releases: restart the node, "
        "or the container after a driver upgrade",
    }
)

ABSENT_CODES = frozenset(
    {
        INVALID_ARGUMENT,
        NOT_SUPPORTED,
        NOT_FOUND,
        FUNCTION_NOT_FOUND,
        NO_DATA,
        ARGUMENT_VERSION_MISMATCH,
        DEPRECATED,
    }
)
"""Return codes of one field value that mean: this driver or GPU does not have the field."""

RECONNECT_CODES = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH})
"""Return codes after which NVML must be initialised anew. Not for a mere timeout: without
persistence mode a shutdown can cost an idle GPU its limit."""

# Member of the value union per nvmlValueType_t (nvml.h); ctypes gives each its own type.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class NvmlError(GpuError):
    """A failed NVML call; `code` is NVML's own return code."""

    def __init__(self, code: int, call: str, about: str, words: str) -> None:
        remedy = _REMEDIES.get(code)
        text = f"{call} on {about}: {words} (NVML code {code})"
        super().__init__(fault_of(code), f"{text}: {remedy}" if remedy else text)
        self.code = code


def fault_of(code: int) -> GpuFault:
    """Say what kind of failure an NVML return code is; UNKNOWN for codes of later releases."""
    return _FAULTS.get(code, GpuFault.UNKNOWN)


def load_binding() -> ModuleType:
    """Import nvidia-ml-py. InputError: it is not installed, or is something else by that name."""
    try:
        module = importlib.import_module("pynvml")
    except ImportError as error:
        raise InputError(
            "GPU driver nvml", str(error), "install nvidia-ml-py: pip install 'wattline[agent]'"
        ) from error
    if not hasattr(module, "nvmlDeviceGetFieldValues"):
        raise InputError(
            "GPU driver nvml",
            getattr(module, "__file__", "pynvml"),
            "this is not NVIDIA's binding, or one too old: pip install 'nvidia-ml-py>=13.580'",
        )
    return module


def as_text(value: str | bytes) -> str:
    """Decode what the binding gives: older bindings return bytes for names and UUIDs."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def field_number(field: Any, about: str) -> float | None:
    """Decode one nvmlFieldValue_t by its own value type; None: GPU or driver lack this field.

    NvmlError when the field says that the call failed, GpuError when its type is none of nvml.h's.
    """
    code = int(field.nvmlReturn)
    if code in ABSENT_CODES:
        return None
    if code != SUCCESS:
        raise NvmlError(code, f"field {int(field.fieldId)}", about, "the field could not be read")
    kind = int(field.valueType)
    if not 0 <= kind < len(_MEMBERS):
        raise GpuError(
            GpuFault.UNKNOWN, f"field {int(field.fieldId)} on {about}: unknown value type {kind}"
        )
    return float(getattr(field.value, _MEMBERS[kind]))


class NvmlConnection:
    """One initialisation of NVML, shared by the devices of one driver and their threads.

    It stays open for as long as the driver is used: without persistence mode an open client is what
    keeps an idle GPU's state, and with it the limit, alive.
    """

    def __init__(self, binding: ModuleType) -> None:
        self._binding: Any = binding
        self._lock = threading.Lock()
        self._opened = False
        self.generation = 0
        """Counts initialisations: a handle of an earlier one must be looked up anew."""

    def open(self) -> None:
        """Initialise NVML unless that is done; NvmlError says what is missing."""
        with self._lock:
            if not self._opened:
                self._initialise()

    def reopen(self, seen: int) -> None:
        """Initialise anew after a driver reload, unless another thread has since `seen`."""
        with self._lock:
            if self.generation != seen:
                return
            self._shut()
            self._initialise()

    def is_dead(self, error: NvmlError) -> bool:
        """Say whether a failure means that NVML must be initialised anew.

        An unknown error does when a question about no GPU at all meets it, too: that is how a
        session of before a driver reload answers in some releases.
        """
        if error.code != UNKNOWN:
            return error.code in RECONNECT_CODES
        try:
            self.call("nvmlSystemGetDriverVersion")
        except NvmlError:
            return True
        return False

    def close(self) -> None:
        """Give back this connection's one initialisation. Changes no limit."""
        with self._lock:
            self._shut()

    def call(self, name: str, *arguments: object, about: str = "the driver") -> Any:
        """Call one function of the binding; every failure becomes an NvmlError or GpuError."""
        function = getattr(self._binding, name, None)
        if function is None:
            raise NvmlError(FUNCTION_NOT_FOUND, name, about, "the binding has no such function")
        try:
            return function(*arguments)
        except self._binding.NVMLError as error:
            raise NvmlError(int(error.value), name, about, str(error)) from error
        except UnicodeDecodeError as error:
            raise GpuError(GpuFault.UNKNOWN, f"{name} on {about}: not text: {error}") from error

    def fields(self, handle: object, ids: tuple[int, ...], about: str) -> list[float | None]:
        """Read fields of the GPU's own scope in one call; None per field that it does not have."""
        try:
            values = self.call("nvmlDeviceGetFieldValues", handle, list(ids), about=about)
        except NvmlError as error:
            if error.fault is GpuFault.NOT_SUPPORTED:
                return [None] * len(ids)
            raise
        return [field_number(value, about) for value in values]

    def set_limit_v2(self, handle: object, milliwatts: int, about: str) -> None:
        """Set a limit with GPU scope by the second version of the call.

        Not by the binding's own wrapper: that ignores the return code and reports success for
        every write (seen in nvidia-ml-py 13.615.71).
        """
        call = "nvmlDeviceSetPowerManagementLimit_v2"
        function = getattr(getattr(self._binding, "nvmlLib", None), call, None)
        struct = getattr(self._binding, "c_nvmlPowerValue_v2_t", None)
        if function is None or struct is None:
            raise NvmlError(FUNCTION_NOT_FOUND, call, about, "this release has no such function")
        value = struct()
        # The header's comment asks for version 1, its macro says 2: the macro is what the driver
        # checks. Scope 0 is the GPU in both of the header's contradicting lists of scopes.
        value.version = self._binding.nvmlPowerValue_v2
        value.powerScope = self._binding.NVML_POWER_SCOPE_GPU
        value.powerValueMw = milliwatts
        code = int(function(handle, ctypes.byref(value)))
        if code != SUCCESS:
            raise NvmlError(code, call, about, str(self._binding.NVMLError(code)))

    def _initialise(self) -> None:
        self.call("nvmlInit", about="this node")
        self._opened = True
        self.generation += 1

    def _shut(self) -> None:
        if not self._opened:
            return
        self._opened = False
        try:
            self.call("nvmlShutdown")
        except NvmlError as error:
            # After a reload the library has forgotten us: there is nothing left to give back.
            _LOG.info("NVML was not shut down: %s", error)
