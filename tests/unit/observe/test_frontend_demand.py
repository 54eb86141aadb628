"""From two looks at frontends' pages to one deployment's demand."""

from __future__ import annotations

import re
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from observe_fixtures import page_bytes

from wattline.drivers.dynamo.demand import FrontendDelta, frontend_delta, quantile
from wattline.drivers.dynamo.frontend import FrontendScrape, frontend_families, read_frontend
from wattline.drivers.dynamo.pages import Histogram, Missing, parse_page

URL = "http://frontend-a:8000"


def _scrape(body: bytes, at_s: float, source: str = URL, model: str = "tiny") -> FrontendScrape:
    return read_frontend(parse_page(body, source, frontend_families()), model, at_s)


def _named(name: str, at_s: float, source: str = URL, model: str = "tiny") -> FrontendScrape:
    return _scrape(page_bytes(name), at_s, source, model)


def _without(name: str, pattern: str) -> bytes:
    lines = page_bytes(name).decode().splitlines(keepends=True)
    return "".join(line for line in lines if not re.search(pattern, line)).encode()


def test_a_frontend_without_requests_counts_zero() -> None:
    scrape = _named("frontend_fresh", 0.0)
    assert (scrape.started, scrape.completed, scrape.rejected, scrape.in_flight) == (0, 0, 0, 0)
    assert isinstance(scrape.prompts, Histogram)
    assert scrape.prompts.count == 0


def test_a_model_that_the_frontend_does_not_know_is_missing_not_zero() -> None:
    scrape = _named("frontend_fresh", 0.0, model="other")
    for value in (scrape.started, scrape.completed, scrape.rejected, scrape.prompts, scrape.ttft):
        assert isinstance(value, Missing)
        assert value.reason.startswith(URL)


def test_deltas_equal_what_was_sent() -> None:
    delta = frontend_delta(
        [_named("frontend_fresh", 10.0)], [_named("frontend_two_requests", 12.5)], 13.0
    )
    assert (delta.window_s, delta.age_s) == (2.5, 0.5)
    assert (delta.arrivals, delta.completions, delta.rejected) == (2, 2, 0)
    assert (delta.input_tokens_sum, delta.output_tokens_sum) == (102, 40)
    assert delta.cached_tokens_sum == 0
    assert delta.missing == ()
    assert delta.notes == ()
    assert delta.ttft_mean_s == pytest.approx(0.148129008 / 2)
    assert delta.itl_mean_s == pytest.approx(0.221879905 / 38)


def test_rejected_requests_arrive_with_prompts_of_the_mean_length() -> None:
    delta = frontend_delta(
        [_named("frontend_two_requests", 0.0)], [_named("frontend_rejections", 1.0)], 1.0
    )
    # 1 + 24 arrived, 23 of them were rejected; 4,252 prompt tokens of two requests were observed.
    assert (delta.arrivals, delta.rejected, delta.completions) == (25, 23, 2)
    assert delta.input_tokens_sum == 25 * 4252 // 2
    assert delta.output_tokens_sum == 530


def test_without_the_newer_name_requests_count_when_they_end() -> None:
    older = [_scrape(_without(n, "requests_started_total"), t) for n, t in _TWO]
    delta = frontend_delta([older[0]], [older[1]], 1.0)
    assert (delta.arrivals, delta.rejected) == (25, 23)
    assert delta.notes == (f"{URL}: arrivals are counted when requests end",)


_TWO = (("frontend_two_requests", 0.0), ("frontend_rejections", 1.0))


def test_rejections_are_found_under_either_name() -> None:
    pages = [_scrape(_without(n, "model_rejection_total"), t) for n, t in _TWO]
    assert frontend_delta([pages[0]], [pages[1]], 1.0).rejected == 23


def test_another_prefix_of_names() -> None:
    body = page_bytes("frontend_two_requests").replace(b"dynamo_frontend_", b"llm_")
    scrape = read_frontend(parse_page(body, URL, frontend_families("llm")), "Tiny", 0.0, "llm")
    assert scrape.started == 2.0


def test_a_frontend_that_restarted_counts_from_zero() -> None:
    before = _named("frontend_rejections", 0.0)
    body = page_bytes("frontend_two_requests").replace(b"19522fb96ad0aa87", b"29522fb96ad0aa87")
    delta = frontend_delta([before], [_scrape(body, 2.0)], 2.0)
    assert (delta.arrivals, delta.input_tokens_sum, delta.output_tokens_sum) == (2, 102, 40)
    assert delta.restarted == (URL,)
    assert delta.window_s == 2.0


@pytest.mark.parametrize("known", ["uptime", "nothing"])
def test_a_restart_shows_in_uptime_or_arrivals_without_an_id(known: str) -> None:
    pattern = "uptime_seconds" if known == "nothing" else "no such"
    pages = [
        _scrape(_without(name, pattern), at_s)
        for name, at_s in (("frontend_rejections", 0.0), ("frontend_two_requests", 1.0))
    ]
    before, after = (replace(page, identity=None) for page in pages)
    assert frontend_delta([before], [after], 1.0).restarted == (URL,)


def test_one_counter_that_falls_is_missing_and_no_restart() -> None:
    before, after = (_named(*each) for each in _TWO)
    fell = replace(after, rejected=-0.0, completed=1.0)
    before = replace(before, rejected=5.0)
    delta = frontend_delta([before], [fell], 1.0)
    assert (delta.arrivals, delta.completions, delta.rejected) == (25, None, None)
    assert delta.restarted == ()
    assert "a counter fell" in delta.missing[0]


def test_two_frontends_add_up() -> None:
    other = "http://frontend-b:8000"
    before = [_named("frontend_fresh", 0.0), _named("frontend_two_requests", 0.2, other)]
    after = [_named("frontend_two_requests", 1.0), _named("frontend_rejections", 1.4, other)]
    delta = frontend_delta(before, after, 1.5)
    assert (delta.arrivals, delta.rejected, delta.completions) == (27, 23, 4)
    # Two frontends observed 102 tokens of 2 prompts and 4,252 of 2.
    assert delta.input_tokens_sum == round(27 * (102 + 4252) / 4)
    assert delta.window_s == pytest.approx(1.1)
    assert delta.age_s == 0.5
    assert delta.sources == (URL, other)


def test_a_frontend_seen_for_the_first_time_counts_from_its_next_page() -> None:
    other = "http://frontend-b:8000"
    before = [_named("frontend_fresh", 0.0)]
    after = [_named("frontend_two_requests", 1.0), _named("frontend_rejections", 1.0, other)]
    delta = frontend_delta(before, after, 1.0)
    assert (delta.arrivals, delta.sources) == (2, (URL,))
    assert delta.notes == (f"{other}: seen for the first time; counts from the next page on",)


def test_a_frontend_that_started_within_the_window_counts_whole() -> None:
    young = replace(_named("frontend_two_requests", 9.0, "http://b"), uptime_s=3.0)
    before = [_named("frontend_fresh", 5.0)]
    delta = frontend_delta(before, [_named("frontend_fresh", 9.0), young], 9.0)
    assert (delta.arrivals, delta.window_s) == (2, 4.0)


def test_without_two_pages_there_is_nothing() -> None:
    for before, after in (
        ([], [_named("frontend_two_requests", 1.0)]),
        ([_named("frontend_fresh", 1.0)], []),
        ([_named("frontend_fresh", 1.0)], [_named("frontend_two_requests", 1.0)]),
    ):
        delta = frontend_delta(before, after, 1.0)
        assert delta.arrivals is None
        assert delta.input_tokens_sum is None
        assert delta.ttft_p50 is None
        assert delta.missing == ("no two pages of one frontend to compare",)


def test_one_unusable_series_does_not_take_the_others_along() -> None:
    body = page_bytes("frontend_rejections").replace(
        b'dynamo_frontend_output_sequence_tokens_sum{model="Tiny"} 570',
        b'dynamo_frontend_output_sequence_tokens_sum{model="Tiny"} NaN',
    )
    delta = frontend_delta([_named("frontend_two_requests", 0.0)], [_scrape(body, 1.0)], 1.0)
    assert delta.output_tokens_sum is None
    assert (delta.arrivals, delta.completions) == (25, 2)
    assert delta.missing == (f"{URL}: dynamo_frontend_output_sequence_tokens has no usable sum",)


def test_arrivals_before_any_first_token_are_known_without_their_length() -> None:
    pattern = (
        "(input|output)_sequence|first_token|inter_token|cached_tokens|frontend_requests_total"
    )
    waiting = _scrape(_without("frontend_two_requests", pattern), 1.0)
    delta = frontend_delta([_named("frontend_fresh", 0.0)], [waiting], 1.0)
    assert (delta.arrivals, delta.completions, delta.output_tokens_sum) == (2, 0, 0)
    assert delta.input_tokens_sum is None
    assert "prompt tokens: none observed since the start" in delta.missing


def test_lengths_not_observed_in_the_window_are_the_mean_since_the_start() -> None:
    before = _named("frontend_two_requests", 0.0)
    assert isinstance(before.started, float)
    delta = frontend_delta([before], [replace(before, at_s=1.0, started=before.started + 4)], 1.0)
    assert (delta.arrivals, delta.input_tokens_sum) == (4, 4 * 51)
    assert "prompt tokens: none observed in the window; the mean since the start" in delta.notes


def test_a_quiet_window_counts_zero_and_has_no_latency() -> None:
    before = _named("frontend_two_requests", 0.0)
    delta = frontend_delta([before], [replace(before, at_s=1.0)], 1.0)
    assert (delta.arrivals, delta.input_tokens_sum, delta.completions) == (0, 0, 0)
    assert (delta.ttft_p50, delta.itl_p99, delta.ttft_mean_s) == (None, None, None)
    assert delta.missing == ()


def test_quantiles_lie_in_the_bucket_of_their_rank() -> None:
    histogram = Histogram((0.0, 1.0, 2.0, 4.0, inf), (0.0, 10.0, 90.0, 99.0, 100.0), 160.0)
    p50 = quantile(histogram, 0.5)
    assert p50 is not None
    assert (p50.low_s, p50.high_s) == (1.0, 2.0)
    assert p50.value_s == pytest.approx(1.5)
    p50 = quantile(histogram, 0.5, mean=True)
    assert p50 is not None
    assert p50.value_s == pytest.approx(1.6)
    p99 = quantile(histogram, 0.99)
    assert p99 is not None
    assert p99.value_s == pytest.approx(4.0)
    beyond = quantile(histogram, 0.995)
    assert beyond is not None
    assert (beyond.value_s, beyond.high_s) == (4.0, inf)
    assert quantile(Histogram((1.0, inf), (0.0, 0.0), 0.0), 0.5) is None


@given(
    st.lists(st.floats(0.001, 500.0), min_size=1, max_size=40),
    st.sampled_from([0.5, 0.9, 0.99]),
    st.booleans(),
)
def test_the_true_quantile_lies_between_the_bounds(
    values: list[float], share: float, mean: bool
) -> None:
    bounds = (0.0, 0.0022, 0.0047, 0.01, 0.022, 0.047, 0.1, 0.22, 0.47, 1.0, 2.2, 4.7, 10.0, inf)
    counts = tuple(float(sum(value <= bound for value in values)) for bound in bounds)
    found = quantile(Histogram(bounds, counts, sum(values)), share, mean=mean)
    # The smallest value with at least that share of all at or below it.
    rank = share * len(values)
    true = next(v for v in sorted(values) if sum(w <= v for w in values) >= rank)
    assert found is not None
    assert found.low_s < true <= found.high_s
    assert found.low_s <= found.value_s <= found.high_s


_STEP = st.tuples(
    st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.booleans(), st.booleans()
)


@given(st.lists(st.tuples(_STEP, _STEP), min_size=2, max_size=12))
def test_windows_add_up_over_any_history(steps: list[tuple[tuple[int, ...], ...]]) -> None:
    """Two frontends count, restart and lose a series: nothing negative, nothing counted twice."""
    counters = [[0, 0, 0], [0, 0, 0]]
    starts = [0, 0]
    before: list[FrontendScrape] = []
    counted = lost = 0
    for number, step in enumerate(steps):
        after = []
        for place, (started, completed, rejected, restart, gap) in enumerate(step):
            if restart:
                counters[place] = [0, 0, 0]
                starts[place] += 1
            for index, grown in enumerate((started, completed, rejected)):
                counters[place][index] += grown
            base = _named("frontend_fresh", float(number), f"http://{place}")
            page = replace(
                base,
                identity=str(starts[place]),
                started=Missing("gone") if gap else float(counters[place][0]),
                completed=float(counters[place][1]),
                rejected=float(counters[place][2]),
            )
            after.append(page)
        if before:
            delta = frontend_delta(before, after, float(number))
            _sane(delta)
            if delta.arrivals is not None:
                counted += delta.arrivals
        lost += sum(each[0] for each in step)
        before = after
    assert counted <= lost


def _sane(delta: FrontendDelta) -> None:
    for value in (delta.arrivals, delta.completions, delta.rejected):
        assert value is None or value >= 0
    if delta.arrivals is None:
        assert delta.missing
