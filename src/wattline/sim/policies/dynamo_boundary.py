"""The last step of Dynamo's planner before it writes replica counts (release 1.6.1).

Order: floors are repaired, roles that nobody proposed are masked, the GPU band is applied,
scale-ups are held while a rollout is under way, then the power budget is applied, and targets that
equal a settled count are dropped. Vectors stand in tests/vectors/dynamo_boundary.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wattline.sim.policies.dynamo_budget import ClampReason, Counts, Roles, apply_power_budget

UNLIMITED = -1
"""A GPU bound that is switched off, as the planner's configuration writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryConfig:
    """What the planner read at its start. `power_budget_w` None: power awareness is off."""

    mode: Literal["disagg", "prefill", "decode", "agg"]
    roles: Roles
    prefill_gpus: int = 1
    decode_gpus: int = 1
    power_budget_w: int | None = None
    min_gpu_budget: int = UNLIMITED
    max_gpu_budget: int = UNLIMITED


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Replicas as the planner sees them.

    `expected` is the settled count of each role, None while a rollout is under way; `scaling` says
    that some role is being scaled.
    """

    ready: Counts
    expected: Counts
    scaling: bool = False

    @property
    def settled(self) -> bool:
        """No role is known to be on its way to another count."""
        differs = any(
            r is not None and e is not None and r != e
            for r, e in zip(self.ready, self.expected, strict=True)
        )
        return not (self.scaling or differs)


@dataclass(frozen=True, slots=True)
class Boundary:
    """Targets to write, why the power clamp changed them, whether a rollout holds scale-ups."""

    targets: Counts
    reason: ClampReason | None = None
    holding: bool = False


def final_targets(
    merged: Counts, proposed: tuple[bool, bool], workers: Workers, config: BoundaryConfig
) -> Boundary:
    """Targets to write for a merged proposal of which only the `proposed` roles were asked for."""
    needed = _floors_needed(workers, config)
    repair = config.mode == "disagg" and any(needed)
    minimum = (config.roles.prefill_min, config.roles.decode_min)
    counts = [
        max(count or 0, least) if need else count
        for count, least, need in zip(merged, minimum, needed, strict=True)
    ]
    power_aware = config.power_budget_w is not None
    if power_aware and not repair:
        counts = [
            count if asked or need else None
            for count, asked, need in zip(counts, proposed, needed, strict=True)
        ]
    settled_at = workers.expected if power_aware else workers.ready
    unchanged = all(c is None or c == s for c, s in zip(counts, workers.ready, strict=True))
    if unchanged and not power_aware:
        return Boundary((None, None))
    boundary = final_budget((counts[0], counts[1]), workers, config)
    targets = [
        None if target is not None and target == settled else target
        for target, settled in zip(boundary.targets, settled_at, strict=True)
    ]
    return Boundary((targets[0], targets[1]), boundary.reason, boundary.holding)


def _floors_needed(workers: Workers, config: BoundaryConfig) -> tuple[bool, bool]:
    """Roles below their minimum while nothing is moving."""
    prefill, decode = workers.ready
    return (
        workers.settled
        and config.mode in ("disagg", "prefill")
        and prefill is not None
        and prefill < config.roles.prefill_min,
        workers.settled
        and config.mode in ("disagg", "decode", "agg")
        and decode is not None
        and decode < config.roles.decode_min,
    )


def final_budget(proposed: Counts, workers: Workers, config: BoundaryConfig) -> Boundary:
    """GPU band first, then power: the order matters, and power wins over the GPU floor."""
    counts = _gpu_budget(proposed, workers, config)
    if config.power_budget_w is None:
        return Boundary(counts)
    counts, holding = _hold_during_rollout(counts, workers, config.roles)
    targets, reason = apply_power_budget(counts, workers.ready, config.roles, config.power_budget_w)
    return Boundary(targets, reason, holding)


def _hold_during_rollout(counts: Counts, workers: Workers, roles: Roles) -> tuple[Counts, bool]:
    """No role may grow while the settled count of any role with watts is unknown."""
    rolling = any(
        ready is not None and expected is None and bool(watts)
        for ready, expected, watts in zip(
            workers.ready,
            workers.expected,
            (roles.prefill_watts, roles.decode_watts),
            strict=True,
        )
    )
    if not rolling:
        return counts, False
    held = [
        None if count is not None and ready is not None and count > ready else count
        for count, ready in zip(counts, workers.ready, strict=True)
    ]
    return (held[0], held[1]), (held[0], held[1]) != counts


def _gpu_budget(proposed: Counts, workers: Workers, config: BoundaryConfig) -> Counts:
    prefill, decode = proposed
    roles = config.roles
    low, high = config.min_gpu_budget, config.max_gpu_budget
    if config.mode == "prefill" or (decode is None and prefill is not None):
        if prefill is None:
            return proposed
        peer = 0 if config.mode == "prefill" else (workers.ready[1] or 0) * config.decode_gpus
        count = _beside_peer(
            prefill, workers.ready[0], config.prefill_gpus, (low, high), roles.prefill_min, peer
        )
        return count, decode
    if config.mode != "disagg" or (prefill is None and decode is not None):
        if decode is None:
            return proposed
        peer = (workers.ready[0] or 0) * config.prefill_gpus if config.mode == "disagg" else 0
        count = _beside_peer(
            decode, workers.ready[1], config.decode_gpus, (low, high), roles.decode_min, peer
        )
        return prefill, count
    if prefill is None or decode is None:
        return proposed
    return clamp_gpu_pair(
        (max(prefill, roles.prefill_min), max(decode, roles.decode_min)),
        (config.prefill_gpus, config.decode_gpus),
        high,
        (roles.prefill_min, roles.decode_min),
    )


def _beside_peer(
    proposed: int,
    ready: int | None,
    gpus: int,
    band: tuple[int, int],
    minimum: int,
    peer_gpus: int,
) -> int | None:
    """Size one role against what its peer's ready replicas leave of the GPU band."""
    low = band[0] - peer_gpus if band[0] >= 0 else UNLIMITED
    high = max(0, band[1] - peer_gpus) if band[1] >= 0 else UNLIMITED
    wanted = max(proposed, minimum)
    if peer_gpus and 0 <= high < minimum * gpus:
        return None if ready is None else min(wanted, ready)
    return clamp_gpu_single(wanted, gpus, (low, high), minimum)


def clamp_gpu_single(proposed: int, gpus: int, band: tuple[int, int], minimum: int) -> int:
    """One role inside the GPU band (lower, upper; negative: off); 0 if its minimum cannot fit.

    With both bounds on, the lower one has a tolerance of one replica, and repairing it may round
    past the upper one: so does the release.
    """
    low, high = band
    if 0 <= high < minimum * gpus:
        return 0
    tolerance = gpus if low >= 0 and high >= 0 else 0
    if low >= 0 and proposed * gpus < low - tolerance:
        return -(-low // gpus)
    if high >= 0 and proposed * gpus > high:
        return high // gpus
    return proposed


def clamp_gpu_pair(
    proposed: tuple[int, int], gpus: tuple[int, int], max_gpus: int, minimum: tuple[int, int]
) -> tuple[int, int]:
    """Both roles under the GPU ceiling, in proportion; (0, 0) if the minimum cannot fit.

    Keeps a fault of the release: decode may come out above its proposal (8 and 1 GPUs per replica,
    10 and 1 proposed, ceiling 20: 2 and 4). The planner's GPU floor for pairs is left out.
    """
    total = proposed[0] * gpus[0] + proposed[1] * gpus[1]
    if max_gpus < 0 or total <= max_gpus:
        return proposed
    if minimum[0] * gpus[0] + minimum[1] * gpus[1] > max_gpus:
        return 0, 0
    room = (max_gpus - minimum[1] * gpus[1]) // gpus[0]
    prefill = max(minimum[0], min(room, int(proposed[0] * (max_gpus / total))))
    decode = max(minimum[1], (max_gpus - prefill * gpus[0]) // gpus[1])
    return prefill, decode
