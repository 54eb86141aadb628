"""Pinned caps in the decision: kept where they fit, and planned around."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from decision_fixtures import Site, make_site

from wattline.core.decide import decide
from wattline.core.decision import Decision
from wattline.core.snapshot import Snapshot


def pinned(snapshot: Snapshot, caps_w: dict[int, float]) -> Snapshot:
    pools = tuple(
        replace(pool, pinned_w=caps_w.get(index)) for index, pool in enumerate(snapshot.pools)
    )
    return replace(snapshot, pools=pools)


def planned(site: Site, caps_w: dict[int, float], ticks: int = 3) -> Decision:
    decision = decide(pinned(site.snapshot(0.0), caps_w), site.settings)
    for tick in range(1, ticks):
        snapshot = site.snapshot(float(tick), decision.next_state)
        decision = decide(pinned(snapshot, caps_w), site.settings)
    return decision


def caps_w(decision: Decision) -> list[float]:
    return [pool.setting.cap_w for pool in decision.plan]


def booked_w(site: Site, decision: Decision) -> float:
    return sum(
        plan.replicas * plan.setting.cap_w + (pool.gpus - plan.replicas) * 200.0
        for plan, pool in zip(decision.plan, site.fleet.pools, strict=True)
    )


def test_watts_that_a_pin_leaves_go_to_the_others() -> None:
    site = make_site(deployments=2)
    site.budget_w, site.rate_rps = 6000.0, 200.0
    free = planned(site, {})
    low = planned(site, {0: 210.0, 1: 210.0})
    assert caps_w(low)[:2] == [210.0, 210.0]
    assert sum(caps_w(low)[2:]) > sum(caps_w(free)[2:])
    assert booked_w(site, low) <= 6000.0


def test_the_others_do_without_what_a_pin_takes() -> None:
    site = make_site(deployments=2)
    site.budget_w, site.rate_rps = 6000.0, 200.0
    high = planned(site, {0: 650.0})
    assert caps_w(high)[0] == 650.0
    assert booked_w(site, high) <= 6000.0


@pytest.mark.parametrize("watts", [333.0, 205.5, 700.0, 200.0])
def test_a_pin_need_not_be_one_of_the_offered_caps(watts: float) -> None:
    site = make_site()
    site.budget_w = 4000.0
    assert caps_w(planned(site, {1: watts}))[1] == watts


def test_a_pin_beyond_the_hardware_is_its_nearest_limit() -> None:
    site = make_site()
    site.budget_w = 4000.0
    assert caps_w(planned(site, {1: 5000.0}))[1] == 700.0
    assert caps_w(planned(site, {1: 5.0}))[1] == 200.0


def test_pins_that_do_not_fit_are_ceilings() -> None:
    site = make_site()
    site.budget_w, site.rate_rps = 2400.0, 200.0
    decision = planned(site, {0: 500.0, 1: 500.0})
    assert all(200.0 <= cap_w <= 500.0 for cap_w in caps_w(decision))
    assert booked_w(site, decision) <= 2400.0


def test_a_cut_below_a_pin_lowers_at_once() -> None:
    site = make_site()
    site.granted_w = [500.0] * 8
    site.budget_w = 4000.0
    before = planned(site, {0: 500.0, 1: 500.0})
    site.budget_w = 2000.0
    snapshot = pinned(site.snapshot(3.0, before.next_state), {0: 500.0, 1: 500.0})
    decision = decide(snapshot, site.settings)
    after = dict(zip(decision.caps.gpu, decision.caps.cap_w, strict=True))
    assert sum(after.get(gpu, 500.0) for gpu in range(8)) <= 2000.0


def test_a_pin_that_is_taken_back_leaves_the_cap_free() -> None:
    site = make_site()
    site.rate_rps = 200.0
    decision = planned(site, {1: 333.0})
    assert caps_w(decision)[1] == 333.0
    decision = decide(site.snapshot(3.0, decision.next_state), site.settings)
    assert caps_w(decision)[1] > 333.0
    assert booked_w(site, decision) <= site.budget_w


def test_a_pin_changes_nothing_from_tick_to_tick() -> None:
    site = make_site()
    seen = [caps_w(planned(site, {0: 333.0}, ticks)) for ticks in range(2, 8)]
    assert all(a == b for a, b in pairwise(seen))
