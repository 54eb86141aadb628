"""Thresholds at frontends: set, kept, not clearable, lost at a restart.

The frontend here does as one of Dynamo 1.6.1 does.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observe_fixtures import Asked, Reply, dead_url, serving

from wattline.core.decision import Admission
from wattline.core.errors import InputError
from wattline.drivers.dynamo.thresholds import (
    LARGEST_FRACTION,
    LARGEST_TOKENS,
    BusyThresholds,
    Thresholds,
)

NAMES = (
    "active_decode_blocks_threshold",
    "active_prefill_tokens_threshold",
    "active_prefill_tokens_threshold_frac",
)
WANTED = Admission(0.75, 8000.0, 1.5)


class Frontend:
    """Keeps thresholds of the model `Tiny`; absent and null keep the old value."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = dict.fromkeys(NAMES)
        self.posts: list[dict[str, Any]] = []
        self.refuse: Reply | None = None

    def __call__(self, asked: Asked) -> Reply:
        assert asked.path == "/busy_threshold"
        if asked.method == "GET":
            return _json({"thresholds": [{"model": "Tiny", **self.held}]})
        if self.refuse is not None:
            return self.refuse
        body = json.loads(asked.body)
        self.posts.append(body)
        if body["model"] != "Tiny":
            return _json({"error": "not found"}, 404)
        tokens = body.get(NAMES[1])
        if isinstance(tokens, float) or (tokens is not None and not 0 <= tokens < 2**64):
            return _json({"error": "expected u64"}, 422)
        if not 0.0 <= body.get(NAMES[0], 0.0) <= 1.0:
            return _json({"error": "must be between 0.0 and 1.0"}, 400)
        self.held |= {name: body[name] for name in NAMES if body.get(name) is not None}
        return _json({"model": "Tiny", **self.held})


def _json(document: object, status: int = 200) -> Reply:
    return Reply(json.dumps(document).encode(), status)


def test_every_frontend_gets_the_thresholds_once() -> None:
    one, two = Frontend(), Frontend()
    with serving(one) as first, serving(two) as second:
        client = BusyThresholds(limit_s=5.0)
        urls = [first.url, f"{second.url}/"]
        results = client.send(urls, "tiny", WANTED)
        again = client.send(urls, "tiny", WANTED)
        client.close()
    assert [result.held for result in results] == [Thresholds(0.75, 8000, 1.5)] * 2
    assert [(result.sent, result.failure) for result in results] == [(True, None)] * 2
    assert [(result.sent, result.held) for result in again] == [
        (False, Thresholds(0.75, 8000, 1.5))
    ] * 2
    assert one.posts == two.posts
    assert one.posts == [{"model": "Tiny", NAMES[0]: 0.75, NAMES[1]: 8000, NAMES[2]: 1.5}]


def test_only_what_differs_is_sent() -> None:
    frontend = Frontend()
    with serving(frontend) as server:
        client = BusyThresholds(limit_s=5.0)
        client.send([server.url], "Tiny", Admission(None, 8000.0, None))
        client.send([server.url], "Tiny", Admission(None, 8000.4, 0.5))
        client.close()
    assert frontend.posts == [
        {"model": "Tiny", NAMES[1]: 8000},
        {"model": "Tiny", NAMES[2]: 0.5},
    ]


def test_what_cannot_be_cleared_is_set_as_high_as_it_goes_and_told() -> None:
    frontend = Frontend()
    with serving(frontend) as server:
        client = BusyThresholds(limit_s=5.0)
        client.send([server.url], "Tiny", WANTED)
        result = client.send([server.url], "Tiny", Admission())[0]
        again = client.send([server.url], "Tiny", Admission())[0]
        client.close()
    assert result.held == Thresholds(1.0, LARGEST_TOKENS, LARGEST_FRACTION)
    assert result.not_cleared == ("active_decode_blocks_threshold",)
    assert result.failure is None
    assert (again.sent, again.not_cleared) == (False, result.not_cleared)


def test_prefill_thresholds_end_without_a_trace() -> None:
    frontend = Frontend()
    with serving(frontend) as server:
        client = BusyThresholds(limit_s=5.0)
        client.send([server.url], "Tiny", Admission(None, 100.0, 0.5))
        result = client.send([server.url], "Tiny", Admission())[0]
        client.close()
    assert result.not_cleared == ()


def test_what_was_never_set_is_not_touched() -> None:
    frontend = Frontend()
    with serving(frontend) as server:
        client = BusyThresholds(limit_s=5.0)
        result = client.send([server.url], "Tiny", Admission())[0]
        client.close()
    assert (result.held, result.sent, frontend.posts) == (Thresholds(), False, [])


def test_a_frontend_that_restarted_is_noticed_and_sent_again() -> None:
    frontend = Frontend()
    with serving(frontend) as server:
        client = BusyThresholds(limit_s=5.0)
        client.send([server.url], "Tiny", WANTED)
        frontend.held = dict.fromkeys(NAMES)
        result = client.send([server.url], "Tiny", WANTED)[0]
        after = client.send([server.url], "Tiny", WANTED)[0]
        client.close()
    assert (result.restarted, result.sent, result.failure) == (True, True, None)
    assert (after.restarted, after.sent) == (False, False)


def test_one_that_fails_does_not_keep_the_others_from_theirs() -> None:
    good, bad = Frontend(), Frontend()
    bad.refuse = _json({"error": "no"}, 503)
    dead = dead_url()
    with serving(good) as first, serving(bad) as second:
        client = BusyThresholds(limit_s=5.0)
        urls = [dead, second.url, first.url]
        results = client.send(urls, "Tiny", WANTED)
        bad.refuse = None
        later = client.send(urls, "Tiny", WANTED)
        client.close()
    assert [result.failure is None for result in results] == [False, False, True]
    assert "answers 503" in (results[1].failure or "")
    assert results[1].held is None
    assert [result.failure is None for result in later] == [False, True, True]
    assert [result.sent for result in later] == [False, True, False]


def test_an_echo_of_something_else_is_a_failure() -> None:
    frontend = Frontend()
    frontend.refuse = _json({"model": "Tiny", NAMES[0]: 0.5, NAMES[1]: 8000, NAMES[2]: 1.5})
    with serving(frontend) as server:
        client = BusyThresholds(limit_s=5.0)
        result = client.send([server.url], "Tiny", WANTED)[0]
        client.close()
    assert "holds" in (result.failure or "")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"not json"),
        Reply(b"[]"),
        Reply(b"{}"),
        Reply(b'{"thresholds": 3}'),
        Reply(b'{"thresholds": []}'),
        Reply(b'{"thresholds": [{"model": "other"}, 3]}'),
        Reply(b'{"thresholds": [{"model": "Tiny", "active_decode_blocks_threshold": "x"}]}'),
        Reply(b'{"thresholds": [{"model": "Tiny", "active_decode_blocks_threshold": true}]}'),
        Reply(b'{"thresholds": [{"model": "Tiny", "active_prefill_tokens_threshold": -1}]}'),
        Reply(b'{"thresholds": [{"model": "Tiny", "active_prefill_tokens_threshold": NaN}]}'),
        Reply(b"[" * 100_000),
        Reply(b"", 404),
        Reply(silent=True),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_line(reply: Reply) -> None:
    with serving(lambda asked: reply) as server:
        client = BusyThresholds(limit_s=0.5)
        read = client.read([server.url], "Tiny")[0]
        sent = client.send([server.url], "Tiny", WANTED)[0]
        client.close()
    assert (read.held, sent.held, sent.sent) == (None, None, False)
    assert read.failure is not None
    assert read.failure.startswith(server.url)
    assert read.failure.isprintable()
    assert sent.failure == read.failure


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_thresholds_that_no_frontend_takes_are_refused(value: float) -> None:
    client = BusyThresholds(limit_s=1.0)
    for wanted in (Admission(value), Admission(None, value), Admission(None, None, value)):
        with pytest.raises(InputError, match="busy threshold"):
            client.send([], "Tiny", wanted)
    client.close()


_NUMBER = st.none() | st.floats(0.0, 1e12)


def test_any_sequence_converges_in_one_call() -> None:
    frontend = Frontend()
    with serving(frontend) as server:
        client = BusyThresholds(limit_s=30.0)

        @settings(max_examples=30)
        @given(st.lists(st.builds(Admission, _NUMBER, _NUMBER, _NUMBER), min_size=1, max_size=4))
        def check(wanted: list[Admission]) -> None:
            frontend.held = dict.fromkeys(NAMES)
            for each in wanted:
                assert client.send([server.url], "tiny", each)[0].failure is None
                assert not client.send([server.url], "tiny", each)[0].sent

        check()
        client.close()
