"""Comparisons: the order of cells, searches in hindsight, notes, worker processes."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache

import pytest
from loop_fixtures import experiment, scenario, small

from wattline.sim import fewest
from wattline.sim.compare import Comparison, compare
from wattline.sim.experiment import Experiment, Traffic, prepare
from wattline.sim.fewest import find_fewest, worst_window
from wattline.sim.result import DeploymentSeries, Run
from wattline.sim.runs import HINDSIGHT, Job, jobs_for, run


def without_wall(comparison: Comparison) -> list[dict[str, object]]:
    return [asdict(one.result) | {"wall_s": 0.0} for one in comparison.runs]


@cache
def brief() -> Experiment:
    """The small scenario for a few seconds: enough where a sweep runs it dozens of times."""
    return experiment(duration_s=8, drain_s=4)


def lightly_loaded() -> Experiment:
    """The small fleet with two requests a second: one replica of each role is plenty."""
    return experiment(traffic=[{"kind": "conversation", "mean_rps": 2}])


def test_cells_come_in_the_order_asked_for() -> None:
    ready = small()
    budgets = [ready.budget_w("80%"), ready.budget_w("60%")]
    result = compare(ready, ["wattline", "uniform-cap"], budgets, workers=1)
    assert [(one.result.policy, one.result.budget_fraction) for one in result.runs] == [
        ("wattline", 0.8),
        ("uniform-cap", 0.8),
        ("wattline", 0.6),
        ("uniform-cap", 0.6),
    ]
    assert result.notes == ()


def test_two_workers_give_what_one_gives() -> None:
    ready = brief()
    policies = ["best-static", "fewest-uncapped", "wattline"]
    budgets = [ready.budget_w("90%"), ready.budget_w("100%")]
    shares: list[float] = []
    one = compare(ready, policies, budgets, workers=1, progress=shares.append)
    two = compare(ready, policies, budgets, workers=2)
    assert without_wall(one) == without_wall(two)
    assert [r.series for r in one.runs] == [r.series for r in two.runs]
    assert one.notes == two.notes
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("policy", HINDSIGHT)
def test_a_sweep_keeps_its_best_split_and_says_which(policy: str) -> None:
    ready = brief()
    budget_w = ready.budget_w("80%")
    result = compare(ready, [policy], [budget_w], workers=1)
    splits = [run(ready, job).result for job in jobs_for(ready, policy, budget_w)]
    assert result.runs[0].result.goodput_rps == max(split.goodput_rps for split in splits)
    (note,) = result.notes
    assert note.startswith(f"{policy} at {budget_w:,.0f} W: the best of {len(splits)} splits")
    assert "prefill" in note
    assert "decode" in note


def test_the_fewest_replicas_suffice_and_one_less_would_not() -> None:
    ready = experiment(traffic=[{"kind": "conversation", "mean_rps": 30}])
    found = find_fewest(ready, ready.budget_w(None), workers=1)
    assert found.reached
    assert found.run.result.slo_attainment >= fewest.TARGET
    for index, count in enumerate(found.replicas):
        if count > 1:
            fewer = (*found.replicas[:index], count - 1, *found.replicas[index + 1 :])
            job = Job(fewest.FEWEST, ready.budget_w(None), pool_replicas=fewer)
            assert run(ready, job).result.slo_attainment < fewest.TARGET


def test_the_search_runs_once_for_all_budgets() -> None:
    ready = lightly_loaded()
    budgets = [ready.budget_w("60%"), ready.budget_w("100%")]
    result = compare(ready, ["fewest-uncapped"], budgets, workers=1)
    first, second = (one.result for one in result.runs)
    assert (first.budget_fraction, second.budget_fraction) == (0.6, 1.0)
    assert first.energy_j == second.energy_j
    assert first.over_budget_enforced_ws > second.over_budget_enforced_ws == 0.0
    (note,) = result.notes
    assert "1 of 2 prefill, 1 of 2 decode replicas" in note
    assert "at all times" in note


def test_fewer_replicas_cost_fewer_joules_than_all() -> None:
    ready = lightly_loaded()
    result = compare(ready, ["uncapped", "fewest-uncapped"], [ready.budget_w(None)], workers=1)
    everything, few = (one.result for one in result.runs)
    assert few.energy_j < everything.energy_j
    assert few.slo_attainment >= fewest.TARGET


def test_the_search_says_so_when_not_even_all_replicas_suffice() -> None:
    result = compare(small(), ["fewest-uncapped"], [small().budget_w(None)], workers=1)
    assert result.runs[0].result.slo_attainment < fewest.TARGET
    (note,) = result.notes
    assert "no number of replicas reaches 99% attainment" in note


def test_minima_that_are_too_few_together_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up fleet that needs five replicas in all, of which any pool may be down to one."""

    def pretend(_: Experiment, jobs: list[Job], workers: int) -> list[tuple[int, Run]]:
        return [(index, _pretended(job)) for index, job in enumerate(jobs)]

    template = run(lightly_loaded(), Job("uncapped", 1e4))

    def _pretended(job: Job) -> Run:
        assert job.pool_replicas is not None
        enough = sum(job.pool_replicas) >= 5
        attainment = 0.995 if enough else sum(job.pool_replicas) / 10.0
        return _with_attainment(template, attainment, energy_j=1.0 + job.pool_replicas[0])

    monkeypatch.setattr(fewest, "run_all", pretend)
    found = find_fewest(_four_and_four(), 1e4, workers=1)
    assert sum(found.replicas) == 5
    assert found.reached


def _four_and_four() -> Experiment:
    document = scenario().model_dump(mode="json", exclude_defaults=True)["deployments"]
    for pool in document[0]["pools"]:
        pool["gpus"] = 4
    return prepare(scenario(deployments=document), Traffic())


def _with_attainment(template: Run, attainment: float, energy_j: float) -> Run:
    result = replace(template.result, slo_attainment=attainment, energy_j=energy_j)
    return replace(template, result=result)


def test_the_worst_window_is_the_worst_of_five_minutes() -> None:
    template = run(lightly_loaded(), Job("uncapped", 1e4))
    offered = [10.0] * 10
    goodput = [10.0] * 5 + [9.0, 10.0, 0.0, 10.0, 10.0]
    deployment = DeploymentSeries(
        name="chat", ttft_target_s=1.0, itl_target_s=0.1, offered_rps=offered, goodput_rps=goodput
    )
    series = replace(template.series, step_s=60.0, deployments=[deployment])
    assert worst_window(replace(template, series=series)) == pytest.approx(39.0 / 50.0)
