"""One turn of the agent's loop: take in what has come, do what follows, show what is.

The loop's thread owns everything here. It wakes when an event comes, for the next lease or repair,
and once per reading.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from wattline import __version__
from wattline.agent.actuator import Actuator
from wattline.agent.brake import Braked
from wattline.agent.commands import Answer, Command
from wattline.agent.device_calls import Readings, Written
from wattline.agent.discovery import Discovery, Enumerated
from wattline.agent.drop_in import AnnotatedLimits
from wattline.agent.grant_source import BrakeFile, GrantSource, GrantsRead, GrantsRefused
from wattline.agent.granted import GrantedLimits
from wattline.agent.lanes import Lane
from wattline.agent.metric_catalogue import LIST_FAILURES, counter_key
from wattline.agent.operations import Audit, Operator
from wattline.agent.owner_watch import OwnersSeen, OwnerWatch
from wattline.agent.picture import Scene, take_picture
from wattline.agent.readiness import of_brake_file, of_gpus, of_grants, of_owners
from wattline.agent.snapshot import AgentSnapshot, Mode
from wattline.drivers.gpu.device import GpuDevice, GpuError, GpuFault
from wattline.drivers.pods import PodName, PodSource
from wattline.drivers.trusted_files import replace_file

log = logging.getLogger(__name__)

_FACTS_S = 30.0
"""Between readings of what changes seldom: range, default, persistence, MIG."""
_FIRST_SEARCH_S = 1.0
_LONGEST_SEARCH_S = 5.0
"""Between enumerations while a GPU is missing: doubling, but not while there is no driver at all.

A GPU or a driver that comes back does so at its default limit, so it is not left alone for long.
"""
_PICTURE_S = 0.25
"""After which a picture is taken without the GPUs that have not answered."""

_GONE = (GpuFault.LOST, GpuFault.STALE_HANDLE, GpuFault.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Stop:
    """End the loop."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Look for GPUs, pods and owners anew."""


@dataclass(slots=True)
class Asked:
    """A command on its way to the loop. begun: it is carried out; dropped: nobody waits for it."""

    command: Command
    answer: queue.SimpleQueue[Answer] = field(default_factory=queue.SimpleQueue)
    begun: bool = False
    dropped: bool = False


Event = (
    Readings
    | Written
    | Enumerated
    | GrantsRead
    | GrantsRefused
    | BrakeFile
    | Braked
    | OwnersSeen
    | Asked
    | Stop
    | LookAgain
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop works with. drop_in: None under grants; what is not looked at is None."""

    actuator: Actuator
    granted: GrantedLimits
    drop_in: AnnotatedLimits | None
    operator: Operator
    audit: Audit
    discovery: Discovery
    grants: GrantSource | None
    pods: PodSource | None
    watch: OwnerWatch | None


class Turns:
    """The loop's state between turns. `events`: its queue; `clock`: of leases and ages."""

    def __init__(
        self,
        parts: Parts,
        events: queue.SimpleQueue[Event],
        clock: Callable[[], float],
    ) -> None:
        self.stopping = False
        self.snapshot: AgentSnapshot | None = None
        self.parts = parts
        self._actuator = parts.actuator
        self._settings = parts.actuator.settings
        self._events = events
        self._clock = clock
        self._seen: OwnersSeen | None = None
        self._owners_s: float | None = None
        self._owners: dict[str, tuple[str, ...]] = {}
        self._enumerated = False
        self._enumeration_error: str | None = None
        self._left_out: tuple[str, ...] = ()
        self._search_s = _FIRST_SEARCH_S
        self._searched_s = clock()
        self._next_search_s = 0.0
        self._next_tick_s = 0.0
        self._next_facts_s = 0.0
        self._unread: set[str] = set()
        self._picture_due_s: float | None = None
        self._changed = False
        self._undecided = False
        self._report_problem: str | None = None
        self._answers: list[tuple[Asked, Answer]] = []

    def close(self, timeout_s: float) -> bool:
        """End the threads that call GPUs; False: one of them hangs in a call."""
        quiet = self.parts.discovery.close(timeout_s)
        for entry in self._actuator.entries.values():
            quiet = entry.lane.close(timeout_s) and quiet
        return quiet

    def turn(self, until_s: float | None = None) -> None:
        """Wait for something to do, take in all that has come, and do what follows from it."""
        for event in self._wait(until_s):
            self._take(event)
        now_s = self._clock()
        for uuid in self._actuator.node.tick(now_s):
            self._changed = True
            log.warning("lease ended", extra={"gpu": uuid})
        if now_s >= self._next_tick_s:
            self._tick(now_s)
        if now_s >= self._next_search_s:
            self._search(now_s)
        if self._undecided and self.parts.drop_in is not None:
            self._undecided = False
            self.parts.drop_in.apply()
        self._actuator.pump()
        self._answer()
        due = self._picture_due_s is not None and now_s >= self._picture_due_s
        if self._changed or due or (self._picture_due_s is not None and not self._unread):
            self.take_picture()

    def _wait(self, until_s: float | None) -> list[Event]:
        now_s = self._clock()
        due_s = [self._next_tick_s, self._next_search_s, self._picture_due_s, until_s]
        deadline_s = self._actuator.node.next_deadline_s()
        if deadline_s > now_s:  # what is overdue was not possible, and is tried at the next tick
            due_s.append(deadline_s)
        wait_s = min(each for each in due_s if each is not None) - now_s
        events: list[Event] = []
        try:
            if wait_s > 0:
                events.append(self._events.get(timeout=wait_s))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def _take(self, event: Event) -> None:
        match event:
            case Readings():
                self._on_readings(event)
            case Written():
                self._actuator.on_written(event)
                self._search_if_gone(event.error)
                self._changed = True
            case Enumerated():
                self._on_enumerated(event)
            case GrantsRead():
                self.parts.granted.on_grants(event.grants, event.read_s)
                self._changed = True
            case GrantsRefused():
                self.parts.granted.on_refused(event, self._clock())
                self._changed = True
            case BrakeFile():
                self._on_brake_file(event)
            case Braked():
                self._on_braked(event)
            case OwnersSeen():
                self._on_owners(event)
            case Asked():
                self._on_asked(event)
            case LookAgain():
                self.parts.discovery.look()
                if self.parts.watch is not None:
                    self.parts.watch.event()
            case Stop():
                self.stopping = True

    def _tick(self, now_s: float) -> None:
        """Ask every GPU for readings, and look after those that are missing or hang."""
        self._next_tick_s = now_s + self._settings.readback_s
        self._picture_due_s = now_s + min(_PICTURE_S, self._settings.readback_s / 2)
        facts = now_s >= self._next_facts_s
        if facts:
            self._next_facts_s = now_s + _FACTS_S
        for entry in self._actuator.entries.values():
            busy_s = entry.lane.busy_since_s
            if busy_s is not None and now_s - busy_s > self._settings.hung_s:
                self._actuator.on_hung(entry)
            elif entry.present:
                self._unread.add(entry.uuid)
                entry.lane.read(facts=facts or not entry.known)

    def _search(self, now_s: float) -> None:
        """Enumerate anew: often while something is missing, else as rarely as a reconcile."""
        entries = self._actuator.entries.values()
        missing = (
            not entries
            or bool(self._left_out)
            or any(not entry.present or not entry.sure for entry in entries)
        )
        if missing and self._enumeration_error is None:
            self._search_s = min(2 * self._search_s, _LONGEST_SEARCH_S)
        else:
            self._search_s = _FIRST_SEARCH_S
        self._searched_s = now_s
        self._next_search_s = now_s + (self._search_s if missing else self._settings.reconcile_s)
        self._actuator.tally.add("wattline_agent_enumerations_total")
        self.parts.discovery.look()

    # What comes in

    def _on_readings(self, readings: Readings) -> None:
        entry = self._actuator.entries[readings.uuid]
        known = entry.known
        self._unread.discard(readings.uuid)
        self._actuator.on_readings(readings)
        self._search_if_gone(readings.error)
        if entry.known and not known:
            self._changed = self._undecided = True
            if self._actuator.brake_file or self._actuator.braked:
                self._actuator.brake_entry(entry)

    def _search_if_gone(self, error: GpuError | None) -> None:
        if error is not None and error.fault in _GONE:
            self._next_search_s = min(self._next_search_s, self._searched_s + _FIRST_SEARCH_S)

    def _on_enumerated(self, found: Enumerated) -> None:
        self._enumeration_error = None if found.error is None else str(found.error)
        self._changed = True
        if found.error is not None:
            log.warning("GPUs cannot be listed", extra={"why": self._enumeration_error})
            return
        self._enumerated = True
        # One that has never answered in this run has no entry that could be missing.
        if (left_out := tuple(found.left_out)) != self._left_out:
            log.warning("GPUs that do not answer", extra={"left_out": left_out})
        self._left_out = left_out
        if left_out:
            self._next_search_s = min(self._next_search_s, self._searched_s + self._search_s)
        uuids = {device.identity.uuid for device in found.devices}
        for entry in self._actuator.entries.values():
            if entry.uuid not in uuids and entry.present:
                entry.present = entry.sure = False
                log.warning("GPU is gone", extra={"gpu": entry.uuid, "why": entry.fault})
        for device in found.devices:
            entry = self._actuator.add_device(device, self._new_lane)
            if not entry.sure:
                self._unread.add(entry.uuid)
                entry.lane.read(facts=True)

    def _new_lane(self, device: GpuDevice) -> Lane:
        return Lane(device, post=self._events.put, now=self._clock)

    def _on_brake_file(self, event: BrakeFile) -> None:
        self._actuator.brake_file = event.present
        self._changed = self._undecided = True
        self._actuator.node.see_budget(event.budget_version)
        self._actuator.update_hold()
        if not event.present:
            log.info("the brake file is gone", extra={"audit": True})
            self.parts.audit.write(what="brake_file_gone", by="file")

    def _on_braked(self, braked: Braked) -> None:
        call = braked.call
        self._changed = True
        self._actuator.on_braked(braked)
        if self.parts.drop_in is not None and call.trigger != "file":
            self._actuator.braked = True
            self._actuator.update_hold()
        self._actuator.tally.add(counter_key("wattline_agent_brakes_total", by=call.trigger))
        self.parts.audit.write(what="brake", trigger=call.trigger, by=call.by)

    def _on_owners(self, seen: OwnersSeen) -> None:
        self._changed = self._undecided = True
        before, self._seen = self._seen, seen
        if seen.joined is None or seen.joined.untold:
            self._actuator.tally.add("wattline_agent_owner_failures_total")
        if seen.joined is not None:
            self._owners_s = seen.seen_s
            unresolved = seen.joined.unresolved
            known = None if before is None or before.joined is None else before.joined.unresolved
            if unresolved and unresolved != known:
                log.warning("devices that belong to no known GPU", extra={"devices": unresolved})
        for what, error, old in (
            ("pods", seen.pods_error, before and before.pods_error),
            ("owners", seen.owners_error, before and before.owners_error),
        ):
            if error is not None and error != old:
                log.warning("listing failed", extra={"what": what, "why": error})
        if seen.joined is not None:
            names = {pod.uid: f"{pod.namespace}/{pod.name}" for pod in seen.pods or ()}
            told = {
                uuid: tuple(sorted(_owner_name(key, names) for key in keys))
                for uuid, keys in seen.joined.owners.items()
            }
            for uuid in seen.joined.untold:
                told[uuid] = self._owners.get(uuid, ())
            self._owners = told
        if self.parts.drop_in is not None:
            self.parts.drop_in.on_owners(seen)

    def _on_asked(self, asked: Asked) -> None:
        if asked.dropped:
            return
        asked.begun = True
        self._changed = self._undecided = True
        self._answers.append((asked, self.parts.operator.carry_out(asked.command)))

    def _answer(self) -> None:
        """Answer commands once the journal has what they ordered."""
        problem = self._actuator.journal.problem
        for asked, answer in self._answers:
            text = answer.text
            if problem is not None:
                text += f" (the journal {problem}: a restart would forget it)"
            asked.answer.put(Answer(answer.done, text))
        self._answers.clear()

    # What goes out

    def take_picture(self) -> None:
        """Make a new snapshot, and the report that leaves the node."""
        self._changed = False
        self._picture_due_s = None
        self._unread.clear()
        now_s = self._clock()
        drop_in = self.parts.drop_in
        reason_of = self.parts.granted.reason if drop_in is None else drop_in.reason
        counters = dict(self._actuator.tally.counts)
        if self.parts.pods is not None:
            counters[LIST_FAILURES] = self.parts.pods.failures()
        scene = Scene(
            version=__version__,
            made_s=now_s,
            now_s=now_s,
            sources=self._ages(now_s),
            counters=counters,
            not_ready=tuple(self._not_ready(now_s)),
            owner_method=None if self._seen is None else self._seen.method,
            owners=self._owners,
            reasons={entry.uuid: reason_of(entry) for entry in self._actuator.entries.values()},
        )
        snapshot = take_picture(self._actuator, scene)
        path = self._settings.state_dir / "report.json"
        try:
            # Atomic but not flushed: after a crash a new incarnation speaks anyway.
            replace_file(path, snapshot.report, durable=False, mode=0o644)
            self._report_problem = None
        except OSError as error:
            self._report_problem = f"{path}: {error.strerror or error}"
            log.error("report not written", extra={"why": self._report_problem})
        self.snapshot = snapshot

    def _ages(self, now_s: float) -> dict[str, float | None]:
        ages: dict[str, float | None] = {}
        if self.parts.grants is not None and self._settings.mode is Mode.GRANTS:
            ages["grants"] = self.parts.grants.age_s()
        if self.parts.pods is not None:
            ages["pods"] = self.parts.pods.age_s()
        if self.parts.watch is not None:
            ages["owners"] = None if self._owners_s is None else now_s - self._owners_s
        return ages

    def _not_ready(self, now_s: float) -> Iterator[str]:
        parts = self.parts
        entries = self._actuator.entries.values()
        yield from of_gpus(entries, listed=self._enumerated, error=self._enumeration_error)
        if self._settings.mode is Mode.GRANTS:
            yield from of_grants(parts.granted, parts.grants, now_s)
        else:
            age_s = None if self._owners_s is None else now_s - self._owners_s
            yield from of_owners(self._seen, parts.pods, age_s)
        yield from of_brake_file(parts.grants)
        if self._report_problem is not None:
            yield f"the report cannot be written: {self._report_problem}"


def _owner_name(key: PodName | str, names: dict[str, str]) -> str:
    return f"{key.namespace}/{key.name}" if isinstance(key, PodName) else names.get(key, key)
