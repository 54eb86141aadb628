"""The power and GPU clamps of NVIDIA Dynamo's planner, release 1.6.1, as pure functions.

They work on replica counts of two roles. `None` for a count means that the role is not proposed
(or, for a current count, not known), `None` for watts that the deployment has no such role. Watts
of a replica are its GPUs times the *requested* cap: that is what the shipped planner budgets,
whatever the hardware enforces and whatever the unused GPUs may draw. Behaviour restated from the
release and compared with it by `bench/dynamo_clamp.py`; golden vectors stand in
tests/vectors/dynamo_clamp.json.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from wattline.core.errors import InfeasibleError

Counts = tuple[int | None, int | None]
"""Replicas of (prefill, decode)."""


class ClampReason(StrEnum):
    """Why the clamp changed a proposal, in the planner's own words."""

    CLAMPED = "power_budget_clamped"
    STAGED = "power_rebalance_staged"
    SUPPRESSED = "power_budget_scale_up_suppressed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """What one replica of each role costs, and how few replicas each role may have.

    `None` watts or GPUs: the deployment has no such role.
    """

    prefill_watts: int | None
    decode_watts: int | None
    prefill_min: int = 1
    decode_min: int = 1


def project_watts(counts: Counts, roles: Roles) -> int:
    """Watts that `counts` replicas request; a missing count or a missing role adds nothing."""
    prefill, decode = counts
    return (prefill or 0) * (roles.prefill_watts or 0) + (decode or 0) * (roles.decode_watts or 0)


def peak_watts(current: Counts, proposed: Counts, roles: Roles) -> int:
    """Watts while both roles move at once: per role the larger of present and proposed count."""
    peak = (
        max(current[0] or 0, proposed[0] or 0),
        max(current[1] or 0, proposed[1] or 0),
    )
    return project_watts(peak, roles)


def minimum_fits(budget_w: int, roles: Roles) -> bool:
    """Whether the fewest replicas of every role fit into the budget."""
    return project_watts((roles.prefill_min, roles.decode_min), roles) <= budget_w


def apply_power_budget(
    proposed: Counts, current: Counts, roles: Roles, budget_w: int
) -> tuple[Counts, ClampReason | None]:
    """Hold a proposal to the power budget; the result never exceeds the proposal.

    A role that is not proposed is charged at its current count and never becomes a target. A
    swap whose peak would exceed the budget is staged: the falling role goes first. Nothing
    proposed means nothing done, even over budget.
    """
    if proposed == (None, None):
        return proposed, None
    if _is_swap(proposed, current) and peak_watts(current, proposed, roles) > budget_w:
        return _stage_if_needed(proposed, current, roles, budget_w)
    charged = (
        current[0] if proposed[0] is None else proposed[0],
        current[1] if proposed[1] is None else proposed[1],
    )
    if project_watts(charged, roles) <= budget_w:
        return proposed, None
    if proposed[0] is not None and proposed[1] is not None:
        return _fit_both((proposed[0], proposed[1]), current, roles, budget_w)
    return _fit_one(proposed, current, roles, budget_w)


def _is_swap(proposed: Counts, current: Counts) -> bool:
    """One role is to grow and the other to shrink; an unknown current count is taken as none."""
    if proposed[0] is None or proposed[1] is None:
        return False
    change_prefill = proposed[0] - (current[0] or 0)
    change_decode = proposed[1] - (current[1] or 0)
    return change_prefill * change_decode < 0


def _stage_if_needed(
    proposed: Counts, current: Counts, roles: Roles, budget_w: int
) -> tuple[Counts, ClampReason | None]:
    """Hold the growing role of a swap at its present count; the shrinking one goes."""
    held = (
        min(proposed[0] or 0, current[0] or 0),
        min(proposed[1] or 0, current[1] or 0),
    )
    return held, ClampReason.STAGED


def _fit_both(
    proposed: tuple[int, int], current: Counts, roles: Roles, budget_w: int
) -> tuple[Counts, ClampReason]:
    prefill_w, decode_w = roles.prefill_watts or 0, roles.decode_watts or 0
    present = (current[0] or 0, current[1] or 0)
    if project_watts(present, roles) <= budget_w:
        minimum = (roles.prefill_min, roles.decode_min)
        fitted = fit_directional(present, proposed, (prefill_w, decode_w), budget_w, minimum)
        return fitted, ClampReason.CLAMPED
    prefill, decode = shrink_pair(proposed, roles, budget_w)
    shrunk = (min(prefill, proposed[0]), min(decode, proposed[1]))
    if _is_swap(shrunk, current) and peak_watts(current, shrunk, roles) > budget_w:
        held, reason = _stage_if_needed(shrunk, current, roles, budget_w)
        return held, reason or ClampReason.CLAMPED
    return shrunk, ClampReason.CLAMPED


def _fit_one(
    proposed: Counts, current: Counts, roles: Roles, budget_w: int
) -> tuple[Counts, ClampReason | None]:
    """Shrink the only proposed role into what its peer leaves."""
    if proposed[0] is not None:
        peer_w = project_watts((0, current[1]), roles)
        count, fits = _shrink_single(
            proposed[0], current[0], roles.prefill_watts or 0, budget_w - peer_w, roles.prefill_min
        )
        result: Counts = (count, None)
    else:
        peer_w = project_watts((current[0], 0), roles)
        count, fits = _shrink_single(
            proposed[1] or 0,
            current[1],
            roles.decode_watts or 0,
            budget_w - peer_w,
            roles.decode_min,
        )
        result = (None, count)
    if result == proposed:
        return result, None
    return result, ClampReason.CLAMPED if fits else ClampReason.SUPPRESSED


def _shrink_single(
    proposed: int, current: int | None, watts: int, available_w: int, minimum: int
) -> tuple[int, bool]:
    """Most replicas in `available_w`; where the minimum does not fit, the present count at most."""
    if watts <= 0:
        return proposed, True
    fit = max(0, available_w) // watts
    if fit >= minimum:
        return min(proposed, fit), True
    return min(proposed, current or 0), False


def shrink_pair(proposed: tuple[int, int], roles: Roles, budget_w: int) -> tuple[int, int]:
    """Shrink both roles in proportion until they fit; a role below its minimum comes out at it.

    InfeasibleError if neither the proposal nor the minimum footprint fits.
    """
    prefill_w, decode_w = roles.prefill_watts or 0, roles.decode_watts or 0
    prefill, decode = proposed
    projected = project_watts(proposed, roles)
    if projected <= budget_w:
        return proposed
    if not minimum_fits(budget_w, roles):
        raise InfeasibleError(
            f"budget of {budget_w} W is below the minimum footprint of "
            f"{project_watts((roles.prefill_min, roles.decode_min), roles)} W: raise the budget or "
            "lower the minimum replicas"
        )
    if prefill_w:
        room = (budget_w - roles.decode_min * decode_w) // prefill_w
        scaled = math.floor(prefill * (budget_w / projected))
        prefill = max(roles.prefill_min, min(room, scaled))
    if decode_w:
        room = (budget_w - prefill * prefill_w) // decode_w
        decode = min(decode, max(roles.decode_min, room))
    return prefill, decode


def fit_directional(
    current: tuple[int, int],
    proposed: tuple[int, int],
    cost: tuple[int, int],
    limit: int,
    minimum: tuple[int, int],
) -> tuple[int, int]:
    """Find the pair between `current` and `proposed` closest to `proposed` within `limit`.

    `current` where no pair with at least `minimum` fits. Ties: least skew between the roles'
    progress, then fewer prefill, then fewer decode replicas. Roles that move in opposite
    directions move together or not at all.
    """
    opposing = (proposed[0] - current[0]) * (proposed[1] - current[1]) < 0
    best = current
    best_score: tuple[int, int, int, int] | None = None
    for prefill in _between(current[0], proposed[0]):
        for decode in _between(current[1], proposed[1]):
            if prefill < minimum[0] or decode < minimum[1]:
                continue
            if prefill * cost[0] + decode * cost[1] > limit:
                continue
            moved = (prefill != current[0], decode != current[1])
            if opposing and moved[0] != moved[1]:
                continue
            score = _closeness(current, proposed, (prefill, decode))
            if best_score is None or score < best_score:
                best, best_score = (prefill, decode), score
    return best


def _between(start: int, end: int) -> range:
    return range(min(start, end), max(start, end) + 1)


def _closeness(
    current: tuple[int, int], proposed: tuple[int, int], candidate: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Sort key of a candidate; progress as integers over one denominator keeps ties exact."""
    spans = [max(1, abs(p - c)) for c, p in zip(current, proposed, strict=True)]
    moves = [
        abs(x - c) if p != c else 1 for c, p, x in zip(current, proposed, candidate, strict=True)
    ]
    progress = (moves[0] * spans[1], moves[1] * spans[0])
    distance = sum(abs(p - x) for p, x in zip(proposed, candidate, strict=True))
    skew = abs(progress[0] - progress[1])
    return (distance, skew, candidate[0], candidate[1])
