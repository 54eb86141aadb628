"""A handle to one GPU that is seen to be that GPU's before every use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.gpu.nvml_binding import NvmlConnection, NvmlError, as_text

NO_VALUE_MW = 0xFFFFFFFF
"""NVML's `not available` in an unsigned int."""


class OwnHandle:
    """The handle of the GPU with one UUID.

    It is compared with the UUID before every call, so that a handle that a re-enumeration gave to
    another GPU is never read as ours, let alone written; a stale one is looked up anew by UUID,
    once per call.
    """

    def __init__(self, nvml: NvmlConnection, uuid: str, handle: object) -> None:
        self.nvml = nvml
        self.uuid = uuid
        self._handle = handle
        self._generation = nvml.generation

    def use(self, do: Callable[[object], Any]) -> Any:
        """Do something with the handle; once more with a fresh one if it turns out to be stale."""
        if self._generation == self.nvml.generation:
            try:
                if self.is_own(self._handle):
                    return do(self._handle)
            except NvmlError as error:
                if error.fault is not GpuFault.STALE_HANDLE and not self.nvml.is_dead(error):
                    raise
        self._look_up()
        return do(self._handle)

    def ask(self, name: str, *arguments: object) -> Any:
        """Call a function of the binding on the handle."""
        return self.use(lambda handle: self.nvml.call(name, handle, *arguments, about=self.uuid))

    def optional(self, name: str, *arguments: object) -> Any:
        """Call a getter; None where the GPU or the driver does not have the quantity."""
        try:
            return self.ask(name, *arguments)
        except GpuError as error:
            if error.fault is GpuFault.NOT_SUPPORTED:
                return None
            raise

    def optional_mw(self, name: str) -> float | None:
        """Call a getter of a power limit in milliwatts; None where there is none."""
        return _limit_or_none(self.optional(name))

    def field(self, field: int) -> float | None:
        """Read one field; None where the GPU or the driver does not have it."""
        values = self.use(lambda handle: self.nvml.fields(handle, (field,), self.uuid))
        value: float | None = values[0]
        return value

    def field_mw(self, field: int) -> float | None:
        """Read the field of a power limit in milliwatts; None where there is none."""
        return _limit_or_none(self.field(field))

    def is_own(self, handle: object) -> bool:
        """Compare the handle's UUID with ours; NvmlError when it cannot be asked."""
        return as_text(self.nvml.call("nvmlDeviceGetUUID", handle, about=self.uuid)) == self.uuid

    def _look_up(self) -> None:
        """Find the handle anew by UUID, after a fresh initialisation where NVML wants one."""
        generation = self.nvml.generation
        try:
            handle = self._by_uuid()
        except NvmlError as error:
            if not self.nvml.is_dead(error):
                raise
            self.nvml.reopen(generation)
            generation = self.nvml.generation
            handle = self._by_uuid()
        if not self.is_own(handle):
            raise GpuError(GpuFault.STALE_HANDLE, f"{self.uuid}: its handle is another GPU's")
        self._handle = handle
        self._generation = generation

    def _by_uuid(self) -> object:
        return self.nvml.call("nvmlDeviceGetHandleByUUID", self.uuid, about=self.uuid)


def _limit_or_none(milliwatts: float | None) -> float | None:
    """Drop what NVML returns where it has no limit: 0 and all ones are not limits."""
    if milliwatts is None or not 0 < milliwatts < NO_VALUE_MW:
        return None
    return float(milliwatts)
