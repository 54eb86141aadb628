"""Efficient frontiers of rate against watts, for many pools or deployments at once.

A frontier holds the points that no other point beats in both rate and watts. Rows are pools (or
deployments) of one shape; all operations are exact and vectorised over rows. Watts are integer
milliwatts in float64, so that sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattline.core.problem import PoolProblem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Frontiers:
    """Rows of frontier points, rate and watts strictly ascending along each row.

    rate: (rows, width) requests/s. milliwatts: (rows, width). count: (rows,) points that are valid;
    the rest is padding. option: (rows, width, pools) which option of each pool makes the point:
    replicas x number of settings + index of the setting.
    """

    rate: Floats
    milliwatts: Floats
    count: Ints
    option: Ints


def to_milliwatts(watts: float) -> int:
    """Milliwatts that book `watts` safely: rounded up, but for the noise of a float."""
    return -int(-(watts * 1000.0 - 1e-4) // 1)


def replica_counts(pools: Sequence[PoolProblem]) -> Ints:
    """Replica counts to consider, (pools, widest range), padded with -1."""
    ranges = np.array([pool.replica_range for pool in pools], dtype=np.int64)
    low, high = ranges[:, :1], ranges[:, 1:]
    counts = low + np.arange(int((high - low).max()) + 1)
    return np.where(counts <= high, counts, -1)


def extra_milliwatts(pools: Sequence[PoolProblem]) -> Floats:
    """Milliwatts that one replica books above parked GPUs, (pools, settings)."""
    per_gpu: dict[tuple[int, float], list[int]] = {}
    rows = []
    for pool in pools:
        key = (id(pool.settings), pool.parked_w)
        if key not in per_gpu:
            parked = to_milliwatts(pool.parked_w)
            per_gpu[key] = [to_milliwatts(setting.cap_w) - parked for setting in pool.settings]
        rows.append(per_gpu[key])
    gpus = np.array([pool.gpus_per_replica for pool in pools], dtype=np.float64)
    return np.array(rows, dtype=np.float64) * gpus[:, None]


def parked_milliwatts(pools: Sequence[PoolProblem]) -> Floats:
    """Milliwatts that each pool books with all of its GPUs parked, (pools,)."""
    return np.array([pool.gpus * to_milliwatts(pool.parked_w) for pool in pools], dtype=np.float64)


def pool_frontiers(pools: Sequence[PoolProblem], *, by_draw: bool = False) -> Frontiers:
    """Frontiers of single pools that offer equally many settings, over replicas x settings.

    by_draw: count the watts drawn at full use instead of the watts booked.
    """
    settings = len(pools[0].settings)
    rate = np.array([pool.rate_rps for pool in pools], dtype=np.float64)
    draw = np.array([pool.draw_w for pool in pools], dtype=np.float64)
    extra, base = extra_milliwatts(pools), parked_milliwatts(pools)
    if by_draw:
        gpus = np.array([(pool.gpus_per_replica, pool.gpus) for pool in pools], dtype=np.float64)
        parked = np.array([pool.parked_draw for pool in pools])
        extra = np.rint((draw - parked[:, None]) * gpus[:, :1] * 1000.0)
        base = np.rint(parked * gpus[:, 1] * 1000.0)
    # A setting beaten in both cap and rate by another is beaten at any number of replicas.
    order = np.lexsort((draw, -rate, extra), axis=-1)
    extra, rate, order, valid = _keep_efficient(extra, rate, order.astype(np.int64))
    counts = replica_counts(pools)
    replicas = counts[:, :, None].astype(np.float64)
    usable = (counts >= 0)[:, :, None] & valid[:, None, :]
    # Without replicas all settings are the same: the cheapest one stands for them.
    usable &= (counts > 0)[:, :, None] | (np.arange(extra.shape[1]) == 0)
    rates = np.where(usable, replicas * rate[:, None, :], -1.0)
    watts = replicas * np.where(valid, extra, 0.0)[:, None, :] + base[:, None, None]
    watts = np.where(usable, watts, np.inf)
    option: Ints = (counts[:, :, None] * settings + order[:, None, :]).reshape(len(pools), -1)
    return pareto(rates.reshape(len(pools), -1), watts.reshape(len(pools), -1), option[:, :, None])


def pareto(rate: Floats, milliwatts: Floats, option: Ints) -> Frontiers:
    """Frontier of each row of points; points with infinite watts are padding.

    Of equal points the first one stays.
    """
    order: Ints = np.argsort(milliwatts, axis=-1, kind="stable")
    watts, rates, order, valid = _keep_efficient(milliwatts, rate, order)
    return Frontiers(
        rate=np.where(valid, rates, np.inf),
        milliwatts=np.where(valid, watts, np.inf),
        count=valid.sum(axis=1),
        option=np.take_along_axis(option, order[:, :, None], axis=1),
    )


def in_series(first: Frontiers, second: Frontiers) -> Frontiers:
    """Frontier of two stages that every request passes: the rate is the smaller of the two.

    For each rate that either stage can reach, both stages take their cheapest point with at least
    that rate.
    """
    rates = np.concatenate((first.rate, second.rate), axis=1)
    order = np.argsort(rates, axis=1, kind="stable")
    rates = np.take_along_axis(rates, order, axis=1)
    from_first = order < first.rate.shape[1]
    # Points of a stage before a level are all slower than it: the next one is what it needs.
    at_first = np.cumsum(from_first, axis=1) - from_first
    at_second = np.cumsum(~from_first, axis=1) - ~from_first
    keep = (at_first < first.count[:, None]) & (at_second < second.count[:, None])
    # The second of two equal levels would skip the point of the first stage that equals it.
    keep[:, 1:] &= rates[:, 1:] > rates[:, :-1]
    columns, valid = _compress(keep)
    at_first = np.take_along_axis(at_first, columns, axis=1)
    at_second = np.take_along_axis(at_second, columns, axis=1)
    at_first = np.minimum(at_first, first.rate.shape[1] - 1)
    at_second = np.minimum(at_second, second.rate.shape[1] - 1)
    watts = np.take_along_axis(first.milliwatts, at_first, axis=1)
    watts = watts + np.take_along_axis(second.milliwatts, at_second, axis=1)
    option = np.concatenate(
        (
            np.take_along_axis(first.option, at_first[:, :, None], axis=1),
            np.take_along_axis(second.option, at_second[:, :, None], axis=1),
        ),
        axis=2,
    )
    return Frontiers(
        rate=np.where(valid, np.take_along_axis(rates, columns, axis=1), np.inf),
        milliwatts=np.where(valid, watts, np.inf),
        count=valid.sum(axis=1),
        option=option,
    )


def in_parallel(first: Frontiers, second: Frontiers, most_points: int = 1 << 21) -> Frontiers:
    """Frontier of two pools that share the requests: rates and watts add.

    Exact while a row has at most `most_points` combinations; above that the wider frontier is
    thinned evenly first (its cheapest and fastest points stay).
    """
    while first.rate.shape[1] * second.rate.shape[1] > most_points:
        if first.rate.shape[1] >= second.rate.shape[1]:
            first = _thin(first)
        else:
            second = _thin(second)
    rows = first.rate.shape[0]
    rate = (first.rate[:, :, None] + second.rate[:, None, :]).reshape(rows, -1)
    watts = (first.milliwatts[:, :, None] + second.milliwatts[:, None, :]).reshape(rows, -1)
    rate = np.where(np.isfinite(watts), rate, -1.0)
    width = second.rate.shape[1]
    pairs = np.broadcast_to(np.arange(rate.shape[1])[None, :, None], (*rate.shape, 1))
    merged = pareto(rate, watts, pairs)
    at_first, at_second = merged.option // width, merged.option % width
    option = np.concatenate(
        (
            np.take_along_axis(first.option, at_first, axis=1),
            np.take_along_axis(second.option, at_second, axis=1),
        ),
        axis=2,
    )
    return Frontiers(merged.rate, merged.milliwatts, merged.count, option)


def _thin(frontiers: Frontiers) -> Frontiers:
    """Every second point, the cheapest and the fastest included."""
    column = np.arange(frontiers.rate.shape[1])
    last = frontiers.count[:, None] - 1
    keep = (column <= last) & ((column % 2 == 0) | (column == last))
    columns, valid = _compress(keep)
    return Frontiers(
        rate=np.where(valid, np.take_along_axis(frontiers.rate, columns, axis=1), np.inf),
        milliwatts=np.where(
            valid, np.take_along_axis(frontiers.milliwatts, columns, axis=1), np.inf
        ),
        count=valid.sum(axis=1),
        option=np.take_along_axis(frontiers.option, columns[:, :, None], axis=1),
    )


def _keep_efficient(watts: Floats, rate: Floats, order: Ints) -> tuple[Floats, Floats, Ints, Mask]:
    """Reorder rows by `order` (ascending watts) and drop the points that others beat.

    Returns watts, rate and order, compressed to the widest row, and which entries are valid.
    """
    watts = np.take_along_axis(watts, order, axis=1)
    rate = np.take_along_axis(rate, order, axis=1)
    best = np.maximum.accumulate(rate, axis=1)
    keep = np.isfinite(watts)
    keep[:, 1:] &= rate[:, 1:] > best[:, :-1]
    columns, valid = _compress(keep)
    watts = np.take_along_axis(watts, columns, axis=1)
    # Of the kept points with equal watts only the last, the fastest, is efficient.
    beaten = valid[:, 1:] & (watts[:, 1:] == watts[:, :-1])
    if beaten.any():
        valid[:, :-1] &= ~beaten
        again, valid = _compress(valid)
        columns = np.take_along_axis(columns, again, axis=1)
        watts = np.take_along_axis(watts, again, axis=1)
    return (
        watts,
        np.take_along_axis(rate, columns, axis=1),
        np.take_along_axis(order, columns, axis=1),
        valid,
    )


def _compress(keep: Mask) -> tuple[Ints, Mask]:
    """Columns of the kept entries of each row moved to the left, and which of them are valid."""
    count = keep.sum(axis=1)
    width = int(count.max(initial=1))
    columns = np.zeros((keep.shape[0], width), dtype=np.int64)
    row, column = np.nonzero(keep)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    columns[row, place] = column
    return columns, np.arange(width) < count[:, None]
