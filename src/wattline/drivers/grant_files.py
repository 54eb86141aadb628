"""Grants and reports as JSON documents: what a coordinator and an agent say through files.

Both carry the protocol's version; a document of another version, for another node, or with one
value that cannot be meant is refused as a whole, with one line that says why. Keys that this
version does not know are ignored: within one version, fields may only be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from wattline.core.errors import InputError
from wattline.drivers.json_fields import Fields, parse, uuid_of
from wattline.drivers.trusted_files import replace_file
from wattline.grants.messages import PROTOCOL_VERSION, Adopt, Grant, Report

MAX_GRANT_BYTES = 1 << 20
_LARGEST_J = 1e18
_LONGEST_LEASE_S = 366 * 86400.0
_LONGEST_STANDING_S = 1e9  # "for as long as anybody can tell"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuGrant:
    """A grant and the SM clock ceiling that goes with it; None: no ceiling of ours."""

    grant: Grant[str]
    clock_mhz: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantFile:
    """What a coordinator says to one node.

    epoch: the coordinator's. budget_version: of the newest budget; that of each grant where it
    names none. adopt: GPUs whose node is asked to say what it holds under this epoch. restore: GPUs
    to be given back: once a grant books the original limit, the node writes that and manages the
    GPU no more. Every replacement of the file is one receipt of all its messages, which renews the
    leases of grants that are in it unchanged.
    """

    node: str
    epoch: int
    budget_version: int | None = None
    grants: tuple[GpuGrant, ...] = ()
    adopt: tuple[Adopt[str], ...] = ()
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
    granted_w: float | None = None
    pinned_w: float | None = None
    rival_w: float | None = None
    draw_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: int | None = None
    clock_ceiling_mhz: int | None = None
    persistence: bool | None = None
    mig: bool | None = None
    throttle_reasons: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    read_age_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """One GPU of a report. `report` is None while its limit cannot be read: `facts.fault` why."""

    gpu: str
    report: Report[str] | None
    facts: GpuFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node says to its coordinator.

    operator_hold: who holds the node and why, so that no raise is obeyed; None: nobody. sources:
    seconds since each input of the node was last good, None: never.
    """

    node: str
    version: str
    incarnation: int
    report_sequence: int
    mode: str
    budget_version: int | None = None
    braked: bool = False
    operator_hold: str | None = None
    journal: str = "ok"
    sources: Mapping[str, float | None] = field(default_factory=dict)
    gpus: tuple[GpuReport, ...] = ()


def decode_grants(content: bytes, *, node: str, where: str) -> GrantFile:
    """Grants out of a document; InputError for one that is torn, foreign or cannot be meant."""
    document = parse(content, where)
    document.check_protocol()
    meant_for = document.text("node")
    if meant_for != node:
        raise InputError(f"{where}: node", meant_for, f"meant for another node than {node}")
    epoch = document.count("epoch")
    version = document.count_or_none("budget_version")
    entries = [
        _decode_grant(Fields(entry, f"{where}: grants[{index}]"), epoch, version)
        for index, entry in enumerate(document.items("grants"))
    ]
    adoptions = [
        _decode_adoption(Fields(entry, f"{where}: adopt[{index}]"), epoch, version)
        for index, entry in enumerate(document.items("adopt"))
    ]
    addressed = [entry.grant.gpu for entry in entries] + [entry.gpu for entry in adoptions]
    _refuse_twice(addressed, f"{where}: grants and adopt")
    restore = [uuid_of(entry, f"{where}: restore") for entry in document.items("restore")]
    _refuse_twice(restore, f"{where}: restore")
    return GrantFile(
        node=node,
        epoch=epoch,
        budget_version=version,
        grants=tuple(entries),
        adopt=tuple(adoptions),
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
                "budget_version": entry.grant.budget_version,
                "lowers_only": entry.grant.lowers_only,
                "clock_mhz": entry.clock_mhz,
            }
            for entry in grants.grants
        ],
        "adopt": [
            {field.name: getattr(entry, field.name) for field in fields(Adopt)}
            for entry in grants.adopt
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
        "sources": dict(report.sources),
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
    document = parse(content, where)
    document.check_protocol()
    from_node = document.text("node")
    if from_node != node:
        raise InputError(f"{where}: node", from_node, f"from another node than {node}")
    gpus = [
        _decode_gpu_report(Fields(entry, f"{where}: gpus[{index}]"))
        for index, entry in enumerate(document.items("gpus"))
    ]
    _refuse_twice([entry.gpu for entry in gpus], f"{where}: gpus")
    return NodeReport(
        node=node,
        version=document.line("version"),
        incarnation=document.count("incarnation"),
        report_sequence=document.count("report_sequence"),
        mode=document.line("mode"),
        budget_version=document.count_or_none("budget_version"),
        braked=document.flag_or_none("braked") or False,
        operator_hold=document.line_or_none("operator_hold"),
        journal=document.line("journal"),
        sources=document.numbers_or_none("sources", _LONGEST_STANDING_S),
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
    "operator_hold",
    "journal",
)


def _decode_grant(entry: Fields, epoch: int, version: int | None) -> GpuGrant:
    watts = entry.watts("watts")
    expiry_w = entry.watts_or_none("expiry_w")
    if expiry_w is not None and expiry_w > watts:
        raise entry.refusal("expiry_w", f"must not exceed the {watts:g} W of its grant")
    clock_mhz = entry.count_or_none("clock_mhz")
    if clock_mhz is not None and not 1 <= clock_mhz <= 100_000:
        raise entry.refusal("clock_mhz", "must be from 1 to 100000, or null for none")
    return GpuGrant(
        grant=Grant(
            gpu=entry.uuid("gpu"),
            incarnation=entry.count("incarnation"),
            epoch=entry.count("epoch") if entry.has("epoch") else epoch,
            sequence=entry.count("sequence"),
            watts=watts,
            brake_w=entry.watts("brake_w"),
            lease_s=entry.number("lease_s", _LONGEST_LEASE_S),
            expiry_w=expiry_w,
            budget_version=entry.count("budget_version")
            if entry.has("budget_version")
            else version,
            lowers_only=entry.flag_or_none("lowers_only") or False,
        ),
        clock_mhz=clock_mhz,
    )


def _decode_adoption(entry: Fields, epoch: int, version: int | None) -> Adopt[str]:
    return Adopt(
        gpu=entry.uuid("gpu"),
        incarnation=entry.count("incarnation"),
        epoch=entry.count("epoch") if entry.has("epoch") else epoch,
        sequence=entry.count("sequence"),
        budget_version=entry.count("budget_version") if entry.has("budget_version") else version,
    )


def _decode_gpu_report(entry: Fields) -> GpuReport:
    gpu = entry.uuid("gpu")
    said = entry.object("report")
    known = entry.object("facts")
    return GpuReport(
        gpu=gpu,
        report=None if said is None else _decode_report_of(gpu, said),
        facts=GpuFacts() if known is None else _decode_facts(known),
    )


def _decode_report_of(gpu: str, said: Fields) -> Report[str]:
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
        persistence=said.flag_or_none("persistence"),
    )


def _decode_facts(known: Fields) -> GpuFacts:
    return GpuFacts(
        index=known.count_or_none("index"),
        product=known.line_or_none("product"),
        reason=known.line_or_none("reason"),
        fault=known.line_or_none("fault"),
        min_w=known.watts_or_none("min_w"),
        max_w=known.watts_or_none("max_w"),
        default_w=known.watts_or_none("default_w"),
        original_w=known.watts_or_none("original_w"),
        requested_w=known.watts_or_none("requested_w"),
        wanted_w=known.watts_or_none("wanted_w"),
        granted_w=known.watts_or_none("granted_w"),
        pinned_w=known.watts_or_none("pinned_w"),
        rival_w=known.watts_or_none("rival_w"),
        draw_w=known.watts_or_none("draw_w"),
        energy_j=known.number_or_none("energy_j", _LARGEST_J),
        sm_clock_mhz=known.count_or_none("sm_clock_mhz"),
        clock_ceiling_mhz=known.count_or_none("clock_ceiling_mhz"),
        persistence=known.flag_or_none("persistence"),
        mig=known.flag_or_none("mig"),
        throttle_reasons=known.texts("throttle_reasons"),
        owners=known.texts("owners"),
        read_age_s=known.number_or_none("read_age_s", _LONGEST_STANDING_S),
    )


def _plain_report(report: Report[str]) -> dict[str, object]:
    plain = {field.name: getattr(report, field.name) for field in fields(report)}
    plain["standing_s"] = min(report.standing_s, _LONGEST_STANDING_S)
    return plain


def _refuse_twice(names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(where, name, "must be there once")
        seen.add(name)
