"""The coordinator's side of the protocol, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledger_fixtures import LIMITS, acted, report

from wattline.core.errors import InputError
from wattline.grants.answers import Refusal, RefusalReason, Terms
from wattline.grants.coordinator import Coordinator, Step
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Adopt, Grant
from wattline.grants.records import (
    Compacted,
    Granted,
    Lowered,
    Opened,
    Record,
    Released,
    may_append,
    next_epoch,
    read_log,
)


def new_coordinator(
    gpus: int = 2,
    *,
    budget_w: float = 1000.0,
    epoch: int = 1,
    booked_mw: dict[int, int] | None = None,
    terms: Terms | None = None,
    budget_version: int | None = None,
    brake_deadline_s: float = 0.0,
) -> Coordinator[int]:
    ledger = Ledger(
        dict.fromkeys(range(gpus), LIMITS), budget_w, 0.0, epoch=epoch, booked_mw=booked_mw
    )
    return Coordinator(
        ledger, terms=terms, budget_version=budget_version, brake_deadline_s=brake_deadline_s
    )


def meet(coordinator: Coordinator[int], watts: dict[int, float], now_s: float = 0.0) -> None:
    """Let nodes report and answer; takes what the coordinator sends for it."""
    for gpu, enforced_w in watts.items():
        coordinator.on_report(report(gpu, 0, 0, enforced_w, epoch=0), now_s)
    for message in coordinator.take().messages:
        answer = report(message.gpu, message.sequence, 1, watts[message.gpu], epoch=message.epoch)
        coordinator.on_report(replace(answer, standing_s=60.0), now_s)


def only_grant(step: Step[int]) -> Grant[int]:
    (message,) = step.messages
    assert isinstance(message, Grant)
    return message


def test_a_new_incarnation_is_asked_what_it_holds() -> None:
    coordinator = new_coordinator()
    coordinator.on_report(report(0, 0, 0, 400.0, epoch=0), 0.0)
    step = coordinator.take()
    assert step.records == ()
    (message,) = step.messages
    assert isinstance(message, Adopt)
    coordinator.on_report(report(0, 0, 1, 400.0, epoch=0), 0.5)
    assert coordinator.take().messages == (), "once is enough until it has been given time"


def test_every_grant_comes_with_the_record_that_must_be_durable_first() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.take()
    coordinator.grant(0, 600.0, 1.0)
    step = coordinator.take()
    grant = only_grant(step)
    assert step.records == (Granted(1, 0, 7, grant.sequence, 600_000, 600_000),)
    assert coordinator.take() == Step((), ())


def test_a_bound_that_fell_is_logged_before_the_grant_that_lives_on_it() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 600.0, 1: 400.0})
    coordinator.take()
    coordinator.grant(0, 300.0, 1.0)
    lower = only_grant(coordinator.take())
    coordinator.on_report(replace(acted(lower, 2), standing_s=5.0), 2.0)
    coordinator.grant(1, 700.0, 2.0)
    kinds = [type(record) for record in coordinator.take().records]
    assert kinds == [Lowered, Granted]


def test_no_prefix_of_the_log_proves_more_than_may_be_booked() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 400.0, 1: 400.0})
    log: list[Record[int]] = [Opened(1), *coordinator.take().records]
    number = 2
    for turn in range(12):
        low, high = turn % 2, 1 - turn % 2
        for gpu, watts in ((low, 300.0), (high, 700.0)):
            coordinator.grant(gpu, watts, float(10 * turn + gpu))
            step = coordinator.take()
            log += step.records
            for message in step.messages:
                assert isinstance(message, Grant)
                number += 1
                coordinator.on_report(acted(message, number, standing_s=9.0), 10.0 * turn + 5.0)
    starts = [length for length in range(len(log)) if len(read_log(log[:length]).booked_mw) == 2]
    assert starts
    for length in starts:
        assert sum(read_log(log[:length]).booked_mw.values()) <= 1_000_000


def test_a_restart_books_the_most_that_may_have_been_granted() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.grant(0, 600.0, 1.0)
    coordinator.grant(0, 300.0, 1.0)
    log: list[Record[int]] = [Opened(1), *coordinator.take().records, Opened(2)]
    state = read_log(log)
    again = new_coordinator(epoch=state.epoch, booked_mw=state.booked_mw)
    assert (again.epoch, again.ledger.booked_w(0), again.ledger.booked_w(1)) == (2, 600.0, 400.0)


def test_a_compacted_log_says_the_same() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 400.0, 1: 350.0})
    coordinator.grant(0, 600.0, 1.0)
    log: list[Record[int]] = [Opened(1), *coordinator.take().records]
    assert read_log([coordinator.compacted()]) == read_log(log)
    assert coordinator.compacted() == Compacted(1, ((0, 600_000), (1, 350_000)))


def test_a_log_is_a_compare_and_swap_on_its_epoch() -> None:
    older: Record[int] = Granted(3, 0, 7, 1, 400_000, 400_000)
    assert may_append(3, older)
    assert not may_append(4, older)
    assert not may_append(2, older), "an epoch is opened before it is used"
    assert not may_append(3, Opened(3))
    assert may_append(3, Opened(4))
    late = Granted(3, 0, 7, 2, 700_000, 700_000)
    log: list[Record[int]] = [Opened(3), older, Opened(4), late]
    assert read_log(log).booked_mw == {0: 400_000}
    assert next_epoch(3, seen_epoch=8) == 9


@pytest.mark.parametrize(("epoch", "sequence"), [(2, 0), (1, 99)], ids=["newer", "same epoch"])
def test_a_report_that_answers_somebody_else_fences(epoch: int, sequence: int) -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.grant(1, 300.0, 1.0)
    coordinator.on_report(report(0, sequence, 5, 400.0, epoch=epoch), 1.0)
    assert coordinator.fenced_by == epoch
    assert coordinator.take() == Step((), ())
    answer = coordinator.grant(1, 300.0, 1.0)
    assert isinstance(answer, Refusal)
    assert answer.reason is RefusalReason.FENCED
    coordinator.due(100.0)
    assert coordinator.take() == Step((), ())
    with pytest.raises(InputError, match="another coordinator"):
        coordinator.release(0, "ann", "off", 1.0)


def test_what_no_report_answers_is_sent_again_and_needs_no_record() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.grant(0, 500.0, 1.0)
    grant = only_grant(coordinator.take())
    coordinator.due(2.9)
    assert coordinator.take().messages == ()
    coordinator.due(3.0)
    assert coordinator.take() == Step((), (grant,))
    coordinator.on_report(acted(grant, 2), 4.0)
    coordinator.due(60.0)
    assert coordinator.take().messages == ()


def test_a_lease_is_renewed_by_the_same_grant_and_needs_no_record() -> None:
    coordinator = new_coordinator(terms=Terms(lease_s=30.0, brake_w=250.0, expiry_w=300.0))
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.grant(0, 450.0, 0.0)
    coordinator.grant(0, 500.0, 0.0)
    _, grant = coordinator.take().messages
    assert isinstance(grant, Grant)
    assert (grant.lease_s, grant.brake_w, grant.expiry_w) == (30.0, 250.0, 300.0)
    coordinator.on_report(acted(grant, 2), 1.0)
    for turn in range(1, 5):
        coordinator.due(10.0 * turn)
        assert coordinator.take() == Step((), (grant,))
        coordinator.due(10.0 * turn + 5.0)
        assert coordinator.take() == Step((), ())


def test_a_lease_of_an_incarnation_that_is_over_is_not_renewed() -> None:
    coordinator = new_coordinator(terms=Terms(lease_s=30.0))
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.grant(0, 500.0, 0.0)
    coordinator.take()
    coordinator.on_report(report(0, 0, 0, 250.0, incarnation=8), 5.0)
    coordinator.take()
    assert coordinator.ledger.granted_w(0) is None
    coordinator.due(10.0)
    assert all(isinstance(message, Adopt) for message in coordinator.take().messages)


def test_no_raise_under_an_older_budget_than_nodes_have_seen() -> None:
    coordinator = new_coordinator(budget_version=3)
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.on_report(replace(report(0, 2, 5, 400.0), budget_version=4), 1.0)
    answer = coordinator.grant(0, 500.0, 1.0)
    assert isinstance(answer, Refusal)
    assert answer.reason is RefusalReason.OLDER_BUDGET
    assert isinstance(coordinator.grant(0, 300.0, 1.0), Grant)
    coordinator.set_budget(1000.0, 0.0, 2.0, version=4)
    raised = coordinator.grant(0, 500.0, 2.0)
    assert isinstance(raised, Grant)
    assert raised.budget_version == 4
    coordinator.set_budget(9000.0, 0.0, 3.0, version=3)
    assert coordinator.ledger.usable_w == 1000.0, "an older version comes too late"


def test_a_cut_is_judged_when_nodes_had_time_to_brake() -> None:
    coordinator = new_coordinator(brake_deadline_s=2.0)
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.set_budget(600.0, 0.0, 10.0)
    assert (coordinator.ledger.usable_w, coordinator.ledger.exposure_w) == (600.0, 0.0)
    coordinator.ledger.advance(12.0)
    assert coordinator.ledger.exposure_w == 200.0
    coordinator.set_budget(900.0, 0.0, 13.0)
    assert coordinator.ledger.exposure_w == 0.0
    coordinator.set_budget(600.0, 0.0, 14.0, effective_s=30.0)
    coordinator.ledger.advance(29.0)
    assert coordinator.ledger.exposure_w == 0.0


def test_a_plan_is_pursued_lowerings_first() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 500.0, 1: 500.0})
    (refused,) = coordinator.pursue({1: 700.0, 0: 300.0}, 1.0)
    assert (refused.gpu, refused.reason) == (1, RefusalReason.NO_FREE_WATTS)
    lower = only_grant(coordinator.take())
    coordinator.on_report(acted(lower, 2), 2.0)
    assert coordinator.pursue({1: 700.0, 0: 300.0}, 4.0) == []
    assert only_grant(coordinator.take()).watts == 700.0
    assert coordinator.pursue({1: 700.0, 0: 300.0}, 5.0) == []
    assert coordinator.take() == Step((), ()), "what is granted already is not granted again"


def test_a_declined_raise_is_tried_again_after_a_while() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 400.0, 1: 400.0})
    coordinator.pursue({0: 600.0}, 1.0)
    number = 2
    sent = []
    for second in range(1, 32):
        for message in coordinator.take().messages:
            assert isinstance(message, Grant)
            sent.append(second)
            number += 1
            answer = acted(message, number, enforced_w=400.0, held_w=400.0, standing_s=60.0)
            coordinator.on_report(answer, float(second))
        coordinator.pursue({0: 600.0}, float(second))
    assert sent == [1, 2, 12, 22]


def test_an_attested_release_is_audited_and_survives_a_restart() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 500.0, 1: 400.0})
    coordinator.take()
    coordinator.release(0, "ann", "node sent to repair", 1.0)
    records = coordinator.take().records
    assert records == (Released(1, 0, "ann", "node sent to repair"),)
    assert isinstance(coordinator.grant(1, 700.0, 1.0), Grant)
    log: list[Record[int]] = [Opened(1), *records, Opened(2)]
    state = read_log(log)
    again = new_coordinator(epoch=state.epoch, booked_mw=state.booked_mw)
    assert again.ledger.booked_w(0) == 0.0
    again.on_report(report(0, 0, 0, 500.0, epoch=1), 2.0)
    assert again.ledger.booked_w(0) == 500.0


def test_a_replaced_gpu_is_a_new_one() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 500.0, 1: 400.0})
    coordinator.add(2, LIMITS)
    assert coordinator.ledger.exposure_w == 600.0
    coordinator.release(0, "ann", "replaced by 2", 1.0)
    coordinator.remove(0)
    coordinator.due(60.0)
    assert coordinator.ledger.gpus == (1, 2)
    assert coordinator.compacted() == Compacted(1, ((1, 400_000), (2, 700_000)))


def test_a_copy_goes_its_own_way() -> None:
    coordinator = new_coordinator()
    meet(coordinator, {0: 400.0, 1: 400.0})
    other = coordinator.copy()
    assert other.freeze() == coordinator.freeze()
    other.grant(0, 600.0, 1.0)
    assert other.freeze() != coordinator.freeze()
    assert coordinator.ledger.booked_w(0) == 400.0


def test_the_same_budget_again_changes_nothing() -> None:
    coordinator = new_coordinator(budget_version=1, brake_deadline_s=5.0)
    meet(coordinator, {0: 400.0, 1: 400.0})
    for now_s in (10.0, 11.0):
        coordinator.set_budget(600.0, 0.0, now_s, version=2)
        assert coordinator.ledger.exposure_w == 0.0, "nodes still have time to brake"
