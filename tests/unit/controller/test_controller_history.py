"""Prometheus in the loop: what it is taken for, and that nothing hangs on it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from controller_world import UUIDS, World
from prometheus_stand_in import PrometheusStandIn

from wattline.controller.state_page import state_page
from wattline.controller.view import TickView
from wattline.core.state import DemandState, State
from wattline.core.warmup import Past, warm_up

MODEL = {"model": "Chat"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.stop()


@pytest.fixture
def server(world: World) -> Iterator[PrometheusStandIn]:
    server = PrometheusStandIn(world.clock)
    server.series = {
        "requests_started_total": [(MODEL, "600")],
        'status="success"': [(MODEL, "540")],
        "input_sequence_tokens": [(MODEL, "800")],
        "output_sequence_tokens": [(MODEL, "120")],
        "cached_tokens": [(MODEL, "80")],
    }
    yield server
    server.end()


def begin(world: World, server: PrometheusStandIn, **more: Any) -> None:
    prometheus = {"url": server.url, "limit_s": 5.0} | more
    world.write_config(sources={"call_s": 2.0, "prometheus": prometheus})
    world.start()


def tick(world: World) -> TickView:
    world.run(1)
    view = world.assembly.controller.view
    assert view is not None
    return view


def until_batch(world: World) -> TickView:
    """Tick until a batch has come; each tick is one second of the controller's clock."""
    end = monotonic() + 20.0
    while monotonic() < end:
        view = tick(world)
        assert view.history is not None
        if view.history.age_s is not None and view.history.why is None:
            return view
        time.sleep(0.01)
    raise AssertionError("no batch came")


def test_no_prometheus_is_no_part_of_a_tick(world: World) -> None:
    world.start()
    assert tick(world).history is None


def test_it_stands_in_for_frontends_with_its_age(world: World, server: PrometheusStandIn) -> None:
    begin(world, server)
    world.demand.why = "no frontend answers"
    until_batch(world)
    view = tick(world)
    demand = view.snapshot.demand[0]
    assert (demand.arrivals, demand.completions, demand.window_s) == (600, 540, 60.0)
    assert (demand.input_tokens_sum, demand.output_tokens_sum) == (480_000, 64_800)
    assert demand.cached_tokens_sum == 48_000
    assert view.history is not None
    assert view.history.age_s is not None
    # Whole seconds of the test's clock, of which the batch was asked some ago.
    assert demand.age_s == pytest.approx(server.lag_s + view.history.age_s)
    assert view.history.demand == {"chat": demand.age_s}
    assert any("demand comes from Prometheus" in why for why in view.snapshot.missing)
    assert any("frontends: no frontend answers" in why for why in view.snapshot.missing)
    assert view.decision is not None
    assert view.decision.facts is not None
    assert view.decision.facts.deployments[0].outage is None


def test_the_frontends_come_first(world: World, server: PrometheusStandIn) -> None:
    begin(world, server)
    view = until_batch(world)
    assert view.snapshot.demand[0].arrivals == world.demand.rps
    assert view.history is not None
    assert not view.history.demand


def test_what_is_too_old_is_an_outage_as_ever(world: World, server: PrometheusStandIn) -> None:
    server.lag_s = 11.0  # the decision's limit is 10 s
    begin(world, server)
    world.demand.why = "no frontend answers"
    until_batch(world)
    view = tick(world)
    assert view.snapshot.demand[0].age_s > 10.0
    assert view.decision is not None
    assert view.decision.facts is not None
    assert view.decision.facts.deployments[0].outage is not None


@pytest.mark.parametrize("mode", ["nan", "wrong", "silent"])
def test_a_sick_server_costs_its_values_and_no_tick(
    world: World, server: PrometheusStandIn, mode: str
) -> None:
    server.mode = mode
    begin(world, server, limit_s=0.3, interval_s=1.0)
    world.demand.why = "no frontend answers"
    for _ in range(8):
        view = tick(world)
        time.sleep(0.1)
    assert view.decision is not None
    assert view.snapshot.demand[0].arrivals is None
    assert any("Prometheus: " in why for why in view.snapshot.missing)
    assert view.history is not None
    assert mode == "nan" or view.history.why is not None
    server.mode = "well"
    end = monotonic() + 20.0
    while tick(world).snapshot.demand[0].arrivals != 600:
        assert monotonic() < end
        time.sleep(0.02)


def test_no_tick_waits_for_it(world: World, server: PrometheusStandIn) -> None:
    server.mode = "silent"
    begin(world, server, limit_s=3600.0, interval_s=1.0)
    for _ in range(5):
        view = tick(world)
    # Five ticks are over while the first batch still waits, and will until the server lets it go.
    assert view.history is not None
    assert view.history.age_s is None
    assert not server.over.is_set()
    server.over.set()


def test_a_server_that_is_gone_is_a_reason(world: World, server: PrometheusStandIn) -> None:
    begin(world, server, interval_s=1.0)
    server.end()
    why = ""
    for _ in range(200):
        view = tick(world)
        assert view.history is not None
        why = view.history.why or ""
        if "refuse" in why or "onnect" in why:
            break
        time.sleep(0.02)
    assert server.url in why
    assert view.decision is not None
    page = json.loads(state_page(view, world.assembly.controller.parts.site.fleet, monotonic()))
    assert page["prometheus"]["why"] == why
    assert why in "".join(page["missing"])


def without_meter(world: World, *gpus: str) -> None:
    """The agent reports no draw of these."""
    report = world.agent.report

    def blind(now_s: float) -> None:
        report(now_s)
        path = world.folder / "report.json"
        document = json.loads(path.read_bytes())
        for entry in document["gpus"]:
            if entry["gpu"] in gpus:
                entry["facts"]["draw_w"] = None
        path.write_text(json.dumps(document))

    world.agent.report = blind  # type: ignore[method-assign]


def test_draw_comes_from_dcgm_where_the_agent_has_no_meter(
    world: World, server: PrometheusStandIn
) -> None:
    server.series["DCGM_FI_DEV_POWER_USAGE"] = [
        ({"UUID": UUIDS[0], "Hostname": "n1", "exported_pod": "w-0", "pod": "x"}, "333.5"),
        ({"UUID": UUIDS[1], "hostname": "n1", "exported_pod": "w-1", "pod": "x"}, "111.0"),
    ]
    without_meter(world, UUIDS[0], UUIDS[2])
    begin(world, server)
    view = until_batch(world)
    draw = dict(zip(view.snapshot.gpus.uuid, view.snapshot.gpus.draw_w, strict=True))
    assert draw[UUIDS[0]] == 333.5
    assert draw[UUIDS[1]] == pytest.approx(0.8 * world.agent.enforced_w[UUIDS[1]], rel=0.2)
    assert draw[UUIDS[1]] != 111.0, "the agent's report wins"
    assert draw[UUIDS[2]] is None
    assert any("draw of 1 GPUs comes from Prometheus" in why for why in view.snapshot.missing)
    assert any("is told neither by their agents" in why for why in view.snapshot.missing)
    page = json.loads(state_page(view, world.assembly.controller.parts.site.fleet, monotonic()))
    sources = {gpu["uuid"]: gpu["draw_source"] for gpu in page["gpus"]}
    assert sources == {
        UUIDS[0]: "prometheus",
        UUIDS[1]: "agent",
        UUIDS[2]: None,
        UUIDS[3]: "agent",
    }
    reading = page["prometheus"]["draw"][UUIDS[0]]
    assert reading["watts"] == 333.5
    assert reading["age_s"] >= 3.0
    assert reading["host"] == "n1"
    assert reading["pods"] == ["/w-0"]


def test_draw_that_is_too_old_is_missing(world: World, server: PrometheusStandIn) -> None:
    server.series["DCGM_FI_DEV_POWER_USAGE"] = [({"UUID": UUIDS[0]}, "333.5")]
    server.lag_s = 70.0
    without_meter(world, UUIDS[0])
    begin(world, server)
    view = until_batch(world)
    assert view.snapshot.gpus.draw_w[0] is None


def test_a_fresh_state_is_warmed_up_and_a_replay_needs_no_server(
    world: World, server: PrometheusStandIn
) -> None:
    server.bins = [None, "9", None, *("5", "6", "7", "8")]
    begin(world, server)
    until_batch(world)
    view = tick(world)
    assert view.history is not None
    assert view.history.warmed == {"chat": "4 bins of 30 s"}
    state = view.snapshot.state
    assert state is not None
    assert state.demand[0].bins_rps[:4] == (5.0, 6.0, 7.0, 8.0)
    # Once only: what it sees itself comes after.
    world.run(40)
    later = tick(world).snapshot.state
    assert later is not None
    assert later.demand[0].bins_rps[:4] == (5.0, 6.0, 7.0, 8.0)
    assert len(later.demand[0].bins_rps) == 5


def test_a_server_without_history_leaves_the_state_and_says_so(
    world: World, server: PrometheusStandIn
) -> None:
    begin(world, server)
    until_batch(world)
    assert tick(world).snapshot.state is not None
    world.clock.now_s += 400.0
    view = tick(world)
    assert view.history is not None
    assert view.history.warmed == {"chat": "not warmed up: rates: no such series in that time"}


def test_token_and_parameters_reach_the_server(
    world: World, server: PrometheusStandIn, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret-1\n")
    begin(world, server, token_file=str(tmp_path / "token"), params={"tenant": "a b"})
    until_batch(world)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret-1"}
    assert all("tenant=a+b" in headers["params"] for headers in server.headers)


STATE = State(
    demand=(
        DemandState(
            seen_until_s=10.0,
            prompt_count=50.0,
            prompt_tokens=51_200.0,
            answer_count=500.0,
            answer_tokens=128_000.0,
            mix_in_force=(1024.0, 256.0, 0.0),
        ),
    ),
    pools=(),
)


def test_the_expected_request_gives_way_to_the_recorded_one(world: World) -> None:
    site = world.start().controller.parts.site
    past = Past(rates_rps=(1.0,), input_tokens=3000.0, output_tokens=100.0, cached_fraction=0.5)
    warmed = warm_up(STATE, [past], site.settings).demand[0]
    assert warmed.prompt_tokens / warmed.prompt_count == 3000.0
    assert warmed.answer_tokens / warmed.answer_count == 100.0
    assert warmed.prompt_cached_tokens / warmed.prompt_tokens == 0.5
    assert warmed.mix_in_force is None, "and is taken into force at the next tick"
    own = replace(STATE, demand=(replace(STATE.demand[0], bins_rps=(2.0,)),))
    longer = replace(past, rates_rps=(1.0, 9.0))
    kept = warm_up(own, [longer], site.settings).demand[0]
    assert kept.bins_rps == (1.0, 2.0), "the newer bin of the past is of the time that it saw"
    assert kept.prompt_tokens == 51_200.0, "what it saw itself counts"
    assert warm_up(STATE, [None], site.settings) == STATE
