"""The ledger's rules one by one; `test_ledger_properties.py` takes them all at once."""

import pytest

from wattline.core.errors import InputError
from wattline.grants.ledger import GpuLimits, Grant, Ledger, Refusal, RefusalReason, Report

LIMITS = GpuLimits(min_w=200.0, max_w=700.0, settle_s=2.0)


def known_ledger(
    gpus: int = 2, budget_w: float = 1100.0, guard_w: float = 100.0, start_w: float = 500.0
) -> Ledger:
    """Return a ledger whose GPUs all stand at `start_w`, settled."""
    ledger = Ledger([LIMITS] * gpus, budget_w, guard_w)
    for gpu in range(gpus):
        ledger.on_report(Report(gpu, 1, 0, 1, start_w, standing_s=60.0), now_s=0.0)
    return ledger


def granted(answer: Grant | Refusal) -> Grant:
    assert isinstance(answer, Grant)
    return answer


def acted(grant: Grant, number: int, enforced_w: float | None = None) -> Report:
    limit_w = grant.watts if enforced_w is None else enforced_w
    return Report(grant.gpu, grant.epoch, grant.sequence, number, limit_w)


def test_a_gpu_that_never_reported_is_booked_at_its_largest_limit() -> None:
    ledger = Ledger([LIMITS, LIMITS], 1100.0, 100.0)
    assert ledger.total_booked_w == 1400.0
    assert ledger.exposure_w == 400.0
    assert ledger.free_w == 0.0


def test_a_first_report_books_what_it_shows_once_it_has_settled() -> None:
    ledger = Ledger([LIMITS], 1000.0, 0.0)
    ledger.on_report(Report(0, 1, 0, 1, 400.0), now_s=5.0)
    assert ledger.booked_w(0) == 700.0
    ledger.advance(6.9)
    assert ledger.booked_w(0) == 700.0
    ledger.advance(7.0)
    assert ledger.booked_w(0) == 400.0


def test_time_that_a_limit_has_stood_counts_as_settled() -> None:
    ledger = Ledger([LIMITS], 1000.0, 0.0)
    ledger.on_report(Report(0, 1, 0, 1, 400.0, standing_s=1.5), now_s=5.0)
    ledger.advance(5.5)
    assert ledger.booked_w(0) == 400.0


def test_a_report_under_an_older_epoch_leaves_the_gpu_unknown() -> None:
    ledger = Ledger([LIMITS], 1000.0, 0.0, epoch=3)
    ledger.on_report(Report(0, 2, 9, 1, 400.0, standing_s=60.0), now_s=0.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 700.0


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
    ledger.on_report(Report(0, 1, 0, 2, 300.0, standing_s=60.0), now_s=5.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 500.0


def test_a_lowering_that_the_hardware_did_not_follow_stays_booked() -> None:
    ledger = known_ledger()
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    ledger.on_report(acted(lower, 2, enforced_w=500.0), now_s=2.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 500.0
    assert ledger.found_above_w == {0: 200.0}


def test_a_raise_takes_free_watts_only() -> None:
    ledger = known_ledger()
    refused = ledger.grant(1, 600.0, now_s=1.0)
    assert isinstance(refused, Refusal)
    assert refused.reason is RefusalReason.NO_FREE_WATTS
    lower = granted(ledger.grant(0, 400.0, now_s=1.0))
    assert isinstance(ledger.grant(1, 600.0, now_s=1.5), Refusal)
    ledger.on_report(acted(lower, 2), now_s=2.0)
    assert isinstance(ledger.grant(1, 600.0, now_s=3.9), Refusal)
    assert granted(ledger.grant(1, 600.0, now_s=4.0)).watts == 600.0
    assert ledger.total_booked_w == 1000.0


def test_a_raise_back_within_the_old_booking_needs_no_free_watts() -> None:
    ledger = known_ledger()
    ledger.grant(0, 300.0, now_s=1.0)
    assert granted(ledger.grant(0, 450.0, now_s=1.1)).sequence == 2
    assert ledger.booked_w(0) == 500.0


def test_of_several_unproven_grants_the_largest_is_booked() -> None:
    ledger = known_ledger(budget_w=2000.0)
    for watts in (600.0, 300.0, 400.0):
        ledger.grant(0, watts, now_s=1.0)
    assert ledger.booked_w(0) == 600.0
    ledger.on_report(Report(0, 1, 2, 2, 300.0), now_s=2.0)
    ledger.advance(4.0)
    assert ledger.booked_w(0) == 400.0, "grant 3 may still be obeyed"


def test_lowering_every_second_releases_each_level_in_its_turn() -> None:
    ledger = known_ledger(gpus=1)
    for step in range(5):
        grant = granted(ledger.grant(0, 450.0 - 50.0 * step, now_s=float(step)))
        ledger.on_report(acted(grant, step + 2), now_s=float(step))
        expected_w = 500.0 if step < 2 else 500.0 - 50.0 * (step - 1)
        assert ledger.booked_w(0) == expected_w


def test_repeated_and_late_reports_are_ignored() -> None:
    ledger = known_ledger()
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    assert ledger.on_report(acted(lower, 5), now_s=2.0)
    ledger.advance(4.0)
    assert not ledger.on_report(Report(0, 1, 0, 3, 700.0), now_s=5.0)
    assert not ledger.on_report(acted(lower, 5, enforced_w=700.0), now_s=5.0)
    assert ledger.booked_w(0) == 300.0


def test_a_rival_writer_is_booked_as_found_and_named() -> None:
    ledger = known_ledger()
    hold = granted(ledger.grant(1, 500.0, now_s=0.0))
    ledger.on_report(acted(hold, 2, enforced_w=650.0), now_s=1.0)
    assert ledger.booked_w(1) == 650.0
    assert ledger.exposure_w == 150.0
    assert ledger.found_above_w == {1: 150.0}
    assert isinstance(ledger.grant(0, 501.0, now_s=1.0), Refusal)
    repaired = granted(ledger.grant(1, 500.0, now_s=1.0))
    ledger.on_report(acted(repaired, 3), now_s=2.0)
    ledger.advance(4.0)
    assert (ledger.exposure_w, ledger.found_above_w) == (0.0, {})


def test_a_node_that_forgot_its_grants_is_in_doubt_until_it_acts_on_the_newest() -> None:
    ledger = known_ledger(budget_w=2000.0)
    first = granted(ledger.grant(0, 600.0, now_s=0.0))
    second = granted(ledger.grant(0, 300.0, now_s=0.0))
    ledger.on_report(acted(second, 2), now_s=1.0)
    ledger.advance(3.0)
    assert ledger.booked_w(0) == 300.0
    ledger.on_report(Report(0, 1, 0, 3, 250.0), now_s=4.0)
    assert ledger.booked_w(0) == 700.0
    ledger.on_report(acted(first, 4), now_s=5.0)
    ledger.advance(50.0)
    assert ledger.booked_w(0) == 700.0, "an old grant proves nothing"
    ledger.on_report(acted(second, 5), now_s=51.0)
    ledger.advance(53.0)
    assert ledger.booked_w(0) == 300.0


def test_a_report_of_another_coordinators_grant_books_the_largest_limit() -> None:
    ledger = known_ledger()
    ledger.on_report(Report(0, 2, 1, 2, 300.0), now_s=1.0)
    ledger.advance(100.0)
    assert ledger.booked_w(0) == 700.0


def test_a_budget_cut_is_exposure_and_stops_raises() -> None:
    ledger = known_ledger()
    ledger.set_budget(900.0, 100.0, now_s=1.0)
    assert ledger.exposure_w == 200.0
    lower = granted(ledger.grant(0, 300.0, now_s=1.0))
    ledger.on_report(acted(lower, 2), now_s=2.0)
    assert ledger.exposure_w == 200.0
    ledger.advance(4.0)
    assert ledger.exposure_w == 0.0
    assert isinstance(ledger.grant(1, 501.0, now_s=5.0), Refusal)


@pytest.mark.parametrize("watts", [199.0, 701.0])
def test_a_grant_outside_the_gpus_range_is_refused(watts: float) -> None:
    answer = known_ledger(budget_w=5000.0).grant(0, watts, now_s=1.0)
    assert isinstance(answer, Refusal)
    assert answer.reason is RefusalReason.OUT_OF_RANGE


@pytest.mark.parametrize("watts", [float("nan"), float("inf"), -1.0])
def test_watts_that_are_no_watts_are_refused_with_a_word(watts: float) -> None:
    ledger = known_ledger()
    with pytest.raises(InputError, match="finite"):
        ledger.on_report(Report(0, 1, 0, 9, watts), now_s=1.0)
    with pytest.raises(InputError, match="finite"):
        ledger.set_budget(watts, 0.0, now_s=1.0)
    assert ledger.on_report(Report(0, 1, 0, 9, 500.0), now_s=1.0), "a bad report leaves no trace"


def test_many_small_unproven_lowerings_stay_bounded_and_safe() -> None:
    ledger = known_ledger(gpus=1, budget_w=5000.0, start_w=600.0)
    for step in range(200):
        ledger.grant(0, 600.0 - step, now_s=1.0)
    ledger.on_report(Report(0, 1, 100, 2, 501.0), now_s=2.0)
    ledger.advance(100.0)
    assert 501.0 <= ledger.booked_w(0) <= 600.0
    ledger.on_report(Report(0, 1, 200, 3, 401.0), now_s=200.0)
    ledger.advance(300.0)
    assert ledger.booked_w(0) == 401.0
