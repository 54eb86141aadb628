"""What `wattline agent status` shows of a snapshot."""

from __future__ import annotations

import json
import time
from typing import Any

from face_fixtures import gpu, snapshot

from wattline.agent.snapshot import AgentSnapshot, Mode, Reason
from wattline.agent.status import encode_status, status_lines, table


def _document(shown: AgentSnapshot) -> Any:
    return json.loads(encode_status(shown, time.monotonic()))


def _lines(shown: AgentSnapshot) -> list[str]:
    return status_lines(_document(shown))


def test_the_document_has_everything_but_the_report() -> None:
    document = _document(snapshot(gpu(0), made_s=time.monotonic() - 2.0))
    assert document["schema"] == 1
    assert 2.0 <= document["age_s"] < 60.0
    assert "report" not in document
    assert "made_s" not in document
    assert document["gpus"][0]["owners"] == ["team/worker-0"]
    assert document["gpus"][0]["pinned_w"] is None


def test_a_node_in_peace_has_its_line_and_one_per_gpu() -> None:
    node, empty, head, first, second = _lines(snapshot(gpu(0), gpu(10, owners=())))
    assert node.startswith("n1: grants, seen 0.0 s ago, incarnation 7, epoch 3, budget version 17")
    assert "grants 0.2 s old, pods never" in node
    assert empty == ""
    columns = "gpu uuid product enforced wanted held range draw why pods"
    assert " ".join(head.split()) == columns
    assert first.split()[:3] == ["0", "GPU-0", "H200"]
    assert first.endswith("granted  team/worker-0")
    assert second.endswith("-")
    assert "200-700 W" in first
    assert "390 W" in first


def test_what_is_not_in_peace_is_said() -> None:
    troubled = gpu(
        3,
        enforced_w=None,
        min_w=None,
        fault="lost (Xid 79)",
        rival_w=500.0,
        repairs=4,
        persistence=False,
        notes=("its original limit is not known",),
        owners=("a/b", "c/d", "e/f", "g/h"),
        reason=Reason.FROZEN,
    )
    lines = _lines(
        snapshot(
            troubled,
            mode=Mode.ANNOTATIONS,
            epoch=None,
            budget_version=None,
            braked=True,
            operator_hold="ann (uid 0): fan",
            journal="cannot be written: No space left on device",
            not_ready=("no grants have been read yet",),
        )
    )
    text = "\n".join(lines)
    assert lines[0].startswith("n1: annotations, seen 0.0 s ago, incarnation 7, owners by the ")
    for said in (
        "BRAKED",
        "HELD by ann (uid 0): fan",
        "not ready: no grants have been read yet",
        "journal: cannot be written: No space left on device",
        "a/b, c/d and 2 more",
        "gpu 3: fault: lost (Xid 79)",
        "gpu 3: its original limit is not known",
        "gpu 3: another writer holds it at 500 W; written again 4 times since the start",
        "gpu 3: persistence mode is off",
    ):
        assert said in text


def test_columns_are_aligned() -> None:
    lines = table(("a", "number"), [("long text", "1"), ("x", "1000")], right=(1,))
    assert lines == ["a          number", "long text       1", "x            1000"]
