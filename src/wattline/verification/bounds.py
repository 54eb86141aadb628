"""What one exploration covers: how big the fleet is, what may go wrong, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MIN_W, MAX_W = 100.0, 300.0
"""Range of every GPU; the largest limit is its default. Three levels are enough to tell a lowering,
a raise, and a limit that nobody granted apart."""
GUARD_W = 50.0
FIRST_BUDGET, CUT_BUDGET = 1, 2
"""Versions of the budget before and after a cut."""
TICK_S = 200.0
"""Length of a tick; only ratios matter. Longer than twice any pause between repairs, so that a
repair is either held back in this tick or free in the next."""


class Fault(StrEnum):
    """What may happen to a fleet besides loss, repetition and reordering, which always may."""

    NODE_CRASH = "node crash"
    NODE_CRASH_DISK_LOST = "node crash, disk lost"
    NODE_REBOOT = "node back at default limits"
    DRIVER_RELOAD = "driver reload"
    GPU_REPLACED = "GPU replaced"
    RIVAL_WRITE = "rival write"
    CLAMPED_DOWN = "out-of-band lowering"
    CLAMPED_UP = "out-of-band raising"
    BRAKE = "brake"
    RESTORE = "restore by hand"
    BUDGET_CUT = "budget cut"
    COORDINATOR_CRASH = "coordinator crash"
    COORDINATOR_CRASH_LOG_LOST = "coordinator crash, log lost"
    HANDOVER = "hand-over, shared log"
    HANDOVER_NO_LOG = "hand-over, no log"
    COORDINATOR_CLOCK_FAST = "coordinator's clock ahead"
    NODE_CLOCK_FAST = "node's clock ahead"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one exploration.

    plans: target watts, one for each GPU in order; the coordinator may take up another one
    `replans` times. budget_w: at the start; cut_w: after a cut. in_flight: messages that the
    network keeps for one GPU and direction; when one more is sent, any one of them is lost.
    settle_ticks: after which the draw has followed a lowered limit; margin_ticks: what the
    coordinator waits beyond it. lease_ticks: None: leases do not end. faults: how often each kind
    may happen; most_faults: how many in all.
    """

    name: str
    nodes: int = 2
    gpus_per_node: int = 1
    plans: tuple[tuple[float, ...], ...] = ((300.0, 100.0), (100.0, 300.0))
    replans: int = 1
    budget_w: float = 450.0
    cut_w: float = 250.0
    in_flight: int = 2
    settle_ticks: int = 1
    margin_ticks: int = 0
    lease_ticks: int | None = None
    expiry_w: float | None = None
    faults: Mapping[Fault, int] = field(default_factory=dict)
    most_faults: int = 2
    most_states: int = 3_000_000
