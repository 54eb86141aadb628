"""How a GPU answers a power cap: the clock it settles at, and what that does to time and watts.

One response is shared by every engine model. A pass is given as seconds of arithmetic and of memory
traffic at full clock, plus seconds that depend on neither (launch gaps, links). At clock `f`, a
fraction of the maximum:

    busy(f)   = compute_s / f                                  arithmetic
    stream(f) = memory_s * max(1, memory_knee / f)             memory: flat down to the knee
    time(f)   = max(busy, stream) + (1 - overlap) * min(busy, stream) + other_s
    volt(f)   = f ** gamma above the voltage floor, linear in f below it
    watts(f)  = static_w
                + memory_w * (1 - clocked + clocked * volt(f)) * memory_s / time(f)
                + compute_w * volt(f) * (stall + (1 - stall) * busy / time(f))

`watts` never falls with `f`, so under a cap the clock is the highest at which watts <= cap. When
even the lowest clock draws more, the memory drops to its low clock state (`memory_low` of its
bandwidth, on parts that have one), and if that is not enough the GPU runs only a share of the time
(duty cycling) between that draw and idle, not less than `lowest_duty`: boards for which that is 1
draw more than a cap below their floor. Both are cliffs: the cap at which a memory-bound pass falls
off is its memory floor.

Sources: CMOS dynamic power C*V^2*f with a lowest voltage below which only f falls; the shape of
published cap sweeps (docs/reference/cap-response.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

CLOCK_LEVELS = 1000
"""Clocks are whole thousandths of the maximum (about 2 MHz): exact, and the same on every CPU."""


class Settled(NamedTuple):
    """Clock as a fraction of maximum, seconds of the pass, mean watts of the GPU during it."""

    clock: float
    duration_s: float
    power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CapResponse:
    """Parameters of one GPU product's answer to caps (formulas in the module's docstring).

    static_w: drawn while a pass runs whatever it does. compute_w: added by fully busy arithmetic
    units at full clock. memory_w: added by saturated memory; memory_clocked: share of it spent on
    the chip (cores, caches, network), which follows the clock. stall: share of compute_w that units
    draw while they wait. gamma: exponent of power over clock. voltage_floor: clock below which
    power is linear in clock. clock_min: lowest clock. memory_knee: clock below which memory
    bandwidth falls with the clock. memory_low: share of bandwidth left in the memory's low clock
    state, 1 for memory that has none (HBM). lowest_duty: least share of time that the limiter lets
    the GPU run. overlap: share of the shorter of arithmetic and memory time hidden behind the
    longer. idle_w: drawn with a model loaded and nothing to do.

    Defaults are those that the published cap sweeps give (docs/reference/cap-response.md); no
    sweep of LLM phases on Hopper or Blackwell is public, so `perturbed` gives their range.
    """

    static_w: float
    compute_w: float
    memory_w: float
    idle_w: float
    stall: float = 0.2
    gamma: float = 2.4
    voltage_floor: float = 0.8
    clock_min: float = 0.15
    memory_knee: float = 0.45
    memory_low: float = 1.0
    lowest_duty: float = 0.01
    memory_clocked: float = 0.0
    overlap: float = 0.85

    def __post_init__(self) -> None:
        """Reject parameters under which watts could fall with the clock."""
        positive = min(self.static_w, self.compute_w, self.memory_w, self.idle_w)
        clocks = (self.voltage_floor, self.clock_min, self.memory_knee, self.memory_low)
        fractions = (self.stall, self.overlap, self.lowest_duty, self.memory_clocked, *clocks)
        if not (positive >= 0.0 and self.gamma >= 1.0):
            raise ValueError(f"watts must not be negative and gamma not below 1: {self}")
        above_zero = self.clock_min * self.memory_low * self.lowest_duty > 0.0
        if not (above_zero and all(0.0 <= share <= 1.0 for share in fractions)):
            raise ValueError(f"clocks and shares lie between 0 and 1: {self}")

    def perturbed(
        self, *, exponent: float = 1.0, static: float = 1.0, floor: float = 1.0
    ) -> CapResponse:
        """Scale the uncertain parameters; 1.0 leaves each as it is.

        `exponent` scales gamma, `static` the static watts at the same full-load total (the rest
        moves to arithmetic, as a fit at one cap cannot tell them apart), `floor` the memory knee
        and the voltage floor.
        """
        static_w = min(self.static_w * static, self.static_w + self.compute_w)
        return replace(
            self,
            gamma=max(1.0, self.gamma * exponent),
            static_w=static_w,
            compute_w=self.compute_w + self.static_w - static_w,
            memory_knee=min(1.0, self.memory_knee * floor),
            voltage_floor=min(1.0, self.voltage_floor * floor),
        )

    def watts(self, compute_s: float, memory_s: float, other_s: float, clock: float) -> float:
        """Mean watts of a pass at a fixed clock (a fraction, rounded down to a clock level)."""
        level = max(1, int(clock * CLOCK_LEVELS + 1e-9))
        return self._at(compute_s, memory_s, other_s, level)[1]

    def settle(
        self,
        compute_s: float,
        memory_s: float,
        other_s: float,
        cap_w: float,
        clock_ceiling: float = 1.0,
    ) -> Settled:
        """Settle a pass under a cap in watts and a ceiling on the clock.

        Seconds are those at full clock and must not be negative; a pass of no work takes no time
        and draws `idle_w`. Duration is in whole nanoseconds, power in milliwatts.
        """
        top = CLOCK_LEVELS
        if clock_ceiling < 1.0:
            top = max(_lowest_level(self), int(clock_ceiling * CLOCK_LEVELS + 1e-9))
        duration_s, power_w = self._at(compute_s, memory_s, other_s, top)
        if duration_s <= 0.0:
            return Settled(top / CLOCK_LEVELS, 0.0, min(self.idle_w, cap_w))
        if power_w > cap_w:
            return self._settle_below(compute_s, memory_s, other_s, cap_w, top, power_w)
        drawn_w = round(power_w, 3)
        if drawn_w > cap_w:
            drawn_w = cap_w
        return Settled(top / CLOCK_LEVELS, round(duration_s, 9), drawn_w)

    def _at(
        self, compute_s: float, memory_s: float, other_s: float, level: int
    ) -> tuple[float, float]:
        """Seconds and watts at a clock level."""
        clock = level / CLOCK_LEVELS
        busy = compute_s / clock
        knee = self.memory_knee
        stream = memory_s if clock >= knee else memory_s * knee / clock
        if busy > stream:
            total = busy + (1.0 - self.overlap) * stream + other_s
        else:
            total = stream + (1.0 - self.overlap) * busy + other_s
        if total <= 0.0:
            return 0.0, self.idle_w
        stall = self.stall
        switching = self.compute_w * (stall + (1.0 - stall) * busy / total)
        streaming = self.memory_w * memory_s / total
        if level < CLOCK_LEVELS:
            volts = _volts(self)[level]
            switching *= volts
            streaming *= 1.0 - self.memory_clocked * (1.0 - volts)
        return total, self.static_w + streaming + switching

    def _settle_below(
        self,
        compute_s: float,
        memory_s: float,
        other_s: float,
        cap_w: float,
        top: int,
        top_w: float,
    ) -> Settled:
        """Find the highest level below `top` that obeys the cap; go off the cliff if none does."""
        low = _lowest_level(self)
        low_s, low_w = self._at(compute_s, memory_s, other_s, low)
        if low_w > cap_w:
            return self._below_floor(compute_s, memory_s, other_s, cap_w, low)
        # The plant's hot path: `_at`, written out with its constants at hand.
        volts, knee, hidden = _volts(self), self.memory_knee, 1.0 - self.overlap
        stall, rest = self.compute_w * self.stall, self.compute_w * (1.0 - self.stall)
        static_w, clocked = self.static_w, self.memory_w * memory_s * self.memory_clocked
        streaming = self.memory_w * memory_s - clocked
        high, high_w = top, top_w
        while high - low > 1:
            # Watts grow smoothly with the clock: aim where the chord meets the cap, but always
            # shrink by an eighth from either end so that a curved stretch cannot stall the search.
            span = high - low
            middle = low + int(span * (cap_w - low_w) / (high_w - low_w))
            margin = (span >> 3) or 1
            if middle < low + margin:
                middle = low + margin
            elif middle > high - margin:
                middle = high - margin
            clock = middle / CLOCK_LEVELS
            busy = compute_s / clock
            stream = memory_s if clock >= knee else memory_s * knee / clock
            if busy > stream:
                total = busy + hidden * stream + other_s
            else:
                total = stream + hidden * busy + other_s
            watts = static_w + (streaming + volts[middle] * (clocked + rest * busy)) / total
            watts += stall * volts[middle]
            if watts > cap_w:
                high, high_w = middle, watts
            else:
                low, low_s, low_w = middle, total, watts
        return Settled(low / CLOCK_LEVELS, round(low_s, 9), min(cap_w, round(low_w, 3)))

    def _below_floor(
        self, compute_s: float, memory_s: float, other_s: float, cap_w: float, low: int
    ) -> Settled:
        """Settle where the lowest clock draws more than the cap: low memory state, then duty."""
        slowed_s = memory_s / self.memory_low
        low_s, low_w = self._at(compute_s, slowed_s, other_s, low)
        # The same bytes over a longer time, not more bytes.
        clocked = 1.0 - self.memory_clocked * (1.0 - _volts(self)[low])
        low_w -= self.memory_w * clocked * (slowed_s - memory_s) / low_s
        duty = 1.0
        if low_w > cap_w:
            room_w = low_w - self.idle_w
            duty = (cap_w - self.idle_w) / room_w if room_w > 0.0 else 0.0
            if duty < self.lowest_duty:
                duty = self.lowest_duty
                low_w = round(self.idle_w + duty * room_w, 3)
            else:
                low_w = cap_w
        else:
            low_w = min(cap_w, round(low_w, 3))
        return Settled(round(low / CLOCK_LEVELS * duty, 6), round(low_s / duty, 9), low_w)


@cache
def _shape(gamma: float, voltage_floor: float) -> tuple[float, ...]:
    """`volt(f)` at every clock level, rounded so that it is the same on every CPU."""
    slope = voltage_floor ** (gamma - 1.0)
    clocks = (level / CLOCK_LEVELS for level in range(CLOCK_LEVELS + 1))
    return tuple(
        round(clock**gamma if clock >= voltage_floor else slope * clock, 12) for clock in clocks
    )


def _volts(response: CapResponse) -> tuple[float, ...]:
    return _shape(response.gamma, response.voltage_floor)


def _lowest_level(response: CapResponse) -> int:
    return max(1, int(response.clock_min * CLOCK_LEVELS + 0.5))
