"""Runs by name: one policy, or many policies at many budgets, over worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from wattline.core.errors import WattlineError
from wattline.core.settings import Settings
from wattline.core.snapshot import Budget
from wattline.recording.codec import Header
from wattline.recording.record import Recorder
from wattline.sim.experiment import Experiment
from wattline.sim.loop import ClosedLoop
from wattline.sim.policies.common import most_replicas
from wattline.sim.policies.context import PolicyContext
from wattline.sim.policies.fixed import FewestUncapped
from wattline.sim.policies.registry import StartingPolicy, build
from wattline.sim.policies.sweep import static_splits
from wattline.sim.processes import undisturbed_start
from wattline.sim.result import Run

HINDSIGHT = ("best-static", "dynamo-clamp-best")
"""Policies that are a sweep of static caps, of which the best in hindsight is kept."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a policy at a budget, with caps or replicas per pool if it is part of a search."""

    policy: str
    budget_w: float
    pool_caps_w: tuple[float, ...] | None = None
    pool_replicas: tuple[int, ...] | None = None


def policy_settings(experiment: Experiment, policy: str) -> Settings:
    """Settings of the decision as `policy` gets them: only the oracle knows the future."""
    settings = experiment.settings
    return replace(settings, forecast="oracle") if policy == "oracle" else settings


def policy_context(experiment: Experiment, job: Job) -> PolicyContext:
    """What the policy of `job` is told besides the settings."""
    return replace(experiment.context, pool_caps_w=job.pool_caps_w, pool_replicas=job.pool_replicas)


def build_policy(experiment: Experiment, job: Job) -> StartingPolicy:
    """A fresh policy for `job`."""
    return build(
        job.policy, policy_settings(experiment, job.policy), policy_context(experiment, job)
    )


def run(
    experiment: Experiment,
    job: Job,
    *,
    record: Path | None = None,
    progress: Callable[[float], None] | None = None,
    command: str = "",
) -> Run:
    """Run `job`; with `record`, every snapshot and decision goes to that file."""
    policy = build_policy(experiment, job)
    recorder = (
        nullcontext() if record is None else Recorder(record, _header(experiment, job, command))
    )
    with recorder as open_recorder:
        loop = ClosedLoop(experiment, policy, budget_w=job.budget_w, recorder=open_recorder)
        return loop.run(progress)


def _header(experiment: Experiment, job: Job, command: str) -> Header:
    return Header(
        policy=job.policy,
        settings=policy_settings(experiment, job.policy),
        policy_context=context_to_json(policy_context(experiment, job)),
        scenario=experiment.scenario.model_dump(mode="json"),
        run={
            "command": command,
            "seed": experiment.seed,
            "budget_w": job.budget_w,
            "load_factor": experiment.load_factor,
            "duration_s": experiment.duration_s,
            "trace": experiment.trace.source,
        },
    )


def context_to_json(context: PolicyContext) -> dict[str, Any]:
    """What a recording keeps of a policy's context; the expected mix is in the settings."""
    return {
        "role_caps": {str(role): cap for role, cap in context.role_caps.items()},
        "pool_caps_w": None if context.pool_caps_w is None else list(context.pool_caps_w),
        "pool_replicas": None if context.pool_replicas is None else list(context.pool_replicas),
    }


def jobs_for(experiment: Experiment, policy: str, budget_w: float) -> list[Job]:
    """The runs that one cell of a comparison needs: one, or the splits of a sweep.

    For `fewest-uncapped` the one with every replica, where the search for the fewest starts.
    """
    if policy == FewestUncapped.name:
        most = tuple(most_replicas(pool) for pool in experiment.fleet.pools)
        return [Job(policy, budget_w, pool_replicas=most)]
    if policy not in HINDSIGHT:
        return [Job(policy, budget_w)]
    budget = Budget(total_w=budget_w, guard_w=experiment.guard_w(budget_w), version=1)
    return [Job(policy, budget_w, caps_w) for caps_w in static_splits(experiment.fleet, budget)]


def best(runs: Sequence[Run]) -> Run:
    """The run with the highest goodput; of equal ones the one with the fewest joules."""
    return max(runs, key=lambda run: (run.result.goodput_rps, -run.result.energy_j))


_experiment: Experiment | None = None


def _adopt(experiment: Experiment) -> None:
    global _experiment  # one experiment per worker process, sent once
    _experiment = experiment


def _run_here(job: Job) -> Run:
    assert _experiment is not None
    return run(_experiment, job)


def run_all(experiment: Experiment, jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Run]]:
    """Run `jobs` over `workers` processes; yields (index, run) as they finish."""
    if workers <= 1 or len(jobs) <= 1:
        for index, job in enumerate(jobs):
            yield index, run(experiment, job)
        return
    with ProcessPoolExecutor(
        max_workers=workers,
        mp_context=get_context("forkserver"),
        initializer=_adopt,
        initargs=(experiment,),
    ) as pool:
        waiting: dict[Future[Run], int] = {}
        try:
            with undisturbed_start():
                for index, job in enumerate(jobs):
                    waiting[pool.submit(_run_here, job)] = index
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as error:
            raise WattlineError("a worker process was killed: try fewer --jobs") from error
        except BaseException:
            # Not waiting for runs that nobody will read.
            for worker in active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise
