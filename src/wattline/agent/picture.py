"""The loop's state as the immutable snapshot and as the report that leaves the node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from wattline.agent.actuator import Actuator
from wattline.agent.gpus import GpuEntry
from wattline.agent.snapshot import AgentSnapshot, GpuView, Mode, Reason
from wattline.drivers.gpu.device import LimitRange
from wattline.drivers.grant_files import GpuFacts, GpuReport, NodeReport, encode_report
from wattline.grants.messages import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a picture needs beside the GPUs."""

    version: str
    made_s: float
    now_s: float
    sources: Mapping[str, float | None]
    counters: Mapping[str, int]
    not_ready: tuple[str, ...]
    owner_method: str | None
    reasons: Mapping[str, Reason]
    owners: Mapping[str, tuple[str, ...]]


def take_picture(actuator: Actuator, scene: Scene) -> AgentSnapshot:
    """A snapshot of everything, with the report in it; numbers one more report."""
    node, settings = actuator.node, actuator.settings
    ordered = sorted(actuator.entries.values(), key=lambda entry: entry.identity.index)
    views = tuple(_view(actuator, entry, scene) for entry in ordered)
    reports = []
    for entry, view in zip(ordered, views, strict=True):
        said = _report(actuator, entry)
        reports.append(GpuReport(gpu=entry.uuid, report=said, facts=_facts(view)))
    braked = any(actuator.is_braked(entry) for entry in ordered if entry.known)
    document = NodeReport(
        node=settings.node,
        version=scene.version,
        incarnation=node.incarnation,
        report_sequence=node.report_sequence,
        mode=settings.mode.value,
        budget_version=node.budget_version,
        braked=braked,
        operator_hold=actuator.operator_hold,
        journal=journal_words(actuator),
        sources=scene.sources,
        gpus=tuple(reports),
    )
    return AgentSnapshot(
        node=settings.node,
        version=scene.version,
        mode=settings.mode,
        made_s=scene.made_s,
        incarnation=node.incarnation,
        report_sequence=node.report_sequence,
        gpus=views,
        epoch=node.epoch if settings.mode is Mode.GRANTS and node.epoch else None,
        budget_version=node.budget_version,
        braked=braked,
        operator_hold=actuator.operator_hold,
        owner_method=scene.owner_method,
        journal=journal_words(actuator),
        sources=scene.sources,
        counters=scene.counters,
        not_ready=scene.not_ready,
        report=encode_report(document),
    )


def journal_words(actuator: Actuator) -> str:
    """`ok`, or what is wrong with the journal and what that stops."""
    journal = actuator.journal
    if journal.problem is not None:
        stops = "no new limits" if actuator.settings.mode is Mode.ANNOTATIONS else "no raises"
        return f"{journal.problem}: {stops} until it can be"
    if journal.set_aside is not None:
        return f"was damaged: {journal.set_aside}: originals from before are not known"
    return "ok"


def _report(actuator: Actuator, entry: GpuEntry) -> Report[str] | None:
    """The protocol's report, as of the newest reading; None while its limit would be a guess."""
    readings = entry.readings
    if readings is None or not (entry.known and entry.present and entry.sure):
        return None
    persistence = None if entry.facts is None else entry.facts.persistence
    return replace(actuator.node.report(entry.uuid, readings.read_s), persistence=persistence)


def _view(actuator: Actuator, entry: GpuEntry, scene: Scene) -> GpuView:
    node, uuid = actuator.node, entry.uuid
    state = node.state(uuid) if entry.known else None
    readings, facts, record = entry.readings, entry.facts, entry.record
    if not entry.present:
        readings = None
    limits: LimitRange | None = None if facts is None else facts.limits
    rival = None
    if state is not None and entry.ours and entry.present and entry.write_error is None:
        rival = node.rival_w(uuid)
    granted = None if state is None or state.grant_mw is None else state.grant_mw / 1000
    return GpuView(
        uuid=uuid,
        index=entry.identity.index,
        product=entry.identity.product,
        reason=scene.reasons[uuid],
        present=entry.present,
        min_w=None if limits is None else limits.min_w,
        max_w=None if limits is None else limits.max_w,
        default_w=None if facts is None else facts.default_w,
        enforced_w=None if readings is None else readings.enforced_w,
        requested_w=None if readings is None else readings.requested_w,
        wanted_w=node.wanted_w(uuid) if state is not None and entry.ours else None,
        granted_w=granted,
        held_w=None if state is None else node.held_w(uuid),
        original_w=record.original_w if record.ours_w else None,
        pinned_w=None if state is None or state.pin_mw is None or state.restored
        else state.pin_mw / 1000,
        rival_w=rival,
        repairs=0 if state is None else state.repairs,
        epoch=None if state is None or not state.epoch else state.epoch,
        sequence=None if state is None or not state.epoch else state.sequence,
        draw_w=None if readings is None else readings.draw_w,
        energy_j=None if readings is None else readings.energy_j,
        sm_clock_mhz=None if readings is None else readings.sm_clock_mhz,
        clock_ceiling_mhz=entry.clock.known,
        throttle_reasons=frozenset() if readings is None else readings.throttle_reasons,
        persistence=None if facts is None else facts.persistence,
        mig=None if facts is None else facts.mig,
        owners=scene.owners.get(uuid, ()),
        read_age_s=None if readings is None else max(0.0, scene.now_s - readings.read_s),
        fault=_fault(entry),
        notes=_notes(entry, rival),
    )  # fmt: skip


def _fault(entry: GpuEntry) -> str | None:
    if not entry.present:
        return entry.fault or "not found any more"
    return entry.fault or entry.write_error


def _notes(entry: GpuEntry, rival: float | None) -> tuple[str, ...]:
    readings = entry.readings if entry.present else None
    notes = [] if readings is None else list(readings.missing)
    asked_w = None if readings is None else readings.requested_w
    if rival is not None and asked_w is not None and asked_w > rival:
        notes.append(f"held at {rival:g} W out of band: {asked_w:g} W is asked for")
    if entry.clock.error is not None:
        notes.append(f"clock ceiling not set: {entry.clock.error}")
    if entry.releasing:
        notes.append("its original limit is being given back")
    if entry.decision is not None and entry.decision.note is not None:
        notes.append(entry.decision.note)
    if entry.remark is not None:
        notes.append(entry.remark)
    return tuple(notes)


def _facts(view: GpuView) -> GpuFacts:
    return GpuFacts(
        index=view.index,
        product=view.product,
        reason=view.reason.value,
        fault=view.fault,
        min_w=view.min_w,
        max_w=view.max_w,
        default_w=view.default_w,
        original_w=view.original_w,
        requested_w=view.requested_w,
        wanted_w=view.wanted_w,
        granted_w=view.granted_w,
        pinned_w=view.pinned_w,
        rival_w=view.rival_w,
        draw_w=view.draw_w,
        energy_j=view.energy_j,
        sm_clock_mhz=view.sm_clock_mhz,
        clock_ceiling_mhz=view.clock_ceiling_mhz,
        persistence=view.persistence,
        mig=view.mig,
        throttle_reasons=tuple(sorted(view.throttle_reasons)),
        owners=view.owners,
        read_age_s=view.read_age_s,
    )
