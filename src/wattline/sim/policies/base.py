"""What a policy is to the closed loop."""

from __future__ import annotations

from typing import Protocol

from wattline.core.decision import Decision
from wattline.core.snapshot import Snapshot


class Policy(Protocol):
    """Sees snapshots in order and answers each with a decision.

    A policy may keep state of its own between snapshots, but it must be a function of the snapshots
    alone: feeding a recording to a fresh instance gives the same decisions again.
    """

    name: str
    interval_s: float
    uses_ledger: bool
    """True: cap steps pass the booking ledger. False: they are written to the GPUs as they are."""

    def decide(self, snapshot: Snapshot) -> Decision:
        """The decision of one tick."""
        ...
