"""Answers from memory: fresh and stale plans, silence and gaps, requests that cannot be read."""

from __future__ import annotations

import pytest
from plugin_cases import Pair, asking, planned

from wattline.drivers.dynamo.plugin.constrain import Code, PowerPlan
from wattline.drivers.dynamo.plugin.messages import (
    Accept,
    Override,
    Reject,
    StageResult,
    decode_stage_response,
    encode_stage_request,
)
from wattline.drivers.dynamo.plugin.service import PluginService
from wattline.drivers.dynamo.plugin.state_file import Seen


class Planner:
    """Calls a service on a clock of its own."""

    def __init__(self, *, proposes: bool = False) -> None:
        self.now_s = 0.0
        self.service = PluginService(stale_s=15.0, proposes=proposes, now=lambda: self.now_s)

    def plan(self, plan: PowerPlan) -> None:
        self.service.update(Seen(plan, self.now_s, 0.0), None)

    def ask(self, proposed: Pair, ready: Pair, expected: Pair | None = None) -> StageResult | None:
        request = encode_stage_request(asking(proposed, ready, expected))
        return decode_stage_response(self.service.constrain(request))

    def ceilings(self, proposed: Pair, ready: Pair, expected: Pair | None = None) -> list[int]:
        result = self.ask(proposed, ready, expected)
        assert isinstance(result, Override)
        return [target.replicas or 0 for target in result.targets]


def test_before_the_first_plan_nothing_grows() -> None:
    planner = Planner()
    assert planner.ceilings((5, 1), (2, 2)) == [2, 1]
    view = planner.service.view()
    assert view.codes == {Code.HELD: 1}
    assert view.verdict is not None
    assert "no plan has been read yet" in view.verdict.reason


def test_a_stale_plan_is_not_relied_on_and_a_new_one_is() -> None:
    planner = Planner()
    planner.plan(planned(9000.0))
    assert planner.ceilings((4, 4), (2, 2)) == [4, 4]
    planner.now_s = 15.1
    planner.service.update(Seen(planned(9000.0), 0.0, 0.0), "plan.json: torn")
    assert planner.ceilings((4, 4), (2, 2)) == [2, 2]
    verdict = planner.service.view().verdict
    assert verdict is not None
    assert "the plan is 15 s old, 15 s are allowed (plan.json: torn)" in verdict.reason
    planner.plan(planned(9000.0, version=8))
    assert planner.ceilings((4, 4), (2, 2)) == [4, 4]


def test_growth_that_was_allowed_stays_allowed_while_counts_are_absent() -> None:
    planner = Planner()
    planner.plan(planned(6000.0))
    assert planner.ceilings((2, 5), (2, 2)) == [2, 4]
    planner.now_s = 1.0
    assert planner.ceilings((2, 5), (2, 2), (None, None)) == [2, 4]
    planner.now_s = 2.0
    assert planner.ceilings((5, 5), (2, 3), (None, None)) == [2, 4]


def test_after_missing_calls_what_was_allowed_is_forgotten() -> None:
    planner = Planner()
    planner.plan(planned(6000.0))
    for second in range(4):
        planner.now_s = float(second)
        planner.ceilings((2, 5), (2, 2))
    view = planner.service.view()
    assert (view.interval_s, view.silent, view.gaps) == (1.0, False, 0)
    planner.now_s = 10.0
    assert planner.service.view().silent
    assert planner.service.view().silence_s == 7.0
    planner.plan(planned(6000.0))
    assert planner.ceilings((2, 5), (2, 2), (None, None)) == [2, 2]
    assert planner.service.view().gaps == 1


def test_a_slower_planner_is_no_gap_for_ever() -> None:
    planner = Planner()
    for second in (0, 1, 2, 3, 33, 63, 93, 123, 153):
        planner.now_s = float(second)
        planner.ask((1, 1), (1, 1))
    view = planner.service.view()
    assert view.interval_s == 30.0
    assert view.gaps <= 3
    planner.now_s += 40.0
    assert not planner.service.view().silent


@pytest.mark.parametrize("method", ["bootstrap", "reset"])
def test_a_planner_that_starts_was_allowed_nothing(method: str) -> None:
    planner = Planner()
    planner.plan(planned(6000.0))
    planner.ceilings((2, 5), (2, 2))
    assert getattr(planner.service, method)(b"")
    assert planner.ceilings((2, 5), (2, 2), (None, None)) == [2, 2]


def test_a_request_that_cannot_be_read_stops_the_tick() -> None:
    planner = Planner()
    result = decode_stage_response(planner.service.constrain(b"\x0a\x05"))
    assert isinstance(result, Reject)
    assert "cannot be read" in result.reason
    assert planner.service.view().calls == {("Constrain", "reject"): 1}


def test_a_bug_of_ours_stops_the_tick_and_does_not_lift_the_constraint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: object, **more: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("wattline.drivers.dynamo.plugin.service.constrain", broken)
    planner = Planner()
    result = planner.ask((2, 2), (2, 2))
    assert isinstance(result, Reject)
    assert "internal error" in result.reason


def test_proposals_only_where_wanted_and_while_the_plan_is_fresh() -> None:
    def proposed(planner: Planner) -> StageResult | None:
        request = encode_stage_request(asking((1, 1), (1, 1)))
        return decode_stage_response(planner.service.propose(request))

    quiet, loud = Planner(), Planner(proposes=True)
    for planner in (quiet, loud):
        planner.plan(planned(6000.0, wanted=(3, 4)))
    assert proposed(quiet) == Accept()
    result = proposed(loud)
    assert isinstance(result, Override)
    assert [target.replicas for target in result.targets] == [3, 4]
    loud.now_s = 16.0
    assert proposed(loud) == Accept()


def test_latencies_are_counted() -> None:
    planner = Planner()
    for _ in range(3):
        planner.ask((1, 1), (1, 1))
    view = planner.service.view()
    assert sum(view.latency_counts) == 3
    assert view.latency_counts[0] == 3
