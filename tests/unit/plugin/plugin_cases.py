"""Requests and plans for tests of the planner plugin."""

from __future__ import annotations

from wattline.drivers.dynamo.plugin.constrain import PowerPlan, RolePlan
from wattline.drivers.dynamo.plugin.messages import (
    DECODE,
    PREFILL,
    OverrideType,
    StageRequest,
    Target,
    WorkerCounts,
)

Pair = tuple[int | None, int | None]
"""Of (prefill, decode)."""


def asking(proposed: Pair, ready: Pair, expected: Pair | None = None) -> StageRequest:
    """What the planner would ask; expected counts are the ready ones unless given."""
    coming = ready if expected is None else expected
    return StageRequest(
        request_id="r",
        proposal=tuple(
            Target(role, count, OverrideType.SET)
            for role, count in zip((PREFILL, DECODE), proposed, strict=True)
            if count is not None
        ),
        prefill=WorkerCounts(ready[0], coming[0], False),
        decode=WorkerCounts(ready[1], coming[1], False),
    )


def planned(
    usable_w: float,
    watts: tuple[float, float] = (1000.0, 1000.0),
    floors: tuple[int, int] = (1, 1),
    *,
    version: int = 7,
    wanted: Pair = (None, None),
) -> PowerPlan:
    """A plan with 500 W of guard and 300 W elsewhere on top of what is usable."""
    return PowerPlan(
        version=version,
        budget_w=usable_w + 800.0,
        guard_w=500.0,
        elsewhere_w=300.0,
        roles={
            role: RolePlan(watts_per_replica_w=w, min_replicas=floor, wanted_replicas=want)
            for role, w, floor, want in zip((PREFILL, DECODE), watts, floors, wanted, strict=True)
        },
    )
