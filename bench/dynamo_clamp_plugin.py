"""The rule of our planner plugin beside Dynamo's clamp: the same, or different on purpose.

Every difference falls into one of the classes of `Why`; docs/concepts/dynamo-clamp.md explains
them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from wattline.drivers.dynamo.plugin.constrain import (
    Code,
    PowerPlan,
    RolePlan,
    Verdict,
    constrain,
)
from wattline.drivers.dynamo.plugin.messages import (
    DECODE,
    PREFILL,
    OverrideType,
    StageRequest,
    Target,
    WorkerCounts,
)

ROLES = (PREFILL, DECODE)
INFEASIBLE = "infeasible"


class Why(StrEnum):
    """Why our rule may answer something else."""

    SAME = "same"
    COUNTS_UNKNOWN = "counts unknown: nothing may move, or nothing may grow"
    FLOORS = "the minimum does not fit: floors, where Dynamo refuses"
    OVER_BUDGET = "more is there than fits: all proposed roles shrink to what fits"
    SWAP = "one role up, one down: what is left is given now, where Dynamo waits for the one down"
    SPLIT = "growth beyond what is left: in proportion, where Dynamo takes the closest pair"
    BELOW_FLOOR = "growth to less than the floor: given as far as it fits, where Dynamo gives none"
    UNEXPLAINED = "unexplained"


def why(case: dict[str, Any], theirs: Any) -> Why:
    """Compare our answer to one case with `theirs`: [prefill, decode, reason], or infeasible."""
    current, watts, budget_w = case["current"], case["watts"], case["budget"]
    verdict = _ours(case)
    if None in current:
        held = verdict.code in (Code.NO_COUNTS, Code.HELD, Code.NOTHING_PROPOSED)
        return Why.COUNTS_UNKNOWN if held else Why.UNEXPLAINED
    ours = [verdict.ceilings.get(role) for role in ROLES]
    present_w = _watts(current, watts)
    if present_w <= budget_w and _watts(_peak(ours, current), watts) > budget_w:
        return Why.UNEXPLAINED  # whatever the difference: never past the budget on the way
    if theirs == INFEASIBLE:
        over = verdict.code in (Code.FLOORS, Code.SHRUNK)
        return Why.FLOORS if over else Why.UNEXPLAINED
    *targets, reason = theirs
    if ours == targets:
        return Why.SAME
    if present_w > budget_w:
        return _over_budget(ours, targets, case, verdict)
    if reason == "power_rebalance_staged":
        return Why.SWAP
    if reason == "power_budget_clamped":
        return Why.SPLIT
    below = any(
        count is not None and count < least
        for count, least in zip(ours, case["minimum"], strict=True)
    )
    suppressed = reason == "power_budget_scale_up_suppressed" and below
    return Why.BELOW_FLOOR if suppressed else Why.UNEXPLAINED


def _over_budget(
    ours: list[int | None], targets: list[int | None], case: dict[str, Any], verdict: Verdict
) -> Why:
    """Ours shrinks into the budget, unless floors or a role that is not proposed are in the way."""
    settled = [now if own is None else own for own, now in zip(ours, case["current"], strict=True)]
    fits = _watts(settled, case["watts"]) <= case["budget"]
    if verdict.code is Code.FLOORS or (verdict.code is Code.SHRUNK and fits):
        return Why.OVER_BUDGET
    return Why.UNEXPLAINED


def _ours(case: dict[str, Any]) -> Verdict:
    request = StageRequest(
        request_id="r",
        proposal=tuple(
            Target(role, count, OverrideType.SET)
            for role, count in zip(ROLES, case["proposed"], strict=True)
            if count is not None
        ),
        prefill=WorkerCounts(case["current"][0], case["current"][0], False),
        decode=WorkerCounts(case["current"][1], case["current"][1], False),
    )
    plan = PowerPlan(
        version=1,
        budget_w=float(case["budget"]),
        roles={
            role: RolePlan(watts_per_replica_w=float(watts), min_replicas=least)
            for role, watts, least in zip(ROLES, case["watts"], case["minimum"], strict=True)
        },
    )
    return constrain(request, plan)


def _peak(counts: list[int | None], current: list[int]) -> list[int]:
    return [max(count or 0, now) for count, now in zip(counts, current, strict=True)]


def _watts(counts: list[int], watts: list[int]) -> int:
    return sum(count * each for count, each in zip(counts, watts, strict=True))
