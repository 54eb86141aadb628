"""What a node knows of each of its GPUs, and the answers that it gives: plain immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Generic

from wattline.grants.messages import Gpu
from wattline.grants.watts import milliwatts

FOREVER_S = float("inf")


class Outcome(StrEnum):
    """What a node does with a grant or an adoption."""

    ACCEPTED = "accepted"
    RENEWED = "renewed"
    """The grant in force once more: its lease counts from now."""
    DECLINED_OPERATOR = "declined_operator"
    """A raise under an operator's hold: acted on, but what was held before is all that is held."""
    DECLINED_BUDGET = "declined_budget"
    """A raise made under an older budget than the node has seen: treated alike."""
    OTHER_INCARNATION = "other_incarnation"
    OLDER_EPOCH = "older_epoch"
    OLDER_SEQUENCE = "older_sequence"
    OUT_OF_RANGE = "out_of_range"
    UNKNOWN_GPU = "unknown_gpu"

    @property
    def acted(self) -> bool:
        """True when reports carry the message's (epoch, sequence) from now on."""
        return self in _ACTED


_ACTED = frozenset(
    {Outcome.ACCEPTED, Outcome.RENEWED, Outcome.DECLINED_OPERATOR, Outcome.DECLINED_BUDGET}
)


class Why(StrEnum):
    """Why a GPU is wanted at the limit that it is wanted at; values as the agent's snapshot."""

    FOUND = "found"
    GRANTED = "granted"
    EXPIRED = "expired"
    BRAKED = "braked"
    PINNED = "pinned"
    HELD = "held"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class Found:
    """A GPU as a start of the node finds it: the limit enforced, and the range that it accepts."""

    enforced_w: float
    min_w: float
    max_w: float
    requested_w: float | None = None
    """What its register asks for, where that can be read: more than is enforced under a clamp."""


@dataclass(frozen=True, slots=True)
class JournalledGpu:
    """What a node must still know about a GPU after a restart."""

    held_w: float
    brake_w: float | None = None
    lease_s: float = FOREVER_S
    expiry_w: float | None = None


@dataclass(frozen=True, slots=True)
class Journalled(Generic[Gpu]):
    """What must be on disk before the node writes a limit.

    A restart holds no more than this; without it, it holds what it finds enforced.
    """

    incarnation: int
    epoch: int
    budget_version: int | None
    gpus: Mapping[Gpu, JournalledGpu]


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU as its node knows it, in milliwatts and seconds of the node's monotonic clock.

    held_mw: the largest limit that the node may write by itself. enforced_mw: read back last, seen
    since since_s. sequence: the newest message acted on in this incarnation, under `epoch`.
    grant_mw: of the grant in force, None before the first. follows: what is held falls with what is
    enforced. writing_mw: the largest limit written by a call that has not been seen to end by a
    reading (begun at writing_since_s); write_returned: the call is over, only the reading is
    missing. attempted_mw: the limit that was written last. register_mw: what the register asks for,
    None where that cannot be read; under an out-of-band clamp it is more than is enforced.
    """

    min_mw: int
    max_mw: int
    held_mw: int
    enforced_mw: int
    since_s: float
    brake_mw: int
    epoch: int = 0
    sequence: int = 0
    grant_sequence: int = 0
    grant_mw: int | None = None
    follows: bool = True
    lease_s: float = FOREVER_S
    lease_end_s: float = FOREVER_S
    expiry_mw: int | None = None
    expired: bool = False
    braked: bool = False
    pin_mw: int | None = None
    restored: bool = False
    writing_mw: int | None = None
    writing_since_s: float = 0.0
    write_returned: bool = False
    attempted_mw: int | None = None
    backoff_s: float = 0.0
    next_repair_s: float = 0.0
    repairs: int = 0
    persistence: bool | None = None
    register_mw: int | None = None

    @property
    def comes_back_mw(self) -> int:
        """What an out-of-band clamp hides: the limit that is enforced when it is lifted, or 0."""
        register_mw = self.register_mw or 0
        return register_mw if register_mw > self.enforced_mw else 0

    @property
    def wanted_mw(self) -> int:
        """What should be enforced now: what is held, an operator's pin or the range permitting."""
        wanted_mw = min(self.held_mw, self.max_mw)
        return wanted_mw if self.pin_mw is None else min(wanted_mw, self.pin_mw)

    @property
    def reported_held_mw(self) -> int:
        """Largest limit that may be enforced without any further leave.

        What the node may still write, what a call under way may yet write, and what comes back by
        itself when a clamp is lifted.
        """
        return max(self.held_mw, self.writing_mw or 0, self.comes_back_mw)


def first_state(
    where: str, found: Found, journalled: JournalledGpu | None, now_s: float
) -> GpuState:
    """Return what a new start holds: what it finds enforced, or less if its journal says so."""
    min_mw = milliwatts(f"{where}: min_w", found.min_w)
    enforced_mw = milliwatts(f"{where}: enforced_w", found.enforced_w)
    requested_w = found.requested_w
    state = GpuState(
        min_mw=min_mw,
        max_mw=milliwatts(f"{where}: max_w", found.max_w),
        held_mw=enforced_mw,
        enforced_mw=enforced_mw,
        since_s=now_s,
        brake_mw=min_mw,
        attempted_mw=enforced_mw,
        register_mw=(
            None if requested_w is None else milliwatts(f"{where}: requested_w", requested_w)
        ),
    )
    if journalled is None:
        return state
    brake_w, expiry_w = journalled.brake_w, journalled.expiry_w
    return replace(
        state,
        held_mw=min(enforced_mw, milliwatts(f"{where}: journalled held_w", journalled.held_w)),
        brake_mw=min_mw if brake_w is None else milliwatts(f"{where}: journalled brake_w", brake_w),
        lease_s=journalled.lease_s,
        lease_end_s=now_s + journalled.lease_s,
        expiry_mw=(
            None if expiry_w is None else milliwatts(f"{where}: journalled expiry_w", expiry_w)
        ),
    )
