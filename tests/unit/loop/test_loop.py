from __future__ import annotations

from dataclasses import asdict

import pytest
from loop_fixtures import experiment, small

from wattline.sim.policies.registry import names
from wattline.sim.result import Run, RunResult
from wattline.sim.runs import Job, best, jobs_for, run

LEDGER_POLICIES = ("uniform-cap", "static-caps", "wattline", "oracle")


def without_wall(result: RunResult) -> dict[str, object]:
    return asdict(result) | {"wall_s": 0.0}


@pytest.mark.parametrize("policy", names())
def test_every_policy_accounts_for_every_request(policy: str) -> None:
    ready = small()
    finished = run(ready, jobs_for(ready, policy, ready.budget_w("80%"))[0])
    result = finished.result
    assert result.requests == len(ready.trace)
    assert result.completed + result.rejected + result.unfinished == result.requests
    assert result.completed > 0
    assert 0.0 <= result.slo_attainment <= 1.0
    assert result.goodput_rps == pytest.approx(
        result.slo_attainment * result.requests / ready.duration_s, rel=1e-3
    )
    assert result.energy_j > 0.0
    assert result.peak_draw_1s_w < 1.15 * ready.fleet.max_limit_w


@pytest.mark.parametrize("policy", LEDGER_POLICIES)
def test_policies_under_the_ledger_never_enforce_more_than_the_budget(policy: str) -> None:
    ready = small()
    for percent in ("45%", "60%", "100%"):
        result = run(ready, Job(policy, ready.budget_w(percent))).result
        assert result.over_budget_enforced_ws == 0.0
        assert result.exposure_enforced_ws == 0.0
        assert result.peak_enforced_w <= result.budget_w


def test_the_uncapped_fleet_is_seen_to_break_the_budget() -> None:
    ready = small()
    result = run(ready, Job("uncapped", ready.budget_w("60%"))).result
    excess_w = ready.fleet.max_limit_w - result.budget_w
    assert result.over_budget_enforced_ws == pytest.approx(excess_w * ready.end_s)


def test_the_same_run_gives_the_same_figures() -> None:
    ready = small()
    job = Job("wattline", ready.budget_w(None))
    first, second = run(ready, job), run(ready, job)
    assert without_wall(first.result) == without_wall(second.result)
    assert first.series == second.series


def test_a_cut_of_the_budget_is_followed_within_the_stated_time() -> None:
    ready = experiment(
        faults=[{"kind": "budget_cut", "at_s": 15, "duration_s": 15, "to_fraction": 0.7}]
    )
    finished = run(ready, Job("wattline", ready.budget_w(None)))
    assert finished.result.over_budget_enforced_ws == 0.0
    low_w = 0.7 * finished.result.budget_w
    series = finished.series
    inside = [
        watts
        for time_s, watts in zip(series.time_s, series.enforced_w, strict=True)
        if 20.0 <= time_s < 29.0
    ]
    assert inside
    assert max(inside) <= low_w
    assert any(event.kind == "budget" for event in series.events)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "metrics_outage", "at_s": 10, "duration_s": 10},
        {"kind": "metrics_stale", "at_s": 10, "duration_s": 15},
        {"kind": "metrics_nan", "at_s": 10, "duration_s": 10},
        {"kind": "agent_silent", "at_s": 10, "duration_s": 10, "target": {"node": 0}},
        {"kind": "write_refused", "at_s": 5, "duration_s": 20, "target": {"pool": "decode"}},
        {
            "kind": "write_clamped",
            "at_s": 5,
            "duration_s": 20,
            "target": {"pool": "prefill"},
            "floor_w": 650,
        },
        {"kind": "rival_writer", "at_s": 10, "duration_s": 15, "limit_w": 700, "every_s": 3},
        {"kind": "node_lost", "at_s": 10, "duration_s": 10, "target": {"pool": "decode"}},
        {"kind": "replica_never_ready", "at_s": 0, "duration_s": 30, "pool": "prefill"},
        {"kind": "bias_step", "at_s": 10, "signal": "prefill_time", "factor": 1.5},
        {
            "kind": "bias_ramp",
            "at_s": 5,
            "duration_s": 20,
            "ramp_s": 10,
            "signal": "decode_time",
            "factor": 1.5,
        },
        {
            "kind": "bias_sine",
            "at_s": 5,
            "duration_s": 20,
            "signal": "power",
            "amplitude": 0.3,
            "period_s": 5,
        },
        {"kind": "heat_derate", "at_s": 10, "target": {"gpu": 0}, "speed": 0.5},
    ],
    ids=lambda fault: str(fault["kind"]),
)
def test_no_fault_makes_us_exceed_the_budget(fault: dict[str, object]) -> None:
    ready = experiment(
        faults=[fault, {"kind": "budget_cut", "at_s": 30, "duration_s": 5, "to_fraction": 0.9}]
    )
    finished = run(ready, Job("wattline", ready.budget_w(None)))
    result = finished.result
    assert result.completed + result.rejected + result.unfinished == result.requests
    assert result.over_budget_enforced_ws == 0.0
    assert any(event.kind == "fault" for event in finished.series.events)


def test_slower_hardware_than_the_model_says_serves_less() -> None:
    healthy = run(small(), Job("wattline", small().budget_w(None))).result
    slow = experiment(
        faults=[{"kind": "bias_step", "at_s": 0, "signal": "prefill_time", "factor": 2.0}]
    )
    assert run(slow, Job("wattline", slow.budget_w(None))).result.goodput_rps < (
        0.9 * healthy.goodput_rps
    )


def test_a_rival_writer_is_exposure_with_a_name() -> None:
    ready = experiment(
        faults=[{"kind": "rival_writer", "at_s": 10, "duration_s": 9, "limit_w": 700, "every_s": 3}]
    )
    finished = run(ready, Job("wattline", ready.budget_w(None)))
    assert finished.result.exposure_enforced_ws > 0.0
    named = [event for event in finished.series.events if event.kind == "exposure"]
    assert all("rival writer" in event.text for event in named)
    total = sum(event.exposure_ws or 0.0 for event in named)
    assert total == pytest.approx(finished.result.exposure_enforced_ws, rel=0.01)


def test_a_sweep_keeps_its_best() -> None:
    ready = small()
    jobs = jobs_for(ready, "best-static", ready.budget_w("60%"))
    assert len(jobs) > 3
    runs: list[Run] = [run(ready, job) for job in jobs[:: len(jobs) // 3]]
    assert best(runs).result.goodput_rps == max(r.result.goodput_rps for r in runs)
