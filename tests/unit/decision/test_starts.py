"""Replicas that are about to serve: their watts are moved before their first request comes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from decision_fixtures import Site, make_site
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.decide import decide
from wattline.core.errors import InputError
from wattline.core.snapshot import Phase, Snapshot
from wattline.core.starts import lead_s, with_those_due, without_those_due
from wattline.core.state import State
from wattline.core.transition import gpu_arrays
from wattline.recording.codec import snapshot_from_json, snapshot_from_python, snapshot_to_json

STARTUP_S = 60.0
"""Of every pool of the fixture; its GPUs settle in 2 s, so that the lead is 5 s."""


def loading_site(budget_w: float = 2600.0) -> Site:
    """Three decode replicas serve, one loads at its lowest limit; the budget binds."""
    site = make_site(objective="throughput", replica_down_s=0.0)
    site.ready, site.starting = [4, 3], [0, 1]
    site.granted_w = [*[325.0] * 4, *[325.0] * 3, 200.0]
    site.budget_w = budget_w
    site.rate_rps = 60.0
    return site


def at(site: Site, time_s: float, age_s: float | None, state: State | None = None) -> Snapshot:
    """A snapshot in which the loading decode replica began `age_s` ago (None: nobody knows)."""
    snapshot = site.snapshot(time_s, state)
    if age_s is None:
        return snapshot
    prefill, decode = snapshot.pools
    return replace(snapshot, pools=(prefill, replace(decode, starts=((3, age_s),))))


def follow(site: Site, ages_s: list[float | None]) -> list[float]:
    """Limits of the loading GPU while the site follows one decision a second at once."""
    state, limits = None, []
    for tick, age_s in enumerate(ages_s):
        decision = decide(at(site, float(tick), age_s, state), site.settings)
        state = decision.next_state
        for gpu, cap_w in zip(decision.caps.gpu, decision.caps.cap_w, strict=True):
            site.granted_w[gpu] = cap_w
        assert sum(site.granted_w) <= site.budget_w
        limits.append(site.granted_w[7])
    return limits


def test_a_replica_that_is_due_has_its_watts_before_it_serves() -> None:
    limits = follow(loading_site(), [STARTUP_S - 5.0 + tick for tick in range(5)])
    assert limits[-1] > 250.0


def test_most_of_a_start_costs_no_watts() -> None:
    site = loading_site()
    ages_s: list[float | None] = [float(age) for age in range(int(STARTUP_S - lead_s(site.fleet)))]
    assert set(follow(site, ages_s)) == {200.0}


def test_a_start_that_nobody_knows_is_raised_when_it_serves() -> None:
    site = loading_site()
    assert set(follow(site, [None] * 5)) == {200.0}
    site.ready, site.starting = [4, 4], [0, 0]
    assert follow(site, [None] * 5)[-1] > 250.0


def test_a_replica_that_does_not_come_gives_its_watts_back() -> None:
    site = loading_site()
    limits = follow(site, [STARTUP_S - 5.0 + tick for tick in range(40)])
    assert max(limits) > 250.0
    assert limits[-1] == 200.0


def test_a_replica_that_is_due_admits_and_is_counted_as_one_that_loads() -> None:
    site = loading_site()
    due = decide(at(site, 0.0, STARTUP_S - 1.0), site.settings)
    unknown = decide(at(site, 0.0, None), site.settings)
    assert due.admission == unknown.admission
    assert due.replicas == unknown.replicas
    assert "3 of 4 replicas" in due.reasons[1].sentence


def test_silent_gpus_are_not_raised_because_they_are_due() -> None:
    site = loading_site()
    site.silent = {7}
    assert set(follow(site, [STARTUP_S - 3.0] * 5)) == {200.0}


@pytest.mark.parametrize("phase", [Phase.PARKED, Phase.LOST, Phase.DRAINING])
def test_only_replicas_that_load_are_due(phase: Phase) -> None:
    site = loading_site()
    snapshot = at(site, 0.0, STARTUP_S - 1.0)
    phases = (*snapshot.gpus.phase[:7], phase)
    snapshot = replace(snapshot, gpus=replace(snapshot.gpus, phase=phases))
    decision = decide(snapshot, site.settings)
    raised = dict(zip(decision.caps.gpu, decision.caps.cap_w, strict=True))
    assert raised.get(7, 200.0) == 200.0


def test_those_due_count_for_watts_and_not_for_load() -> None:
    site = loading_site()
    snapshot = at(site, 0.0, STARTUP_S - 1.0)
    arrays, due = with_those_due(snapshot, site.fleet, gpu_arrays(snapshot.gpus))
    assert due == (0, 1)
    assert int(arrays.ready.sum()) == 8
    assert without_those_due((4.0, 8.0), 3, 1) == (3.0, 6.0)
    assert without_those_due((4.0, 8.0), 0, 1) == (4.0, 8.0)


def test_nobody_is_slowed_for_a_capacity_that_is_not_there_yet() -> None:
    site = loading_site(budget_w=8 * 700.0)
    site.settings = replace(site.settings, objective="energy")
    site.granted_w = [*[700.0] * 7, 200.0]
    site.rate_rps = 80.0
    due = decide(at(site, 0.0, STARTUP_S - 1.0), site.settings)
    unknown = decide(at(site, 0.0, None), site.settings)
    assert due.plan[1].setting == unknown.plan[1].setting
    site.ready, site.starting = [4, 4], [0, 0]
    serving = decide(at(site, 0.0, None), site.settings)
    assert serving.plan[1].setting.cap_w * serving.plan[1].setting.clock <= (
        due.plan[1].setting.cap_w * due.plan[1].setting.clock
    )


def test_starts_are_recorded_with_the_snapshot() -> None:
    snapshot = at(loading_site(), 0.0, 12.5)
    assert snapshot_from_json(snapshot_to_json(snapshot), "x") == snapshot


def test_a_snapshot_from_before_starts_were_told_is_read() -> None:
    document = json.loads(snapshot_to_json(at(loading_site(), 0.0, 12.5)))
    for pool in document["pools"]:
        del pool["starts"]
    read = snapshot_from_json(json.dumps(document), "x")
    assert all(pool.starts == () for pool in read.pools)


def test_an_impossible_age_is_refused_in_one_line() -> None:
    document = json.loads(snapshot_to_json(at(loading_site(), 0.0, 12.5)))
    document["pools"][1]["starts"] = [[3, -5.0]]
    with pytest.raises(InputError, match=r"pools\[1\]\.starts"):
        snapshot_from_python(document, "x")


@settings(max_examples=60, deadline=None)
@given(
    age_s=st.floats(0.0, 200.0),
    ready=st.integers(1, 3),
    booked=st.lists(st.floats(200.0, 700.0), min_size=8, max_size=8),
    share=st.floats(0.3, 1.0),
    rate_rps=st.floats(0.0, 200.0),
)
def test_no_step_towards_a_start_exceeds_the_budget(
    age_s: float, ready: int, booked: list[float], share: float, rate_rps: float
) -> None:
    site = loading_site()
    site.ready, site.starting = [4, ready], [0, 4 - ready]
    site.booked_w = [round(watts, 3) for watts in booked]
    site.granted_w = list(site.booked_w)
    site.budget_w = round(share * 8 * 700.0, 3)
    site.rate_rps = rate_rps
    snapshot = site.snapshot(0.0)
    starts = tuple((number, age_s) for number in range(ready, 4))
    prefill, decode = snapshot.pools
    snapshot = replace(snapshot, pools=(prefill, replace(decode, starts=starts)))
    decision = decide(snapshot, site.settings)
    before_w = sum(site.booked_w)
    after = list(site.booked_w)
    for gpu, cap_w in zip(decision.caps.gpu, decision.caps.cap_w, strict=True):
        after[gpu] = max(after[gpu], cap_w)
    assert sum(after) <= max(before_w, site.budget_w) + 1e-6
