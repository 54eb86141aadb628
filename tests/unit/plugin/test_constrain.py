"""The rule of the CONSTRAIN plugin: cases, properties, and a planner that asks anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plugin_cases import Pair, asking, planned

from wattline.drivers.dynamo.plugin.constrain import (
    Code,
    PowerPlan,
    Verdict,
    constrain,
    propose,
    remember,
)
from wattline.drivers.dynamo.plugin.messages import (
    DECODE,
    PREFILL,
    Accept,
    Override,
    OverrideType,
    Reject,
    StageRequest,
    Target,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "dynamo_clamp.json"
ROLES = (PREFILL, DECODE)

counts = st.integers(0, 30)
pairs = st.tuples(counts, counts)
watts = st.tuples(st.floats(1.0, 9000.0, allow_nan=False), st.floats(1.0, 9000.0, allow_nan=False))
floors = st.tuples(st.integers(0, 4), st.integers(0, 4))
budgets = st.floats(0.0, 200_000.0, allow_nan=False)


def ceilings(verdict: Verdict) -> tuple[int, int]:
    return verdict.ceilings[PREFILL], verdict.ceilings[DECODE]


def cost_w(pair: tuple[int, int], each_w: tuple[float, float]) -> float:
    return pair[0] * each_w[0] + pair[1] * each_w[1]


def larger(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), max(one[1], other[1])


@pytest.mark.parametrize(
    ("proposed", "ready", "expected", "usable_w", "result", "code"),
    [
        ((3, 3), (2, 2), (2, 2), 6000, (3, 3), Code.UNCHANGED),
        ((6, 4), (2, 2), (2, 2), 7000, (4, 3), Code.CLAMPED),
        ((1, 6), (2, 2), (2, 2), 6000, (1, 4), Code.CLAMPED),  # what shrinks frees nothing yet
        ((3, 3), (2, 2), (2, 4), 6000, (2, 3), Code.CLAMPED),  # what is coming is charged
        ((2, 4), (2, 2), (2, 4), 5000, (2, 3), Code.RECALLED),
        ((4, 4), (4, 4), (4, 4), 5000, (2, 3), Code.SHRUNK),
        ((1, 4), (4, 4), (4, 4), 5000, (1, 4), Code.SHRUNK),
        ((9, 9), (4, 4), (4, 4), 1500, (1, 1), Code.FLOORS),
        ((0, 4), (4, 4), (4, 4), 1500, (0, 1), Code.SHRUNK),  # a proposal below its floor stays
        ((5, 1), (2, 2), (None, 2), 9000, (2, 1), Code.COUNTS_UNSETTLED),
        ((1, 2), (2, 2), (None, 2), 9000, (1, 2), Code.UNCHANGED),
    ],
)
def test_single_cases(
    proposed: Pair, ready: Pair, expected: Pair, usable_w: float, result: Pair, code: Code
) -> None:
    verdict = constrain(asking(proposed, ready, expected), planned(usable_w))
    assert (ceilings(verdict), verdict.code) == (result, code)


def test_the_answer_names_its_reason_and_uses_at_most_only() -> None:
    verdict = constrain(asking((6, 4), (2, 2)), planned(7000.0))
    assert verdict.result() == Override(
        (
            Target(PREFILL, 4, OverrideType.AT_MOST),
            Target(DECODE, 3, OverrideType.AT_MOST),
        ),
        "wattline: prefill at most 4, decode at most 3: growth is cut to what is left "
        "(7000 W of 7000 W, plan 7)",
    )


def test_without_a_plan_nothing_grows_but_things_may_shrink() -> None:
    verdict = constrain(asking((5, 1), (2, 3)), None, why_no_plan="the plan is 31 s old")
    assert (ceilings(verdict), verdict.code) == ((2, 1), Code.HELD)
    assert "31 s old: nothing grows" in verdict.reason


def test_a_role_that_the_plan_does_not_name_holds_everything() -> None:
    plan = planned(9000.0)
    alone = PowerPlan(version=1, budget_w=9000.0, roles={PREFILL: plan.roles[PREFILL]})
    verdict = constrain(asking((5, 5), (2, 3)), alone)
    assert (ceilings(verdict), verdict.code) == ((2, 3), Code.HELD)
    assert "no watts for decode" in verdict.reason
    # A role that neither is there nor is to be there costs nothing.
    absent = constrain(asking((5, 0), (2, 0)), alone)
    assert (ceilings(absent), absent.code) == ((5, 0), Code.UNCHANGED)


def test_a_planned_role_that_is_not_proposed_is_charged_and_left_alone() -> None:
    verdict = constrain(asking((6, None), (2, 3)), planned(7000.0))
    assert verdict.ceilings == {PREFILL: 4}
    assert verdict.charged_w == 7000.0
    # Its workers unknown: its watts are, too.
    blind = constrain(asking((6, None), (2, None)), planned(7000.0))
    assert (blind.ceilings, blind.code) == ({PREFILL: 2}, Code.HELD)


def test_without_worker_counts_nothing_moves() -> None:
    result = constrain(asking((5, 5), (2, None)), planned(90_000.0)).result()
    assert isinstance(result, Reject)
    assert "counts of decode are unknown" in result.reason


def test_nothing_proposed_is_no_opinion() -> None:
    assert constrain(StageRequest(), planned(1000.0)).result() == Accept()
    assert constrain(asking((None, None), (2, 2)), planned(1000.0)).result() == Accept()


def test_propose_sets_what_the_controller_wants_and_nothing_else() -> None:
    assert propose(None) == Accept()
    assert propose(planned(1000.0)) == Accept()
    result = propose(planned(1000.0, wanted=(None, 4)))
    assert isinstance(result, Override)
    assert result.targets == (Target(DECODE, 4, OverrideType.SET),)


@given(proposed=pairs, ready=pairs, expected=pairs, each_w=watts, usable_w=budgets)
def test_while_the_present_fits_so_do_ceilings_with_all_transients(
    proposed: tuple[int, int],
    ready: tuple[int, int],
    expected: tuple[int, int],
    each_w: tuple[float, float],
    usable_w: float,
) -> None:
    plan = planned(usable_w, each_w)
    verdict = constrain(asking(proposed, ready, expected), plan)
    held = larger(ready, expected)
    slack_w = 0.002 * sum(held)  # a cost is rounded up to whole milliwatts
    if cost_w(held, each_w) + slack_w <= plan.usable_w:
        assert verdict.code in (Code.UNCHANGED, Code.CLAMPED)
        assert cost_w(larger(held, ceilings(verdict)), each_w) <= plan.usable_w
        assert verdict.charged_w is not None
        assert verdict.charged_w <= plan.usable_w
    elif cost_w(ready, each_w) + slack_w <= plan.usable_w:
        assert cost_w(larger(ready, ceilings(verdict)), each_w) <= plan.usable_w


@given(proposed=pairs, ready=pairs, expected=pairs, each_w=watts, usable_w=budgets, least=floors)
def test_never_above_the_proposal_and_never_below_the_floors(
    proposed: tuple[int, int],
    ready: tuple[int, int],
    expected: tuple[int, int],
    each_w: tuple[float, float],
    usable_w: float,
    least: tuple[int, int],
) -> None:
    plan = planned(usable_w, each_w, least)
    verdict = constrain(asking(proposed, ready, expected), plan)
    for side, ceiling in enumerate(ceilings(verdict)):
        assert ceiling <= proposed[side]
        assert ceiling >= min(proposed[side], ready[side], least[side])
    if verdict.code is Code.SHRUNK:
        assert cost_w(ceilings(verdict), each_w) <= plan.usable_w
    if verdict.code is Code.UNCHANGED:
        assert ceilings(verdict) == proposed
    result = verdict.result()
    assert isinstance(result, Override)
    assert {target.kind for target in result.targets} == {OverrideType.AT_MOST}


@given(proposed=pairs, ready=pairs, each_w=watts, usable_w=budgets)
def test_no_watts_are_left_that_would_pay_for_a_replica(
    proposed: tuple[int, int],
    ready: tuple[int, int],
    each_w: tuple[float, float],
    usable_w: float,
) -> None:
    verdict = constrain(asking(proposed, ready), planned(usable_w, each_w))
    if verdict.code is not Code.CLAMPED:
        return
    assert verdict.charged_w is not None
    assert verdict.usable_w is not None
    left_w = verdict.usable_w - verdict.charged_w
    for side, ceiling in enumerate(ceilings(verdict)):
        if ready[side] <= ceiling < proposed[side]:
            assert each_w[side] > left_w - 0.01


@given(
    each_w=watts,
    start=pairs,
    room_w=st.floats(0.0, 60_000.0, allow_nan=False),
    steps=st.lists(
        st.tuples(
            pairs,
            st.sampled_from(["known", "absent", "restart"]),
            st.integers(0, 30),
            st.booleans(),
        ),
        max_size=25,
    ),
)
def test_a_planner_that_asks_anything_never_leaves_the_budget(
    each_w: tuple[float, float],
    start: tuple[int, int],
    room_w: float,
    steps: list[tuple[tuple[int, int], str, int, bool]],
) -> None:
    """As release 1.6.1 acts: both targets are emitted unless both equal the ready counts.

    Workers come and go at any pace, expected counts are absent at any time, we restart at any time.
    """
    plan = planned(cost_w(start, each_w) + 0.002 * sum(start) + room_w, each_w)
    ready, target = start, start
    allowed: dict[str, int] = {}
    for proposed, counting, pace, silent in steps:
        if counting == "restart":
            allowed = {}
        absent = counting != "known"
        request = asking(proposed, ready, (None, None) if absent else target)
        verdict = constrain(request, plan, allowed=allowed)
        allowed = dict(remember(request, verdict, allowed))
        result = ready if silent else ceilings(verdict)
        if result != ready:
            target = result
        assert cost_w(larger(ready, target), each_w) <= plan.usable_w + 1e-6
        ready = (_towards(ready[0], target[0], pace), _towards(ready[1], target[1], pace))


def _towards(now: int, target: int, pace: int) -> int:
    return min(target, now + pace) if target > now else max(target, now - pace)


def _both_proposed() -> list[list[object]]:
    """Vectors of Dynamo's clamp in which both roles are proposed and known, as they always are."""
    cases = json.loads(VECTORS.read_text())["apply_power_budget"]
    return [case for case in cases if None not in (*case[0], *case[1], *case[2])]


@pytest.mark.parametrize("case", _both_proposed(), ids=str)
def test_against_the_clamp_that_dynamo_ships(case: list[list[int]]) -> None:
    """Where both agree we do the same; where not, theirs goes past the budget on the way."""
    proposed, ready, each_w, usable_w, result, *_ = case
    assert isinstance(usable_w, int)
    plan = planned(usable_w, (each_w[0], each_w[1]))
    ours = ceilings(constrain(asking((proposed[0], proposed[1]), (ready[0], ready[1])), plan))
    theirs = (result[0], result[1])
    if ours != theirs:
        peak = larger((ready[0], ready[1]), theirs)
        assert cost_w(peak, (each_w[0], each_w[1])) > usable_w
