"""What goes with a grant, and why one is not given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic

from wattline.grants.messages import Gpu


@dataclass(frozen=True, slots=True)
class Terms:
    """What goes with the watts of a grant; see `Grant`. brake_w None: the GPU's lowest limit."""

    lease_s: float = float("inf")
    brake_w: float | None = None
    expiry_w: float | None = None


class RefusalReason(StrEnum):
    """Why a grant was not given."""

    OUT_OF_RANGE = "out_of_range"
    NO_FREE_WATTS = "no_free_watts"
    NOT_HEARD = "not_heard"
    """Its node has not reported yet: there is no incarnation to address."""
    RELEASED = "released"
    """Somebody attested that it is off, and it has not reported since."""
    OLDER_BUDGET = "older_budget"
    """A raise, and nodes have seen a newer version of the budget than this coordinator."""
    FENCED = "fenced"
    """Another coordinator has opened a newer epoch."""


@dataclass(frozen=True, slots=True)
class Refusal(Generic[Gpu]):
    """A grant that may not be given now; `free_w` is what was free when it was asked."""

    gpu: Gpu
    watts: float
    reason: RefusalReason
    free_w: float
