"""What admission may count on after limits have moved."""

from dataclasses import replace

import numpy as np
from decision_fixtures import make_site
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.decide import decide
from wattline.core.fleet import Setting
from wattline.core.followed import Recent, followed, with_newest

LOW, HIGH = Setting(300.0), Setting(600.0)


def seen(caps_w: list[float], settle_s: float) -> list[float]:
    """Caps that are counted on, second by second."""
    recent: Recent = ()
    out = []
    for second, cap_w in enumerate(caps_w):
        recent = with_newest(recent, float(second), Setting(cap_w), settle_s)
        out.append(followed(recent).cap_w)
    return out


def test_a_raise_counts_after_the_settle_time_and_a_lowering_at_once() -> None:
    assert seen([300, 600, 600, 600, 300, 300], 2.0) == [300, 300, 300, 600, 300, 300]
    assert seen([300, 400, 500, 600, 600, 600], 2.0) == [300, 300, 300, 400, 500, 600]
    assert seen([300, 600], 0.0) == [300, 600]


def test_a_clock_ceiling_counts_like_a_cap() -> None:
    recent = with_newest((), 0.0, Setting(600.0, 0.5), 2.0)
    recent = with_newest(recent, 1.0, Setting(500.0, 1.0), 2.0)
    assert followed(recent) == Setting(500.0, 0.5)


@given(
    st.lists(st.sampled_from([200.0, 300.0, 450.0, 700.0]), min_size=1, max_size=60),
    st.integers(0, 6),
)
def test_it_is_the_least_within_the_settle_time_and_remembers_no_more(
    caps_w: list[float], settle_s: int
) -> None:
    recent: Recent = ()
    for second, cap_w in enumerate(caps_w):
        recent = with_newest(recent, float(second), Setting(cap_w), float(settle_s))
        window = caps_w[max(0, second - settle_s) : second + 1]
        assert followed(recent).cap_w == np.min(window)
        assert len(recent) <= settle_s + 1


def test_a_frontend_is_told_of_a_raise_when_the_chips_can_follow() -> None:
    site = make_site()
    settle_s = max(product.settle_s for product in site.fleet.products)
    state, told = None, []
    for second in range(8):
        caps = [LOW if second < 3 else HIGH] * len(site.fleet.pools)
        decision = decide(site.snapshot(float(second), state, settings=caps), site.settings)
        state = decision.next_state
        told.append(decision.admission[0].active_prefill_tokens)
    raised = 3 + int(np.ceil(settle_s))
    low, high = told[0], told[-1]
    assert low is not None
    assert high is not None
    assert low < high
    assert told[:raised] == [low] * raised
    assert told[raised:] == [high] * (8 - raised)


def test_a_state_that_remembers_nothing_counts_on_what_is_in_force() -> None:
    site = make_site()
    state = decide(site.snapshot(0.0), site.settings).next_state
    assert state is not None
    pools = tuple(replace(pool, in_force=()) for pool in state.pools)
    forgotten = replace(state, pools=pools)
    caps = [HIGH] * len(site.fleet.pools)
    again = decide(site.snapshot(1.0, forgotten, settings=caps), site.settings)
    fresh = decide(site.snapshot(1.0, settings=caps), site.settings)
    assert again.admission == fresh.admission
