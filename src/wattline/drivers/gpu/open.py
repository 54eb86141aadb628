"""Drivers by name. Each one's library is imported when it is asked for, never before."""

from __future__ import annotations

from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuDriver

DRIVERS = ("nvml", "dcgm", "simulated")
"""Names that `open_driver` knows."""

WHOLE_WATTS = frozenset({"dcgm"})
"""Drivers that write whole watts only: more exactly wanted limits would never be read back."""


def open_driver(name: str, *, dcgm_host: str = "localhost", dcgm_port: int = 5555) -> GpuDriver:
    """Open a driver; `dcgm_host` and `dcgm_port` say where the DCGM host engine listens.

    InputError: no such driver, or its library is missing. Nothing is asked of a GPU yet: that a
    library finds no driver or engine shows at the first `enumerate`.
    """
    if name == "nvml":
        from wattline.drivers.gpu.nvml import NvmlDriver

        return NvmlDriver()
    if name == "dcgm":
        from wattline.drivers.gpu.dcgm import DcgmDriver

        return DcgmDriver(dcgm_host, dcgm_port, readings=lambda: open_driver("nvml"))
    if name == "simulated":
        from wattline.drivers.gpu.simulated import SimulatedDriver

        return SimulatedDriver()
    raise InputError("GPU driver", name, f"choose one of {', '.join(DRIVERS)}")
