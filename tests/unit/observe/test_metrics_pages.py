"""The parser of metrics pages: real pages, broken pages, hostile pages."""

from __future__ import annotations

from collections import defaultdict
from math import inf, isnan
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from observe_fixtures import PAGES, page_bytes
from prometheus_client.parser import text_string_to_metric_families

from wattline.drivers.dynamo.pages import (
    EMPTY,
    MAX_PAGE_BYTES,
    Histogram,
    Missing,
    Page,
    PageError,
    add_histograms,
    parse_page,
)
from wattline.drivers.pods import SourceError

ALL = ("",)


def _missing(value: object) -> str:
    assert isinstance(value, Missing)
    return value.reason


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.txt")), ids=lambda path: path.stem)
def test_real_pages_are_read_as_prometheus_client_reads_them(path: Path) -> None:
    body = path.read_bytes()
    page = parse_page(body, "page", ALL)
    theirs: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            theirs[sample.name].append((sample.labels, float(sample.value)))
    ours = {
        name: [(dict(sample.labels), sample.value) for sample in samples]
        for name, samples in page.samples.items()
    }
    # That parser appends _total to counters without it.
    renamed = {name if name in theirs else f"{name}_total": each for name, each in ours.items()}
    assert renamed == dict(theirs)


def test_only_the_families_asked_for_are_kept() -> None:
    page = parse_page(page_bytes("decode_mocker_under_load"), "page", ["vllm:num_requests_"])
    assert set(page.samples) == {"vllm:num_requests_running", "vllm:num_requests_waiting"}


def test_a_model_is_found_in_any_case_of_letters() -> None:
    page = parse_page(page_bytes("frontend_two_requests"), "page", ALL)
    started = ["dynamo_frontend_requests_started_total"]
    assert page.counter(started, {"model": "TINY"}) == 2.0
    assert page.counter(started) == 3.0
    assert page.counter(started, {"model": "Tiny", "request_type": "stream"}) == 1.0
    assert "no dynamo_frontend_requests" in _missing(page.counter(started, {"model": "other"}))
    assert isinstance(page.counter(started, {"model": "Tiny", "request_type": "STREAM"}), Missing)


def test_the_first_name_that_has_a_series_counts() -> None:
    page = parse_page(b"old_total 3\n", "page", ALL)
    assert page.counter(["new_total", "old_total"]) == 3.0
    page = parse_page(b"old_total 3\nnew_total 2\n", "page", ALL)
    assert page.counter(["new_total", "old_total"]) == 2.0


def test_values_that_are_no_counts_are_missing_with_their_reason() -> None:
    text = b"a NaN\nb -1\nc +Inf\nd -3\n"
    page = parse_page(text, "http://x", ALL)
    assert _missing(page.counter(["a"])) == "http://x: a is nan"
    assert _missing(page.counter(["b"])) == "http://x: b is -1.0"
    assert _missing(page.gauge(["c"])) == "http://x: c is inf"
    assert page.gauge(["d"]) == -3.0
    assert isnan(page.select("a")[0].value)


def test_labels_are_unescaped_and_may_hold_anything() -> None:
    text = 'a{x="} 5 {",y="q\\"\\\\n\\n",model="ü\u0085",} 3 1700000000000\n'
    page = parse_page(text.encode(), "page", ALL)
    assert page.select("a")[0].labels == {"x": "} 5 {", "y": 'q"\\n\n', "model": "ü\u0085"}
    assert page.select("a")[0].value == 3.0


def test_a_histogram_is_read_with_its_bounds() -> None:
    page = parse_page(page_bytes("frontend_rejections"), "page", ALL)
    found = page.histogram(["dynamo_frontend_input_sequence_tokens"], {"model": "tiny"})
    assert isinstance(found, Histogram)
    assert (found.count, found.total, found.bounds[-1]) == (4.0, 4354.0, inf)
    assert list(found.counts) == sorted(found.counts)


def test_histograms_of_several_series_add_up() -> None:
    text = "".join(
        f'h_bucket{{m="{m}",le="1"}} 1\nh_bucket{{m="{m}",le="+Inf"}} 3\n'
        f'h_sum{{m="{m}"}} 9\nh_count{{m="{m}"}} 3\n'
        for m in (1, 2)
    )
    page = parse_page(text.encode(), "page", ALL)
    assert page.histogram(["h"]) == Histogram((1.0, inf), (2.0, 6.0), 18.0)
    assert page.histogram(["h"], {"m": "2"}) == Histogram((1.0, inf), (1.0, 3.0), 9.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no h"),
        ("h_count 3\n", "no usable sum"),
        ("h_count 3\nh_sum NaN\n", "no usable sum"),
        ("h_count 3\nh_sum 1\n", "do not add up"),
        ('h_count 3\nh_sum 1\nh_bucket{le="1"} 3\n', "do not add up"),
        ('h_count 3\nh_sum 1\nh_bucket{le="+Inf"} 2\n', "do not add up"),
        ('h_count 1\nh_sum 1\nh_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\n', "do not add up"),
        ('h_count NaN\nh_sum 1\nh_bucket{le="+Inf"} NaN\n', "do not add up"),
        ('h_count 1\nh_sum 1\nh_bucket{le="x"} 2\n', "without a bound"),
        ('h_count 1\nh_sum 1\nh_bucket{le="NaN"} 2\n', "without a bound"),
        ("h_count 1\nh_sum 1\nh_bucket 2\n", "without a bound"),
        (
            'h_count 1\nh_sum 1\nh_bucket{le="+Inf"} 1\nh_bucket{m="2",le="1"} 1\n',
            "without a count",
        ),
    ],
)
def test_a_broken_histogram_is_missing(text: str, reason: str) -> None:
    assert reason in _missing(parse_page(text.encode(), "page", ALL).histogram(["h"]))


def test_histograms_of_other_bounds_do_not_add_up() -> None:
    one, other = Histogram((1.0, inf), (1.0, 1.0), 1.0), Histogram((2.0, inf), (1.0, 1.0), 1.0)
    assert add_histograms(one, other) is None
    assert add_histograms(one, EMPTY) == one
    assert add_histograms(EMPTY, one) == one


@pytest.mark.parametrize(
    "line",
    [
        "<html>",
        "a",
        "a ",
        "a 1 2 3",
        "a 1_000",
        "a \u0661",
        "a 0x1",
        "a one",
        "a{ 1",
        "a} 1",
        "a{} {} 1",
        'a{x="1"',
        'a{x="1} 1',
        "a{x=1} 1",
        'a{x="1"y="2"} 1',
        'a{x="1",x="2"} 1',
        'a{,x="1"} 1',
        'a{1x="1"} 1',
        'a{x="1",,} 1',
        "{a} 1",
        "1a 1",
        "-1",
        "a 1 # {} 1",
        "a" * 20_000 + " 1",
    ],
)
def test_a_line_of_another_form_is_refused_in_one_line(line: str) -> None:
    with pytest.raises(PageError, match="line 2") as refusal:
        parse_page(f"b 1\n{line}\n".encode(), "http://x", ALL)
    assert isinstance(refusal.value, SourceError)
    assert len(str(refusal.value)) < 300
    assert str(refusal.value).isprintable()


def test_a_series_that_comes_twice_is_refused() -> None:
    with pytest.raises(PageError, match="twice"):
        parse_page(b'a{x="1"} 1\na{x="1"} 2\n', "page", ALL)


def test_a_page_that_is_too_large_or_no_text_is_refused() -> None:
    with pytest.raises(PageError, match="bytes"):
        parse_page(b"#" * (MAX_PAGE_BYTES + 1), "page", ALL)
    with pytest.raises(PageError, match="UTF-8 at byte 2"):
        parse_page(b"a \xff\n", "page", ALL)


def test_comments_and_blank_lines_are_passed_over() -> None:
    assert parse_page(b"\n# TYPE a gauge\n  \n#\na\t4\n", "page", ALL).gauge(["a"]) == 4.0


def _page_or_refusal(body: bytes) -> Page | str:
    try:
        return parse_page(body, "page", ALL)
    except PageError as error:
        return str(error)


_PIECES = st.sampled_from(
    [*'a{}",=\\ \t\n#1.-+eNI', 'a{x="1"} 1\n', '_bucket{le="1"} 2\n', "NaN", "+Inf", "\x00", "ä"]
)


@given(st.lists(_PIECES, max_size=60).map("".join))
@example('a{x="' + "\\" * 5000 + '"} 1')
@example("a{" + "} " * 5000)
@example("a{" + 'x="1",' * 2000 + "} 1")
def test_any_text_is_read_or_refused(text: str) -> None:
    page = _page_or_refusal(text.encode())
    if isinstance(page, str):
        assert page.isprintable()
        return
    for name in page.samples:
        for value in (page.counter([name]), page.gauge([name]), page.histogram([name])):
            assert value is not None


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    page = _page_or_refusal(body)
    assert isinstance(page, Page) or page.isprintable()


@given(
    st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), st.text(max_size=12)),
    st.floats(allow_nan=False),
)
def test_what_is_written_by_the_rules_is_read_back(labels: dict[str, str], value: float) -> None:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    inside = ",".join(f'{name}="{escaped(text)}"' for name, text in labels.items())
    try:
        body = f"metric{{{inside}}} {value!r}\n".encode()
    except UnicodeEncodeError:
        return
    sample = parse_page(body, "page", ALL).select("metric")[0]
    assert sample.labels == labels
    assert sample.value == value
