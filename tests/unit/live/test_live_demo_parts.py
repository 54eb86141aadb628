"""Parts of the live demonstration: its plan, levels of limits, processes, targets of Prometheus."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wattline.core.errors import InputError, WattlineError
from wattline.live import prometheus_server
from wattline.live.demo_history import ask_history
from wattline.live.demo_plan import SLICE_S, load_plan, own_scenario, simulate, stretched
from wattline.live.demo_record import Levels
from wattline.live.demo_tables import sides
from wattline.live.stack_process import Processes, marked
from wattline.live.stack_spec import StackSpec, merged, virtual_product
from wattline.sim.faults import BudgetCut
from wattline.virtual.observer import Change, Observer


def cut_of(scenario: Any) -> BudgetCut:
    (cut,) = scenario.faults
    assert isinstance(cut, BudgetCut)
    return cut


def test_a_shorter_run_keeps_rates_and_moves_everything_on_the_time_axis() -> None:
    whole = own_scenario()
    half = stretched(whole, 0.5)
    assert half.duration_s == whole.duration_s / 2
    assert cut_of(half).at_s == cut_of(whole).at_s / 2
    assert cut_of(half).duration_s == pytest.approx((cut_of(whole).duration_s or 0.0) / 2)
    assert half.deployments == whole.deployments
    assert half.traffic[0].model_dump()["mean_rps"] == whole.traffic[0].model_dump()["mean_rps"]
    swings = [s.traffic[0].model_dump()["swing"]["period_s"] for s in (half, whole)]
    assert swings[0] == swings[1] / 2


def test_the_plan_of_processes_and_simulator_is_one() -> None:
    plan = load_plan(seconds=20.0)
    spec = plan.stack()
    spec.check()
    assert spec.budget_w == plan.budget_w
    assert [change.cause for change in plan.changes] == ["cut", "restored"]
    assert all(0.0 <= at <= 20.0 for at, _, _ in plan.requests)
    decision = spec.changes["decision"]
    assert plan.experiment.settings.replica_interval_s == decision["replica_interval_s"]
    mix = plan.experiment.settings.expected_mix(0)
    assert decision["expected"]["chat"]["input_tokens"] == mix.input_tokens


def test_the_simulated_run_starts_where_the_live_one_did() -> None:
    plan = load_plan(seconds=20.0)
    experiment = plan.experiment
    start = simulate(plan, experiment_start(plan))
    assert start.result.requests == len(plan.requests)
    assert start.series.pools[0].ready[0] == 2
    assert start.series.pools[1].ready[0] == 3
    assert start.result.over_budget_enforced_ws == 0.0
    assert experiment.scenario.name == "demo-live"


def experiment_start(plan: Any) -> Any:
    from wattline.core.decision import PoolPlan
    from wattline.core.fleet import Setting

    return (PoolPlan(2, Setting(300.0)), PoolPlan(3, Setting(300.0)))


@pytest.mark.parametrize("seconds", [1.0, 1e9])
def test_lengths_that_show_nothing_are_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="seconds"):
        load_plan(seconds=seconds)


def test_what_is_sent_was_recorded_unless_a_seed_says_otherwise() -> None:
    recorded, generated = load_plan(seconds=20.0), load_plan(seconds=20.0, seed=3)
    assert recorded.requests != generated.requests
    assert recorded.requests == load_plan(seconds=30.0).requests[: len(recorded.requests)]
    # As they stand in the published file.
    assert recorded.requests[0][1:] == (4077, 37)
    assert len(load_plan(seconds=SLICE_S).requests) == 2325
    with pytest.raises(InputError, match="give a trace, or a seed"):
        load_plan(seconds=SLICE_S + 1.0)
    with pytest.raises(InputError, match="give a trace or a seed"):
        load_plan(trace=Path("trace.csv"), seed=1)
    assert load_plan(seconds=SLICE_S + 1.0, seed=1).requests


def test_what_workers_cannot_do_is_refused() -> None:
    scenario = own_scenario()
    deployment = scenario.deployments[0]
    pool = deployment.pools[0].model_copy(update={"gpu": "L40S"})
    with pytest.raises(InputError, match="virtual nodes have"):
        virtual_product(pool)
    with pytest.raises(InputError, match="nodes"):
        StackSpec(deployment=deployment, budget_w=1.0, nodes=3).check()


def test_changes_of_settings_are_merged_key_by_key() -> None:
    document = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merged(document, {"a": {"c": 3}, "d": [2]}) == {"a": {"b": 1, "c": 3}, "d": [2]}
    assert document["d"] == [1]


def levels(*changes: tuple[float, str, int]) -> Levels:
    """Two GPUs at 700 W from second 0."""
    now = {"a": 700_000, "b": 700_000}
    found = []
    for at_s, gpu, watts in changes:
        found.append(Change(at_s, "n", gpu, "nvml", 1, now[gpu], watts * 1000, watts * 1000))
        now[gpu] = watts * 1000
    observer = SimpleNamespace(start_mw={"a": 700_000, "b": 700_000}, start_s=0.0, changes=found)
    return Levels(cast(Observer, observer), [["a"], ["b"]])


def test_limits_over_time_are_steps() -> None:
    found = levels((1.0, "a", 300), (2.0, "b", 400), (3.0, "a", 500))
    assert found.steps(0.5, 2.5) == [(0.5, 1.0, 1400.0), (1.0, 2.0, 1000.0), (2.0, 2.5, 700.0)]
    assert found.most_w(1.5, 9.0) == 1000.0
    assert found.pools_w[found.place(2.5)] == [300.0, 400.0]
    assert (found.writes, found.reversals) == (3, 1)


def test_a_cut_is_enforced_from_the_last_moment_above_it() -> None:
    found = levels((1.0, "a", 300), (2.0, "b", 400), (3.0, "a", 500))
    assert found.under_after_s(0.0, 2.9, 1000.0) == 1.0
    assert found.under_after_s(0.0, 9.0, 800.0) is None
    assert found.under_after_s(0.0, 9.0, 1400.0) == 0.0


def test_figures_are_near_only_where_both_are_there() -> None:
    result = load_and_simulate()
    same = sides(result, result, 30.0)
    assert all(side.near for side in same)
    from dataclasses import replace

    far = sides(result, replace(result, goodput_rps=result.goodput_rps * 1.2, ttft_p50_ms=None), 30)
    assert [side.name for side in far if not side.near] == ["Goodput, req/s", "TTFT p50, ms"]
    assert far[0].cells[-1] == "NO"


def load_and_simulate() -> Any:
    plan = load_plan(seconds=20.0)
    return simulate(plan, experiment_start(plan)).result


# Processes


def test_processes_are_ended_by_their_ids_strays_included(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    child = "import subprocess,sys,time; subprocess.Popen([sys.executable,'-c','import time;"
    child += "time.sleep(600)'],start_new_session=True); print('up',flush=True); time.sleep(600)"
    one = processes.add("one", [sys.executable, "-c", child], {})
    try:
        while "up" not in one.log.read_text():
            assert one.alive
        with pytest.raises(InputError, match="runs already"):
            one.start()
        assert len(marked(processes.mark)) == 2
        one.send(signal.SIGSTOP)
        processes.end(["one"], limit_s=5.0)
        assert one.exit_code == -signal.SIGTERM
        assert one.pid is None
        assert len(processes.kill_strays()) == 1
        one.start()
        assert len(one.pids) == 2
    finally:
        one.kill()
        processes.kill_strays()
    assert marked(processes.mark) == []


def test_a_program_that_is_not_there_and_a_name_that_is_not(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    with pytest.raises(WattlineError, match="No such file"):
        processes.add("one", [str(tmp_path / "none")], {})
    with pytest.raises(InputError, match="use one of one"):
        processes["two"].kill()
    assert processes["one"].said() == "(it said nothing)"
    assert os.getpid() not in marked(processes.mark)


# Prometheus


def test_prometheus_is_told_of_workers_through_a_file(tmp_path: Path) -> None:
    config = prometheus_server.write_config(tmp_path / "p", {"agents": ["127.0.0.1:1"]}, 1.0)
    jobs = json.loads(config.read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["agents", "workers"]
    targets = config.parent / jobs[1]["file_sd_configs"][0]["files"][0]
    assert json.loads(targets.read_text()) == []
    prometheus_server.write_targets(config.parent, {"decode": ["127.0.0.1:2"], "prefill": []})
    (found,) = json.loads(targets.read_text())
    assert found == {"targets": ["127.0.0.1:2"], "labels": {"pool": "decode"}}
    assert f"--config.file={config}" in prometheus_server.command("p", config, "127.0.0.1:3")


def test_history_says_what_prometheus_does_not_have() -> None:
    def get(url: str) -> tuple[int, bytes]:
        value = [] if "requests_total" in url else [{"metric": {}, "value": [0, "NaN"]}]
        if "series" in url or "count" in url:
            value = [{"metric": {}, "value": [0, "12"]}]
        return 200, json.dumps({"data": {"result": value}}).encode()

    found = ask_history(get, "http://p", 0.0, 60.0)
    assert found.requests is None
    assert found.enforced_w is None
    assert found.series == 12.0
    with pytest.raises(WattlineError, match="prometheus: 503"):
        ask_history(lambda url: (503, b"starting"), "http://p", 0.0, 60.0)
