"""Target limits for a demonstration: a budget shared out anew every few seconds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

Range = tuple[float, float]
"""Smallest and largest limit of a GPU, in watts."""


def shared_out(usable_w: float, ranges: Sequence[Range], shares: Sequence[float]) -> list[float]:
    """Whole watts per GPU, in the proportion of `shares` and within `ranges`.

    Sums to at most `usable_w`; where even the smallest limits exceed it, those are the answer.
    """
    floor_w = [low for low, _ in ranges]
    left_w = usable_w - sum(floor_w)
    targets_w = list(floor_w)
    open_gpus = [gpu for gpu, (low, high) in enumerate(ranges) if high > low]
    while left_w >= 1.0 and open_gpus:
        total = sum(shares[gpu] for gpu in open_gpus)
        if total <= 0.0:
            break
        given_w = 0.0
        for gpu in open_gpus:
            part_w = min(left_w * shares[gpu] / total, ranges[gpu][1] - targets_w[gpu])
            targets_w[gpu] += part_w
            given_w += part_w
        left_w -= given_w
        full = [gpu for gpu in open_gpus if targets_w[gpu] >= ranges[gpu][1] - 1e-9]
        if not full:
            break
        open_gpus = [gpu for gpu in open_gpus if gpu not in full]
    return [
        max(low, float(int(watts + 1e-6)))
        for (low, _), watts in zip(ranges, targets_w, strict=True)
    ]


def moving_shares(gpus: int, period: int, seed: int) -> list[float]:
    """Shares of one period: mostly for one half of the GPUs, now for the other, never even."""
    draw = random.Random(f"{seed}/{period}")
    favoured = period % 2
    half = gpus // 2
    return [
        draw.uniform(0.6, 1.0) if (gpu >= half) == bool(favoured) else draw.uniform(0.05, 0.4)
        for gpu in range(gpus)
    ]


def targets_w(
    usable_w: float, ranges: Mapping[str, Range], period: int, seed: int
) -> dict[str, float]:
    """Target per GPU for one period of the plan."""
    shares = moving_shares(len(ranges), period, seed)
    return dict(zip(ranges, shared_out(usable_w, list(ranges.values()), shares), strict=True))
