"""The one picture of the node that everything outward reads: report, metrics, status, health.

The loop builds a new one after every change and swaps it in; nobody else touches devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Mode(StrEnum):
    """Where limits come from."""

    GRANTS = "grants"
    ANNOTATIONS = "annotations"


class Reason(StrEnum):
    """Why a GPU has the limit that it has."""

    FOUND = "found"
    """Never written by us: as it was found."""
    GRANTED = "granted"
    EXPIRED = "expired"
    """The lease has ended: at the expiry watts, or where it was."""
    BRAKED = "braked"
    PINNED = "pinned"
    HELD = "held"
    """An operator's hold: no raise is obeyed."""
    ANNOTATED = "annotated"
    SAFE_DEFAULT_INVALID = "safe_default_missing_or_invalid"
    """An annotation that cannot be read; the name is that of Dynamo's agent."""
    SAFE_DEFAULT_CONFLICT = "safe_default_conflict"
    """Several pods on one GPU that do not agree."""
    KEPT = "kept"
    """Nobody is on it at present: the limit stays for the worker that comes back."""
    FROZEN = "frozen"
    """A listing failed: nothing is changed until it works again."""
    RESTORED = "restored"
    """The original limit was given back."""
    LEFT_ALONE = "left_alone"
    """Only pods that never opted in: not ours to touch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """One GPU as last seen. A missing quantity is None, and `fault` or `notes` say why.

    wanted_w: what we want enforced now; granted_w: watts of the newest grant acted on; held_w: the
    largest limit that we may still write; original_w: what we found before our first write (None:
    never written). rival_w: an enforced limit that is not ours, None in peace; repairs: times that
    we wrote our value over another's since the start. owners: pods as `namespace/name` (or UID).
    read_age_s: age of the readings when the snapshot was made. present False: the newest search
    has not found it; what is told is what was known, and its index may be another's.
    """

    uuid: str
    index: int
    product: str
    reason: Reason
    present: bool = True
    min_w: float | None = None
    max_w: float | None = None
    default_w: float | None = None
    enforced_w: float | None = None
    requested_w: float | None = None
    wanted_w: float | None = None
    granted_w: float | None = None
    held_w: float | None = None
    original_w: float | None = None
    pinned_w: float | None = None
    rival_w: float | None = None
    repairs: int = 0
    epoch: int | None = None
    sequence: int | None = None
    draw_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: int | None = None
    clock_ceiling_mhz: int | None = None
    throttle_reasons: frozenset[str] = frozenset()
    persistence: bool | None = None
    mig: bool | None = None
    owners: tuple[str, ...] = ()
    read_age_s: float | None = None
    fault: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSnapshot:
    """The node as last seen.

    sources: per input (`grants`, `pods`, `owners`) its age in seconds, None: never good.
    counters: names of the metric catalogue (without labels, or `name{label="value"}`) to counts
    since the start. not_ready: why the agent is not ready; empty: it is.
    """

    node: str
    version: str
    mode: Mode
    made_s: float
    """Monotonic clock when it was made."""
    incarnation: int
    report_sequence: int
    gpus: tuple[GpuView, ...]
    epoch: int | None = None
    budget_version: int | None = None
    braked: bool = False
    operator_hold: str | None = None
    """Who holds the node and why; None: nobody."""
    owner_method: str | None = None
    journal: str = "ok"
    """`ok`, or in words what is wrong with it and what that stops."""
    sources: Mapping[str, float | None] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    not_ready: tuple[str, ...] = ()
    report: bytes = b""
    """The report as every reader gets it: the bytes of `report.json` and of `GET /report`."""
