"""Calibration inside the decision: what is learned, when, and what plans do with it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from calibration_world import GPUS, MIX, World, make_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.calibration.drift import DriftTerms
from wattline.core.calibration.factors import RIGHT, Factors, RoleFactors
from wattline.core.calibration.terms import CalibrationSettings
from wattline.core.decide import decide
from wattline.core.decision import PoolPlan, ReasonCode
from wattline.core.demand import Demand
from wattline.core.derive import Layout
from wattline.core.fleet import Role
from wattline.core.snapshot import Snapshot

OFF = make_settings(calibration=None)


def plans(world: World) -> list[tuple[PoolPlan, ...]]:
    return [decision.plan for _, decision in world.decisions]


def test_a_right_model_stays_right_and_changes_nothing() -> None:
    world, plain = World(), World(settings=OFF)
    world.run(120)
    plain.run(120)
    assert world.role(Role.DECODE).factors.itl == pytest.approx(1.0, abs=0.03)
    assert world.role(Role.PREFILL).factors.ttft == pytest.approx(1.0, abs=0.03)
    for role in (Role.PREFILL, Role.DECODE):
        assert world.role(role).factors.power == pytest.approx(1.0, abs=0.03)
        assert world.role(role).in_force == RIGHT
    assert plans(world) == plans(plain)
    assert plain.state is not None
    assert plain.state.calibration == ()


def test_a_slower_fleet_is_found_and_provided_for() -> None:
    world, plain = World(slower=1.3), World(slower=1.3, settings=OFF)
    decision = world.run(200)
    assert world.role(Role.DECODE).factors.itl == pytest.approx(1.3, abs=0.03)
    assert world.role(Role.PREFILL).factors.ttft == pytest.approx(1.3, abs=0.05)
    assert decision.facts is not None
    (facts,) = decision.facts.deployments
    assert {entry.role for entry in facts.factors} == {Role.PREFILL, Role.DECODE}
    before = plain.run(200).facts
    assert before is not None
    # A replica that is 1.3 times slower serves at most a 1.3th of what its model says.
    assert facts.capacity_rps <= before.deployments[0].capacity_rps / 1.25
    decode = decision.reasons[1].sentence
    assert "calibration: decode is planned at 1." in decode
    assert "times the model's latency" in decode


def test_a_faster_fleet_loosens_nothing() -> None:
    world, plain = World(slower=1.0 / 1.3), World(slower=1.0 / 1.3, settings=OFF)
    world.run(200)
    plain.run(200)
    assert world.role(Role.DECODE).factors.itl == pytest.approx(1.0 / 1.3, abs=0.05)
    assert all(entry.in_force == RIGHT for entry in world.calibration.roles)
    assert plans(world) == plans(plain)


def test_watts_are_expected_but_never_booked() -> None:
    world, plain = World(hungrier=1.2), World(settings=OFF)
    world.run(120)
    plain.run(120)
    assert world.role(Role.DECODE).factors.power == pytest.approx(1.2, abs=0.02)
    assert world.role(Role.DECODE).in_force.power == pytest.approx(1.2, abs=0.05)
    for (_, mine), (_, other) in zip(world.decisions, plain.decisions, strict=True):
        assert mine.facts is not None
        assert other.facts is not None
        assert mine.caps == other.caps
        assert mine.facts.planned_w == other.facts.planned_w
    assert "is expected to draw 1.1" in world.decisions[-1][1].reasons[1].sentence


def test_switches() -> None:
    terms = CalibrationSettings(apply_latency=False, apply_power=False)
    world = World(slower=1.3, hungrier=1.2, settings=make_settings(calibration=terms))
    world.run(120)
    decode = world.role(Role.DECODE)
    assert decode.factors.itl == pytest.approx(1.3, abs=0.03)
    assert decode.factors.power == pytest.approx(1.2, abs=0.02)
    assert decode.in_force == RIGHT


@pytest.mark.parametrize("what", ["nothing ends", "outage", "derated", "limits differ", "silent"])
def test_what_cannot_be_compared_teaches_nothing(what: str) -> None:
    world = World(slower=1.5)
    if what == "nothing ends":
        world.completions = 0
    elif what == "derated":
        world.derate = 0.7
    elif what == "limits differ":
        world.edit = lambda s: _enforced(s, [600.0, *[300.0] * (len(s.gpus.uuid) - 1)])
    elif what == "silent":
        world.edit = lambda s: _enforced(s, [None] * len(s.gpus.uuid))
    else:
        world.edit = _outage
    world.run(100)
    prefill, decode = world.role(Role.PREFILL), world.role(Role.DECODE)
    assert prefill.factors.ttft == 1.0
    if what in ("outage", "silent"):
        assert [entry.windows for entry in world.calibration.roles] == [0, 0]
    if what == "nothing ends":
        assert decode.factors.itl == 1.0


def _enforced(snapshot: Snapshot, watts: list[float | None]) -> Snapshot:
    return replace(snapshot, gpus=replace(snapshot.gpus, enforced_w=tuple(watts)))


def _outage(snapshot: Snapshot) -> Snapshot:
    (view,) = snapshot.demand
    return replace(snapshot, demand=(replace(view, arrivals=None, completions=None),))


def test_a_window_that_is_seen_twice_counts_once() -> None:
    world = World(slower=1.3)

    def stale(snapshot: Snapshot) -> Snapshot:
        (view,) = snapshot.demand
        return replace(snapshot, demand=(replace(view, age_s=snapshot.time_s % 5.0),))

    world.edit = stale
    world.run(60)
    assert max(entry.windows for entry in world.calibration.roles) <= 2


def test_a_queue_is_not_blamed_on_the_model() -> None:
    world = World(queued=40_000.0)
    world.run(120)
    assert world.role(Role.PREFILL).factors.ttft <= 1.0


def test_a_change_of_limits_is_waited_out() -> None:
    world = World(slower=1.3, budget_w=3000.0)
    world.run(5)
    learned = world.calibration.pools
    assert all(pool.since_s <= 5.0 for pool in learned)
    moving = [0]

    def restless(snapshot: Snapshot) -> Snapshot:
        moving[0] += 1
        watts = 300.0 + 20.0 * (moving[0] % 2)
        return _enforced(snapshot, [watts] * len(snapshot.gpus.uuid))

    world.edit = restless
    before = [entry.factors for entry in world.calibration.roles]
    world.run(60)
    assert [entry.factors for entry in world.calibration.roles] == before


def test_a_mixed_deployment_has_no_latency_of_one_role() -> None:
    mixed = make_settings(Role.PREFILL, Role.DECODE, Role.AGGREGATED)
    world = World(slower=1.5, settings=mixed, budget_w=8400.0)
    world.run(100)
    for entry in world.calibration.roles:
        assert (entry.factors.ttft, entry.factors.itl) == (1.0, 1.0)


def test_aggregated_replicas_answer_for_both_latencies() -> None:
    world = World(settings=make_settings(Role.AGGREGATED), rate_rps=8.0, budget_w=2800.0)
    world.run(120)
    entry = world.role(Role.AGGREGATED)
    assert entry.windows > 5
    assert entry.factors.itl != 1.0
    assert entry.factors.ttft != 1.0


# Drift


def slow_settings(**terms: object) -> World:
    drift = DriftTerms(**({"interval_s": 60.0} | terms))  # type: ignore[arg-type]
    calibration = CalibrationSettings(drift=drift)
    return World(slower=4.0, settings=make_settings(calibration=calibration))


def test_drift_plans_anew_and_says_why() -> None:
    world = slow_settings()
    world.run(300)
    fired = [
        (snapshot, decision)
        for snapshot, decision in world.decisions
        if decision.reasons[0].code is ReasonCode.MODEL_DRIFT
    ]
    # Not before a minute has passed and three windows were bad; then not for another minute.
    times = [snapshot.time_s for snapshot, _ in fired]
    assert times[0] >= 80.0
    assert all(after - before >= 80.0 for before, after in pairwise(times))
    assert world.calibration.drift.fired == len(times) > 1
    for _, decision in fired:
        assert decision.facts is not None
        assert decision.facts.replanned
        assert decision.facts.deployments[0].drift is not None
        assert "planned anew at once" in decision.reasons[0].sentence
        assert "ITL is" in decision.reasons[0].sentence


def test_no_drift_without_a_cause() -> None:
    for world in (
        slow_settings(enabled=False),
        World(rate_rps=1.0),  # low load
        World(hungrier=2.0),  # power alone
    ):
        world.run(400)
        assert world.calibration.drift.fired == 0


# Invariants


@settings(max_examples=60, deadline=None)
@given(
    ttft=st.floats(1.0, 2.0),
    itl=st.floats(1.0, 2.0),
    power=st.floats(1.0, 2.0),
    missed=st.floats(1.0, 2.0),
    role=st.sampled_from([Role.PREFILL, Role.DECODE]),
    share=st.floats(0.2, 1.0),
)
def test_corrections_only_tighten(
    ttft: float, itl: float, power: float, missed: float, role: Role, share: float
) -> None:
    layout = Layout(OFF)
    pool = (Role.PREFILL, Role.DECODE).index(role)
    plain = Demand(rate_rps=1.0, ahead_rps=1.0, seen_rps=1.0, mix=MIX, outage=None)
    plain = replace(plain, itl_factor=missed)
    corrected = replace(
        plain, factors=(RoleFactors(role, Factors(ttft=ttft, itl=itl, power=power)),)
    )
    without, _ = layout.corrected(pool, plain, GPUS, (), share)
    rates, table = layout.corrected(pool, corrected, GPUS, (), share)
    assert all(after <= before for after, before in zip(rates, without, strict=True))
    assert max(rates) > 0.0
    draw_w, curves_w = layout.draws(pool, table, power)
    for setting, full_w, model_w, curve in zip(
        layout.grids[pool], draw_w, table.draw_w, curves_w, strict=True
    ):
        assert model_w - 1e-3 <= full_w <= max(setting.cap_w, model_w) + 1e-3
        assert max(curve) <= max(setting.cap_w, model_w) + 1e-3


@settings(max_examples=15, deadline=None)
@given(
    slower=st.floats(0.3, 4.0),
    hungrier=st.floats(0.3, 3.0),
    budget_w=st.floats(1700.0, 5600.0),
    rate_rps=st.floats(0.0, 120.0),
)
def test_bookings_stay_within_the_budget(
    slower: float, hungrier: float, budget_w: float, rate_rps: float
) -> None:
    world = World(slower=slower, hungrier=hungrier, budget_w=budget_w, rate_rps=rate_rps)
    world.limits_w = [200.0] * len(world.limits_w)
    world.run(60)
    for snapshot, decision in world.decisions:
        assert sum(snapshot.gpus.booked_w) <= budget_w + 1e-6
        assert decision.facts is not None
        assert decision.facts.planned_w <= max(budget_w, 1600.0) + 1e-6
        assert decide(snapshot, world.settings) == decision


def test_calibration_can_be_switched_on_and_off_on_the_way() -> None:
    world = World(settings=OFF, slower=1.3)
    world.run(30)
    world.settings = make_settings()
    world.run(100)
    assert world.role(Role.DECODE).in_force.itl > 1.2
    world.settings = OFF
    decision = world.run(1)
    assert decision.next_state is not None
    assert decision.next_state.calibration == ()
    assert "calibration" not in decision.reasons[1].sentence
