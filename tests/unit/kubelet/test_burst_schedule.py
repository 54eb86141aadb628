"""When the kubelet is asked: soon after an event, in a bounded burst, and rarely in peace."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.drivers.kubelet.schedule import BURST_S, RECONCILE_S, BurstSchedule


def run(
    schedule: BurstSchedule,
    until_s: float,
    *,
    events: list[float] | None = None,
    settled_at_s: float = float("inf"),
) -> list[float]:
    """Times of the listings when each is made as soon as it is due and takes no time."""
    listings: list[float] = []
    pending = sorted(events or [])
    while True:
        due_s = schedule.next_s()
        if pending and pending[0] <= due_s:
            schedule.event(pending.pop(0))
            continue
        if due_s >= until_s:
            return listings
        listings.append(due_s)
        schedule.listed(due_s, settled=due_s >= settled_at_s)


def test_first_at_once_then_rarely() -> None:
    listings = run(BurstSchedule(10.0), 10.0 + 3 * RECONCILE_S + 1.0)
    assert listings == pytest.approx([10.0 + n * RECONCILE_S for n in range(4)])


def test_an_event_asks_for_a_burst() -> None:
    listings = run(BurstSchedule(0.0), 40.0, events=[5.0])
    assert listings[1:] == pytest.approx([5.0 + offset_s for offset_s in BURST_S])


def test_a_burst_ends_when_nothing_is_waited_for() -> None:
    listings = run(BurstSchedule(0.0), 40.0, events=[5.0], settled_at_s=5.06)
    assert listings[1:] == pytest.approx([5.0, 5.02, 5.05, 5.1])


def test_after_a_burst_the_slow_rhythm_goes_on() -> None:
    listings = run(BurstSchedule(0.0), 100.0, events=[5.0])
    assert listings[-1] == pytest.approx(5.0 + BURST_S[-1] + RECONCILE_S)


def test_an_event_within_a_burst_starts_it_anew() -> None:
    listings = run(BurstSchedule(0.0), 40.0, events=[5.0, 5.3])
    assert [at for at in listings if at >= 5.3] == pytest.approx([5.3 + off for off in BURST_S])


def test_a_listing_that_takes_long_does_not_pile_up_the_next() -> None:
    schedule = BurstSchedule(0.0)
    schedule.event(0.0)
    schedule.listed(0.0, settled=False)
    schedule.listed(1.5, settled=False)
    assert schedule.next_s() == pytest.approx(2.0)


@given(st.lists(st.floats(0.0, 2.0), max_size=300))
def test_storms_are_bounded_and_the_last_event_is_listed(events: list[float]) -> None:
    listings = run(BurstSchedule(0.0), 10.0, events=events)
    gaps = [after - before for before, after in pairwise(listings)]
    assert min(gaps, default=1.0) >= BurstSchedule.MIN_GAP_S - 1e-9
    assert len(listings) <= 2.0 / BurstSchedule.MIN_GAP_S + 2 * len(BURST_S)
    if events:
        assert max(listings) >= max(events)
