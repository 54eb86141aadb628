"""Commands of people: hold, pin, resume, restore, brake; each leaves a line in the audit file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from wattline.agent.actuator import Actuator
from wattline.agent.brake import BrakeCall, BrakeSwitch
from wattline.agent.commands import Answer, Brake, Command, Hold, Pin, Restore, Resume
from wattline.agent.drop_in import AnnotatedLimits
from wattline.agent.gpus import GpuEntry
from wattline.agent.metric_catalogue import counter_key
from wattline.core.errors import InputError

log = logging.getLogger(__name__)


class Audit:
    """`audit.jsonl` in the state directory, only ever appended to: who, what, when, what came."""

    def __init__(self, state_dir: Path, wall: Callable[[], datetime] | None = None) -> None:
        self._path = state_dir / "audit.jsonl"
        self._wall = wall or (lambda: datetime.now(UTC))

    def write(self, **fields: object) -> str | None:
        """Append one line, flushed to the disk; what went wrong, in words, or None."""
        line = json.dumps({"time": self._wall().isoformat(timespec="milliseconds"), **fields})
        log.info("audit", extra={"audit": True, **{f"audit_{k}": v for k, v in fields.items()}})
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, line.encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("audit line not written", extra={"why": str(error)})
            return f"not in the audit file: {error.strerror or error}"
        return None


class Operator:
    """Carries out commands, in the loop's thread. `drop_in` None: grants mode."""

    def __init__(
        self,
        actuator: Actuator,
        audit: Audit,
        switch: BrakeSwitch,
        drop_in: AnnotatedLimits | None,
    ) -> None:
        self._actuator = actuator
        self._audit = audit
        self._switch = switch
        self._drop_in = drop_in

    def carry_out(self, command: Command) -> Answer:
        """Do it, or say in one line why not; either way it is written down."""
        try:
            answer = self._do(command)
        except InputError as error:
            answer = Answer(False, str(error))
        name = type(command).__name__.lower()
        result = "done" if answer.done else "refused"
        key = counter_key("wattline_agent_commands_total", command=name, result=result)
        self._actuator.tally.add(key)
        trouble = self._audit.write(
            what=name, **asdict(command), done=answer.done, answer=answer.text
        )
        return answer if trouble is None else replace(answer, text=f"{answer.text} ({trouble})")

    def _do(self, command: Command) -> Answer:
        match command:
            case Brake():
                self._switch.call(BrakeCall(trigger="command", by=command.by))
                until = "until new grants come" if self._drop_in is None else "until it is resumed"
                return Answer(True, f"all GPUs go to their brake watts {until}")
            case Hold():
                self._actuator.operator_hold = f"{command.by}: {command.why}"
                self._actuator.update_hold()
                return Answer(True, "no raise is obeyed until it is resumed")
            case Pin():
                return self._pin(command)
            case Resume():
                return self._resume(command)
            case Restore():
                return self._restore(command)

    def _pin(self, command: Pin) -> Answer:
        entry = self._entry(command.gpu)
        held_w = self._actuator.node.held_w(entry.uuid)
        watts = self._actuator.settings.writable_w(command.watts)
        if not self._actuator.node.pin(entry.uuid, watts):
            low_w = self._actuator.node.state(entry.uuid).min_mw / 1000
            return Answer(
                False, f"give {low_w:g} W to {held_w:g} W: no more is held by {entry.uuid}"
            )
        entry.orphan = entry.orphan or not entry.ours
        entry.ours, entry.releasing = True, False
        entry.record = replace(entry.record, pinned_w=watts, let_go=False)
        return Answer(True, f"{entry.uuid} stays at {watts:g} W until it is resumed")

    def _resume(self, command: Resume) -> Answer:
        actuator = self._actuator
        entries = list(actuator.entries.values())
        if command.gpu is not None:
            entries = [self._entry(command.gpu)]
        else:
            actuator.operator_hold = None
            actuator.braked = False
        actuator.update_hold()
        for entry in entries:
            if entry.known:
                actuator.node.resume(entry.uuid)
            entry.record = replace(entry.record, pinned_w=None, let_go=False)
            entry.remark = None if entry.known else entry.remark
        if command.gpu is not None:
            return Answer(True, f"{entries[0].uuid} follows its {self._source()} again")
        if actuator.brake_file:
            return Answer(True, "resumed, but the brake file is there: no raise until it is gone")
        if self._drop_in is None and any(e.known and actuator.is_braked(e) for e in entries):
            return Answer(True, "resumed; GPUs at their brake watts wait for new grants")
        return Answer(True, f"all GPUs follow their {self._source()} again")

    def _source(self) -> str:
        return "grants" if self._drop_in is None else "annotations"

    def _restore(self, command: Restore) -> Answer:
        entries = [entry for entry in self._actuator.entries.values() if entry.ours and entry.known]
        if command.gpu is not None:
            entries = [self._entry(command.gpu)]
        outcomes = [self._restore_one(entry) for entry in entries]
        if not outcomes:
            return Answer(False, "no limit on this node is ours")
        refusals = [text for text in outcomes if text is not None]
        if len(refusals) > 1:
            text = f"{len(refusals)} of {len(outcomes)} GPUs stay as they are, first {refusals[0]}"
            return Answer(len(refusals) < len(outcomes), text)
        if refusals:
            return Answer(len(outcomes) > 1, refusals[0])
        return Answer(True, f"{len(outcomes)} original limits are given back")

    def _restore_one(self, entry: GpuEntry) -> str | None:
        """Give one GPU's original limit back; why not, or None."""
        actuator, original_w = self._actuator, entry.record.original_w
        if not entry.ours or original_w is None:
            return f"{entry.uuid}: its limit is not ours"
        if self._drop_in is not None:
            if actuator.node.operator_hold:
                return f"{entry.uuid}: resume the node first: no raise is obeyed"
            if not self._drop_in.release(entry):
                return f"{entry.uuid}: its original limit cannot be granted"
            actuator.node.resume(entry.uuid)
            entry.record = replace(entry.record, pinned_w=None, let_go=True)
            return None
        if not actuator.node.restore(entry.uuid, original_w):
            held_w = actuator.node.held_w(entry.uuid)
            more = f"its original {original_w:g} W is above the {held_w:g} W it holds"
            return f"{entry.uuid}: {more}: a grant must book it first"
        entry.record = replace(entry.record, pinned_w=None)
        actuator.release(entry)
        return None

    def _entry(self, name: str) -> GpuEntry:
        """The GPU of this UUID or index; InputError when there is none that is known.

        One that has gone keeps its old index, which may be another's by now.
        """
        for entry in self._actuator.entries.values():
            here = entry.known and entry.present
            if here and name in (entry.uuid, str(entry.identity.index)):
                return entry
        raise InputError("gpu", name, "give the UUID or index of a GPU of this node that answers")
