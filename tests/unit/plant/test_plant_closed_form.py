"""The closed form of decode runs equals a loop over tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_engine import NaiveReplica
from plant_fixtures import PRODUCT, LinearEngine, make_plant, pool

from wattline.core.fleet import Role
from wattline.sim.plant.timing import steps_s, whole_steps
from wattline.sim.request import Request

_requests = st.lists(
    st.tuples(
        st.floats(0.0, 0.3),
        st.integers(1, 700),
        st.integers(1, 120),
    ),
    min_size=1,
    max_size=12,
)


def _trace(rows: list[tuple[float, int, int]]) -> list[Request]:
    now, trace = 0.0, []
    for gap_s, prompt, output in rows:
        # An odd offset keeps arrivals off the exact end of a pass, where the order is a convention.
        now = round(now + gap_s + 1.7e-7, 9)
        trace.append(Request(now, prompt, output))
    return trace


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=_requests, capacity=st.sampled_from([1024, 2048, 4096]), seats=st.integers(1, 8))
def test_the_closed_form_equals_a_loop_over_tokens(
    rows: list[tuple[float, int, int]], capacity: int, seats: int
) -> None:
    engine = LinearEngine(kv_capacity_tokens=capacity, max_num_seqs=seats)
    trace = _trace(rows)
    expected = NaiveReplica(engine, trace, [(0.0, 700.0)]).run()
    plant = make_plant(trace, (pool(Role.AGGREGATED, 1),), engine=engine)
    plant.advance(200.0)
    totals = plant.totals()
    assert totals.preemptions == expected.preemptions
    assert totals.ttft_s.tolist() == pytest.approx(expected.ttft_s, abs=1e-6)
    assert totals.finished_s.tolist() == pytest.approx(expected.finished_s, abs=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=_requests,
    changes=st.lists(
        st.tuples(st.floats(0.001, 1.5), st.integers(200, 700)), min_size=1, max_size=6
    ),
)
def test_a_changed_cap_stretches_what_is_in_flight(
    rows: list[tuple[float, int, int]], changes: list[tuple[float, int]]
) -> None:
    trace = _trace(rows)
    written_s, caps = 0.0, [(0.0, 700.0)]
    plant = make_plant(trace, (pool(Role.AGGREGATED, 1),), engine=LinearEngine())
    for gap_s, cap_w in changes:
        written_s = round(written_s + gap_s, 6)
        plant.advance(written_s)
        plant.write_limit(0, float(cap_w))
        caps.append((written_s + PRODUCT.settle_s, float(cap_w)))
    plant.advance(200.0)
    expected = NaiveReplica(LinearEngine(), trace, caps).run()
    totals = plant.totals()
    assert totals.ttft_s.tolist() == pytest.approx(expected.ttft_s, abs=1e-6)
    assert totals.finished_s.tolist() == pytest.approx(expected.finished_s, abs=1e-6)


def test_small_caches_preempt() -> None:
    trace = _trace([(0.0, 300, 300), (0.0, 300, 300), (0.0, 300, 300)])
    engine = LinearEngine(kv_capacity_tokens=1024)
    plant = make_plant(trace, (pool(Role.AGGREGATED, 1),), engine=engine)
    plant.advance(60.0)
    totals = plant.totals()
    assert totals.preemptions > 0
    assert totals.completed == 3
    assert totals.generated_tokens == 900
    assert not np.isnan(totals.ttft_s).any()


@given(
    count=st.integers(1, 500),
    first_s=st.floats(1e-3, 0.1),
    growth_s=st.floats(0.0, 1e-4),
    done=st.integers(0, 500),
    part=st.floats(0.01, 0.99),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whole_steps_inverts_steps(
    count: int, first_s: float, growth_s: float, done: int, part: float
) -> None:
    done = min(done, count - 1)
    elapsed_s = steps_s(done, first_s, growth_s) + part * (first_s + done * growth_s)
    assert whole_steps(elapsed_s, count, first_s, growth_s) == done
    assert whole_steps(elapsed_s + 1e6, count, first_s, growth_s) == count
