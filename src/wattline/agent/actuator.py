"""From what the protocol's state wants to limits that are enforced: journal, write, read back.

The order of work for each limit: the journal has what is held and what was found before the write
begins; the write counts as held until it has been read back; what was read back is reported.

A full disk: nothing is written that the journal could not give back or would not hold after a
crash. One exception, for safety: a limit may be lowered to what a grant or a brake orders, its
original being kept in memory and journalled as soon as that is possible.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from wattline.agent.brake import Braked, BrakeSwitch
from wattline.agent.clocks import ClockCeiling
from wattline.agent.device_calls import Order, Readings, Written
from wattline.agent.gpus import GpuEntry, Tally, Write
from wattline.agent.journal import GpuRecord, Journal, JournalError
from wattline.agent.lanes import BRAKE_SERIAL, Lane
from wattline.agent.metric_catalogue import APPLY_FAILURES, counter_key
from wattline.agent.records import Records, claim, found_w, held_before, record_before, with_ours
from wattline.agent.settings import AgentSettings
from wattline.agent.snapshot import Mode
from wattline.drivers.gpu.device import GpuDevice
from wattline.grants.node import Node
from wattline.grants.node_state import Found, Journalled, JournalledGpu

log = logging.getLogger(__name__)


class Actuator:
    """Owns the GPUs, the protocol's state and the journal; used by the loop's thread only.

    operator_hold: who holds the node and why. braked: until a person resumes. brake_file: the
    brake file is there.
    """

    def __init__(
        self,
        settings: AgentSettings,
        journal: Journal,
        *,
        incarnation: int,
        switch: BrakeSwitch,
        now: Callable[[], float],
    ) -> None:
        state = journal.state
        self.settings = settings
        self.journal = journal
        self.tally = Tally()
        self.operator_hold = state.operator_hold
        self.braked = state.braked
        self.brake_file = False
        self.brakes = 0
        self.entries: dict[str, GpuEntry] = {}
        self._switch = switch
        self._now = now
        self._serial = BRAKE_SERIAL
        self._records = Records(state.gpus)
        self._early: list[Written | Readings] = []
        """Of a brake whose news is still under way: it must not pass for what was found."""
        self._targets: dict[str, float] = {}
        self.node: Node[str] = Node(
            {},
            incarnation=incarnation,
            journal=Journalled(
                incarnation=state.incarnation,
                epoch=state.epoch,
                budget_version=state.budget_version,
                gpus={},
            ),
        )
        self.update_hold()

    def update_hold(self) -> None:
        """No raise is obeyed while a person holds, while braked until resumed, or by the file."""
        self.node.operator_hold = self.operator_hold is not None or self.braked or self.brake_file

    # GPUs that come, go and answer

    def add_device(self, device: GpuDevice, lane: Callable[[GpuDevice], Lane]) -> GpuEntry:
        """A device of a new enumeration: a GPU that is new, or a new handle of a known one."""
        uuid = device.identity.uuid
        entry = self.entries.get(uuid)
        if entry is None:
            record = self._records.of(uuid)
            entry = GpuEntry(uuid, device.identity, lane(device), record)
            entry.clock = ClockCeiling.journalled(record.clock_mhz)
            self.entries[uuid] = entry
        else:
            entry.identity = device.identity
            entry.lane.replace_device(device)
            if not entry.sure:
                entry.clock.doubt()
        entry.present = True
        return entry

    def on_readings(self, readings: Readings) -> None:
        """Take in one pass over a GPU."""
        if readings.brakes > self.brakes:
            self._early.append(readings)
            return
        entry = self.entries[readings.uuid]
        if readings.error is not None or readings.enforced_w is None:
            self._fault(entry, readings)
            return
        if entry.fault is not None:
            log.info("GPU answers again", extra={"gpu": entry.uuid})
        entry.fault, entry.sure, entry.readings = None, True, readings
        if readings.facts is not None:
            entry.facts = readings.facts
        if not entry.known:
            self._first_reading(entry, readings.enforced_w, readings.read_s, readings.requested_w)
            return
        limits = None if readings.facts is None else readings.facts.limits
        if limits is not None:
            self.node.set_range(entry.uuid, limits.min_w, limits.max_w)
        self._on_enforced(entry, readings.enforced_w, readings.read_s, readings.requested_w)
        entry.clock.look(readings.sm_clock_mhz, readings.read_s)

    def _fault(self, entry: GpuEntry, readings: Readings) -> None:
        error = readings.error
        text = "the limit cannot be read" if error is None else str(error)
        if entry.fault != text:
            log.warning("GPU does not answer", extra={"gpu": entry.uuid, "why": text})
        kind = "unknown" if error is None else error.fault.value
        self.tally.add(counter_key("wattline_agent_gpu_faults_total", fault=kind))
        entry.fault, entry.sure = text, False

    def on_hung(self, entry: GpuEntry) -> None:
        """A call to the GPU has not returned for too long: nothing is known of it meanwhile."""
        text = "a call to it hangs"
        if entry.fault != text:
            log.warning("GPU does not answer", extra={"gpu": entry.uuid, "why": text})
            self.tally.add(counter_key("wattline_agent_gpu_faults_total", fault="hung"))
        entry.fault, entry.sure = text, False

    def _first_reading(
        self, entry: GpuEntry, enforced_w: float, now_s: float, requested_w: float | None
    ) -> None:
        """A GPU whose limit and range are known for the first time in this run."""
        facts = entry.facts
        if facts is None or facts.limits is None:
            entry.remark = "its range of limits cannot be read: nothing is written until it can"
            return
        entry.remark = None
        limits, settings = facts.limits, self.settings
        entry.ours, record = claim(
            entry.record, enforced_w, settings.mode, self.journal.unjournalled
        )
        entry.record = record
        journalled = None
        if entry.ours and settings.mode is Mode.GRANTS:
            journalled = held_before(record, enforced_w)
        elif settings.brake_w is not None:
            brake_w = min(max(settings.brake_w, limits.min_w), limits.max_w)
            journalled = JournalledGpu(held_w=enforced_w, brake_w=brake_w)
        found = Found(enforced_w, limits.min_w, limits.max_w, requested_w)
        self.node.add_gpu(entry.uuid, found, now_s, journalled)
        entry.known = True
        entry.orphan = entry.ours
        if record.pinned_w is not None and not self.node.pin(entry.uuid, record.pinned_w):
            entry.remark = f"its pin of {record.pinned_w:g} W is above what is held"
        log.info(
            "GPU found",
            extra={
                "gpu": entry.uuid,
                "product": entry.identity.product,
                "enforced_w": enforced_w,
                "held_w": self.node.held_w(entry.uuid),
                "ours": entry.ours,
            },
        )

    def _on_enforced(
        self, entry: GpuEntry, enforced_w: float, read_s: float, requested_w: float | None
    ) -> None:
        self.node.on_enforced(entry.uuid, enforced_w, read_s, requested_w)
        if entry.releasing and entry.write is None and _has_original(entry):
            self._released(entry)

    def _released(self, entry: GpuEntry) -> None:
        entry.releasing = entry.ours = entry.orphan = False
        entry.record = replace(entry.record, ours_w=(), held_w=None, lease_s=None, expiry_w=None)
        log.info("original limit given back", extra={"gpu": entry.uuid, "audit": True})

    def release(self, entry: GpuEntry) -> None:
        """The state wants the original limit now; once it is back the GPU is not ours."""
        entry.releasing = True
        entry.clock.wanted = None
        if entry.write is None and _has_original(entry):
            self._released(entry)

    # Writing

    def pump(self) -> None:
        """Hand every write that is due to its lane, after the journal has it."""
        now_s = self._now()
        due: list[tuple[GpuEntry, Order, GpuRecord]] = []
        for entry in self.entries.values():
            order = self._order_due(entry, now_s)
            if order is not None:
                due.append((entry, order, record_before(entry, order)))
            elif not entry.ours and entry.known:
                entry.record = replace(entry.record, original_w=found_w(entry))
        durable = self._journalled({entry.uuid: record for entry, _, record in due})
        self._aim_brake()  # first: a brake must not undo a lowering that has just been sent
        for entry, order, record in due:
            if durable or self._may_lower(entry, order):
                self._send(entry, order, record, now_s)

    def _journalled(self, changed: Mapping[str, GpuRecord]) -> bool:
        """Bring everything that must outlive us to the disk; False: it could not be."""
        state = self._records.state(
            self.node,
            self.entries.values(),
            changed,
            operator_hold=self.operator_hold,
            braked=self.braked,
        )
        try:
            self.journal.commit(state)
        except JournalError as error:
            self.tally.add("wattline_agent_journal_failures_total")
            log.error("journal not written", extra={"why": str(error)})
            return False
        return True

    def _order_due(self, entry: GpuEntry, now_s: float) -> Order | None:
        if not (entry.known and entry.present):
            return None
        watts = self._watts_due(entry, now_s) if entry.ours else None
        clock_mhz, reset = None, False
        if self.settings.clock_ceilings and not self.is_braked(entry):
            clock_mhz, reset = entry.clock.due()
        if watts is None and clock_mhz is None and not reset:
            return None
        if watts is None and entry.write is not None:
            # A newer order supersedes one that still waits, so it must carry all of it.
            watts = entry.write.watts
        return Order(
            serial=self._serial + 1,
            brakes=self.brakes,
            watts=watts,
            clock_mhz=clock_mhz,
            reset_clocks=reset,
        )

    def is_braked(self, entry: GpuEntry) -> bool:
        """While braked, only the limit counts."""
        return self.node.state(entry.uuid).braked

    def _watts_due(self, entry: GpuEntry, now_s: float) -> float | None:
        wanted_w = self.node.wanted_w(entry.uuid)
        if entry.write is not None:
            return None if entry.write.watts == wanted_w else wanted_w
        watts = self.node.write_due(entry.uuid, now_s)
        if watts is None or not self._is_repair(entry):
            return watts
        if not self.settings.repair:
            return None
        readings = entry.readings
        if readings is not None and readings.requested_w == wanted_w:
            enforced_w = readings.enforced_w
            if enforced_w is not None and enforced_w < wanted_w:
                return None  # held lower out of band: asking again changes nothing
        return watts

    def _is_repair(self, entry: GpuEntry) -> bool:
        state = self.node.state(entry.uuid)
        return state.attempted_mw == state.wanted_mw

    def _may_lower(self, entry: GpuEntry, order: Order) -> bool:
        """Whether the order only lowers; the byte beside the journal then says whose limit it is.

        It is carried out even if not that much can be written: a restart then takes the lowered
        limit for the original.
        """
        if self.settings.mode is not Mode.GRANTS or order.watts is None:
            return False
        state = self.node.state(entry.uuid)
        under_way_mw = state.enforced_mw if state.writing_mw is None else state.writing_mw
        if order.watts * 1000 >= min(state.enforced_mw, under_way_mw):
            return False
        if not self.journal.mark_unjournalled():
            log.error("limit lowered without a trace on the disk", extra={"gpu": entry.uuid})
        return True

    def _send(self, entry: GpuEntry, order: Order, record: GpuRecord, now_s: float) -> None:
        self._serial += 1
        order = replace(order, serial=self._serial)
        entry.record = record
        if order.watts is not None:
            if self._is_repair(entry) and entry.write is None:
                log.warning(
                    "another writer's limit is repaired",
                    extra={
                        "gpu": entry.uuid,
                        "found_w": self.node.state(entry.uuid).enforced_mw / 1000,
                        "wanted_w": order.watts,
                    },
                )
            self.node.begin_write(entry.uuid, order.watts, now_s)
            entry.write = Write(order.serial, order.watts)
        if order.clock_mhz is not None or order.reset_clocks:
            entry.clock.sent = order.clock_mhz
        entry.lane.order(order)

    def on_written(self, written: Written) -> None:
        """Take in what came of an order or of a brake."""
        entry = self.entries[written.uuid]
        if written.braking and written.order.brakes > self.brakes:
            self._early.append(written)
            return
        if written.order.watts is not None:
            self._limit_written(entry, written)
        elif written.enforced_w is not None:
            self._on_enforced(entry, written.enforced_w, written.done_s, written.requested_w)
        if written.order.clock_mhz is not None or written.order.reset_clocks:
            self._clock_written(entry, written)

    def _limit_written(self, entry: GpuEntry, written: Written) -> None:
        order, enforced_w = written.order, written.enforced_w
        error = written.write_error
        result = "ok" if error is None else "failed"
        self.tally.add(counter_key("wattline_agent_limit_writes_total", result=result))
        if error is not None:
            self.tally.add(APPLY_FAILURES)
            log.warning(
                "limit not written",
                extra={"gpu": entry.uuid, "watts": order.watts, "why": str(error)},
            )
        entry.write_error = None if error is None else str(error)
        if entry.readings is not None and enforced_w is not None:
            entry.readings = replace(
                entry.readings,
                enforced_w=enforced_w,
                requested_w=written.requested_w,
                read_s=written.done_s,
            )
        is_newest = entry.write is not None and entry.write.serial == order.serial
        if is_newest and (not written.braking or order.brakes == self.brakes):
            entry.write = None
            self.node.end_write(entry.uuid, enforced_w, written.done_s, written.requested_w)
            if enforced_w is not None:
                self._on_enforced(entry, enforced_w, written.done_s, written.requested_w)
        elif enforced_w is not None:
            self._on_enforced(entry, enforced_w, written.done_s, written.requested_w)
        entry.sure = enforced_w is not None
        entry.fault = None if written.error is None else str(written.error)
        log.debug(
            "limit written",
            extra={"gpu": entry.uuid, "watts": order.watts, "enforced_w": enforced_w},
        )

    def _clock_written(self, entry: GpuEntry, written: Written) -> None:
        clock_mhz, error = written.order.clock_mhz, written.clock_error
        result = "ok" if error is None else "failed"
        self.tally.add(counter_key("wattline_agent_clock_writes_total", result=result))
        entry.clock.answered(clock_mhz, None if error is None else str(error))
        if error is not None:
            log.warning("clock ceiling not set", extra={"gpu": entry.uuid, "why": str(error)})
        elif clock_mhz is None:
            entry.record = replace(entry.record, clock_mhz=None)

    # The brake

    def on_braked(self, braked: Braked) -> None:
        """The lanes have their brake watts already: take in what that means."""
        now_s = self._now()
        self.brakes = braked.count
        self.node.brake(braked.call.budget_version)
        for entry in self.entries.values():
            target_w = braked.targets.get(entry.uuid)
            if not entry.known or target_w is None:
                continue
            if not entry.ours:
                entry.ours = entry.orphan = True
                entry.record = replace(entry.record, original_w=found_w(entry))
            entry.record = with_ours(entry.record, target_w)
            entry.releasing = False
            entry.clock.recall()
            entry.write = Write(BRAKE_SERIAL, target_w)
            self.node.begin_write(entry.uuid, target_w, now_s)
        early, self._early = self._early, []
        for event in early:
            if isinstance(event, Readings):
                self.on_readings(event)
            else:
                self.on_written(event)

    def _aim_brake(self) -> None:
        """Tell the switch where a brake must take each GPU from now on; never upwards."""
        targets = {}
        for entry in self.entries.values():
            if entry.known and entry.present:
                state = self.node.state(entry.uuid)
                target_mw = min(state.wanted_mw, state.brake_mw)
                if not entry.ours:
                    target_mw = min(target_mw, max(state.enforced_mw, state.min_mw))
                if target_mw >= state.min_mw:  # else it is below its range already
                    targets[entry.uuid] = target_mw / 1000
        if targets != self._targets:
            self._targets = targets
            lanes = tuple((self.entries[uuid].lane, watts) for uuid, watts in targets.items())
            self._switch.set_targets(lanes)

    def brake_entry(self, entry: GpuEntry) -> None:
        """Brake a GPU that has become known while the brake is on."""
        self.node.brake()
        entry.orphan = entry.orphan or not entry.ours
        entry.ours = True


def _has_original(entry: GpuEntry) -> bool:
    """Whether the original limit is asked for again; less may be enforced out of band."""
    readings, original_w = entry.readings, entry.record.original_w
    if readings is None or original_w is None:
        return False
    if readings.requested_w is None:
        return readings.enforced_w == original_w
    return readings.requested_w == original_w
