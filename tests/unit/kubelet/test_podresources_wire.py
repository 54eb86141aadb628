"""The PodResources decoder: bytes of the Go types, and bytes that are anything else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wattline.drivers.kubelet.wire import (
    MAX_ANSWER_BYTES,
    ClaimedDevice,
    PluginDevices,
    PodDevices,
    decode_list,
)
from wattline.drivers.pods import PodName, SourceError
from wattline.virtual.podresources import Claim, Device, PodResources, list_response

VECTORS = Path(__file__).parents[2] / "vectors" / "podresources.json"
CASES: list[Any] = json.loads(VECTORS.read_text())["cases"]
ANSWERS = [base64.b64decode(case[1]) for case in CASES]

NAMES = st.text(min_size=1, max_size=20)


def field(number: int, body: bytes) -> bytes:
    return bytes([number << 3 | 2, len(body)]) + body


def pod(*fields: bytes) -> bytes:
    return field(1, field(1, b"web") + field(2, b"default") + b"".join(fields))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_bytes_of_the_go_types(case: Any) -> None:
    expected = tuple(
        PodDevices(
            PodName(namespace, name),
            tuple(PluginDevices(resource, tuple(ids)) for resource, ids in plugin),
            tuple(ClaimedDevice(*claimed) for claimed in claims),
        )
        for namespace, name, plugin, claims in case[2]
    )
    assert decode_list(base64.b64decode(case[1])) == expected


@given(
    st.lists(
        st.builds(
            PodResources,
            NAMES,
            NAMES,
            st.lists(st.builds(Device, NAMES, NAMES), max_size=3).map(tuple),
            st.lists(st.builds(Claim, NAMES, NAMES, NAMES, NAMES), max_size=3).map(tuple),
        ),
        max_size=4,
    )
)
def test_what_another_encoder_writes_is_read_back(pods: list[PodResources]) -> None:
    read = decode_list(list_response(pods))
    assert [pod.pod for pod in read] == [PodName(pod.namespace, pod.name) for pod in pods]
    for written, found in zip(pods, read, strict=True):
        devices = [(one.resource, id) for one in found.plugin_devices for id in one.ids]
        assert devices == [(device.resource, device.id) for device in written.devices]
        claims = [(one.driver, one.pool, one.device) for one in found.claimed_devices]
        assert claims == [(claim.driver, claim.pool, claim.device) for claim in written.claims]


@pytest.mark.parametrize("answer", ANSWERS, ids=[case[0] for case in CASES])
def test_every_cut_is_read_as_fewer_pods_or_refused(answer: bytes) -> None:
    whole = decode_list(answer)
    for end in range(len(answer)):
        try:
            cut = decode_list(answer[:end])
        except SourceError:
            continue
        assert cut == whole[: len(cut)]
        assert len(cut) < len(whole)


@given(st.binary(max_size=200))
@example(b"\x0a\xff\xff\xff\xff\x0fnot protobuf")
def test_any_bytes_are_read_or_refused_in_one_line(answer: bytes) -> None:
    said = ""
    try:
        decode_list(answer)
    except SourceError as error:
        said = str(error)
    assert "\n" not in said


@given(st.sampled_from(ANSWERS), st.data())
def test_changed_bytes_are_read_or_refused(answer: bytes, data: st.DataObject) -> None:
    changed = bytearray(answer or b"\x0a")
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        pods = decode_list(bytes(changed))
    except SourceError:
        return
    assert all(pod.pod.name and pod.pod.namespace for pod in pods)


def test_unknown_fields_of_every_kind_are_passed_over() -> None:
    unknown = b"\x78\x96\x01" + b"\x79" + bytes(8) + b"\x7d" + bytes(4) + field(15, b"later")
    [found] = decode_list(unknown + pod(unknown) + unknown)
    assert found == PodDevices(PodName("default", "web"), (), ())


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (field(1, field(2, b"default")), "without a name"),
        (field(1, field(1, b"web")), "without a name or namespace"),
        (field(1, field(1, b"\xff") + field(2, b"default")), "not UTF-8"),
        (b"\x0a\x85\x08" + b"\x0a\x82\x08" + b"a" * 1026, "1026 bytes"),
        (pod(b"\x1b"), "wire type 3"),
        (b"\x02\x00", "field number 0"),
        (b"\x0a" + b"\xff" * 10, "a number of more than 10 bytes"),
        (b"\x0a\x05abc", "5 bytes announced"),
        (b"\x09abc", "8 bytes announced"),
        (b"\x0a\x80", "cut short in a number"),
        (bytes(MAX_ANSWER_BYTES + 1), "not read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said(answer: bytes, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        decode_list(answer)
