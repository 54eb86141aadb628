"""The observer's arithmetic: every watt-second above the budget has one who answers for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.virtual.account import FORGET_S, Account, Exposure

START = {"a": 400_000, "b": 400_000}


def account(budget_mw: int = 1_000_000, guard_mw: int = 0) -> Account:
    return Account(START, budget_mw, guard_mw, 0.0)


def one(entries: list[Exposure]) -> Exposure:
    (entry,) = entries
    return entry


def test_peace_costs_nothing() -> None:
    book = account()
    book.change(1, "a", 600_000, None)
    book.change(2, "a", 300_000, None)
    book.change(3, "b", 700_000, None)
    book.finish(9)
    assert (book.ours_watt_seconds, book.ours, book.exposures) == (0.0, [], [])
    assert book.most_enforced_mw == 1_000_000
    assert book.least_margin_mw == 0


def test_a_raise_of_ours_above_the_budget_is_ours_until_it_ends() -> None:
    book = account(guard_mw=100_000)
    book.change(1, "a", 600_000, None)
    book.change(3, "b", 350_000, None)
    book.change(4, "a", 550_000, None)
    book.finish(9)
    assert book.ours_watt_seconds == pytest.approx(100 * 2 + 50 * 1)
    assert [(over.at_s, over.gpu, over.over_w) for over in book.ours] == [(1, "a", 100.0)]
    assert book.exposures == []


def test_a_write_of_ours_under_an_outside_floor_moves_the_level_and_not_the_limit() -> None:
    book = account()
    book.change(1, "a", 550_000, "out of band")  # 950 W: within the budget, known to nobody yet
    book.change(2, "a", 550_000, None, requested_mw=350_000)
    book.change(3, "b", 600_000, None)  # 350 + 600 W by us: within the budget
    book.change(5, "a", 350_000, "lifted", requested_mw=350_000)
    book.finish(9)
    exposure = one(book.exposures)
    assert exposure.watt_seconds == pytest.approx(150 * 2)
    assert (exposure.kind, exposure.end_s) == ("out of band", 5)
    assert (book.ours_watt_seconds, book.ours) == (0.0, [])


def test_a_raise_of_ours_under_an_outside_floor_is_ours_once_it_counts() -> None:
    book = account()
    book.change(1, "a", 550_000, "out of band")
    book.change(2, "a", 550_000, None, requested_mw=500_000)
    book.change(3, "b", 550_000, None)  # 500 + 550 W by us, and 50 W by the floor
    book.finish(5)
    assert book.ours_watt_seconds == pytest.approx(50 * 2)
    assert one(book.exposures).watt_seconds == pytest.approx(50 * 2)


def test_a_rival_answers_for_his_raise_until_it_is_repaired() -> None:
    book = account()
    book.change(1, "a", 700_000, "rival")
    book.change(3, "a", 400_000, None)
    book.finish(9)
    exposure = one(book.exposures)
    assert exposure.watt_seconds == pytest.approx(100 * 2)
    assert (exposure.kind, exposure.gpu) == ("rival", "a")
    assert (exposure.start_s, exposure.end_s) == (1, 3)
    assert exposure.over_spans == [(1, 3)]
    assert book.ours_watt_seconds == 0.0


def test_a_raise_on_its_way_is_not_ours_when_a_rival_took_the_watts() -> None:
    book = account()
    book.change(1, "a", 600_000, "rival")
    book.change(2, "b", 500_000, None)
    book.change(3, "a", 400_000, None)
    book.finish(9)
    assert one(book.exposures).watt_seconds == pytest.approx(100)
    assert book.ours_watt_seconds == 0.0


def test_a_part_repair_leaves_the_rest_with_the_rival() -> None:
    book = account()
    book.change(1, "a", 700_000, "rival")
    book.change(2, "a", 650_000, None)
    book.change(4, "b", 350_000, None)
    book.finish(9)
    assert one(book.exposures).watt_seconds == pytest.approx(100 * 1 + 50 * 2)
    assert book.ours_watt_seconds == 0.0


def test_a_raise_beyond_what_the_rival_took_is_ours() -> None:
    book = account()
    book.change(1, "a", 600_000, "rival")
    book.change(2, "b", 700_000, None)
    book.change(4, "b", 400_000, None)
    book.finish(9)
    assert one(book.exposures).watt_seconds == pytest.approx(200 * 2)
    assert book.ours_watt_seconds == pytest.approx(100 * 2)


def test_what_others_lower_is_not_kept_for_us() -> None:
    """The watts that a rival took away may be granted elsewhere; putting them back is his doing."""
    book = account()
    book.change(1, "a", 200_000, "rival")
    book.change(2, "b", 700_000, None)
    book.change(3, "a", 400_000, "rival")
    book.change(5, "a", 300_000, None)
    book.finish(9)
    assert one(book.exposures).watt_seconds == pytest.approx(100 * 2)
    assert book.ours_watt_seconds == 0.0


def test_a_harmless_raise_is_known_after_a_while() -> None:
    book = account()
    book.change(1, "a", 500_000, "rival")
    book.change(1 + 2 * FORGET_S, "b", 400_000, None)
    book.change(2 + 2 * FORGET_S, "b", 600_000, None)
    book.finish(3 + 2 * FORGET_S)
    assert book.ours_watt_seconds == pytest.approx(100)


def test_a_cut_is_judged_from_when_it_is_in_force() -> None:
    book = account()
    book.set_budget(2, 700_000)
    book.change(3, "a", 350_000, None)
    book.change(4, "b", 350_000, None)
    book.finish(9)
    exposure = one(book.exposures)
    assert (exposure.kind, exposure.gpu) == ("cut", None)
    assert exposure.watt_seconds == pytest.approx(100 + 50)
    assert (exposure.start_s, exposure.end_s) == (2, 4)


def test_a_raise_after_a_cut_is_ours() -> None:
    book = account()
    book.set_budget(2, 700_000)
    book.change(3, "b", 450_000, None)
    book.change(4, "a", 200_000, None)
    book.finish(9)
    assert book.ours_watt_seconds == pytest.approx(50)
    assert one(book.exposures).watt_seconds == pytest.approx(200)


GPUS = ("a", "b", "c")
STEPS = st.lists(
    st.tuples(
        st.floats(0.01, 7.0),
        st.sampled_from((*GPUS, "budget")),
        st.integers(100, 900),
        st.sampled_from((None, None, "rival", "reload")),
        st.none() | st.integers(100, 900),
    ),
    max_size=40,
)


@given(STEPS, st.integers(0, 100))
def test_every_watt_second_above_the_budget_is_charged_once(
    steps: list[tuple[float, str, int, str | None, int | None]], guard_w: int
) -> None:
    book = Account(dict.fromkeys(GPUS, 300_000), 1_000_000, guard_w * 1000, 0.0)
    level_w, budget_w = dict.fromkeys(GPUS, 300), 1000
    now_s, over_ws = 0.0, 0.0
    for wait_s, what, watts, cause, requested_w in steps:
        over_ws += max(0, sum(level_w.values()) + guard_w - budget_w) * wait_s
        now_s += wait_s
        if what == "budget":
            budget_w = 3 * watts
            book.set_budget(now_s, budget_w * 1000)
        else:
            level_w[what] = watts
            requested_mw = None if requested_w is None else requested_w * 1000
            book.change(now_s, what, watts * 1000, cause, requested_mw=requested_mw)
    book.finish(now_s)
    charged_ws = book.ours_watt_seconds + sum(each.watt_seconds for each in book.exposures)
    assert charged_ws == pytest.approx(over_ws, rel=1e-9, abs=1e-6)


@given(STEPS)
def test_without_outside_events_all_of_it_is_ours(
    steps: list[tuple[float, str, int, str | None, int | None]],
) -> None:
    book = Account(dict.fromkeys(GPUS, 300_000), 1_000_000, 0, 0.0)
    level_w = dict.fromkeys(GPUS, 300)
    now_s, over_ws = 0.0, 0.0
    for wait_s, gpu, watts, *_ in steps:
        if gpu == "budget":
            continue
        over_ws += max(0, sum(level_w.values()) - 1000) * wait_s
        now_s += wait_s
        level_w[gpu] = watts
        book.change(now_s, gpu, watts * 1000, None)
    assert book.ours_watt_seconds == pytest.approx(over_ws, rel=1e-9, abs=1e-6)
    assert book.exposures == []


def test_a_raise_of_ours_that_is_taken_back_is_over_even_while_a_cut_lasts() -> None:
    book = account()
    book.set_budget(2, 700_000)
    book.change(3, "b", 425_000, None)
    book.change(4, "b", 400_000, None)
    book.change(8, "a", 200_000, None)
    book.finish(9)
    assert book.ours_watt_seconds == pytest.approx(25 * 1)
    assert one(book.exposures).watt_seconds == pytest.approx(100 * 6)
