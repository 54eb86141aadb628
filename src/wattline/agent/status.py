"""The whole snapshot for people and programs on the node: one document, and a table of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from wattline.agent.snapshot import AgentSnapshot

SCHEMA_VERSION = 1
_METHODS = {
    "pod_resources": "owners by the kubelet",
    "processes": "owners by processes (no kubelet socket)",
    "files": "owners by file",
}


def encode_status(snapshot: AgentSnapshot, now_s: float) -> bytes:
    """The snapshot as JSON, with its age on the monotonic clock in place of when it was made."""
    document: dict[str, Any] = {"schema": SCHEMA_VERSION}
    for field in dataclasses.fields(snapshot):
        if field.name not in ("made_s", "report", "gpus"):
            document[field.name] = _plain(getattr(snapshot, field.name))
    document["age_s"] = round(now_s - snapshot.made_s, 3)
    document["gpus"] = [
        {field.name: _plain(getattr(gpu, field.name)) for field in dataclasses.fields(gpu)}
        for gpu in snapshot.gpus
    ]
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def status_lines(document: Mapping[str, Any]) -> list[str]:
    """The document for a person: the node first, then a line per GPU, then what is not in peace."""
    lines = [_node_line(document)]
    if document.get("braked"):
        gpus = document.get("gpus", ())
        braked = sum(gpu["reason"] == "braked" for gpu in gpus)
        lines.append(f"BRAKED: {braked} of {len(gpus)} GPUs are at their brake watts")
    if document.get("operator_hold"):
        lines.append(f"HELD by {document['operator_hold']}: no raise is obeyed")
    lines += [f"not ready: {reason}" for reason in document.get("not_ready", ())]
    if document.get("journal", "ok") != "ok":
        lines.append(f"journal: {document['journal']}")
    lines.append("")
    lines += table(
        ("gpu", "uuid", "product", "enforced", "wanted", "held", "range", "draw", "why", "pods"),
        [_gpu_row(gpu) for gpu in document.get("gpus", ())],
        right=(0, 3, 4, 5, 7),
    )
    for gpu in document.get("gpus", ()):
        lines += [f"gpu {gpu['index']}: {text}" for text in _remarks(gpu)]
    return lines


def _node_line(document: Mapping[str, Any]) -> str:
    ages = document.get("sources", {})
    parts = [
        f"{document['node']}: {document['mode']}",
        f"seen {document['age_s']:.1f} s ago",
        f"incarnation {document['incarnation']}",
    ]
    if document.get("epoch") is not None:
        parts.append(f"epoch {document['epoch']}")
    if document.get("budget_version") is not None:
        parts.append(f"budget version {document['budget_version']}")
    if document.get("owner_method") is not None:
        parts.append(_METHODS.get(document["owner_method"], document["owner_method"]))
    parts += [
        f"{source} never read" if age_s is None else f"{source} {age_s:.1f} s old"
        for source, age_s in sorted(ages.items())
    ]
    return ", ".join(parts)


def _gpu_row(gpu: Mapping[str, Any]) -> tuple[str, ...]:
    owners = gpu["owners"]
    return (
        str(gpu["index"]),
        gpu["uuid"],
        gpu["product"].removeprefix("NVIDIA "),
        watts(gpu["enforced_w"]),
        watts(gpu["wanted_w"]),
        watts(gpu["held_w"]),
        "-" if gpu["min_w"] is None else f"{gpu['min_w']:.0f}-{gpu['max_w']:.0f} W",
        watts(gpu["draw_w"]),
        gpu["reason"],
        ", ".join(owners[:2]) + (f" and {len(owners) - 2} more" if len(owners) > 2 else "") or "-",
    )


def _remarks(gpu: Mapping[str, Any]) -> list[str]:
    remarks = list(gpu["notes"])
    if gpu["fault"]:
        remarks.insert(0, f"fault: {gpu['fault']}")
    if gpu["rival_w"] is not None:
        remarks.append(
            f"another writer holds it at {watts(gpu['rival_w'])}; "
            f"written again {gpu['repairs']} times since the start"
        )
    if gpu["persistence"] is False:
        remarks.append("persistence mode is off: an idle GPU may come back at its default limit")
    return remarks


def watts(value: float | None) -> str:
    """Watts for a table; a dash where there are none."""
    return "-" if value is None else f"{value:.0f} W"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> list[str]:
    """Aligned columns; `right`: the columns of numbers."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
