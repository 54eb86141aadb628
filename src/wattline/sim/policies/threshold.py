"""Capping by two thresholds on measured draw, after POLCA (ASPLOS'24, arXiv 2308.12908).

Below T1 of the budget nothing is done. Above T1 the low-priority GPUs (decode; every aggregated
pool) get a clock ceiling; above T2 a lower one, and the others get one too. POLCA has a hardware
brake behind that; here draw above the budget caps every GPU at its smallest limit, and as long as
draw stays above T2 all ceilings are lowered further. Nothing is booked: enforced limits stay at
their defaults, so that only measured draw, never the sum of limits, is held.
"""

from __future__ import annotations

from math import fsum
from typing import NamedTuple

from wattline.core.decision import Decision, PoolPlan, ReasonCode
from wattline.core.fleet import GpuProduct, Role, Setting
from wattline.core.settings import Settings
from wattline.core.snapshot import Budget, Phase, Snapshot
from wattline.sim.policies.common import (
    all_replicas,
    decided,
    direct_steps,
    gpu_targets,
    replica_steps,
)
from wattline.sim.policies.context import PolicyContext

T1 = 0.80
"""Share of the budget above which low-priority work is capped (POLCA)."""
T2 = 0.89
"""Share of the budget above which everything is capped (POLCA)."""
RELEASE = 0.05
"""Distance below a threshold at which its step is taken back. Assumed: no number is published."""
RISE_S = 4.0
"""Least time between two steps up, so that the first one is seen in the draw. Assumed."""
HOLD_S = 10.0
"""Least time before a step is taken back. Assumed."""
INTERVAL_S = 2.0
"""Telemetry arrives about every 2 s (POLCA)."""
STEP = 0.9
"""Factor on all ceilings for every further step above T2. Assumed: POLCA stops at T2."""
DEEPEST = 8
"""Last step; clocks end at the product's smallest earlier."""

_A100_MAX_MHZ = 1410.0


class _Ceilings(NamedTuple):
    """Clock ceilings as fractions of the maximum, for low and high priority."""

    low: float
    high: float


# POLCA's clocks on A100 (maximum 1410 MHz): 1275 and 1110 MHz low priority, 1305 MHz high priority.
_LADDER = (
    _Ceilings(1.0, 1.0),
    _Ceilings(1275.0 / _A100_MAX_MHZ, 1.0),
    _Ceilings(1110.0 / _A100_MAX_MHZ, 1305.0 / _A100_MAX_MHZ),
)


class Threshold:
    """All replicas on at default limits; clock ceilings follow the measured draw."""

    name = "threshold"
    interval_s = INTERVAL_S
    uses_ledger = False

    def __init__(self, settings: Settings, context: PolicyContext) -> None:
        self._fleet = settings.fleet
        self._products = [self._fleet.product_of(pool) for pool in self._fleet.pools]
        self._step = 0
        self._since_s = -HOLD_S
        self._braking = False

    def initial_plan(self, budget: Budget) -> tuple[PoolPlan, ...]:
        """All replicas at default limits, no ceiling."""
        return all_replicas(self._fleet, [Setting(p.default_limit_w) for p in self._products])

    def decide(self, snapshot: Snapshot) -> Decision:
        """Move at most one step, by the share of the budget that is drawn."""
        drawn_w = _drawn_w(snapshot)
        if drawn_w is None:
            code = ReasonCode.HELD_METRICS_OUTAGE
            sentence = "draw is not measured: ceilings are kept"
        else:
            share = drawn_w / snapshot.budget.total_w
            before = (self._step, self._braking)
            sentence = self._move(share, snapshot.time_s)
            code = ReasonCode.STEADY if self._step == 0 else ReasonCode.BUDGET_BOUND
            if before != (self._step, self._braking):
                code = ReasonCode.CAPS_CHANGED
        settings = [self._setting(i) for i in range(len(self._products))]
        plan = all_replicas(self._fleet, settings)
        return decided(
            snapshot,
            plan,
            [(code, f"{pool.name}: {sentence}") for pool in self._fleet.pools],
            caps=direct_steps(snapshot, gpu_targets(snapshot, settings, settings)),
            replicas=replica_steps(snapshot, self._fleet, plan),
        )

    def _move(self, share: float, now_s: float) -> str:
        seen = f"draw is {share:.1%} of the budget"
        if share > 1.0:
            self._braking, self._since_s = True, now_s
            self._step = min(DEEPEST, max(2, self._step + 1))
            return f"{seen}: brake, every GPU at its smallest limit"
        rests_s = now_s - self._since_s
        if self._braking:
            if share >= T1 - RELEASE or rests_s < HOLD_S:
                return f"{seen}: brake kept until it is below {T1 - RELEASE:.0%}"
            self._braking, self._since_s = False, now_s
            return f"{seen}: brake released at step {self._step}"
        threshold = T1 if self._step == 0 else T2
        if share > threshold and self._step < DEEPEST and rests_s >= RISE_S:
            # Above T2 both thresholds are crossed at once.
            self._step, self._since_s = max(self._step + 1, 2 if share > T2 else 1), now_s
            return f"{seen}, above {threshold:.0%}: step {self._step} of clock ceilings"
        release = (T1 if self._step == 1 else T2) - RELEASE
        if self._step > 0 and share < release and rests_s >= HOLD_S:
            self._step, self._since_s = self._step - 1, now_s
            return f"{seen}, below {release:.0%}: back to step {self._step}"
        return f"{seen}: step {self._step} of clock ceilings kept"

    def _setting(self, pool: int) -> Setting:
        product = self._products[pool]
        if self._braking:
            return Setting(product.min_limit_w, self._ceiling(pool))
        return Setting(product.default_limit_w, self._ceiling(pool))

    def _ceiling(self, pool: int) -> float:
        rung = _LADDER[min(self._step, 2)]
        prefill = self._fleet.pools[pool].role is Role.PREFILL
        further = STEP ** max(0, self._step - 2)
        wanted = (rung.high if prefill else rung.low) * further
        return round(max(wanted, _lowest_clock(self._products[pool])), 6)


def _lowest_clock(product: GpuProduct) -> float:
    """Smallest clock as a fraction of the largest; 0 where the product's range is not known."""
    if product.min_clock_mhz is None or product.max_clock_mhz is None:
        return 0.0
    return product.min_clock_mhz / product.max_clock_mhz


def _drawn_w(snapshot: Snapshot) -> float | None:
    """Measured draw of the fleet; None where too little of it is measured to act on.

    GPUs without a measurement are taken at the mean of the others, as long as half are measured.
    """
    gpus = snapshot.gpus
    there = [
        draw for draw, phase in zip(gpus.draw_w, gpus.phase, strict=True) if phase is not Phase.LOST
    ]
    known = [draw for draw in there if draw is not None]
    if not known or 2 * len(known) < len(there):
        return None
    return fsum(known) * len(there) / len(known)
