"""The cap response: what must hold for any parameters, and the shape of the cliff."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.power import CapResponse

shares = st.floats(0.0, 1.0)
positive = st.floats(0.05, 1.0)


@st.composite
def responses(draw: st.DrawFn) -> CapResponse:
    return CapResponse(
        static_w=draw(st.floats(20.0, 300.0)),
        compute_w=draw(st.floats(10.0, 900.0)),
        memory_w=draw(st.floats(0.0, 400.0)),
        idle_w=draw(st.floats(10.0, 120.0)),
        stall=draw(shares),
        gamma=draw(st.floats(1.0, 3.5)),
        voltage_floor=draw(positive),
        clock_min=draw(positive),
        memory_knee=draw(positive),
        memory_low=draw(st.sampled_from((1.0, 0.5))),
        overlap=draw(shares),
    )


seconds = st.floats(0.0, 0.5)
work = st.tuples(st.floats(1e-4, 0.5), seconds, seconds)
caps = st.floats(140.0, 1500.0)

TYPICAL = CapResponse(static_w=130.0, compute_w=480.0, memory_w=180.0, idle_w=80.0)
PREFILL = (0.1, 0.03, 0.003)
DECODE = (0.003, 0.02, 0.003)


@given(responses(), work, caps, caps)
@settings(deadline=None)
def test_more_cap_is_never_slower(
    response: CapResponse, pass_s: tuple[float, float, float], a: float, b: float
) -> None:
    low, high = sorted((a, b))
    slow, fast = response.settle(*pass_s, low), response.settle(*pass_s, high)
    assert fast.duration_s <= slow.duration_s
    assert fast.clock >= slow.clock
    assert fast.power_w >= slow.power_w - 1e-3 or slow.power_w <= low


@given(responses(), work, caps, positive, positive)
@settings(deadline=None)
def test_a_higher_clock_ceiling_is_never_slower(
    response: CapResponse, pass_s: tuple[float, float, float], cap: float, a: float, b: float
) -> None:
    low, high = sorted((a, b))
    slower = response.settle(*pass_s, cap, low)
    assert response.settle(*pass_s, cap, high).duration_s <= slower.duration_s


@given(responses(), work, caps)
@settings(deadline=None)
def test_power_obeys_the_cap(
    response: CapResponse, pass_s: tuple[float, float, float], cap: float
) -> None:
    # Caps of these tests lie above every idle draw, as real limits do.
    assert response.settle(*pass_s, cap).power_w <= cap


@given(responses(), work, caps)
@settings(deadline=None)
def test_the_clock_is_the_highest_that_obeys(
    response: CapResponse, pass_s: tuple[float, float, float], cap: float
) -> None:
    settled = response.settle(*pass_s, cap)
    level = round(settled.clock * 1000)
    if response.watts(*pass_s, max(0.001, response.clock_min)) > cap:
        return
    assert response.watts(*pass_s, level / 1000) <= cap + 1e-6
    if level < 1000:
        assert response.watts(*pass_s, (level + 1) / 1000) > cap - 1e-6


def test_a_loose_cap_leaves_full_speed() -> None:
    settled = TYPICAL.settle(*DECODE, 700.0)
    assert settled.clock == 1.0
    assert settled.duration_s == pytest.approx(0.02 + 0.15 * 0.003 + 0.003)
    assert settled.power_w < 700.0


def test_prefill_pays_for_a_cap_that_decode_does_not_feel() -> None:
    prefill = (
        TYPICAL.settle(*PREFILL, 450.0).duration_s / TYPICAL.settle(*PREFILL, 700.0).duration_s
    )
    decode = TYPICAL.settle(*DECODE, 450.0).duration_s / TYPICAL.settle(*DECODE, 700.0).duration_s
    assert prefill > 1.15
    assert decode < 1.02


def test_decode_is_flat_down_to_its_memory_floor_and_then_falls_off() -> None:
    full = TYPICAL.settle(*DECODE, 700.0).duration_s
    assert TYPICAL.settle(*DECODE, 350.0).duration_s < 1.1 * full
    assert TYPICAL.settle(*DECODE, 180.0).duration_s > 3.0 * full


def test_duty_cycling_meets_a_cap_below_the_lowest_clock() -> None:
    lowest = TYPICAL.watts(*PREFILL, TYPICAL.clock_min)
    cap = (lowest + TYPICAL.idle_w) / 2.0
    settled = TYPICAL.settle(*PREFILL, cap)
    assert settled.power_w == pytest.approx(cap)
    at_lowest = TYPICAL.settle(*PREFILL, 700.0, TYPICAL.clock_min).duration_s
    assert settled.duration_s == pytest.approx(2.0 * at_lowest)


def test_a_board_that_cannot_duty_cycle_overdraws_and_says_so() -> None:
    stubborn = CapResponse(
        static_w=110.0, compute_w=250.0, memory_w=30.0, idle_w=30.0, lowest_duty=1.0, memory_low=0.5
    )
    settled = stubborn.settle(*DECODE, 100.0)
    assert settled.power_w > 100.0
    assert settled.duration_s < 10.0 * stubborn.settle(*DECODE, 350.0).duration_s


def test_no_work_takes_no_time_and_draws_idle_watts() -> None:
    assert TYPICAL.settle(0.0, 0.0, 0.0, 700.0) == (1.0, 0.0, 80.0)


@given(st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.floats(0.5, 1.5))
@settings(max_examples=30, deadline=None)
def test_perturbing_keeps_full_load_watts(exponent: float, static: float, floor: float) -> None:
    moved = TYPICAL.perturbed(exponent=exponent, static=static, floor=floor)
    # Fully busy arithmetic at full clock: what a measurement at the default limit sees.
    assert moved.watts(1.0, 0.0, 0.0, 1.0) == pytest.approx(TYPICAL.watts(1.0, 0.0, 0.0, 1.0))
    assert moved.gamma >= 1.0


def test_not_perturbing_changes_nothing() -> None:
    assert TYPICAL.perturbed() == TYPICAL


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": 0.5}, {"stall": 1.2}, {"clock_min": 0.0}, {"memory_knee": -0.1}, {"lowest_duty": 0}],
)
def test_parameters_that_break_the_order_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"gamma|between 0 and 1"):
        CapResponse(**{"static_w": 1.0, "compute_w": 1.0, "memory_w": 1.0, "idle_w": 1.0, **wrong})
