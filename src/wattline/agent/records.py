"""What the journal must say of each GPU, before a write and after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from wattline.agent.device_calls import Order
from wattline.agent.gpus import GpuEntry
from wattline.agent.journal import GpuRecord, JournalState
from wattline.agent.snapshot import Mode
from wattline.grants.node import Node
from wattline.grants.node_state import JournalledGpu

_OURS_KEPT = 3
"""Limits asked for last that count as ours: the newest, one under way, one before."""


def found_w(entry: GpuEntry) -> float | None:
    """The limit that giving back must restore: what was asked for, if more than enforced.

    While a limit is held lower out of band, only the request tells what was there before.
    """
    readings = entry.readings
    if readings is None or readings.enforced_w is None:
        return entry.record.original_w
    return max(readings.enforced_w, readings.requested_w or 0.0)


def with_ours(record: GpuRecord, watts: float) -> GpuRecord:
    """The record with one more limit that we may have put in force."""
    others = [each for each in record.ours_w if each != watts]
    return replace(record, ours_w=(watts, *others)[:_OURS_KEPT])


def record_before(entry: GpuEntry, order: Order) -> GpuRecord:
    """What the journal must say before the order may be carried out."""
    record = entry.record
    if order.watts is not None:
        if not record.ours_w:
            record = replace(record, original_w=found_w(entry))
        record = with_ours(record, order.watts)
    if order.clock_mhz is not None:
        record = replace(record, clock_mhz=order.clock_mhz)
    return record


def claim(
    record: GpuRecord, enforced_w: float, mode: Mode, unjournalled: bool
) -> tuple[bool, GpuRecord]:
    """Whether the limit that a start finds is ours to write, and the record that follows from it.

    Under grants a GPU that was ours stays so, whoever wrote since: less is held than was found. In
    annotation mode another's limit is left alone. unjournalled: an earlier run lowered limits on a
    full disk, so one below its original is ours too.
    """
    ours = bool(record.ours_w) and mode is Mode.GRANTS
    ours = ours or record.may_be_ours(enforced_w)
    if unjournalled and record.original_w is not None and not record.ours_w:
        ours = ours or enforced_w < record.original_w
    if ours and not record.ours_w:
        return True, with_ours(record, enforced_w)
    return ours, record if ours else replace(record, ours_w=())


def held_before(record: GpuRecord, enforced_w: float) -> JournalledGpu:
    """What the protocol must know of a GPU after a restart."""
    return JournalledGpu(
        held_w=enforced_w if record.held_w is None else record.held_w,
        brake_w=record.brake_w,
        lease_s=math.inf if record.lease_s is None else record.lease_s,
        expiry_w=record.expiry_w,
    )


class Records:
    """Records of all GPUs that this state directory has ever known, by UUID."""

    def __init__(self, records: Mapping[str, GpuRecord]) -> None:
        self._records = dict(records)

    def of(self, uuid: str) -> GpuRecord:
        """The record of a GPU; an empty one for a GPU that is new."""
        return self._records.get(uuid, GpuRecord())

    def state(
        self,
        node: Node[str],
        entries: Iterable[GpuEntry],
        changed: Mapping[str, GpuRecord],
        *,
        operator_hold: str | None,
        braked: bool,
    ) -> JournalState:
        """The whole journal, with `changed` in place of the entries' own records."""
        told = node.journal_state()
        for entry in entries:
            record = changed.get(entry.uuid, entry.record)
            held = told.gpus.get(entry.uuid)
            if held is not None:
                record = replace(
                    record,
                    held_w=held.held_w if record.ours_w else None,
                    brake_w=held.brake_w,
                    lease_s=held.lease_s if math.isfinite(held.lease_s) else None,
                    expiry_w=held.expiry_w,
                )
            self._records[entry.uuid] = record
        return JournalState(
            incarnation=told.incarnation,
            epoch=told.epoch,
            budget_version=told.budget_version,
            operator_hold=operator_hold,
            braked=braked,
            gpus=dict(self._records),
        )
