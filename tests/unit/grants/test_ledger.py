"""The ledger's rules one by one; `test_protocol_properties.py` takes them all at once."""

from __future__ import annotations

import pytest
from ledger_fixtures import LIMITS, acted, granted, introduce, known_ledger, report

from wattline.core.errors import InputError
from wattline.grants.answers import Refusal, RefusalReason
from wattline.grants.book import GpuLimits
from wattline.grants.exposure import Cause, Exposure
from wattline.grants.ledger import Ledger

ASKED = 2
"""Sequence of the first question to a GPU: 1 is the doubt in which its first report put it."""


def reason(answer: object) -> RefusalReason:
    assert isinstance(answer, Refusal)
    return answer.reason


# 8 first know, then raise


def test_a_gpu_that_never_reported_is_booked_at_its_largest_limit() -> None:
    ledger = Ledger({0: LIMITS, 1: LIMITS}, 1100.0, 100.0)
    assert ledger.total_booked_w == 1400.0
    assert ledger.exposure_w == 400.0
    assert ledger.free_w == 0.0
    assert reason(ledger.grant(0, 300.0, 0.0)) is RefusalReason.NOT_HEARD


def test_a_bound_from_the_log_takes_the_place_of_the_largest_limit() -> None:
    ledger = Ledger({0: LIMITS, 1: LIMITS}, 1100.0, 100.0, epoch=2, booked_mw={0: 300_000})
    assert (ledger.booked_w(0), ledger.booked_w(1)) == (300.0, 700.0)


def test_a_first_report_books_what_it_shows_once_it_is_answered_and_has_settled() -> None:
    ledger = Ledger({0: LIMITS}, 1000.0, 0.0)
    ledger.on_report(report(0, 0, 1, 400.0), now_s=5.0)
    ledger.advance(60.0)
    assert ledger.booked_w(0) == 700.0, "nobody had asked for that report"
    adopt = ledger.adopt(0)
    assert adopt is not None
    ledger.on_report(report(0, adopt.sequence, 2, 400.0), now_s=65.0)
    ledger.advance(66.9)
    assert ledger.booked_w(0) == 700.0
    ledger.advance(67.0)
    assert ledger.booked_w(0) == 400.0


def test_time_that_a_limit_has_stood_counts_as_settled() -> None:
    ledger = known_ledger(gpus=1)
    lower = granted(ledger.grant(0, 400.0, now_s=3.0))
    ledger.on_report(acted(lower, 2, standing_s=1.5), now_s=5.0)
    ledger.advance(5.5)
    assert ledger.booked_w(0) == 400.0


def test_an_adoption_is_asked_for_once_until_it_is_answered() -> None:
    ledger = Ledger({0: LIMITS}, 1000.0, 0.0)
    assert ledger.adopt(0) is None
    ledger.on_report(report(0, 0, 1, 400.0), now_s=0.0)
    assert ledger.adopt(0) == ledger.adopt(0)


def test_while_too_much_is_booked_grants_only_lower() -> None:
    """Even within a booking: what is booked may not be what is enforced."""
    ledger = Ledger({0: LIMITS, 1: LIMITS}, 1000.0, 100.0)
    introduce(ledger, 0, 400.0)
    ledger.on_report(report(1, 0, 1, 300.0), now_s=0.0)
    assert ledger.booked_w(1) == 700.0
    assert granted(ledger.grant(1, 600.0, now_s=0.0)).lowers_only
    assert granted(ledger.grant(1, 500.0, now_s=0.0)).lowers_only is False, "400 and 500 W fit"
    assert reason(ledger.grant(0, 500.0, now_s=0.0)) is RefusalReason.NO_FREE_WATTS


# 1 only an answer proves


def test_a_report_under_an_older_epoch_leaves_the_gpu_unknown() -> None:
    ledger = Ledger({0: LIMITS}, 1000.0, 0.0, epoch=3)
    ledger.on_report(report(0, 9, 1, 400.0, epoch=2, standing_s=60.0), now_s=0.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 700.0


def test_a_new_incarnation_frees_nothing_until_it_answers() -> None:
    ledger = known_ledger(gpus=1, budget_w=800.0)
    granted(ledger.grant(0, 600.0, now_s=0.0))
    ledger.on_report(report(0, 0, 1, 250.0, incarnation=8, standing_s=60.0), now_s=1.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 600.0
    adopt = ledger.adopt(0)
    assert adopt is not None
    ledger.on_report(
        report(0, adopt.sequence, 2, 250.0, incarnation=8, standing_s=60.0), now_s=101.0
    )
    assert ledger.booked_w(0) == 250.0


def test_a_report_delayed_from_before_a_restart_frees_nothing() -> None:
    ledger = known_ledger(gpus=1, budget_w=1000.0)
    ledger.on_report(report(0, 0, 1, 700.0, incarnation=8), now_s=1.0)
    assert ledger.booked_w(0) == 700.0
    ledger.on_report(report(0, ASKED, 9, 300.0, incarnation=7, standing_s=60.0), now_s=2.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 700.0
    again = ledger.adopt(0)
    assert again is not None
    ledger.on_report(report(0, 0, 2, 700.0, incarnation=8), now_s=101.0)
    ledger.advance(200.0)
    assert ledger.booked_w(0) == 700.0


def test_an_incarnation_that_is_over_is_not_listened_to() -> None:
    ledger = known_ledger(gpus=1, budget_w=1000.0)
    introduce(ledger, 0, 400.0, incarnation=8, now_s=1.0)
    ledger.advance(10.0)
    assert not ledger.on_report(report(0, 1, 99, 700.0, incarnation=7), now_s=10.0)
    assert ledger.booked_w(0) == 400.0


def test_of_two_unknown_incarnations_the_one_that_answers_counts() -> None:
    """Incarnations have no order: whichever answers a later question is the living one."""
    ledger = known_ledger(gpus=1, budget_w=1000.0)
    for number in range(3):
        ledger.on_report(report(0, 0, number, 300.0, incarnation=9), now_s=1.0)
        ledger.on_report(report(0, 0, number, 450.0, incarnation=8), now_s=1.0)
    adopt = ledger.adopt(0)
    assert adopt is not None
    assert adopt.incarnation == 8
    answer = report(0, adopt.sequence, 5, 450.0, incarnation=8, standing_s=60.0)
    assert ledger.on_report(answer, now_s=1.0)
    assert ledger.booked_w(0) == 450.0
    assert not ledger.on_report(report(0, 0, 9, 700.0, incarnation=9), now_s=2.0)


def test_repeated_and_late_reports_are_ignored() -> None:
    ledger = known_ledger()
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    assert ledger.on_report(acted(lower, 5), now_s=2.0)
    ledger.advance(4.0)
    assert not ledger.on_report(report(0, 1, 3, 700.0), now_s=5.0)
    assert not ledger.on_report(acted(lower, 5, enforced_w=700.0), now_s=5.0)
    assert ledger.booked_w(0) == 300.0


def test_a_node_that_forgot_its_grants_is_in_doubt_until_it_answers() -> None:
    ledger = known_ledger(budget_w=2000.0)
    lower = granted(ledger.grant(0, 300.0, now_s=0.0))
    ledger.on_report(acted(lower, 2), now_s=1.0)
    ledger.advance(3.0)
    assert ledger.booked_w(0) == 300.0
    ledger.on_report(report(0, 1, 3, 250.0), now_s=4.0)
    assert ledger.booked_w(0) == 700.0
    adopt = ledger.adopt(0)
    assert adopt is not None
    ledger.on_report(report(0, adopt.sequence, 4, 250.0), now_s=5.0)
    ledger.advance(7.0)
    assert ledger.booked_w(0) == 250.0


@pytest.mark.parametrize(("epoch", "sequence"), [(2, 1), (1, 99)], ids=["newer", "same epoch"])
def test_a_report_of_another_coordinators_grant_books_the_largest_limit(
    epoch: int, sequence: int
) -> None:
    ledger = known_ledger()
    ledger.on_report(report(0, sequence, 2, 300.0, epoch=epoch), now_s=1.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 700.0


# 2 lower, verify, settle, raise


def test_lowering_frees_nothing_before_the_report_and_the_settle_time() -> None:
    ledger = known_ledger()
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    assert ledger.booked_w(0) == 500.0
    ledger.advance(1000.0)
    assert ledger.booked_w(0) == 500.0, "silence frees nothing"
    ledger.on_report(acted(lower, 2), now_s=1001.0)
    assert ledger.booked_w(0) == 500.0
    ledger.advance(1002.999)
    assert ledger.free_w == 0.0
    ledger.advance(1003.0)
    assert (ledger.booked_w(0), ledger.free_w) == (300.0, 200.0)


def test_a_report_of_an_older_grant_does_not_release() -> None:
    ledger = known_ledger()
    ledger.grant(0, 300.0, now_s=1.0)
    ledger.on_report(report(0, ASKED, 2, 300.0, held_w=500.0, standing_s=60.0), now_s=5.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 500.0


def test_a_lowering_that_the_hardware_did_not_follow_stays_booked() -> None:
    ledger = known_ledger()
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    ledger.on_report(acted(lower, 2, enforced_w=500.0), now_s=2.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 500.0
    assert ledger.found_above_w == {0: 200.0}


def test_a_write_under_way_stays_booked() -> None:
    ledger = known_ledger(budget_w=1500.0)
    granted(ledger.grant(0, 700.0, now_s=1.0))
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    ledger.on_report(acted(lower, 2, enforced_w=300.0, held_w=700.0), now_s=2.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 700.0


def test_a_raise_takes_free_watts_only() -> None:
    ledger = known_ledger()
    assert reason(ledger.grant(1, 600.0, now_s=1.0)) is RefusalReason.NO_FREE_WATTS
    lower = granted(ledger.grant(0, 400.0, now_s=1.0))
    assert isinstance(ledger.grant(1, 600.0, now_s=1.5), Refusal)
    ledger.on_report(acted(lower, 2), now_s=2.0)
    assert isinstance(ledger.grant(1, 600.0, now_s=3.9), Refusal)
    assert granted(ledger.grant(1, 600.0, now_s=4.0)).watts == 600.0
    assert ledger.total_booked_w == 1000.0


def test_a_raise_back_within_the_old_booking_needs_no_free_watts() -> None:
    ledger = known_ledger()
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    back = granted(ledger.grant(0, 450.0, now_s=1.1))
    assert back.sequence == lower.sequence + 1
    assert not back.lowers_only
    assert ledger.booked_w(0) == 500.0


def test_of_several_unproven_grants_the_largest_is_booked() -> None:
    ledger = known_ledger(budget_w=2000.0)
    sent = [granted(ledger.grant(0, watts, now_s=1.0)) for watts in (600.0, 300.0, 400.0)]
    assert ledger.booked_w(0) == 600.0
    ledger.on_report(acted(sent[1], 2), now_s=2.0)
    ledger.advance(4.0)
    assert ledger.booked_w(0) == 400.0, "the last grant may still be obeyed"


def test_lowering_every_second_releases_each_level_in_its_turn() -> None:
    ledger = known_ledger(gpus=1)
    for step in range(5):
        grant = granted(ledger.grant(0, 450.0 - 50.0 * step, now_s=float(step)))
        ledger.on_report(acted(grant, step + 2), now_s=float(step))
        expected_w = 500.0 if step < 2 else 500.0 - 50.0 * (step - 1)
        assert ledger.booked_w(0) == expected_w


def test_what_a_node_declined_is_free_again() -> None:
    ledger = known_ledger(gpus=1, budget_w=1000.0)
    rise = granted(ledger.grant(0, 700.0, now_s=0.0))
    assert ledger.granted_w(0) == 700.0
    ledger.on_report(acted(rise, 2, enforced_w=500.0, held_w=500.0, standing_s=60.0), now_s=1.0)
    assert (ledger.booked_w(0), ledger.granted_w(0)) == (500.0, 500.0)


def test_many_small_unproven_lowerings_stay_bounded_and_safe() -> None:
    ledger = known_ledger(gpus=1, budget_w=5000.0, start_w=600.0)
    sent = [granted(ledger.grant(0, 600.0 - step, now_s=1.0)) for step in range(200)]
    ledger.on_report(acted(sent[99], 2), now_s=2.0)
    ledger.advance(100.0)
    assert 501.0 <= ledger.booked_w(0) <= 600.0
    ledger.on_report(acted(sent[199], 3), now_s=200.0)
    ledger.advance(300.0)
    assert ledger.booked_w(0) == 401.0


# 3 silence, and attested release


def test_a_silent_gpu_without_persistence_mode_is_booked_at_its_largest_limit() -> None:
    ledger = Ledger({0: LIMITS, 1: LIMITS}, 1000.0, 0.0, silent_after_s=10.0)
    introduce(ledger, 0, 300.0)
    introduce(ledger, 1, 300.0)
    ledger.on_report(report(0, ASKED, 2, 300.0, persistence=False), now_s=1.0)
    ledger.advance(10.9)
    assert (ledger.booked_w(0), ledger.booked_w(1)) == (300.0, 300.0)
    ledger.advance(11.0)
    assert (ledger.booked_w(0), ledger.booked_w(1)) == (700.0, 300.0)
    ledger.set_budget(900.0, 0.0, now_s=11.0)
    assert ledger.exposures == (Exposure(Cause.SILENT, 100.0, 0),)
    ledger.on_report(report(0, ASKED, 3, 300.0, persistence=False, standing_s=60.0), now_s=12.0)
    assert ledger.booked_w(0) == 700.0, "that report may have been made before the silence"
    adopt = ledger.adopt(0)
    assert adopt is not None
    ledger.on_report(
        report(0, adopt.sequence, 4, 300.0, persistence=True, standing_s=60.0), now_s=13.0
    )
    ledger.advance(1000.0)
    assert ledger.booked_w(0) == 300.0
    ledger.check()


def test_a_gpu_that_keeps_reporting_is_never_silent() -> None:
    ledger = Ledger({0: LIMITS}, 1000.0, 0.0, silent_after_s=10.0)
    introduce(ledger, 0, 300.0)
    for second in range(60):
        heard = report(0, ASKED, 2 + second, 300.0, persistence=None)
        ledger.on_report(heard, now_s=float(second))
    assert ledger.booked_w(0) == 300.0
    assert len(ledger._silences) == 1


def test_an_attested_release_frees_and_a_later_report_undoes_it() -> None:
    ledger = known_ledger()
    ledger.release(0, now_s=1.0)
    assert ledger.booked_w(0) == 0.0
    grant = granted(ledger.grant(1, 700.0, now_s=1.0))
    ledger.on_report(acted(grant, 2), now_s=2.0)
    ledger.on_report(report(0, ASKED, 2, 450.0), now_s=3.0)
    assert ledger.booked_w(0) == 500.0, "what it may have held when it was released"
    adopt = ledger.adopt(0)
    assert adopt is not None
    ledger.on_report(report(0, adopt.sequence, 3, 450.0, standing_s=60.0), now_s=4.0)
    assert ledger.booked_w(0) == 450.0
    assert ledger.exposures == (Exposure(Cause.FOUND_ABOVE, 150.0, 0),)


def test_what_is_released_is_neither_granted_to_nor_missed() -> None:
    ledger = Ledger({0: LIMITS}, 1000.0, 0.0, silent_after_s=10.0)
    introduce(ledger, 0, 300.0)
    ledger.on_report(report(0, ASKED, 2, 300.0, persistence=False), now_s=1.0)
    ledger.release(0, now_s=2.0)
    assert reason(ledger.grant(0, 300.0, now_s=2.0)) is RefusalReason.RELEASED
    ledger.advance(1000.0)
    assert ledger.booked_w(0) == 0.0


def test_gpus_come_and_go_at_run_time() -> None:
    ledger = known_ledger()
    ledger.add(2, LIMITS)
    assert ledger.total_booked_w == 1700.0
    with pytest.raises(InputError, match="once"):
        ledger.add(2, LIMITS)
    with pytest.raises(InputError, match="release it first"):
        ledger.remove(0)
    ledger.release(0, now_s=0.0)
    ledger.remove(0)
    assert list(ledger.gpus) == [1, 2]
    ledger.check()


def test_a_gpu_that_comes_back_gets_no_sequence_twice() -> None:
    ledger = known_ledger(budget_w=2000.0)
    last = granted(ledger.grant(0, 600.0, now_s=0.0))
    ledger.release(0, now_s=0.0)
    ledger.remove(0)
    ledger.add(0, LIMITS)
    ledger.on_report(acted(last, 9), now_s=1.0)
    assert ledger.booked_w(0) == 700.0
    adopt = ledger.adopt(0)
    assert adopt is not None
    assert adopt.sequence > last.sequence


# Input


@pytest.mark.parametrize("watts", [199.0, 701.0])
def test_a_grant_outside_the_gpus_range_is_refused(watts: float) -> None:
    answer = known_ledger(budget_w=5000.0).grant(0, watts, now_s=1.0)
    assert reason(answer) is RefusalReason.OUT_OF_RANGE


@pytest.mark.parametrize("watts", [float("nan"), float("inf"), -1.0])
def test_watts_that_are_no_watts_are_refused_with_a_word(watts: float) -> None:
    ledger = known_ledger()
    with pytest.raises(InputError, match="finite"):
        ledger.on_report(report(0, 1, 9, watts, held_w=500.0), now_s=1.0)
    with pytest.raises(InputError, match="finite"):
        ledger.on_report(report(0, 1, 9, 500.0, held_w=watts), now_s=1.0)
    with pytest.raises(InputError, match="finite"):
        ledger.set_budget(watts, 0.0, now_s=1.0)
    assert ledger.on_report(report(0, 1, 9, 500.0), now_s=1.0), "a bad report leaves no trace"


@pytest.mark.parametrize(
    "limits",
    [GpuLimits(300.0, 200.0, 2.0), GpuLimits(200.0, 300.0, -1.0), GpuLimits(-1.0, 300.0, 2.0)],
    ids=["swapped", "settle time", "negative"],
)
def test_limits_that_are_none_are_refused(limits: GpuLimits) -> None:
    with pytest.raises(InputError, match="limits of GPU 0"):
        Ledger({0: limits}, 1000.0, 0.0)


def test_a_copy_goes_its_own_way() -> None:
    ledger = known_ledger()
    other = ledger.copy()
    assert other.freeze() == ledger.freeze()
    granted(other.grant(0, 300.0, now_s=1.0))
    other.release(1, now_s=1.0)
    assert other.freeze() != ledger.freeze()
    assert ledger.booked_column_w() == (500.0, 500.0)
    ledger.check()
    other.check()
