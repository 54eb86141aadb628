"""What a decision gets to see of the plant: late, noisy, sometimes not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import fsum

import numpy as np

from wattline.core.snapshot import DemandView
from wattline.sim.plant.outcomes import DemandCounters


class MetricsState(StrEnum):
    """How the metrics source behaves."""

    FINE = "fine"
    OUTAGE = "outage"
    STALE = "stale"
    NAN = "nan"


@dataclass(frozen=True, slots=True)
class Load:
    """What the workers of one pool report of themselves."""

    queued_prefill_tokens: float
    active_kv_tokens: float
    running: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Everything measured at the end of one tick."""

    time_s: float
    counters: tuple[DemandCounters, ...]
    loads: tuple[Load, ...]
    draw_w: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a policy sees of the demand, the pools' load and the draw; `missing` says why not."""

    demand: tuple[DemandView, ...]
    loads: tuple[Load | None, ...]
    draw_w: tuple[float | None, ...]
    missing: tuple[str, ...]


class Telemetry:
    """Keeps readings back until they are `delay_s` old, and adds up those not yet shown.

    `shape` counts deployments, pools and GPUs.
    """

    def __init__(
        self,
        *,
        delay_s: float,
        power_noise: float,
        seed: int,
        shape: tuple[int, int, int],
        future_rps: Callable[[int, float], tuple[float, ...]] | None,
        future_step_s: float,
    ) -> None:
        self.state = MetricsState.FINE
        self._deployments, self._pools, self._gpus = shape
        self._delay_s = delay_s
        self._power_noise = power_noise
        self._random = np.random.default_rng([seed, 0x74656C65])
        self._future_rps = future_rps
        self._future_step_s = future_step_s
        self._readings: deque[Reading] = deque()
        self._last: Seen | None = None
        self._last_s = 0.0

    def add(self, reading: Reading) -> None:
        """Take in what was measured in the tick that ended just now."""
        noise = self._random.standard_normal(len(reading.draw_w)) * self._power_noise
        noisy = np.round(np.asarray(reading.draw_w) * (1.0 + noise), 1)
        self._readings.append(
            Reading(
                time_s=reading.time_s,
                counters=reading.counters,
                loads=reading.loads,
                draw_w=tuple(np.maximum(noisy, 0.0).tolist()),
            )
        )

    def see(self, now_s: float) -> Seen:
        """All that has become visible by `now_s` since the last call.

        A metrics source that hangs or answers NaN shows nothing, or the last values again; what was
        counted meanwhile is lost, as it is with a server that was down.
        """
        visible: list[Reading] = []
        while self._readings and self._readings[0].time_s <= now_s - self._delay_s + 1e-9:
            visible.append(self._readings.popleft())
        if self.state is MetricsState.STALE and self._last is not None:
            return self._aged(now_s)
        if self.state is not MetricsState.FINE:
            why = "NaN" if self.state is MetricsState.NAN else "no answer"
            return self._nothing(f"metrics: {why}", now_s)
        if not visible:
            return self._nothing("metrics: nothing yet", now_s)
        newest = visible[-1]
        self._last_s = newest.time_s
        self._last = Seen(
            demand=tuple(
                self._demand(index, [reading.counters[index] for reading in visible], now_s)
                for index in range(self._deployments)
            ),
            loads=newest.loads,
            draw_w=newest.draw_w,
            missing=(),
        )
        return self._last

    def _demand(self, index: int, counters: Sequence[DemandCounters], now_s: float) -> DemandView:
        ttft = sorted(value for counter in counters for value in counter.ttft_s)
        itl = sorted(value for counter in counters for value in counter.itl_s)
        return DemandView(
            window_s=round(sum(counter.window_s for counter in counters), 6),
            arrivals=sum(counter.arrivals for counter in counters),
            input_tokens_sum=sum(counter.input_tokens_sum for counter in counters),
            cached_tokens_sum=sum(counter.cached_tokens_sum for counter in counters),
            completions=sum(counter.completions for counter in counters),
            output_tokens_sum=sum(counter.output_tokens_sum for counter in counters),
            rejected=sum(counter.rejected for counter in counters),
            ttft_p50_s=percentile(ttft, 0.5),
            ttft_p99_s=percentile(ttft, 0.99),
            itl_p50_s=percentile(itl, 0.5),
            itl_p99_s=percentile(itl, 0.99),
            ttft_mean_s=mean(ttft),
            itl_mean_s=mean(itl),
            age_s=round(now_s - self._last_s, 6),
            future_rps=self._future(index, now_s),
            future_step_s=self._future_step_s,
        )

    def _future(self, index: int, now_s: float) -> tuple[float, ...] | None:
        return None if self._future_rps is None else self._future_rps(index, now_s)

    def _aged(self, now_s: float) -> Seen:
        assert self._last is not None
        age_s = round(now_s - self._last_s, 6)
        demand = tuple(
            replace(view, age_s=age_s, future_rps=self._future(index, now_s))
            for index, view in enumerate(self._last.demand)
        )
        return Seen(
            demand=demand,
            loads=self._last.loads,
            draw_w=self._last.draw_w,
            missing=(f"metrics: stale for {age_s:.0f} s",),
        )

    def _nothing(self, why: str, now_s: float) -> Seen:
        demand = tuple(
            DemandView(
                window_s=0.0,
                arrivals=None,
                input_tokens_sum=None,
                cached_tokens_sum=None,
                completions=None,
                output_tokens_sum=None,
                rejected=None,
                ttft_p50_s=None,
                ttft_p99_s=None,
                itl_p50_s=None,
                itl_p99_s=None,
                age_s=round(now_s - self._last_s, 6),
                future_rps=self._future(index, now_s),
                future_step_s=self._future_step_s,
            )
            for index in range(self._deployments)
        )
        return Seen(
            demand=demand,
            loads=(None,) * self._pools,
            draw_w=(None,) * self._gpus,
            missing=(why,),
        )


def mean(values: Sequence[float]) -> float | None:
    """Mean of `values`; None when there are none."""
    return round(fsum(values) / len(values), 9) if values else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """Interpolated percentile of sorted `values`; None when there are none."""
    if not values:
        return None
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return round(values[low] + (values[high] - values[low]) * (place - low), 9)
