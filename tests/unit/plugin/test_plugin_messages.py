"""Messages of the planner's plugin protocol: vectors of the release, round trips, broken bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.drivers.dynamo.plugin import messages as m
from wattline.drivers.protobuf import WireError

VECTORS = Path(__file__).parents[2] / "vectors" / "dynamo_plugin_messages.json"
CASES: dict[str, Any] = json.loads(VECTORS.read_text())["messages"]

numbers = st.none() | st.integers(0, 2**31 - 1)
workers = st.builds(m.WorkerCounts, numbers, numbers, st.none() | st.booleans())
targets = st.builds(m.Target, st.sampled_from(m.ROLES), numbers, st.sampled_from(m.OverrideType))
texts = st.text(max_size=40)


def raw(name: str) -> bytes:
    return bytes.fromhex(CASES[name])


def test_a_request_of_the_release_is_read() -> None:
    request = m.decode_stage_request(raw("constrain_request"))
    assert request == m.StageRequest(
        request_id="req-1",
        decision_id="dec-1",
        proposal=(
            m.Target(m.PREFILL, 0, m.OverrideType.SET),
            m.Target(m.DECODE, 300, m.OverrideType.AT_LEAST),
        ),
        prefill=m.WorkerCounts(0, 3, True),
        decode=m.WorkerCounts(200, None, False),
    )
    empty = m.decode_stage_request(raw("empty_request"))
    assert empty == m.StageRequest()
    assert empty.workers("planner") == m.WorkerCounts()


def test_answers_are_those_of_the_release_to_the_byte() -> None:
    override = m.Override(
        (
            m.Target(m.PREFILL, 0, m.OverrideType.AT_MOST),
            m.Target(m.DECODE, 300, m.OverrideType.SET),
            m.Target(m.DECODE, None, m.OverrideType.AT_LEAST),
        ),
        "why",
    )
    assert m.encode_stage_response(override) == raw("override_response")
    assert m.encode_stage_response(m.Accept()) == raw("accept_response")
    assert m.encode_stage_response(m.Reject("no")) == raw("reject_response")
    assert m.encode_lifecycle_answer(True, "wattline") == raw("bootstrap_response")


def test_calls_to_the_gateway_are_those_of_the_release_to_the_byte() -> None:
    registration = m.Registration(
        plugin_id="wattline",
        plugin_type="constrain",
        priority=50,
        endpoint="grpc://127.0.0.1:9095",
        version="0.1.0",
        auth_token="secret",
    )
    assert m.encode_registration(registration) == raw("register_request")
    assert m.encode_heartbeat("wattline", "secret") == raw("heartbeat_request")
    assert m.encode_unregister("wattline", "bye", "secret") == raw("unregister_request")
    assert m.decode_register_answer(raw("accepted")) == m.RegisterAnswer(True, "", "1.0")
    refused = m.decode_register_answer(raw("refused"))
    assert (refused.accepted, refused.reason) == (False, "auth_failed")
    assert m.decode_ok(raw("ok"))
    assert not m.decode_ok(b"")


@given(
    request_id=texts,
    proposal=st.none() | st.lists(targets, min_size=1, max_size=4).map(tuple),
    prefill=workers,
    decode=workers,
)
def test_requests_come_through_a_round_trip(
    request_id: str,
    proposal: tuple[m.Target, ...] | None,
    prefill: m.WorkerCounts,
    decode: m.WorkerCounts,
) -> None:
    request = m.StageRequest(
        request_id=request_id, proposal=proposal, prefill=prefill, decode=decode
    )
    assert m.decode_stage_request(m.encode_stage_request(request)) == request


@given(st.builds(m.Override, st.lists(targets, max_size=4).map(tuple), texts))
def test_answers_come_through_a_round_trip(override: m.Override) -> None:
    assert m.decode_stage_response(m.encode_stage_response(override)) == override


def read_or_refused(decode: Callable[[bytes], object], data: bytes) -> object:
    """What was read, or the words of the refusal."""
    try:
        return decode(data)
    except WireError as error:
        return str(error)


def is_one_line(read: object) -> bool:
    return isinstance(read, str) and read != "" and read.isprintable()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    request = read_or_refused(m.decode_stage_request, data)
    assert isinstance(request, m.StageRequest) or is_one_line(request)
    answer = read_or_refused(m.decode_stage_response, data)
    assert (
        answer is None
        or isinstance(answer, m.Accept | m.Override | m.Reject)
        or is_one_line(answer)
    )
    registered = read_or_refused(m.decode_register_answer, data)
    assert isinstance(registered, m.RegisterAnswer) or is_one_line(registered)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=1))
def test_a_changed_request_is_read_or_refused(at: int, byte: bytes) -> None:
    whole = raw("constrain_request")
    place = at % len(whole)
    for data in (whole[:place], whole[:place] + byte + whole[place + 1 :]):
        read = read_or_refused(m.decode_stage_request, data)
        assert isinstance(read, m.StageRequest) or is_one_line(read)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("0a", "cut short"),
        ("0a05", "5 bytes announced"),
        ("00", "field number 0"),
        ("0b", "wire type 3"),
        ("0801", "a number where a message belongs"),
        ("ff" * 11, "more than 10 bytes"),
    ],
)
def test_what_is_wrong_is_said(data: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        m.decode_stage_request(bytes.fromhex(data))
