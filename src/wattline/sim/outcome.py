"""One row of figures from a finished run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wattline.sim.plant.outcomes import COMPLETED, Totals
from wattline.sim.result import RunResult
from wattline.sim.series import meets

if TYPE_CHECKING:
    from wattline.sim.loop import ClosedLoop


def run_result(loop: ClosedLoop, totals: Totals, wall_s: float) -> RunResult:
    """The columns of `wattline compare` for a run that has ended."""
    experiment = loop.experiment
    fleet = experiment.fleet
    good = 0
    for index, deployment in enumerate(fleet.deployments):
        mine = (totals.deployment == index) & (totals.status == COMPLETED)
        good += int((mine & meets(totals, deployment.slo.ttft_s, deployment.slo.itl_s)).sum())
    done = totals.status == COMPLETED
    ttft_p50_ms, ttft_p99_ms = percentiles_ms(totals.ttft_s[done])
    itl_p50_ms, itl_p99_ms = percentiles_ms(totals.itl_s[done])
    hours = experiment.end_s / 3600.0
    tokens = totals.generated_tokens
    return RunResult(
        policy=loop.policy_name,
        budget_w=loop.start_budget_w,
        budget_fraction=round(loop.start_budget_w / fleet.max_limit_w, 6),
        seed=experiment.seed,
        requests=totals.offered,
        completed=totals.completed,
        rejected=totals.rejected,
        unfinished=totals.unfinished,
        goodput_rps=round(good / experiment.duration_s, 6),
        slo_attainment=round(good / totals.offered, 6) if totals.offered else 0.0,
        ttft_p50_ms=ttft_p50_ms,
        ttft_p99_ms=ttft_p99_ms,
        itl_p50_ms=itl_p50_ms,
        itl_p99_ms=itl_p99_ms,
        energy_j=round(totals.energy_j, 1),
        j_per_token=round(totals.energy_j / tokens, 6) if tokens else None,
        output_tokens=tokens,
        peak_booked_w=round(loop.peak_booked_w, 1),
        peak_enforced_w=round(loop.meter.peak_enforced_w, 1),
        peak_draw_1s_w=round(loop.draw.peak_1s_w, 1),
        over_budget_enforced_ws=round(loop.meter.over_budget_ws, 3),
        exposure_enforced_ws=round(loop.meter.exposure_ws, 3),
        over_budget_draw_ws=round(loop.draw.over_budget_ws, 3),
        cap_writes_per_hour=round(loop.actuation.cap_writes / hours, 3),
        cap_reversals_per_hour=round(loop.actuation.cap_reversals / hours, 3),
        replica_changes=loop.replica_changes,
        gpus=fleet.gpu_count,
        wall_s=wall_s,
    )


def percentiles_ms(values_s: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Median and 99th percentile of seconds, in milliseconds; None when there is no value."""
    known = values_s[~np.isnan(values_s)]
    if len(known) == 0:
        return None, None
    p50, p99 = np.percentile(known, (50.0, 99.0)) * 1000.0
    return round(float(p50), 3), round(float(p99), 3)
