"""Invariants along random histories of a fleet that is too big to explore."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.errors import SafetyError
from wattline.verification.big_fleet import BigFleet


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_bookings_cover_what_may_be_drawn(seed: int) -> None:
    fleet = BigFleet(48, random.Random(seed).randrange, rarity=15)
    for exchange in range(400):
        fleet.exchange()
        if exchange % 150 == 149:
            fleet.restart_coordinator()
    fleet.check()
    counts = fleet.counts
    assert min(counts.lost, counts.repeated, counts.grants, counts.coordinator_restarts) > 0
    assert counts.crashes + counts.reboots + counts.rival_writes + counts.brakes > 0


def test_a_booking_that_is_too_small_is_noticed() -> None:
    fleet = BigFleet(16, random.Random(1).randrange)
    for _ in range(100):
        fleet.exchange()
    gpu = fleet.places[0].gpus[0]
    fleet.coordinator.ledger.release(gpu, fleet.now_s)
    with pytest.raises(SafetyError, match=f"GPU {gpu} may draw"):
        fleet.check()
