"""Pod UIDs from cgroup files: vectors, every form that nodes have, and never another pod's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.drivers.kubelet.cgroups import pod_uid, read_pod_uid
from wattline.virtual.cgroups import CgroupForm, all_forms, pod_cgroup

VECTORS: Any = json.loads((Path(__file__).parents[2] / "vectors" / "cgroups.json").read_text())
CASES = [*VECTORS["dynamo"], *VECTORS["further"]]
UID = "12345678-1234-1234-1234-123456789abc"
STATIC_UID = "0123456789abcdef0123456789abcdef"

UIDS = st.one_of(st.uuids().map(str), st.from_regex(r"[0-9a-f]{32}", fullmatch=True))
FORMS = list(all_forms())
# Names of cgroups that are made of the words that matter, in any order.
WORDS = st.lists(
    st.sampled_from(
        [
            "kubepods",
            "burstable",
            "besteffort",
            "pod",
            "-",
            "_",
            ".slice",
            ".scope",
            ":",
            "..",
            "x",
            UID,
            UID.replace("-", "_"),
            STATIC_UID,
        ]
    ),
    min_size=1,
    max_size=6,
).map("".join)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_vectors(case: Any) -> None:
    _, content, expected = case
    assert pod_uid(content) == expected


@pytest.mark.parametrize("uid", [UID, STATIC_UID])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_of_node(form: CgroupForm, uid: str) -> None:
    assert pod_uid(pod_cgroup(uid, form)) == uid


@given(UIDS, st.sampled_from(FORMS), st.lists(WORDS, max_size=4))
def test_nothing_below_a_pod_makes_it_another(uid: str, form: CgroupForm, below: list[str]) -> None:
    content = "\n".join(
        "/".join([line, *below]) if line else line for line in pod_cgroup(uid, form).split("\n")
    )
    assert pod_uid(content) == uid


@given(st.lists(WORDS, max_size=6), st.sampled_from(["0::", "4:memory:", "1:name=systemd:"]))
def test_a_uid_is_only_told_where_the_kubelet_would_put_it(parts: list[str], head: str) -> None:
    uid = pod_uid(f"{head}/{'/'.join(parts)}\n")
    path = "/" + "/".join(parts)
    if uid is not None:
        told = rf"(?:{re.escape(uid)}|{re.escape(uid.replace('-', '_'))})"
        slices = rf"/(?:[^/:]+-)?kubepods(?:-burstable|-besteffort)?-pod{told}\.slice[/:]"
        folders = rf"/(?:kubepods|\.\./\.\.)/(?:burstable/|besteffort/)?pod{told}/"
        assert re.search(f"{slices}|{folders}", path + "/")


@given(st.text(max_size=300))
def test_any_text_is_no_pod(content: str) -> None:
    assert pod_uid(content) is None


def test_a_process_that_has_ended_is_in_no_pod(tmp_path: Path) -> None:
    assert read_pod_uid(tmp_path, 99999) is None


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "7" / "cgroup").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        read_pod_uid(tmp_path, 7)


def test_bytes_that_are_no_text_do_not_hide_the_pod(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    content = b"5:x:/\xff\xfe\n0::/kubepods/pod" + UID.encode() + b"/x\n"
    (tmp_path / "7" / "cgroup").write_bytes(content)
    assert read_pod_uid(tmp_path, 7) == UID
