"""What a decision must remember until the next tick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Carried from `Decision.next_state` to the next `Snapshot.state`; both are recorded."""

    schema: str = "wattline.state/1"
