"""A second driver beside the first, for what the first one has no calls for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuDevice, GpuDriver, GpuError, GpuFault


class Companion:
    """The driver that tells what DCGM does not, opened when first asked."""

    def __init__(self, open_readings: Callable[[], GpuDriver] | None) -> None:
        self._open = open_readings
        self._lock = threading.Lock()
        self._driver: GpuDriver | None = None
        self._devices: dict[str, GpuDevice] = {}

    def device(self, uuid: str) -> GpuDevice:
        """The same GPU in the other driver. GpuError: there is no other, or it lacks the GPU."""
        with self._lock:
            if self._open is None:
                raise GpuError(
                    GpuFault.NOT_SUPPORTED,
                    f"{uuid}: DCGM lists no processes or MIG UUIDs, and NVML is not used beside it",
                )
            if self._driver is None:
                try:
                    self._driver = self._open()
                except InputError as error:
                    raise GpuError(GpuFault.NOT_SUPPORTED, f"{uuid}: {error}") from error
            if uuid not in self._devices:
                self._devices = {
                    device.identity.uuid: device for device in self._driver.enumerate()
                }
            if uuid not in self._devices:
                raise GpuError(GpuFault.LOST, f"{uuid}: DCGM has this GPU, NVML here does not")
            return self._devices[uuid]

    def forget(self) -> None:
        """Look devices up anew: GPUs may have changed."""
        with self._lock:
            self._devices = {}

    def close(self) -> None:
        """Let go of the other driver."""
        with self._lock:
            if self._driver is not None:
                self._driver.close()
                self._driver = None
            self._devices = {}
