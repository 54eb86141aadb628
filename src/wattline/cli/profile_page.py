"""Tables of docs/concepts/fits.md, from the JSON of `wattline profile fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_OBJECTS = {
    "fit": "on the fit data",
    "fit_of_engine_alone": "on the fit data, engine alone",
    "cross_validation": "cross-validated",
    "leave_one_gpu_out": "a GPU product never seen",
    "holdout": "hold-out",
}
_KINDS = {"serving": "Serving", "op": "Kernels"}


def tables_of(document: Mapping[str, Any]) -> str:
    """Markdown tables: errors of each kind, their groups when cross-validated, parameters."""
    lines: list[str] = []
    for kind, title in _KINDS.items():
        record = document if document["kind"] == kind else document.get(kind)
        if record is not None:
            lines += [f"### {title}: median / 90th percentile of \\|relative error\\|", ""]
            lines += [*_errors(record), "", *_groups(record["cross_validation"]["groups"]), ""]
    records = [record for record in document["parameters"] if "product" in record]
    if records:
        lines += ["### Parameters", "", *_parameters(records)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _errors(record: Mapping[str, Any]) -> Iterator[str]:
    yield "| | rows | watts per GPU | token rate |"
    yield "|---|---:|---:|---:|"
    for name, title in _OBJECTS.items():
        if name in record and record[name]["rows"]:
            yield _line(title, record[name])
            if "long_kernels" in record[name]:
                yield _line(f"{title}, kernels > 0.3 ms", record[name]["long_kernels"])


def _groups(groups: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "| cross-validated, by group | rows | watts per GPU | token rate |"
    yield "|---|---:|---:|---:|"
    for group in groups:
        names = [group[key] for key in ("gpu", "model", "op") if group[key] is not None]
        if len(names) == 1 or group["op"] is not None:
            yield _line(", ".join(names), group)


def _parameters(records: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "| | " + " | ".join(record["product"] for record in records) + " |"
    yield "|---|" + "---:|" * len(records)
    for section in ("engine", "response"):
        for name in records[0][section]:
            values = " | ".join(f"{record[section][name]:.4g}" for record in records)
            yield f"| `{name}` | {values} |"


def _line(label: str, row: Mapping[str, Any]) -> str:
    watts = _pair(row["watts_median_error"], row["watts_p90_error"])
    rates = _pair(row["token_rate_median_error"], row["token_rate_p90_error"])
    return f"| {label} | {row['rows']} | {watts} | {rates} |"


def _pair(median: float | None, p90: float | None) -> str:
    return "" if median is None or p90 is None else f"{median:.1%} / {p90:.1%}"
