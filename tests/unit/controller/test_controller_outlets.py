"""Outlets: admission and its failures, the plugin's file, and that advisory opens none of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from controller_world import FakeReplicas, World

from wattline.controller.admission import AdmissionDesk, Frontends
from wattline.controller.gather import Failure, Gatherer
from wattline.core.decision import Admission
from wattline.core.errors import WattlineError
from wattline.drivers.dynamo.plugin.state_file import decode_state
from wattline.drivers.dynamo.thresholds import FrontendResult, Thresholds

URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2")


class FakeFrontends:
    """Two frontends that keep what they are sent."""

    def __init__(self) -> None:
        self.held: dict[str, Thresholds] = dict.fromkeys(URLS, Thresholds())
        self.failing: set[str] = set()
        self.down = False
        self.writes: list[tuple[str, Thresholds]] = []
        self.calls = 0

    def send(
        self, frontend_urls: Sequence[str], model: str, wanted: Admission
    ) -> Sequence[FrontendResult]:
        self.calls += 1
        if self.down:
            raise WattlineError("no route")
        tokens = wanted.active_prefill_tokens
        aim = Thresholds(
            wanted.active_decode_blocks,
            None if tokens is None else int(tokens),
            wanted.active_prefill_tokens_frac,
        )
        results = []
        for url in frontend_urls:
            if url in self.failing:
                results.append(FrontendResult(url, None, f"{url}: answers 500"))
                continue
            restarted = self.held[url] == Thresholds() and any(u == url for u, _ in self.writes)
            sent = self.held[url] != aim
            if sent:
                self.held[url] = aim
                self.writes.append((url, aim))
            results.append(FrontendResult(url, aim, sent=sent, restarted=restarted))
        return results

    def close(self) -> None:
        """Nothing is open."""


WANTED = Admission(active_decode_blocks=0.5, active_prefill_tokens=4000.4)


@pytest.fixture
def frontends() -> FakeFrontends:
    return FakeFrontends()


@pytest.fixture
def desk(frontends: FakeFrontends) -> AdmissionDesk:
    return AdmissionDesk([(Frontends(0, URLS, "chat"), frontends)], "autoset")


def update(desk: AdmissionDesk, now_s: float, wanted: Admission = WANTED) -> None:
    desk.update([wanted], now_s, Gatherer(5.0), may_send=True)


def test_every_frontend_gets_the_thresholds_once(
    desk: AdmissionDesk, frontends: FakeFrontends
) -> None:
    for second in range(4):
        update(desk, float(second))
    assert [url for url, _ in frontends.writes] == list(URLS)
    assert frontends.calls == 1
    assert {view.held for view in desk.views} == {
        Admission(active_decode_blocks=0.5, active_prefill_tokens=4000)
    }


def test_a_partial_failure_is_loud_and_converges_at_the_next_tick(
    desk: AdmissionDesk, frontends: FakeFrontends
) -> None:
    frontends.failing = {URLS[1]}
    update(desk, 0.0)
    assert desk.partial_failures == 1
    assert desk.problems == (f"frontend {URLS[1]}: {URLS[1]}: answers 500",)
    frontends.failing = set()
    update(desk, 1.0)
    assert not desk.problems
    assert frontends.held[URLS[1]].decode_blocks == 0.5


def test_a_frontend_that_restarts_is_noticed_and_told_again(
    desk: AdmissionDesk, frontends: FakeFrontends
) -> None:
    update(desk, 0.0)
    frontends.held[URLS[0]] = Thresholds()
    update(desk, 1.0)
    update(desk, 6.0)
    assert frontends.held[URLS[0]].decode_blocks == 0.5
    assert desk.resent == 1


def test_all_frontends_down_is_a_problem_of_each(
    desk: AdmissionDesk, frontends: FakeFrontends
) -> None:
    frontends.down = True
    update(desk, 0.0)
    assert len(desk.problems) == 2
    assert desk.partial_failures == 0


@pytest.mark.parametrize("mode", ["off", "inherit"])
def test_other_modes_and_holds_send_nothing(
    desk: AdmissionDesk, frontends: FakeFrontends, mode: str
) -> None:
    desk.update([WANTED], 0.0, Gatherer(5.0), may_send=False)
    desk.mode = "off" if mode == "off" else "inherit"
    update(desk, 1.0)
    assert frontends.calls == 0


def supervised(tmp_path: Path, frontends: FakeFrontends, *, advisory: bool) -> World:
    world = World(
        tmp_path,
        actuation={
            "replicas": "supervisor",
            "admission": "autoset",
            "workers": {"prefill": {"argv": ["true"]}, "decode": {"argv": ["true"]}},
            "plugin_state": {"chat": str(tmp_path / "plugin.json")},
        },
    )
    world.replicas = FakeReplicas()
    world.start(advisory=advisory)
    world.assembly.controller.parts.admission = AdmissionDesk(
        [(Frontends(0, URLS, "chat"), frontends)], "autoset"
    )
    return world


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(Path(root) / name): (Path(root) / name).read_bytes()
        for root, _, names in os.walk(folder)
        for name in names
    }


def test_advisory_opens_no_outlet(tmp_path: Path) -> None:
    folder, frontends = tmp_path, FakeFrontends()
    world = supervised(folder, frontends, advisory=True)
    assert world.replicas is not None
    for _ in range(10):
        world.clock.now_s += 1.0
        world.agent.report(world.clock.now_s)
        world.assembly.controller.tick()
    view = world.assembly.controller.view
    assert view is not None
    assert view.decision is not None
    assert view.decision.replicas, "it wants replicas"
    world.stop()
    assert frontends.calls == 0
    assert world.replicas.started == 0
    assert world.replicas.drained == []
    mine = {str(folder / "controller.yaml"), str(folder / "report.json")}
    state = {"budget.json", "segment-00000001.jsonl.gz"}
    left = set(files(folder)) - mine
    assert {Path(name).name for name in left} == state, "its own folder only"


def test_with_leave_every_outlet_is_used(tmp_path: Path) -> None:
    folder, frontends = tmp_path, FakeFrontends()
    world = supervised(folder, frontends, advisory=False)
    assert world.replicas is not None
    world.run(5)
    world.replicas.now_ready()
    world.run(8)
    assert frontends.calls > 0
    assert world.replicas.started > 0
    assert (folder / "grants" / "n1.json").exists()
    content = (folder / "plugin.json").read_bytes()
    state = decode_state(content, where="plugin.json")
    assert state.plan.budget_w == 2000.0
    assert set(state.plan.roles) == {"prefill", "decode"}
    booked_w = sum(
        role.watts_per_replica_w * (role.wanted_replicas or 0) for role in state.plan.roles.values()
    )
    assert booked_w + state.plan.elsewhere_w <= state.plan.budget_w - state.plan.guard_w
    world.stop()


def test_a_call_that_hangs_is_not_made_again_and_holds_nobody_up() -> None:
    gatherer = Gatherer(0.05)
    free = threading.Event()
    calls = []

    def hang() -> str:
        calls.append(1)
        free.wait(60.0)
        return "late"

    first = gatherer.gather({"slow": hang, "fast": lambda: "here"})
    assert isinstance(first["slow"], Failure)
    assert first["fast"] == "here"
    second = gatherer.gather({"slow": hang})
    assert isinstance(second["slow"], Failure)
    assert "no answer for" in second["slow"].why
    assert calls == [1]
    free.set()
    for _ in range(200):
        third = gatherer.gather({"slow": lambda: "back"})["slow"]
        if third == "back":
            break
        time.sleep(0.01)
    assert third == "back"
