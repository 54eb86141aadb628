"""Draw at 0.1 s: the replicas' watts, binned exactly, with the limiter's imperfection on top.

The engines give watts per GPU that are constant between events. Binning keeps their integral.
The imperfection is a zero-mean deviation of every GPU and sample: normal, with a standard deviation
proportional to the draw above idle, a moving average of two shocks in time, and a part shared by
the GPUs of a row. It never enters the energy. Its random numbers come from a generator of its own,
drawn sample by sample, so that they depend neither on the engines nor on when samples are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from wattline.sim.plant.config import LimiterNoise

Floats = NDArray[np.float64]

_CELLS_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSamples:
    """Samples of `step_s` from `start_s` on; pool_w has one row per pool, watts of all its GPUs."""

    start_s: float
    step_s: float
    fleet_w: Floats
    pool_w: Floats


class PowerSampler:
    """Turns constant pieces of draw per row (GPUs that draw alike) into samples.

    `row_gpus` counts the GPUs of each row, `row_pool` names its pool; rows and GPUs are in the
    fleet's order. `idle_w` per row is the draw without any deviation.
    """

    def __init__(
        self,
        *,
        row_gpus: list[int],
        row_pool: list[int],
        idle_w: list[float],
        pools: int,
        step_s: float,
        noise: LimiterNoise,
        seed: int,
    ) -> None:
        self._rows = len(row_gpus)
        self._row_gpus = np.asarray(row_gpus, dtype=np.float64)
        self._gpu_row = np.repeat(np.arange(self._rows), row_gpus)
        gpu_pool = np.repeat(np.asarray(row_pool), row_gpus)
        self._pool_starts = np.searchsorted(gpu_pool, np.arange(pools + 1)).tolist()
        self._idle_w = np.asarray(idle_w, dtype=np.float64)
        self._step_s = step_s
        self._noise = noise
        self._random = np.random.default_rng([seed, 0x77617474])
        weight = (1.0 - sqrt(1.0 - 4.0 * noise.memory**2)) / (2.0 * noise.memory or 1.0)
        norm = sqrt(1.0 + weight * weight)
        self._now_shock, self._last_shock = 1.0 / norm, weight / norm
        self._shock = np.zeros(self._rows + len(self._gpu_row))
        self._row_w = np.zeros(self._rows)
        self._from_s = 0.0
        self._bin = 0
        self._carry_j = np.zeros(self._rows)
        self._energy_j = 0.0
        self._fleet: list[Floats] = []
        self._pools: list[Floats] = []
        self._taken_bin = 0
        self._gpu_sum_w = np.zeros(len(self._gpu_row))
        self._gpu_bins = 0

    @property
    def energy_j(self) -> float:
        """Joules of all GPUs until the last flush."""
        return round(self._energy_j, 3)

    @property
    def flush_span_s(self) -> float:
        """Longest time between two flushes that keeps the working arrays small."""
        return self._step_s * max(10, _CELLS_AT_ONCE // (len(self._gpu_row) + 1))

    def flush(
        self,
        until_s: float,
        segment_row: list[int],
        segment_s: list[float],
        segment_w: list[float],
    ) -> None:
        """Account for everything up to `until_s`; the segments are in order of time."""
        whole = int(until_s / self._step_s + 1e-6)
        bins = whole - self._bin
        energy_j = self._bin_energy(until_s, bins, segment_row, segment_s, segment_w)
        energy_j[:, 0] += self._carry_j
        self._carry_j = energy_j[:, bins].copy()
        self._from_s, self._bin = until_s, whole
        if bins:
            self._sample(energy_j[:, :bins].T / self._step_s)

    def _bin_energy(
        self,
        until_s: float,
        bins: int,
        segment_row: list[int],
        segment_s: list[float],
        segment_w: list[float],
    ) -> Floats:
        """Joules per GPU of each row in each bin; the last column is the bin that is still open."""
        rows = np.concatenate([np.arange(self._rows), np.asarray(segment_row, dtype=np.intp)])
        start_s = np.concatenate([np.full(self._rows, self._from_s), np.asarray(segment_s)])
        watts = np.concatenate([self._row_w, np.asarray(segment_w)])
        order = np.argsort(rows, kind="stable")
        rows, start_s, watts = rows[order], start_s[order], watts[order]
        last = np.empty(len(rows), dtype=bool)
        last[:-1] = rows[1:] != rows[:-1]
        last[-1] = True
        end_s = np.empty_like(start_s)
        end_s[:-1] = start_s[1:]
        end_s[last] = until_s
        self._row_w = watts[last]
        self._energy_j += float(
            np.sum(np.round(watts * (end_s - start_s) * self._row_gpus[rows], 9))
        )
        width = bins + 2
        first = np.clip((start_s / self._step_s).astype(np.intp) - self._bin, 0, bins)
        final = np.clip((end_s / self._step_s).astype(np.intp) - self._bin, 0, bins)
        base = rows * width
        size = self._rows * width
        # A rate from its first bin on, then what the first has too much and the last misses.
        rate = np.bincount(base + first, watts, size) - np.bincount(base + final, watts, size)
        early_s = start_s - (first + self._bin) * self._step_s
        late_s = end_s - (final + self._bin) * self._step_s
        extra = np.bincount(base + final, watts * late_s, size)
        extra -= np.bincount(base + first, watts * early_s, size)
        covered = np.cumsum(rate.reshape(self._rows, width), axis=1) * self._step_s
        energy: Floats = (covered + extra.reshape(self._rows, width))[:, : bins + 1]
        return energy

    def _sample(self, row_w: Floats) -> None:
        """Deviate, sum up and keep samples; `row_w` has a line per bin."""
        bins = len(row_w)
        noise = self._noise
        fresh = self._random.standard_normal((bins, len(self._shock)))
        shocks = np.vstack([self._shock, fresh])
        self._shock = fresh[-1]
        smooth = self._now_shock * shocks[1:] + self._last_shock * shocks[:-1]
        shared = smooth[:, : self._rows][:, self._gpu_row]
        own = smooth[:, self._rows :]
        deviation: Floats = (
            sqrt(noise.replica_correlation) * shared + sqrt(1.0 - noise.replica_correlation) * own
        )
        above_w: Floats = np.maximum(row_w - self._idle_w, 0.0)
        sigma_w: Floats = above_w * noise.sample_sigma
        wanted_w: Floats = row_w[:, self._gpu_row] + sigma_w[:, self._gpu_row] * deviation
        gpu_w: Floats = wanted_w.clip(0.0).round(3)
        self._gpu_sum_w += gpu_w.sum(axis=0)
        self._gpu_bins += bins
        pool_w = np.zeros((len(self._pool_starts) - 1, bins))
        for pool, (start, end) in enumerate(pairwise(self._pool_starts)):
            pool_w[pool] = np.round(gpu_w[:, start:end].sum(axis=1), 3)
        self._pools.append(pool_w)
        self._fleet.append(np.round(pool_w.sum(axis=0), 3))

    def take(self) -> PowerSamples:
        """Return the samples since the last call."""
        start = self._taken_bin
        fleet_w = np.concatenate(self._fleet) if self._fleet else np.zeros(0)
        pool_w = (
            np.concatenate(self._pools, axis=1)
            if self._pools
            else np.zeros((len(self._pool_starts) - 1, 0))
        )
        self._fleet.clear()
        self._pools.clear()
        self._taken_bin = start + len(fleet_w)
        return PowerSamples(
            start_s=round(start * self._step_s, 9),
            step_s=self._step_s,
            fleet_w=fleet_w,
            pool_w=pool_w,
        )

    def take_gpu_means(self) -> list[float] | None:
        """Mean watts of every GPU over the samples since the last call; None if there are none."""
        if not self._gpu_bins:
            return None
        means: list[float] = np.round(self._gpu_sum_w / self._gpu_bins, 3).tolist()
        self._gpu_sum_w = np.zeros_like(self._gpu_sum_w)
        self._gpu_bins = 0
        return means
