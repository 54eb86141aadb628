"""Grants and reports as JSON documents: what a coordinator and an agent say through files.

Both carry the protocol's version; a document of another version, for another node, or with one
value that cannot be meant is refused as a whole, with one line that says why. Keys that this
version does not know are ignored: within one version, fields may only be added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.trusted_files import replace_file
from wattline.grants.messages import PROTOCOL_VERSION, Grant, Report

MAX_GRANT_BYTES = 1 << 20
_LARGEST_COUNT = 2**63 - 1
_LARGEST_W = 1e6
_LARGEST_J = 1e18
_LONGEST_LEASE_S = 366 * 86400.0
_LONGEST_STANDING_S = 1e9  # "for as long as anybody can tell"
_MOST_GPUS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuGrant:
    """A grant and the SM clock ceiling that goes with it; None: no ceiling of ours."""

    grant: Grant[str]
    clock_mhz: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantFile:
    """What a coordinator says to one node.

    epoch: the coordinator's; accepted by the node even without a grant. budget_version: of the
    budget that the grants were planned for. restore: GPUs to be given back: once a grant books the
    original limit, the node writes that and manages the GPU no more.
    """

    node: str
    epoch: int
    budget_version: int | None = None
    grants: tuple[GpuGrant, ...] = ()
    restore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What a node knows of one GPU beside the protocol; None: not known, or the GPU has it not.

    persistence False: when silent it may come back at `default_w`, and must be booked accordingly.
    """

    index: int | None = None
    product: str | None = None
    reason: str | None = None
    fault: str | None = None
    min_w: float | None = None
    max_w: float | None = None
    default_w: float | None = None
    original_w: float | None = None
    requested_w: float | None = None
    wanted_w: float | None = None
    rival_w: float | None = None
    draw_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: int | None = None
    clock_ceiling_mhz: int | None = None
    persistence: bool | None = None
    mig: bool | None = None
    throttle_reasons: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """One GPU of a report. `report` is None while its limit cannot be read: `facts.fault` why."""

    gpu: str
    report: Report[str] | None
    facts: GpuFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node says to its coordinator."""

    node: str
    version: str
    incarnation: int
    report_sequence: int
    mode: str
    budget_version: int | None = None
    braked: bool = False
    journal: str = "ok"
    gpus: tuple[GpuReport, ...] = ()


def decode_grants(content: bytes, *, node: str, where: str) -> GrantFile:
    """Grants out of a document; InputError for one that is torn, foreign or cannot be meant."""
    document = _Reader(_parse(content, where), where)
    document.check_protocol()
    meant_for = document.text("node")
    if meant_for != node:
        raise InputError(f"{where}: node", meant_for, f"meant for another node than {node}")
    epoch = document.count("epoch")
    entries = [
        _decode_grant(_Reader(entry, f"{where}: grants[{index}]"), epoch)
        for index, entry in enumerate(document.items("grants"))
    ]
    _refuse_twice([entry.grant.gpu for entry in entries], f"{where}: grants")
    restore = [_uuid(entry, f"{where}: restore") for entry in document.items("restore")]
    _refuse_twice(restore, f"{where}: restore")
    return GrantFile(
        node=node,
        epoch=epoch,
        budget_version=document.count_or_none("budget_version"),
        grants=tuple(entries),
        restore=tuple(restore),
    )


def encode_grants(grants: GrantFile) -> bytes:
    """Grants as the document that `decode_grants` reads."""
    document = {
        "protocol": PROTOCOL_VERSION,
        "node": grants.node,
        "epoch": grants.epoch,
        "budget_version": grants.budget_version,
        "grants": [
            {
                "gpu": entry.grant.gpu,
                "incarnation": entry.grant.incarnation,
                "epoch": entry.grant.epoch,
                "sequence": entry.grant.sequence,
                "watts": entry.grant.watts,
                "brake_w": entry.grant.brake_w,
                "lease_s": entry.grant.lease_s,
                "expiry_w": entry.grant.expiry_w,
                "clock_mhz": entry.clock_mhz,
            }
            for entry in grants.grants
        ],
        "restore": list(grants.restore),
    }
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def write_grants(path: Path, grants: GrantFile) -> None:
    """Replace the grant file at `path` in one step, durably; OSError when that fails."""
    replace_file(path, encode_grants(grants), mode=0o644)


def encode_report(report: NodeReport) -> bytes:
    """A report as the document that `decode_report` reads."""
    document = {
        "protocol": PROTOCOL_VERSION,
        **{name: getattr(report, name) for name in _REPORT_HEAD},
        "gpus": [
            {
                "gpu": entry.gpu,
                "report": None if entry.report is None else _plain_report(entry.report),
                "facts": {f.name: getattr(entry.facts, f.name) for f in fields(GpuFacts)},
            }
            for entry in report.gpus
        ],
    }
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def decode_report(content: bytes, *, node: str, where: str) -> NodeReport:
    """A report out of a document; InputError for one that is torn, foreign or cannot be meant."""
    document = _Reader(_parse(content, where), where)
    document.check_protocol()
    from_node = document.text("node")
    if from_node != node:
        raise InputError(f"{where}: node", from_node, f"from another node than {node}")
    gpus = [
        _decode_gpu_report(_Reader(entry, f"{where}: gpus[{index}]"))
        for index, entry in enumerate(document.items("gpus"))
    ]
    _refuse_twice([entry.gpu for entry in gpus], f"{where}: gpus")
    return NodeReport(
        node=node,
        version=document.text("version"),
        incarnation=document.count("incarnation"),
        report_sequence=document.count("report_sequence"),
        mode=document.text("mode"),
        budget_version=document.count_or_none("budget_version"),
        braked=document.flag_or_none("braked") or False,
        journal=document.text("journal"),
        gpus=tuple(gpus),
    )


_REPORT_HEAD = (
    "node",
    "version",
    "incarnation",
    "report_sequence",
    "mode",
    "budget_version",
    "braked",
    "journal",
)


class _Reader:
    """Typed look-ups in one JSON object; every refusal is an InputError that names the field."""

    def __init__(self, entry: object, where: str) -> None:
        if not isinstance(entry, dict):
            raise InputError(where, entry, "must be an object")
        self._entry: Mapping[str, Any] = entry
        self._where = where

    def check_protocol(self) -> None:
        found = self._entry.get("protocol")
        if found != PROTOCOL_VERSION or isinstance(found, bool):
            raise InputError(
                f"{self._where}: protocol",
                found,
                f"this program speaks {PROTOCOL_VERSION}: bring both sides to one version",
            )

    def text(self, name: str) -> str:
        found = self._entry.get(name)
        if not isinstance(found, str) or len(found) > 1000:
            raise self.refusal(name, "must be a text")
        return found

    def text_or_none(self, name: str) -> str | None:
        return None if self._entry.get(name) is None else self.text(name)

    def uuid(self, name: str) -> str:
        return _uuid(self._entry.get(name), f"{self._where}: {name}")

    def count(self, name: str) -> int:
        found = self._entry.get(name)
        if not isinstance(found, int) or isinstance(found, bool):
            raise self.refusal(name, "must be a whole number")
        if not 0 <= found <= _LARGEST_COUNT:
            raise self.refusal(name, "must be from 0 to 2^63 - 1")
        return found

    def count_or_none(self, name: str) -> int | None:
        return None if self._entry.get(name) is None else self.count(name)

    def number(self, name: str, largest: float) -> float:
        found = self._entry.get(name)
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise self.refusal(name, "must be a number")
        # Compared before the conversion: a whole number may be too large for a float.
        if not 0 <= found <= largest or not math.isfinite(found):
            raise self.refusal(name, f"must be from 0 to {largest:g}")
        return float(found)

    def number_or_none(self, name: str, largest: float) -> float | None:
        return None if self._entry.get(name) is None else self.number(name, largest)

    def watts(self, name: str) -> float:
        return self.number(name, _LARGEST_W)

    def watts_or_none(self, name: str) -> float | None:
        return self.number_or_none(name, _LARGEST_W)

    def flag_or_none(self, name: str) -> bool | None:
        found = self._entry.get(name)
        if found is not None and not isinstance(found, bool):
            raise self.refusal(name, "must be true or false")
        return found

    def items(self, name: str) -> list[object]:
        found = self._entry.get(name, [])
        if not isinstance(found, list) or len(found) > _MOST_GPUS:
            raise self.refusal(name, f"must be a list of at most {_MOST_GPUS}")
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        found = self.items(name)
        texts = [entry for entry in found if isinstance(entry, str)]
        if len(texts) != len(found):
            raise self.refusal(name, "must be a list of texts")
        return tuple(texts)

    def object(self, name: str) -> _Reader | None:
        found = self._entry.get(name)
        return None if found is None else _Reader(found, f"{self._where}: {name}")

    def refusal(self, name: str, remedy: str) -> InputError:
        return InputError(f"{self._where}: {name}", self._entry.get(name), remedy)


def _parse(content: bytes, where: str) -> object:
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(where, found, "no whole JSON document: replace it in one step") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _decode_grant(entry: _Reader, epoch: int) -> GpuGrant:
    watts = entry.watts("watts")
    expiry_w = entry.watts_or_none("expiry_w")
    if expiry_w is not None and expiry_w > watts:
        raise entry.refusal("expiry_w", f"must not exceed the {watts:g} W of its grant")
    # A grant of an earlier epoch may be sent again until the coordinator grants anew.
    grant_epoch = entry.count_or_none("epoch")
    clock_mhz = entry.count_or_none("clock_mhz")
    if clock_mhz is not None and not 1 <= clock_mhz <= 100_000:
        raise entry.refusal("clock_mhz", "must be from 1 to 100000, or null for none")
    return GpuGrant(
        grant=Grant(
            gpu=entry.uuid("gpu"),
            incarnation=entry.count("incarnation"),
            epoch=epoch if grant_epoch is None else grant_epoch,
            sequence=entry.count("sequence"),
            watts=watts,
            brake_w=entry.watts("brake_w"),
            lease_s=entry.number("lease_s", _LONGEST_LEASE_S),
            expiry_w=expiry_w,
        ),
        clock_mhz=clock_mhz,
    )


def _decode_gpu_report(entry: _Reader) -> GpuReport:
    gpu = entry.uuid("gpu")
    said = entry.object("report")
    known = entry.object("facts")
    return GpuReport(
        gpu=gpu,
        report=None if said is None else _decode_report_of(gpu, said),
        facts=GpuFacts() if known is None else _decode_facts(known),
    )


def _decode_report_of(gpu: str, said: _Reader) -> Report[str]:
    return Report(
        gpu=gpu,
        incarnation=said.count("incarnation"),
        epoch=said.count("epoch"),
        sequence=said.count("sequence"),
        report_sequence=said.count("report_sequence"),
        enforced_w=said.watts("enforced_w"),
        held_w=said.watts("held_w"),
        standing_s=said.number("standing_s", _LONGEST_STANDING_S),
        budget_version=said.count_or_none("budget_version"),
    )


def _decode_facts(known: _Reader) -> GpuFacts:
    return GpuFacts(
        index=known.count_or_none("index"),
        product=known.text_or_none("product"),
        reason=known.text_or_none("reason"),
        fault=known.text_or_none("fault"),
        min_w=known.watts_or_none("min_w"),
        max_w=known.watts_or_none("max_w"),
        default_w=known.watts_or_none("default_w"),
        original_w=known.watts_or_none("original_w"),
        requested_w=known.watts_or_none("requested_w"),
        wanted_w=known.watts_or_none("wanted_w"),
        rival_w=known.watts_or_none("rival_w"),
        draw_w=known.watts_or_none("draw_w"),
        energy_j=known.number_or_none("energy_j", _LARGEST_J),
        sm_clock_mhz=known.count_or_none("sm_clock_mhz"),
        clock_ceiling_mhz=known.count_or_none("clock_ceiling_mhz"),
        persistence=known.flag_or_none("persistence"),
        mig=known.flag_or_none("mig"),
        throttle_reasons=known.texts("throttle_reasons"),
        owners=known.texts("owners"),
    )


def _plain_report(report: Report[str]) -> dict[str, object]:
    plain = {field.name: getattr(report, field.name) for field in fields(report)}
    plain["standing_s"] = min(report.standing_s, _LONGEST_STANDING_S)
    return plain


def _uuid(found: object, where: str) -> str:
    if not isinstance(found, str) or not 1 <= len(found) <= 200 or not found.isprintable():
        raise InputError(where, found, "must be the UUID of a GPU")
    return found


def _refuse_twice(names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(where, name, "must be there once")
        seen.add(name)
