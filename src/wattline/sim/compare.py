"""Several policies at several budgets on one experiment: the cells of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.core.errors import InfeasibleError
from wattline.core.snapshot import Budget
from wattline.sim.experiment import Experiment
from wattline.sim.fewest import FEWEST, fewest_note, find_fewest
from wattline.sim.policies.sweep import widest_step_w
from wattline.sim.result import Run
from wattline.sim.runs import HINDSIGHT, Job, best, build_policy, jobs_for, run_all


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run per policy and budget, in the order asked for; `notes` say what searches found."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def compare(
    experiment: Experiment,
    policies: Sequence[str],
    budgets_w: Sequence[float],
    *,
    workers: int,
    progress: Callable[[float], None] | None = None,
) -> Comparison:
    """Run every policy at every budget; `progress` gets the share of each run that ends.

    The search for the fewest uncapped replicas counts as one run: the budget does not enter it, so
    that it is done once, at the first budget. A policy that cannot start within a budget is left
    out and named in the notes; InfeasibleError if none can.
    """
    cells = [(policy, budget_w) for budget_w in budgets_w for policy in policies]
    refusals = [_refusal(experiment, *cell) for cell in cells]
    notes = [f"Left out: {refusal}" for refusal in refusals if refusal is not None]
    cells = [cell for cell, refusal in zip(cells, refusals, strict=True) if refusal is None]
    if not cells:
        raise InfeasibleError(next(refusal for refusal in refusals if refusal is not None))
    fewest = find_fewest(experiment, budgets_w[0], workers) if FEWEST in policies else None
    jobs: list[Job] = []
    spans: list[tuple[int, int]] = []
    for policy, budget_w in cells:
        if policy != FEWEST or fewest is None:
            wanted = jobs_for(experiment, policy, budget_w)
        elif budget_w == budgets_w[0]:
            wanted = []  # run by the search
        else:
            wanted = [Job(policy, budget_w, pool_replicas=fewest.replicas)]
        spans.append((len(jobs), len(jobs) + len(wanted)))
        jobs.extend(wanted)
    share = 1.0 / (len(jobs) + (fewest is not None))
    if progress is not None and fewest is not None:
        progress(share)
    finished: dict[int, Run] = {}
    for index, run in run_all(experiment, jobs, workers):
        finished[index] = run
        if progress is not None:
            progress(share)
    runs = []
    for (policy, _), (first, last) in zip(cells, spans, strict=True):
        if fewest is not None and first == last:
            runs.append(fewest.run)
            notes.append(fewest_note(experiment, fewest))
            continue
        chosen = best([finished[index] for index in range(first, last)])
        runs.append(chosen)
        if policy in HINDSIGHT:
            notes.append(_sweep_note(experiment, jobs[first:last], finished, first, chosen))
    return Comparison(tuple(runs), tuple(notes))


def chosen_job(experiment: Experiment, policy: str, budget_w: float, workers: int) -> Job:
    """The run that stands for `policy`: of a search in hindsight, the one that it keeps."""
    if policy == FEWEST:
        replicas = find_fewest(experiment, budget_w, workers).replicas
        return Job(policy, budget_w, pool_replicas=replicas)
    jobs = jobs_for(experiment, policy, budget_w)
    if len(jobs) == 1:
        return jobs[0]
    finished = dict(run_all(experiment, jobs, workers))
    kept = best([finished[index] for index in range(len(jobs))])
    return next(job for index, job in enumerate(jobs) if finished[index] is kept)


def _refusal(experiment: Experiment, policy: str, budget_w: float) -> str | None:
    """Why `policy` cannot start within the budget, None if it can."""
    if policy in (*HINDSIGHT, FEWEST):
        return None  # searched for: what cannot start is not found
    budget = Budget(total_w=budget_w, guard_w=experiment.guard_w(budget_w), version=1)
    try:
        build_policy(experiment, Job(policy, budget_w)).initial_plan(budget)
    except InfeasibleError as error:
        return f"{error} (at {budget_w:,.0f} W)"
    return None


def _sweep_note(
    experiment: Experiment, jobs: Sequence[Job], finished: dict[int, Run], first: int, chosen: Run
) -> str:
    winner = next(job for offset, job in enumerate(jobs) if finished[first + offset] is chosen)
    assert winner.pool_caps_w is not None
    caps = ", ".join(
        f"{pool.name} {cap:.0f} W"
        for pool, cap in zip(experiment.fleet.pools, winner.pool_caps_w, strict=True)
    )
    splits = [job.pool_caps_w for job in jobs if job.pool_caps_w is not None]
    step = f" in steps of up to {widest_step_w(splits):.0f} W" if len(splits) > 1 else ""
    return (
        f"{winner.policy} at {winner.budget_w:,.0f} W: the best of {len(jobs)} splits{step} "
        f"is {caps}."
    )
