"""The decision as a whole: what it does with a fleet, tick after tick."""

from __future__ import annotations

from dataclasses import replace

import pytest
from decision_fixtures import Site, make_site
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from wattline.core.decide import decide
from wattline.core.decision import Decision, ReasonCode
from wattline.core.engine import ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Role, Setting
from wattline.core.mix import Mix
from wattline.core.snapshot import DemandView, Snapshot
from wattline.core.state import State

PROMPTS = Mix(6000.0, 40.0)
ANSWERS = Mix(300.0, 900.0)
DECISION = TypeAdapter(Decision)
SNAPSHOT = TypeAdapter(Snapshot)


def run(site: Site, ticks: int, start: int = 0, state: State | None = None) -> Decision:
    """Let `site` follow the decisions at once, as if every report came in time."""
    decision: Decision | None = None
    for tick in range(start, start + ticks):
        decision = decide(site.snapshot(float(tick), state), site.settings)
        state = decision.next_state
        for gpu, cap_w in zip(decision.caps.gpu, decision.caps.cap_w, strict=True):
            site.granted_w[gpu] = cap_w
    assert decision is not None
    return decision


def caps(decision: Decision) -> list[float]:
    return [plan.setting.cap_w for plan in decision.plan]


def codes(decision: Decision) -> list[ReasonCode]:
    return [reason.code for reason in decision.reasons]


def booked_w(site: Site, decision: Decision) -> float:
    return sum(
        ready * plan.setting.cap_w + (pool.gpus - ready) * 200.0
        for ready, plan, pool in zip(site.ready, decision.plan, site.fleet.pools, strict=True)
    )


def test_watts_go_to_the_phase_that_is_short() -> None:
    for mix, short, code in (
        (PROMPTS, 0, ReasonCode.WATTS_TO_PREFILL),
        (ANSWERS, 1, ReasonCode.WATTS_TO_DECODE),
    ):
        site = make_site()
        site.mix, site.rate_rps = mix, 60.0
        seen, state = [], None
        for tick in range(60):
            decision = run(site, 1, tick, state)
            state = decision.next_state
            seen += codes(decision)
        assert caps(decision)[short] > caps(decision)[1 - short]
        assert code in seen
        assert booked_w(site, decision) <= site.budget_w


def test_the_plan_stands_still_when_nothing_changes() -> None:
    site = make_site()
    site.rate_rps = 60.0
    first = run(site, 90)
    again = run(site, 60, 90, first.next_state)
    assert again.plan == first.plan
    assert again.caps.gpu == ()


def test_equal_snapshots_give_equal_bytes_also_through_json() -> None:
    site = make_site()
    decision = run(site, 40)
    snapshot = site.snapshot(40.0, decision.next_state)
    one = DECISION.dump_json(decide(snapshot, site.settings))
    fresh = replace(site.settings)
    copy = SNAPSHOT.validate_json(SNAPSHOT.dump_json(snapshot))
    assert DECISION.dump_json(decide(copy, fresh)) == one


def test_every_pool_gets_a_reason_with_numbers_in_it() -> None:
    decision = run(make_site(deployments=2), 5)
    assert [reason.pool for reason in decision.reasons] == [0, 1, 2, 3]
    for reason in decision.reasons:
        assert reason.sentence.endswith(".")
        assert any(letter.isdigit() for letter in reason.sentence)


def test_a_burst_is_met_with_watts_at_once() -> None:
    site = make_site(cap_hold_s=1000.0)
    site.rate_rps, site.mix = 5.0, ANSWERS
    calm = run(site, 120)
    site.rate_rps, site.mix = 300.0, PROMPTS
    decision = run(site, 20, 120, calm.next_state)
    assert caps(decision)[0] > caps(calm)[0], "an urgent change does not wait for the hold"


def test_a_budget_cut_lowers_at_once_and_raises_nothing() -> None:
    site = make_site()
    site.rate_rps = 60.0
    before = run(site, 60)
    site.budget_w = 2000.0
    snapshot = site.snapshot(60.0, before.next_state)
    decision = decide(snapshot, site.settings)
    assert booked_w(site, decision) <= 2000.0
    assert all(
        cap_w <= snapshot.gpus.granted_w[gpu]
        for gpu, cap_w in zip(decision.caps.gpu, decision.caps.cap_w, strict=True)
    )
    assert set(codes(decision)) == {ReasonCode.BUDGET_CUT}


def test_a_budget_below_the_floors_is_said() -> None:
    site = make_site()
    site.budget_w = 1000.0
    decision = run(site, 3)
    assert set(codes(decision)) == {ReasonCode.INFEASIBLE_FLOOR}
    assert caps(decision) == [200.0, 200.0]


def test_an_outage_holds_caps_and_replicas_and_says_so() -> None:
    site = make_site()
    site.rate_rps = 60.0
    state = run(site, 60).next_state
    blind = replace(
        site.demand(),
        window_s=0.0,
        arrivals=None,
        input_tokens_sum=None,
        cached_tokens_sum=None,
        completions=None,
        output_tokens_sum=None,
    )
    held = None
    for tick in range(60, 400):
        view: DemandView = replace(blind, age_s=float(tick - 59))
        held = decide(site.snapshot(float(tick), state, [view]), site.settings)
        state = held.next_state
        assert held.replicas == ()
        assert held.caps.gpu == ()
    assert held is not None
    assert set(codes(held)) == {ReasonCode.HELD_METRICS_OUTAGE}
    site.budget_w = 2000.0
    cut = decide(site.snapshot(400.0, state, [replace(blind, age_s=341.0)]), site.settings)
    assert booked_w(site, cut) <= 2000.0, "a cut is obeyed in an outage too"


def test_bookings_rise_no_faster_than_allowed() -> None:
    site = make_site()
    site.rate_rps, site.rise_w_per_s = 90.0, 60.0
    site.granted_w = [200.0] * 8
    state, total_w = None, 1600.0
    limited = False
    for tick in range(40):
        decision = run(site, 1, tick, state)
        state = decision.next_state
        assert sum(site.granted_w) <= total_w + 60.0 + 1e-6
        total_w = sum(site.granted_w)
        limited = limited or ReasonCode.RATE_LIMITED in codes(decision)
    assert limited
    assert total_w > 2500.0


def test_silent_gpus_are_not_raised_and_are_named() -> None:
    site = make_site()
    site.rate_rps, site.mix = 90.0, PROMPTS
    site.granted_w, site.silent = [300.0] * 8, {0, 1}
    decision = decide(site.snapshot(0.0), site.settings)
    later = run(site, 30, 1, decision.next_state)
    assert site.granted_w[0] == site.granted_w[1] == 300.0
    assert site.granted_w[2] > 300.0
    assert later.reasons[0].code is ReasonCode.WAITING_FOR_REPORT


def test_a_derated_replica_costs_capacity_and_no_watts_are_thrown_after_it() -> None:
    healthy, slowed = make_site(), make_site()
    slowed.derate = {4: 0.3, 5: 0.3}
    capacities = []
    for site in (healthy, slowed):
        site.rate_rps, site.mix = 60.0, ANSWERS
        decision = run(site, 60)
        assert decision.facts is not None
        assert booked_w(site, decision) <= site.budget_w
        capacities.append(decision.facts.deployments[0].capacity_rps)
    assert capacities[1] < 0.95 * capacities[0]


def test_replicas_fall_only_after_the_window_and_rise_at_once() -> None:
    site = make_site(
        objective="energy", replica_down_s=120.0, replica_interval_s=30.0, replica_hold_s=0.0
    )
    site.rate_rps = 2.0
    state, first_stop = None, None
    for tick in range(200):
        decision = decide(site.snapshot(float(tick), state), site.settings)
        state = decision.next_state
        if decision.replicas and first_stop is None:
            first_stop = tick
            assert all(step.change < 0 for step in decision.replicas)
    assert first_stop is not None
    assert first_stop >= 90
    assert state is not None
    site.ready, site.rate_rps = [plan.replicas for plan in decision.plan], 90.0
    starts = []
    for tick in range(200, 235):
        decision = decide(site.snapshot(float(tick), state), site.settings)
        state = decision.next_state
        starts += [step.change for step in decision.replicas]
    assert max(starts) > 0


def test_floors_are_kept() -> None:
    site = make_site(objective="energy", replica_down_s=30.0, replica_hold_s=0.0)
    site.rate_rps = 0.0
    decision = run(site, 200)
    assert all(plan.replicas >= 1 for plan in decision.plan)


def test_replicas_on_the_way_are_not_ordered_twice() -> None:
    site = make_site()
    site.ready, site.starting = [2, 2], [2, 2]
    site.rate_rps = 200.0
    decision = run(site, 40)
    assert decision.replicas == ()
    assert ReasonCode.STARTING in codes(decision)


def test_energy_takes_fewer_watts_for_the_same_demand() -> None:
    plain, saving = make_site(), make_site(objective="energy")
    booked = []
    for site in (plain, saving):
        site.rate_rps = 10.0
        booked.append(booked_w(site, run(site, 60)))
    assert booked[1] < 0.8 * booked[0]


def test_energy_keeps_prefill_fast_enough_for_long_prompts() -> None:
    site = make_site(objective="energy")
    site.rate_rps = 1.0
    prefill = run(site, 60).plan[0].setting
    engine = site.settings.engines[0]
    tokens = int(6 * site.mix.input_tokens)
    spent = engine.cost(ForwardPass(prefill_tokens=tokens), prefill)
    assert spent.duration_s <= site.fleet.deployments[0].slo.ttft_s
    assert prefill.cap_w < 700.0


def test_a_higher_priority_is_served_first() -> None:
    site = make_site(deployments=2)
    fleet = site.settings.fleet
    first, second = fleet.deployments
    fleet = replace(fleet, deployments=(replace(first, priority=5.0), second))
    site.settings = replace(site.settings, fleet=fleet)
    site.rate_rps, site.budget_w = 120.0, 5000.0
    decision = run(site, 60)
    assert decision.facts is not None
    served = [facts.capacity_rps for facts in decision.facts.deployments]
    assert served[0] > 1.2 * served[1]


def test_watts_that_do_not_come_back_are_planned_around() -> None:
    site = make_site()
    site.rate_rps = 90.0
    state = run(site, 40).next_state
    booked = list(site.granted_w)
    booked[0] = 700.0  # a lowering that the hardware did not follow
    site.booked_w = booked
    decision = None
    for tick in range(40, 80):
        decision = decide(site.snapshot(float(tick), state), site.settings)
        state = decision.next_state
        for gpu, cap_w in zip(decision.caps.gpu, decision.caps.cap_w, strict=True):
            site.granted_w[gpu] = cap_w
            booked[gpu] = 700.0 if gpu == 0 else cap_w
    assert decision is not None
    assert decision.facts is not None
    assert decision.facts.unavailable_w > 0.0
    assert sum(booked) <= site.budget_w


@pytest.mark.parametrize("field", ["pools", "demand"])
def test_a_snapshot_of_another_fleet_is_refused(field: str) -> None:
    snapshot = make_site().snapshot(0.0)
    cut = replace(snapshot, **{field: getattr(snapshot, field)[:-1]})
    with pytest.raises(InputError, match=field):
        decide(cut, make_site().settings)


def test_settings_that_make_no_sense_are_refused() -> None:
    good = make_site().settings
    for wrong in ({"headroom": 0.5}, {"cap_step_w": 0.0}, {"clock_steps": ()}, {"engines": ()}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(good, **wrong)


@settings(max_examples=12)
@given(
    rates=st.lists(st.floats(0.0, 300.0), min_size=3, max_size=6),
    shares=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=6),
    budget_w=st.floats(1700.0, 6000.0),
    objective=st.sampled_from(["throughput", "energy"]),
    rise=st.sampled_from([None, 100.0]),
)
def test_no_plan_and_no_step_exceeds_the_budget(
    rates: list[float], shares: list[float], budget_w: float, objective: str, rise: float | None
) -> None:
    site = make_site(objective=objective, cap_step_w=100.0, clock_steps=(1.0, 0.7))
    site.granted_w, site.budget_w, site.rise_w_per_s = [200.0] * 8, budget_w, rise
    state: State | None = None
    for step, (rate, share) in enumerate(zip(rates, shares, strict=False)):
        site.rate_rps = rate
        site.mix = Mix(100.0 + 6000.0 * share, 900.0 - 880.0 * share)
        for tick in range(step * 8, step * 8 + 8):
            decision = run(site, 1, tick, state)
            state = decision.next_state
            assert booked_w(site, decision) <= budget_w + 1e-6
            assert sum(site.granted_w) <= budget_w + 1e-6
            for plan, pool in zip(decision.plan, site.fleet.pools, strict=True):
                assert 200.0 <= plan.setting.cap_w <= 700.0
                assert pool.min_replicas <= plan.replicas <= pool.max_replicas
                assert pool.role in (Role.PREFILL, Role.DECODE)
            for entry in decision.admission:
                assert 0.0 <= (entry.active_decode_blocks or 0.0) <= 1.0


def test_the_first_tick_takes_what_is_there_as_wanted() -> None:
    site = make_site()
    decision = decide(site.snapshot(0.0, settings=[Setting(500.0), Setting(300.0)]), site.settings)
    assert decision.replicas == ()
    assert [plan.replicas for plan in decision.plan] == [4, 4]
