import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.errors import InputError
from wattline.drivers.grant_files import (
    GpuFacts,
    GpuGrant,
    GpuReport,
    GrantFile,
    NodeReport,
    decode_grants,
    decode_report,
    encode_grants,
    encode_report,
)
from wattline.grants.messages import Adopt, Grant, Report

COUNTS = st.integers(0, 2**63 - 1)
WATTS = st.floats(0, 1000)
UUIDS = st.text("0123456789abcdef-", min_size=1, max_size=12).map("GPU-{}".format)


def a_grant(**changes: Any) -> Grant[str]:
    values: dict[str, Any] = {
        "gpu": "GPU-a",
        "incarnation": 123,
        "epoch": 3,
        "sequence": 12,
        "watts": 400.0,
        "brake_w": 200.0,
        "lease_s": 30.0,
        "expiry_w": None,
        "budget_version": 17,
        "lowers_only": True,
    }
    return Grant(**{**values, **changes})


def a_document(**changes: Any) -> dict[str, Any]:
    file = GrantFile(
        node="n1", epoch=3, budget_version=17, grants=(GpuGrant(grant=a_grant(), clock_mhz=1200),)
    )
    document: dict[str, Any] = json.loads(encode_grants(file))
    document.update(changes)
    return document


def decode(document: object) -> GrantFile:
    return decode_grants(json.dumps(document).encode(), node="n1", where="n1.json")


@given(
    st.lists(st.tuples(UUIDS, COUNTS, WATTS, st.booleans()), max_size=6, unique_by=lambda g: g[0]),
    COUNTS,
    st.none() | COUNTS,
)
def test_what_is_written_is_what_is_read(
    gpus: list[tuple[str, int, float, bool]], epoch: int, version: int | None
) -> None:
    grants = tuple(
        GpuGrant(
            grant=a_grant(
                gpu=gpu,
                epoch=epoch,
                sequence=sequence,
                watts=watts,
                expiry_w=watts / 2,
                budget_version=version,
            ),
            clock_mhz=1000,
        )
        for gpu, sequence, watts, is_grant in gpus
        if is_grant
    )
    adopt = tuple(
        Adopt(gpu=gpu, incarnation=1, epoch=epoch, sequence=sequence, budget_version=version)
        for gpu, sequence, _, is_grant in gpus
        if not is_grant
    )
    file = GrantFile(
        node="n1",
        epoch=epoch,
        budget_version=version,
        grants=grants,
        adopt=adopt,
        restore=tuple(gpu for gpu, *_ in gpus),
    )
    assert decode_grants(encode_grants(file), node="n1", where="x") == file


def test_epoch_and_budget_version_of_the_file_stand_for_those_of_its_grants() -> None:
    document = a_document(epoch=5, budget_version=18)
    del document["grants"][0]["epoch"], document["grants"][0]["budget_version"]
    grant = decode(document).grants[0].grant
    assert (grant.epoch, grant.budget_version) == (5, 18)


def test_fields_of_a_later_release_are_ignored() -> None:
    document = a_document(colour="blue")
    document["grants"][0]["mood"] = "fine"
    assert decode(document).grants[0].grant == a_grant()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"protocol": 2}, "protocol", id="newer"),
        pytest.param({"protocol": 0}, "protocol", id="older"),
        pytest.param({"protocol": True}, "protocol", id="true is not 1"),
        pytest.param({"node": "n2"}, "another node", id="another node"),
        pytest.param({"node": None}, "node", id="no node"),
        pytest.param({"epoch": -1}, "epoch", id="negative epoch"),
        pytest.param({"epoch": 1.5}, "epoch", id="half an epoch"),
        pytest.param({"epoch": 2**63}, "epoch", id="huge epoch"),
        pytest.param({"grants": {}}, "grants", id="no list"),
        pytest.param({"grants": [7]}, "grants", id="no object"),
        pytest.param({"grants": [{}] * 1025}, "1024", id="too many"),
        pytest.param({"restore": [7]}, "restore", id="restore what"),
        pytest.param({"restore": ["GPU-a", "GPU-a"]}, "once", id="restore twice"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode(a_document(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"watts": -1}, id="negative"),
        pytest.param({"watts": "400"}, id="text"),
        pytest.param({"watts": True}, id="true"),
        pytest.param({"watts": None}, id="none"),
        pytest.param({"watts": 10**400}, id="larger than a float"),
        pytest.param({"brake_w": 1e9}, id="gigawatts"),
        pytest.param({"expiry_w": 500}, id="expiry above the grant"),
        pytest.param({"lease_s": -5}, id="negative lease"),
        pytest.param({"clock_mhz": 0}, id="no clock at all"),
        pytest.param({"clock_mhz": 1200.5}, id="half a megahertz"),
        pytest.param({"gpu": ""}, id="no gpu"),
        pytest.param({"gpu": "GPU-\n"}, id="line break"),
        pytest.param({"incarnation": None}, id="for nobody"),
        pytest.param({"sequence": -1}, id="negative sequence"),
    ],
)
def test_one_bad_grant_refuses_the_whole_file(changes: dict[str, Any]) -> None:
    document = a_document()
    good = dict(document["grants"][0], gpu="GPU-b")
    document["grants"] = [good, {**document["grants"][0], **changes}]
    with pytest.raises(InputError, match=r"grants\[1\]") as caught:
        decode(document)
    assert "\n" not in str(caught.value)


def test_one_gpu_is_addressed_once() -> None:
    document = a_document()
    adoption = {"gpu": "GPU-a", "incarnation": 1, "sequence": 4}
    with pytest.raises(InputError, match="once"):
        decode(dict(document, grants=document["grants"] * 2))
    with pytest.raises(InputError, match="once"):
        decode(dict(document, adopt=[adoption]))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"protocol": NaN}', id="not a number"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"protocol": ' + b"9" * 5000 + b"}", id="digits"),
        pytest.param(b"\xff\xfe", id="no text"),
    ],
)
def test_what_is_no_grant_file_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        decode_grants(content, node="n1", where="n1.json")
    assert "\n" not in str(caught.value)


@given(st.integers(0, 400))
def test_a_torn_file_is_refused(length: int) -> None:
    whole = json.dumps(a_document()).encode()
    with pytest.raises(InputError):
        decode_grants(whole[: min(length, len(whole) - 1)], node="n1", where="n1.json")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        decode_grants(content, node="n1", where="n1.json")
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    st.sampled_from(sorted(a_document())), st.sampled_from(sorted(a_document()["grants"][0])), JSON
)
def test_any_value_in_any_field_is_read_or_refused(outer: str, inner: str, value: object) -> None:
    document = a_document()
    document["grants"][0][inner] = value
    for candidate in (document, a_document(**{outer: value})):
        try:
            file = decode(candidate)
        except InputError as error:
            lines = str(error).splitlines()
        else:
            assert all(0 <= entry.grant.watts < math.inf for entry in file.grants)
            assert file.node == "n1"
            continue
        assert len(lines) == 1


def test_a_report_is_read_as_it_was_written() -> None:
    said: Report[str] = Report(
        gpu="GPU-a",
        incarnation=5,
        epoch=3,
        sequence=12,
        report_sequence=44,
        enforced_w=400.0,
        held_w=400.0,
        standing_s=1.5,
        budget_version=17,
        persistence=True,
    )
    facts = GpuFacts(
        index=0, product="H100", reason="granted", min_w=200.0, max_w=700.0, default_w=700.0,
        granted_w=400.0, pinned_w=300.0, read_age_s=0.25, energy_j=1e9, persistence=True, mig=False,
        throttle_reasons=("sw_power_cap",), owners=("a/b",),
    )  # fmt: skip
    report = NodeReport(
        node="n1",
        version="1",
        incarnation=5,
        report_sequence=44,
        mode="grants",
        budget_version=17,
        operator_hold="ada: fan",
        sources={"grants": 0.5, "owners": None},
        gpus=(
            GpuReport(gpu="GPU-a", report=said, facts=facts),
            GpuReport(gpu="GPU-b", report=None, facts=GpuFacts(fault="lost")),
        ),
    )
    assert decode_report(encode_report(report), node="n1", where="report.json") == report


def test_a_limit_that_stood_for_ever_can_be_reported() -> None:
    said: Report[str] = Report(
        gpu="GPU-a", incarnation=1, epoch=1, sequence=0, report_sequence=1, enforced_w=700.0,
        held_w=700.0, standing_s=math.inf,
    )  # fmt: skip
    report = NodeReport(
        node="n1", version="1", incarnation=1, report_sequence=1, mode="grants",
        gpus=(GpuReport(gpu="GPU-a", report=said, facts=GpuFacts()),),
    )  # fmt: skip
    read = decode_report(encode_report(report), node="n1", where="x").gpus[0].report
    assert read is not None
    assert read.standing_s >= 1e9


def test_texts_of_a_report_come_on_one_line() -> None:
    report = NodeReport(
        node="n1", version="1", incarnation=1, report_sequence=1, mode="re\rturn",
        operator_hold="\x1b[31mred\nline",
    )  # fmt: skip
    read = decode_report(encode_report(report), node="n1", where="x")
    assert read.mode == r"re\rturn"
    assert read.operator_hold == r"\x1b[31mred\nline"
