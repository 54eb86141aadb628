"""The node's side of the protocol, rule by rule."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from wattline.core.errors import InputError
from wattline.grants.messages import Adopt, Grant
from wattline.grants.node import LONGEST_BACKOFF_S, Node
from wattline.grants.node_state import FOREVER_S, Found, Journalled, JournalledGpu, Outcome, Why

FOUND = Found(enforced_w=500.0, min_w=200.0, max_w=700.0)
START = 100


def new_node(
    gpus: int = 1, *, journal: Journalled[int] | None = None, found: Found = FOUND
) -> Node[int]:
    return Node(dict.fromkeys(range(gpus), found), incarnation=START, journal=journal)


def grant(
    watts: float,
    sequence: int = 1,
    gpu: int = 0,
    *,
    epoch: int = 1,
    incarnation: int = START,
    brake_w: float = 250.0,
    lease_s: float = 30.0,
    expiry_w: float | None = None,
    budget_version: int | None = None,
    lowers_only: bool = False,
) -> Grant[int]:
    return Grant(
        gpu=gpu,
        incarnation=incarnation,
        epoch=epoch,
        sequence=sequence,
        watts=watts,
        brake_w=brake_w,
        lease_s=lease_s,
        expiry_w=expiry_w,
        budget_version=budget_version,
        lowers_only=lowers_only,
    )


def adopt(sequence: int, *, epoch: int = 1, incarnation: int = START) -> Adopt[int]:
    return Adopt(gpu=0, incarnation=incarnation, epoch=epoch, sequence=sequence)


def obey(node: Node[int], order: Grant[int], now_s: float = 0.0) -> None:
    """Accept a grant and enforce it at once."""
    assert node.on_grant(order, now_s) is Outcome.ACCEPTED
    watts = node.write_due(order.gpu, now_s)
    if watts is not None:
        node.begin_write(order.gpu, watts, now_s)
        node.end_write(order.gpu, watts, now_s)


# 1 grants


def test_a_grant_is_held_wanted_and_written() -> None:
    node = new_node()
    assert node.why(0) is Why.FOUND
    assert node.write_due(0, 0.0) is None
    assert node.on_grant(grant(600.0), 0.0) is Outcome.ACCEPTED
    assert (node.held_w(0), node.wanted_w(0), node.write_due(0, 0.0)) == (600.0, 600.0, 600.0)
    assert node.why(0) is Why.GRANTED


@pytest.mark.parametrize(
    ("order", "outcome"),
    [
        (grant(600.0, 9, incarnation=99), Outcome.OTHER_INCARNATION),
        (grant(600.0, 9, epoch=1), Outcome.OLDER_EPOCH),
        (grant(600.0, 2, epoch=2), Outcome.OLDER_SEQUENCE),
        (grant(100.0, 9, epoch=2), Outcome.OUT_OF_RANGE),
        (grant(701.0, 9, epoch=2), Outcome.OUT_OF_RANGE),
        (grant(600.0, 9, gpu=5, epoch=2), Outcome.UNKNOWN_GPU),
    ],
    ids=lambda value: value.value if isinstance(value, Outcome) else "",
)
def test_what_is_not_to_be_obeyed_changes_nothing(order: Grant[int], outcome: Outcome) -> None:
    node = new_node()
    obey(node, grant(400.0, 3, epoch=2))
    before = node.freeze()
    assert node.on_grant(order, 1.0) is outcome
    assert not outcome.acted
    assert node.freeze() == before


def test_an_epoch_taken_up_for_one_gpu_fences_all() -> None:
    node = new_node(2)
    assert node.on_adopt(adopt(1, epoch=3)) is Outcome.ACCEPTED
    assert node.on_grant(grant(600.0, 9, gpu=1, epoch=2), 0.0) is Outcome.OLDER_EPOCH
    report = node.report(1, 0.0)
    assert (report.epoch, report.sequence) == (3, 0)


def test_an_adoption_is_answered_and_takes_nothing() -> None:
    node = new_node()
    obey(node, grant(600.0, 1))
    assert node.on_adopt(adopt(4)) is Outcome.ACCEPTED
    assert node.on_adopt(adopt(4)) is Outcome.RENEWED
    assert node.on_adopt(adopt(3)) is Outcome.OLDER_SEQUENCE
    assert node.on_adopt(replace(adopt(5), gpu=8)) is Outcome.UNKNOWN_GPU
    report = node.report(0, 1.0)
    assert (report.sequence, report.held_w) == (4, 600.0)
    assert node.on_grant(grant(700.0, 3), 1.0) is Outcome.OLDER_SEQUENCE


def test_a_grant_that_lowers_only_raises_nothing() -> None:
    node = new_node()
    obey(node, grant(500.0, 1))
    node.on_enforced(0, 300.0, 1.0)  # somebody else lowered it
    assert node.on_grant(grant(450.0, 2, lowers_only=True), 1.0) is Outcome.ACCEPTED
    node.on_enforced(0, 300.0, 2.0)
    assert (node.held_w(0), node.write_due(0, 2.0)) == (300.0, None)
    assert node.on_grant(grant(600.0, 3, lowers_only=True), 2.0) is Outcome.ACCEPTED
    assert node.held_w(0) == 300.0


# 1 journal, restart


def test_a_restart_without_journal_holds_what_it_finds() -> None:
    node = new_node(found=replace(FOUND, enforced_w=650.0))
    assert (node.held_w(0), node.epoch, node.write_due(0, 0.0)) == (650.0, 0, None)


@pytest.mark.parametrize(("found_w", "holds_w"), [(300.0, 300.0), (500.0, 400.0)])
def test_a_restart_holds_no_more_than_its_journal_says(found_w: float, holds_w: float) -> None:
    before = new_node()
    obey(before, grant(400.0, 3, epoch=5, lease_s=30.0, expiry_w=220.0, budget_version=4))
    node = new_node(journal=before.journal_state(), found=replace(FOUND, enforced_w=found_w))
    assert node.held_w(0) == holds_w
    assert node.write_due(0, 0.0) == (None if found_w <= holds_w else holds_w)
    assert (node.epoch, node.budget_version) == (5, 4)
    assert node.on_grant(grant(600.0, 99, epoch=4), 0.0) is Outcome.OLDER_EPOCH
    node.tick(30.0)
    assert node.held_w(0) == 220.0, "a lease goes on after a restart, from its beginning"


def test_the_journal_knows_the_brake_watts() -> None:
    before = new_node()
    obey(before, grant(400.0, brake_w=260.0))
    node = new_node(journal=before.journal_state())
    node.brake()
    assert node.held_w(0) == 260.0


def test_what_was_only_found_is_never_written_back() -> None:
    node = new_node(found=replace(FOUND, enforced_w=700.0))
    node.on_enforced(0, 300.0, 1.0)
    assert (node.held_w(0), node.write_due(0, 1.0)) == (300.0, None)


# 2 writes


def test_a_write_under_way_is_held_until_it_is_read_back() -> None:
    node = new_node()
    node.on_grant(grant(600.0, 1), 0.0)
    node.begin_write(0, 600.0, 0.0)
    assert node.on_grant(grant(300.0, 2), 0.1) is Outcome.ACCEPTED
    assert node.write_due(0, 0.1) is None, "one write at a time"
    assert node.report(0, 0.1).held_w == 600.0
    node.end_write(0, None, 0.2)
    assert node.report(0, 0.2).held_w == 600.0, "it could not be read back"
    assert node.write_due(0, 0.2) == 300.0
    node.on_enforced(0, 600.0, 0.3)
    assert node.report(0, 0.3).held_w == 300.0


def test_a_limit_stands_since_the_last_doubt_about_it() -> None:
    node = new_node()
    obey(node, grant(400.0, 1), 1.0)
    assert node.report(0, 5.0).standing_s == 4.0
    node.on_grant(grant(600.0, 2), 6.0)
    node.begin_write(0, 600.0, 6.0)
    node.end_write(0, 400.0, 7.0)  # it failed, and 600 W may have stood in between
    assert node.report(0, 8.0).standing_s == 1.0


def test_reports_are_numbered_in_the_order_of_making() -> None:
    node = new_node(2)
    numbers = [report.report_sequence for _ in range(2) for report in node.reports(0.0)]
    assert numbers == [1, 2, 3, 4]


# 3 leases


def test_a_lease_that_ends_sends_the_gpu_to_its_expiry_watts() -> None:
    node = new_node()
    obey(node, grant(600.0, lease_s=30.0, expiry_w=300.0), 10.0)
    assert node.next_deadline_s() == 40.0
    assert node.tick(39.9) == ()
    assert node.tick(40.0) == (0,)
    assert (node.wanted_w(0), node.why(0)) == (300.0, Why.EXPIRED)
    assert node.incarnation == START + 1
    assert node.tick(50.0) == ()


@pytest.mark.parametrize("expiry_w", [None, 650.0])
def test_without_lower_expiry_watts_a_gpu_stays_where_it_is(expiry_w: float | None) -> None:
    node = new_node()
    obey(node, grant(600.0, lease_s=30.0, expiry_w=expiry_w))
    assert node.tick(30.0) == (0,)
    assert (node.wanted_w(0), node.incarnation, node.why(0)) == (600.0, START, Why.EXPIRED)


def test_the_same_grant_again_renews_its_lease() -> None:
    node = new_node()
    obey(node, grant(600.0, lease_s=30.0, expiry_w=300.0))
    assert node.on_grant(grant(600.0, lease_s=30.0, expiry_w=300.0), 20.0) is Outcome.RENEWED
    assert node.tick(49.0) == ()
    assert node.tick(50.0) == (0,)
    answer = node.on_grant(grant(600.0, lease_s=30.0, expiry_w=300.0), 51.0)
    assert answer is Outcome.OTHER_INCARNATION, "what it gave up comes back by a new grant only"


# 7 brake


def test_a_brake_needs_nobody_and_makes_a_new_incarnation() -> None:
    node = new_node(2)
    obey(node, grant(600.0, 1, brake_w=300.0))
    node.brake(budget_version=8)
    assert [node.write_due(gpu, 0.0) for gpu in (0, 1)] == [300.0, 200.0]
    assert node.why(0) is Why.BRAKED
    assert node.on_grant(grant(700.0, 2), 0.0) is Outcome.OTHER_INCARNATION
    report = node.report(0, 0.0)
    assert (report.sequence, report.held_w, report.budget_version) == (0, 300.0, 8)
    assert node.on_grant(grant(500.0, 3, incarnation=START + 1), 0.0) is Outcome.ACCEPTED
    assert node.why(0) is Why.GRANTED


def test_a_brake_never_raises() -> None:
    node = new_node(found=replace(FOUND, enforced_w=220.0))
    node.on_grant(grant(220.0, brake_w=400.0), 0.0)
    node.brake()
    assert node.held_w(0) == 220.0


def test_no_raise_under_an_older_budget_is_obeyed() -> None:
    node = new_node()
    node.brake(budget_version=8)
    start = START + 1
    raised = grant(600.0, 1, incarnation=start, budget_version=7)
    assert node.on_grant(raised, 0.0) is Outcome.DECLINED_BUDGET
    assert (node.held_w(0), node.report(0, 0.0).sequence) == (200.0, 1)
    assert (
        node.on_grant(grant(600.0, 2, incarnation=start, budget_version=8), 0.0) is Outcome.ACCEPTED
    )


# The operator


def test_a_hold_obeys_lowerings_only() -> None:
    node = new_node()
    node.hold()
    assert node.why(0) is Why.HELD
    assert node.on_grant(grant(600.0, 1), 0.0) is Outcome.DECLINED_OPERATOR
    report = node.report(0, 0.0)
    assert (report.sequence, report.held_w) == (1, 500.0)
    assert node.on_grant(grant(300.0, 2), 0.0) is Outcome.ACCEPTED
    node.resume()
    assert node.on_grant(grant(600.0, 3), 0.0) is Outcome.ACCEPTED


def test_a_pin_stays_within_what_is_held() -> None:
    node = new_node()
    obey(node, grant(600.0))
    assert not node.pin(0, 601.0)
    assert not node.pin(0, 199.0)
    assert node.pin(0, 400.0)
    assert (node.wanted_w(0), node.held_w(0), node.why(0)) == (400.0, 600.0, Why.PINNED)
    obey(node, grant(400.0, 2))
    assert node.why(0) is Why.PINNED
    obey(node, grant(300.0, 3))
    assert (node.wanted_w(0), node.why(0)) == (300.0, Why.GRANTED)
    obey(node, grant(700.0, 4))
    assert node.wanted_w(0) == 400.0
    node.resume(0)
    assert node.wanted_w(0) == 700.0


def test_restoring_is_a_raise() -> None:
    node = new_node()
    obey(node, grant(400.0))
    assert not node.restore(0, 500.0)
    assert node.wanted_w(0) == 400.0
    obey(node, grant(600.0, 2))
    assert node.restore(0, 500.0)
    assert (node.wanted_w(0), node.why(0)) == (500.0, Why.RESTORED)
    obey(node, grant(550.0, 3))
    assert (node.wanted_w(0), node.why(0)) == (550.0, Why.GRANTED)


# 6 rivals


def test_a_rival_is_repaired_at_once_and_then_with_growing_pauses() -> None:
    node = new_node()
    obey(node, grant(400.0))
    repairs = []
    for second in range(1, 240):
        node.on_enforced(0, 700.0, float(second))  # the rival writes every second
        assert node.rival_w(0) == 700.0
        watts = node.write_due(0, float(second))
        if watts is not None:
            node.begin_write(0, watts, float(second))
            assert node.rival_w(0) is None
            node.end_write(0, watts, float(second))
            repairs.append(second)
    pauses = [later - earlier for earlier, later in itertools.pairwise(repairs)]
    assert repairs[0] == 1
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_BACKOFF_S
    assert node.state(0).repairs == len(repairs)


def test_a_limit_that_cannot_be_written_is_not_fought_for_ever() -> None:
    node = new_node()
    assert node.on_grant(grant(300.0), 0.0) is Outcome.ACCEPTED
    writes = 0
    now_s = 0.0
    while now_s < 1000.0:
        watts = node.write_due(0, now_s)
        if watts is not None:
            writes += 1
            node.begin_write(0, watts, now_s)
            node.end_write(0, 450.0, now_s)  # a floor set out of band
        now_s = max(now_s + 0.5, node.next_deadline_s() if node.next_deadline_s() > now_s else 0)
        if now_s == FOREVER_S:
            break
        node.tick(now_s)
    assert 3 < writes < 30
    assert node.rival_w(0) == 450.0


def test_the_pause_is_forgotten_after_peace() -> None:
    node = new_node()
    obey(node, grant(400.0))
    for second in (1.0, 2.0, 4.0):
        node.on_enforced(0, 700.0, second)
        assert node.write_due(0, second) == 400.0
        node.begin_write(0, 400.0, second)
        node.end_write(0, 400.0, second)
    for second in range(5, 60):
        node.on_enforced(0, 400.0, float(second))
    node.on_enforced(0, 700.0, 60.0)
    assert node.write_due(0, 60.0) == 400.0


def test_a_limit_found_below_the_range_is_left_alone() -> None:
    node = new_node(found=replace(FOUND, enforced_w=150.0))
    node.on_enforced(0, 300.0, 1.0)
    assert node.write_due(0, 1.0) is None
    assert node.next_deadline_s() == FOREVER_S


def test_a_range_that_shrank_bounds_what_is_wanted() -> None:
    node = new_node()
    obey(node, grant(600.0))
    node.set_range(0, 200.0, 450.0)
    assert (node.wanted_w(0), node.held_w(0)) == (450.0, 600.0)


# GPUs that come and go


def test_gpus_come_and_go() -> None:
    node = new_node()
    node.add_gpu(1, replace(FOUND, enforced_w=650.0), 0.0, JournalledGpu(held_w=300.0))
    node.set_persistence(1, True)
    assert list(node.gpus) == [0, 1]
    assert node.write_due(1, 0.0) == 300.0
    assert node.report(1, 0.0).persistence is True
    assert node.report(0, 0.0).persistence is None
    node.drop_gpu(0)
    assert list(node.gpus) == [1]
    assert node.on_grant(grant(400.0), 0.0) is Outcome.UNKNOWN_GPU


def test_a_copy_goes_its_own_way() -> None:
    node = new_node()
    other = node.copy()
    assert other.freeze() == node.freeze()
    obey(other, grant(300.0))
    assert other.freeze() != node.freeze()
    assert node.held_w(0) == 500.0


def test_watts_that_are_no_watts_are_refused_with_a_word() -> None:
    node = new_node()
    with pytest.raises(InputError, match="finite"):
        node.on_enforced(0, float("nan"), 1.0)
    with pytest.raises(InputError, match="finite"):
        node.on_grant(grant(float("inf")), 1.0)
    with pytest.raises(InputError, match="finite"):
        node.pin(0, -1.0)
