"""The one seam to a GPU: limits, readings and identity, whatever library talks to it.

A device is keyed by its UUID; its index may change with every enumeration. All calls may block
for as long as the driver does, so callers give each GPU a thread of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from wattline.core.errors import WattlineError


class GpuFault(StrEnum):
    """What kind of failure a call met, in the words of the field."""

    NO_PERMISSION = "no_permission"
    NOT_SUPPORTED = "not_supported"
    OUT_OF_RANGE = "out_of_range"
    LOST = "lost"
    """The GPU has fallen off the bus or must be reset (Xid)."""
    STALE_HANDLE = "stale_handle"
    """The handle is from before a re-enumeration or a driver reload: enumerate anew."""
    UNAVAILABLE = "unavailable"
    """The driver or the host engine does not answer: try later."""
    UNKNOWN = "unknown"


class GpuError(WattlineError):
    """A call to a GPU that failed: `fault` says how, the text says which call and on what."""

    def __init__(self, fault: GpuFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """Who a GPU is. `uuid` is the key; `index` is the present NVML index, for people."""

    uuid: str
    index: int
    product: str
    bus_id: str | None = None
    serial: str | None = None


@dataclass(frozen=True, slots=True)
class LimitRange:
    """Range of power limits that a GPU accepts, in watts."""

    min_w: float
    max_w: float


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU. `pid` is the host's; `mig_uuid` where one can be told."""

    pid: int
    mig_uuid: str | None = None


class GpuDevice(Protocol):
    """One GPU. Every method raises GpuError; a quantity that the GPU does not have is None."""

    @property
    def identity(self) -> GpuIdentity:
        """Who it is, as of the enumeration that produced this device."""

    def range(self) -> LimitRange:
        """Limits that it accepts now."""

    def enforced_w(self) -> float:
        """Limit that the hardware obeys now, out-of-band limits included."""

    def requested_w(self) -> float | None:
        """Limit asked for in-band, which need not be what is obeyed."""

    def default_w(self) -> float | None:
        """Limit after a reset or a reload of the driver."""

    def write_limit(self, watts: float) -> None:
        """Ask for a limit. What comes of it is for `enforced_w` to say."""

    def draw_w(self) -> float | None:
        """Measured power, averaged by the device over about a second."""

    def energy_j(self) -> float | None:
        """Energy counter since the driver was loaded."""

    def sm_clock_mhz(self) -> int | None:
        """Present SM clock."""

    def max_sm_clock_mhz(self) -> int | None:
        """Highest SM clock of the product."""

    def lock_clocks(self, max_mhz: int) -> None:
        """Set a ceiling on the SM clock."""

    def reset_clocks(self) -> None:
        """Take the ceiling away."""

    def throttle_reasons(self) -> frozenset[str]:
        """Why clocks are held back: `sw_power_cap`, `hw_power_brake`, `hw_thermal`, ..."""

    def persistence_mode(self) -> bool | None:
        """False: the driver may unload when idle and come back at the default limit."""

    def mig_enabled(self) -> bool | None:
        """True when the GPU is split into instances, which share its one power limit."""

    def mig_uuids(self) -> Sequence[str]:
        """UUIDs of its MIG instances; empty without MIG."""

    def processes(self) -> Sequence[GpuProcess]:
        """Processes that compute on it. Slow (milliseconds) and takes the driver's global lock."""


class GpuDriver(Protocol):
    """A library that finds GPUs."""

    @property
    def name(self) -> str:
        """`nvml`, `dcgm` or `simulated`."""

    @property
    def unreachable(self) -> Sequence[str]:
        """One line for each GPU that the newest enumeration left out because it did not answer."""

    def enumerate(self) -> Sequence[GpuDevice]:
        """All GPUs of the node as they are now; after a driver reload it connects anew."""

    def close(self) -> None:
        """Let go of the library. Changes no limit."""
