"""Exposure: booked watts above the budget, by GPU and by what brought them about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic

from wattline.grants.messages import Gpu


class Cause(StrEnum):
    """What put watts above the budget. None of them is an action of ours."""

    CUT = "cut"
    """The budget fell below what was booked."""
    FOUND_ABOVE = "found_above"
    """A limit is enforced that nobody here gave leave for: a rival writer, a clamp upwards."""
    AT_DEFAULT = "at_default"
    """The same, at the GPU's default limit: a reboot, a reset or a reload of the driver."""
    SILENT = "silent"
    """Not heard of for too long without persistence mode: it may be at its default limit."""
    UNKNOWN = "unknown"
    """Its node has not yet answered this coordinator."""


@dataclass(frozen=True, slots=True)
class Exposure(Generic[Gpu]):
    """Watts above the budget with one cause; gpu None: not one GPU's doing."""

    cause: Cause
    watts: float
    gpu: Gpu | None = None


def share_out(
    exposure_w: float, outside: Mapping[Gpu, tuple[Cause, int]]
) -> tuple[Exposure[Gpu], ...]:
    """Split `exposure_w` over what is known from outside (milliwatts), largest first.

    What is left when all of that is subtracted is the doing of a budget cut.
    """
    left_mw = round(exposure_w * 1000)
    shares: list[Exposure[Gpu]] = []
    for gpu, (cause, mw) in sorted(outside.items(), key=lambda entry: -entry[1][1]):
        share_mw = min(left_mw, mw)
        if share_mw > 0:
            shares.append(Exposure(cause, share_mw / 1000, gpu))
            left_mw -= share_mw
    if left_mw > 0:
        shares.append(Exposure(Cause.CUT, left_mw / 1000))
    return tuple(shares)
