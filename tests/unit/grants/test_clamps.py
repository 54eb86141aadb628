"""A limit that an out-of-band clamp hides is held until a write has taken it back."""

from __future__ import annotations

import pytest

from wattline.grants.messages import Grant
from wattline.grants.node import Node
from wattline.grants.node_state import Found, JournalledGpu, Outcome

GPU = "GPU-a"


def started(requested_w: float | None, journalled_w: float | None = None) -> Node[str]:
    """A node that starts while its GPU is held at 395 W out of band."""
    node: Node[str] = Node({}, incarnation=7)
    journalled = None if journalled_w is None else JournalledGpu(journalled_w)
    node.add_gpu(GPU, Found(395.0, 200.0, 700.0, requested_w), 0.0, journalled)
    return node


def grant(node: Node[str], sequence: int, watts: float) -> Outcome:
    return node.on_grant(
        Grant(
            gpu=GPU,
            incarnation=node.incarnation,
            epoch=1,
            sequence=sequence,
            watts=watts,
            brake_w=200.0,
            lease_s=60.0,
        ),
        1.0,
    )


def held_w(node: Node[str], now_s: float = 1.0) -> float:
    return node.report(GPU, now_s).held_w


@pytest.mark.parametrize("journalled_w", [None, 523.0, 300.0], ids=str)
def test_a_start_under_a_clamp_reports_what_comes_back(journalled_w: float | None) -> None:
    node = started(523.0, journalled_w)
    assert held_w(node) == 523.0
    assert node.held_w(GPU) <= 395.0, "leave to write no more than was found"


def test_without_a_clamp_or_a_register_to_read_nothing_is_added() -> None:
    assert held_w(started(395.0)) == 395.0
    assert held_w(started(None)) == 395.0


def test_a_clamp_that_comes_later_hides_nothing_from_the_books() -> None:
    node = started(395.0)
    node.on_enforced(GPU, 250.0, 1.0, requested_w=395.0)
    assert held_w(node) == 395.0
    node.on_enforced(GPU, 250.0, 2.0)  # the register could not be read: it is as it was
    assert held_w(node) == 395.0
    node.on_enforced(GPU, 395.0, 3.0, requested_w=395.0)
    assert node.report(GPU, 3.0).enforced_w == 395.0, "booked as found, now that it is back"


def test_a_granted_limit_is_written_even_where_the_clamp_is_at_it_already() -> None:
    node = started(523.0)
    assert node.write_due(GPU, 1.0) is None, "what was only found is not written back"
    assert grant(node, 1, 395.0) is Outcome.ACCEPTED
    assert held_w(node) == 523.0
    assert node.write_due(GPU, 1.0) == 395.0
    node.begin_write(GPU, 395.0, 1.0)
    node.end_write(GPU, 395.0, 1.1, requested_w=395.0)
    assert held_w(node) == 395.0
    assert node.write_due(GPU, 1.2) is None


def test_a_write_that_is_refused_is_tried_again_in_time_and_frees_nothing() -> None:
    node = started(523.0)
    grant(node, 1, 300.0)
    waits_s = []
    now_s = 1.0
    for _ in range(4):
        since_s = now_s
        while node.write_due(GPU, now_s) is None:
            now_s += 0.1
        waits_s.append(now_s - since_s)
        node.begin_write(GPU, 300.0, now_s)
        node.end_write(GPU, 395.0, now_s, requested_w=523.0)  # no permission, say
        assert held_w(node, now_s) == 523.0
    assert waits_s[0] == waits_s[1] == 0.0
    assert waits_s[3] > waits_s[2] > 0.5


def test_what_another_writer_asked_for_under_the_clamp_is_reported_too() -> None:
    node = started(395.0)
    grant(node, 1, 395.0)
    node.on_enforced(GPU, 250.0, 1.0, requested_w=700.0)
    assert held_w(node) == 700.0
    assert node.write_due(GPU, 1.0) == 395.0
