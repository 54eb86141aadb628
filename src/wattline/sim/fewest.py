"""The fewest replicas at full power that suffice, searched in hindsight: the baseline of energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from wattline.sim.experiment import Experiment
from wattline.sim.policies.common import most_replicas
from wattline.sim.policies.fixed import FewestUncapped
from wattline.sim.result import Run
from wattline.sim.runs import Job, jobs_for, run_all

FEWEST = FewestUncapped.name
TARGET = 0.99
"""Attainment that the baseline has to reach over the whole run."""
WINDOW_S = 300.0
"""Span over which attainment is also looked at, to say whether it is reached all the time."""

Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fewest:
    """What the search found: `run` has `replicas` per pool; `tried` runs were needed.

    Where even all replicas miss the target, they are what is shown.
    """

    run: Run
    replicas: Counts
    tried: int

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return _suffices(self.run)


def find_fewest(experiment: Experiment, budget_w: float, workers: int) -> Fewest:
    """Search the fewest GPUs whose attainment is at least `TARGET`.

    Each pool is bisected with all others whole, which gives the least that it needs in any case (if
    a replica more never serves less). Taken together these may be too few: then the replica that
    helps most is added, one at a time. The budget only enters what is counted as over it.
    """
    pools = experiment.fleet.pools
    runs: dict[Counts, Run] = {}

    def try_all(candidates: Sequence[Counts]) -> None:
        new = [counts for counts in dict.fromkeys(candidates) if counts not in runs]
        jobs = [Job(FEWEST, budget_w, pool_replicas=counts) for counts in new]
        for index, run in run_all(experiment, jobs, workers):
            runs[new[index]] = run

    (start,) = jobs_for(experiment, FEWEST, budget_w)
    most = start.pool_replicas
    assert most is not None
    try_all([most])
    if not _suffices(runs[most]):
        return Fewest(runs[most], most, len(runs))
    low = [max(1, pool.min_replicas) for pool in pools]
    high = list(most)
    while any(few < enough for few, enough in zip(low, high, strict=True)):
        probes = {
            index: _with(most, index, (few + enough) // 2)
            for index, (few, enough) in enumerate(zip(low, high, strict=True))
            if few < enough
        }
        try_all(list(probes.values()))
        for index, counts in probes.items():
            if _suffices(runs[counts]):
                high[index] = counts[index]
            else:
                low[index] = counts[index] + 1
    found = tuple(high)
    try_all([found])
    while not _suffices(runs[found]):
        grown = [_with(found, i, n + 1) for i, n in enumerate(found) if n < most[i]]
        try_all(grown)
        found = max(grown, key=lambda counts: _merit(experiment, counts, runs[counts]))
    return Fewest(runs[found], found, len(runs))


def _suffices(run: Run) -> bool:
    return run.result.slo_attainment >= TARGET


def _with(counts: Counts, index: int, count: int) -> Counts:
    return (*counts[:index], count, *counts[index + 1 :])


def _merit(experiment: Experiment, counts: Counts, run: Run) -> tuple[float, float, float]:
    """Order of candidates: enough before too few; then fewer GPUs and joules, or more attained."""
    if not _suffices(run):
        return (0.0, run.result.slo_attainment, -run.result.energy_j)
    gpus = sum(
        count * pool.gpus_per_replica
        for count, pool in zip(counts, experiment.fleet.pools, strict=True)
    )
    return (1.0, -float(gpus), -run.result.energy_j)


def worst_window(run: Run) -> float:
    """Lowest attainment of any deployment over windows of about `WINDOW_S`, by time of arrival.

    Windows are whole steps of the run's series, the shortest that last `WINDOW_S`; the last one may
    be shorter. Windows without arrivals do not count.
    """
    series = run.series
    steps = max(1, ceil(WINDOW_S / series.step_s))
    shares = [1.0]
    for deployment in series.deployments:
        for first in range(0, len(deployment.offered_rps), steps):
            offered = sum(deployment.offered_rps[first : first + steps])
            good = sum(deployment.goodput_rps[first : first + steps])
            if offered > 0.0:
                shares.append(good / offered)
    return round(min(shares), 4)


def fewest_note(experiment: Experiment, found: Fewest) -> str:
    """One sentence on what the search found."""
    attained = f"{found.run.result.slo_attainment:.1%}"
    if not found.reached:
        return (
            f"{FEWEST}: no number of replicas reaches {TARGET:.0%} attainment; all of them, "
            f"which are shown, reach {attained}."
        )
    counts = ", ".join(
        f"{count} of {most_replicas(pool)} {pool.name}"
        for count, pool in zip(found.replicas, experiment.fleet.pools, strict=True)
    )
    worst = worst_window(found.run)
    always = "at all times" if worst >= TARGET else "on the whole, but not at all times"
    return (
        f"{FEWEST}: {counts} replicas are the fewest found ({found.tried} runs) that reach "
        f"{TARGET:.0%} attainment: {attained} {always} (worst 5 minutes: {worst:.1%})."
    )
