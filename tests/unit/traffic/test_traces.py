"""Traces as columns: cutting, scaling, merging, measuring."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.errors import InputError
from wattline.sim.request import Request
from wattline.sim.traces import HASH_BLOCK_TOKENS, Trace, for_deployment, make_trace, merge


def trace_of(requests: list[Request], duration_s: float) -> Trace:
    counts = [len(r.prefix_hashes) for r in requests]
    return Trace(
        time_s=np.array([r.time_s for r in requests]),
        input_tokens=np.array([r.input_tokens for r in requests], dtype=np.int64),
        output_tokens=np.array([r.output_tokens for r in requests], dtype=np.int64),
        deployment=np.array([r.deployment for r in requests], dtype=np.int64),
        hash_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        hashes=np.array([h for r in requests for h in r.prefix_hashes], dtype=np.int64),
        duration_s=duration_s,
        source="test",
        format="test",
    )


REQUESTS = st.lists(
    st.builds(
        Request,
        time_s=st.integers(0, 100_000).map(lambda ms: ms / 1e3),
        input_tokens=st.integers(1, 5000),
        output_tokens=st.integers(1, 500),
        deployment=st.integers(0, 1),
        prefix_hashes=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=30,
).map(lambda requests: sorted(requests, key=lambda r: r.time_s))


@given(requests=REQUESTS)
@settings(max_examples=50, derandomize=True, deadline=None)
def test_iterating_gives_the_requests_each_time(requests: list[Request]) -> None:
    trace = trace_of(requests, 100.0)
    assert list(trace) == requests
    assert list(trace) == requests


@given(requests=REQUESTS, cut=st.floats(0.001, 99.999))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_two_cuts_hold_all_requests_between_them(requests: list[Request], cut: float) -> None:
    trace = trace_of(requests, 100.001)
    pieces = []
    for from_s, until_s in ((0.0, cut), (cut, None)):
        try:
            pieces += [
                (r.input_tokens, r.output_tokens, r.prefix_hashes)
                for r in trace.cut(from_s, until_s)
            ]
        except InputError as error:
            assert "no request" in str(error)  # noqa: PT017  # an empty piece is a refusal
    assert pieces == [(r.input_tokens, r.output_tokens, r.prefix_hashes) for r in requests]


def test_cut_counts_time_anew_and_says_so() -> None:
    trace = make_trace(
        np.array([0.0, 5.0, 9.0]),
        np.array([1, 2, 3]),
        np.array([1, 1, 1]),
        duration_s=10.0,
        source="t",
    )
    piece = trace.cut(4.0, 8.0)
    assert piece.time_s.tolist() == [1.0]
    assert piece.duration_s == 4.0
    assert "Cut to 4 s to 8 s" in piece.notes[0]
    assert trace.cut() is trace


@pytest.mark.parametrize(
    ("from_s", "until_s"), [(-1.0, None), (5.0, 5.0), (10.0, None), (6.0, 7.0)]
)
def test_empty_or_impossible_cuts_are_refused(from_s: float, until_s: float | None) -> None:
    trace = make_trace(
        np.array([0.0, 5.0]), np.array([1, 2]), np.array([1, 1]), duration_s=10.0, source="t"
    )
    with pytest.raises(InputError, match="t: cut"):
        trace.cut(from_s, until_s)


def test_scaling_compresses_time_and_keeps_requests() -> None:
    trace = make_trace(
        np.array([0.0, 5.0]), np.array([1, 2]), np.array([1, 1]), duration_s=10.0, source="t"
    )
    faster = trace.scaled(2.0)
    assert faster.time_s.tolist() == [0.0, 2.5]
    assert faster.duration_s == 5.0
    assert faster.mix().rate_rps == 2.0 * trace.mix().rate_rps
    assert "compressed by 2" in faster.notes[0]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_impossible_scales_are_refused(factor: float) -> None:
    trace = make_trace(np.array([0.0]), np.array([1]), np.array([1]), duration_s=1.0, source="t")
    with pytest.raises(InputError, match="load scale"):
        trace.scaled(factor)


@given(left=REQUESTS, right=REQUESTS)
@settings(max_examples=40, derandomize=True, deadline=None)
def test_merging_keeps_order_and_keeps_prefixes_apart(
    left: list[Request], right: list[Request]
) -> None:
    parts = [for_deployment(trace_of(r, 100.0), i) for i, r in enumerate((left, right))]
    merged = list(merge(parts))
    assert [r.time_s for r in merged] == sorted(r.time_s for r in (*left, *right))
    for index, original in enumerate((left, right)):
        mine = [r for r in merged if r.deployment == index]
        assert [(r.time_s, r.input_tokens) for r in mine] == [
            (r.time_s, r.input_tokens) for r in original
        ]
        # The same blocks within a part stay the same blocks.
        renamed = [h for r in mine for h in r.prefix_hashes]
        names = [h for r in original for h in r.prefix_hashes]
        assert len(set(zip(renamed, names, strict=True))) == len(set(names)) == len(set(renamed))
    blocks = [{h for r in merged if r.deployment == i for h in r.prefix_hashes} for i in (0, 1)]
    assert not blocks[0] & blocks[1]


def test_mix_against_a_hand_count() -> None:
    block = HASH_BLOCK_TOKENS
    trace = trace_of(
        [
            Request(0.0, 2 * block, 10, 0, (1, 2)),
            Request(1.0, 2 * block + 100, 20, 0, (1, 2, 3)),
            Request(2.0, 3 * block, 30, 0, (1, 9, 3)),  # only the leading run counts
            Request(3.0, block, 40, 1, (1,)),  # another deployment: another cache
        ],
        8.0,
    )
    mix = trace.mix()
    assert mix.rate_rps == 0.5
    assert mix.mean_output_tokens == 25.0
    assert mix.output_cv2 == pytest.approx(125.0 / 625.0)
    total = 8 * block + 100
    assert mix.mean_input_tokens == total / 4
    assert mix.cached_share == pytest.approx(3 * block / total)
    assert trace.mix(1).cached_share == 0.0
    with pytest.raises(InputError, match="no request for it"):
        trace.mix(2)


def test_reuse_of_a_trace_without_hashes_is_unknown_not_zero() -> None:
    trace = make_trace(np.array([0.0]), np.array([1]), np.array([1]), duration_s=1.0, source="t")
    assert trace.mix().cached_share is None


def test_walking_a_trace_takes_little_memory() -> None:
    count = 200_000
    tracemalloc.start()
    ones = np.ones(count, dtype=np.int64)
    trace = make_trace(np.arange(count) / 1e3, ones, ones, duration_s=1e3, source="t")
    held = sum(1 for _ in trace)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held == count
    # A million requests in 120 MB.
    assert peak < 120 * count


def test_a_small_prefix_cache_finds_less_than_one_that_never_forgets() -> None:
    prompts = [(1, 2, 3), (4, 5, 6), (1, 2, 3), (1, 2, 7)]
    plain = make_trace(
        np.arange(4.0),
        np.full(4, 3 * HASH_BLOCK_TOKENS),
        np.full(4, 10),
        duration_s=4.0,
        source="test",
    )
    trace = replace(plain, hashes=np.array(prompts).ravel(), hash_start=np.array([0, 3, 6, 9, 12]))
    roomy, tight = 100 * HASH_BLOCK_TOKENS, 3 * HASH_BLOCK_TOKENS
    assert trace.cached_share(0, roomy) == pytest.approx(5 / 12, abs=1e-6)
    assert trace.cached_share(0, tight) == pytest.approx(2 / 12, abs=1e-6)
    assert trace.cached_share(1, roomy) == 0.0
