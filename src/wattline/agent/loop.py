"""The agent: one thread that owns all state, fed by a queue; what may block is in other threads.

Sources and the GPUs' lanes put events into the queue; the loop takes them in, lets the protocol's
state decide, has the journal written, hands writes to the lanes, and makes a new snapshot and
report after what was read back. It wakes when something happens, for the next lease or repair, and
once per reading.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from wattline import __version__
from wattline.agent.actuator import Actuator
from wattline.agent.brake import BrakeCall, Braked, BrakeSwitch
from wattline.agent.commands import Answer, Command
from wattline.agent.device_calls import Readings, Written
from wattline.agent.discovery import Discovery, Enumerated
from wattline.agent.drop_in import AnnotatedLimits
from wattline.agent.gpus import Tally
from wattline.agent.grant_source import BrakeFile, GrantSource, GrantsRefused
from wattline.agent.granted import GrantedLimits
from wattline.agent.journal import Journal
from wattline.agent.lanes import Lane
from wattline.agent.lock import WriterLock
from wattline.agent.metric_catalogue import LIST_FAILURES, counter_key
from wattline.agent.operations import Audit, Operator
from wattline.agent.owner_watch import OwnersSeen, OwnerWatch
from wattline.agent.picture import Scene, take_picture
from wattline.agent.settings import AgentSettings
from wattline.agent.snapshot import AgentSnapshot, Mode
from wattline.core.errors import WattlineError
from wattline.drivers.gpu.device import GpuDevice, GpuDriver, GpuError, GpuFault
from wattline.drivers.grant_files import GrantFile
from wattline.drivers.pods import OwnerSource, PodName, PodSource
from wattline.drivers.trusted_files import replace_file

log = logging.getLogger(__name__)

_FACTS_S = 30.0
"""Between readings of what changes seldom: range, default, persistence, MIG."""
_FIRST_SEARCH_S = 1.0
_LONGEST_SEARCH_S = 30.0
"""Between enumerations while a GPU is missing: doubling."""
_GIVE_BACK_S = 20.0
"""For giving limits back on the way out; what is left over is an orphan for the next start."""
_ANSWER_S = 5.0
_JOIN_S = 1.0


def lease_clock() -> float:
    """Monotonic seconds that go on while the machine is suspended, so that leases end in time.

    A node that slept through its lease must not wake up and act on it; steps of the wall clock do
    not show here.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


@dataclass(frozen=True, slots=True)
class _LookAgain:
    pass


@dataclass(slots=True)
class _Asked:
    """A command on its way to the loop. dropped: whoever asked has gone."""

    command: Command
    answer: queue.SimpleQueue[Answer] = field(default_factory=queue.SimpleQueue)
    dropped: bool = False


Event = (
    Readings
    | Written
    | Enumerated
    | GrantFile
    | GrantsRefused
    | BrakeFile
    | Braked
    | OwnersSeen
    | _Asked
    | _Stop
    | _LookAgain
)


class Agent:
    """The node agent. `run` blocks until `stop`; the rest may be called by any thread.

    grants: None in annotation mode, unless a brake file is to be watched. pods, owners: None: not
    looked at; the agent starts, stops and closes what it is given, the driver included. clock: of
    leases and ages. replace: brings the journal to the disk; a test may give one that fails.
    """

    def __init__(
        self,
        settings: AgentSettings,
        driver: GpuDriver,
        *,
        grants: GrantSource | None = None,
        pods: PodSource | None = None,
        owners: OwnerSource | None = None,
        clock: Callable[[], float] = lease_clock,
        replace: Callable[[Path, bytes], None] = replace_file,
    ) -> None:
        self.settings = settings
        self.snapshot: AgentSnapshot | None = None
        """The newest picture; None until the loop has looked for the first time."""
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._driver = driver
        self._switch = BrakeSwitch(self._events.put)
        self._grants = grants
        self._pods = pods
        self._owners = owners
        self._clock = clock
        self._tally = Tally()
        self._journal = Journal(settings.state_dir, replace=replace)
        self._watch: OwnerWatch | None = None
        if owners is not None:
            self._watch = OwnerWatch(
                pods,
                owners,
                namespace=settings.namespace,
                reconcile_s=settings.reconcile_s,
                now=clock,
            )
        self._seen: OwnersSeen | None = None
        self._owners_s: float | None = None
        self._brake_file = False
        self._enumerated = False
        self._enumeration_error: str | None = None
        self._search_s = _FIRST_SEARCH_S
        self._next_search_s = 0.0
        self._next_tick_s = 0.0
        self._next_facts_s = 0.0
        self._unread: set[str] = set()
        self._picture_due_s: float | None = None
        self._changed = False
        self._undecided = False
        self._stopping = False

    # For any thread

    def stop(self) -> None:
        """End `run`; limits are given back first in annotation mode, and held under grants."""
        self._events.put(_Stop())

    def submit(self, command: Command) -> Answer:
        """Have a command carried out, and wait for its answer for a few seconds."""
        asked = _Asked(command)
        self._events.put(asked)
        try:
            return asked.answer.get(timeout=_ANSWER_S)
        except queue.Empty:
            asked.dropped = True
            return Answer(False, f"the agent's loop did not answer within {_ANSWER_S:g} s")

    def call_brake(self, trigger: str, by: str) -> None:
        """Brake; safe to call from a signal handler."""
        self._switch.call(BrakeCall(trigger=trigger, by=by))

    def pods_changed(self) -> None:
        """Something about this node's pods has changed: ask who holds which GPU."""
        if self._watch is not None:
            self._watch.event()

    def look_again(self) -> None:
        """Look for GPUs, pods and owners anew; safe to call from a signal handler."""
        self._events.put(_LookAgain())

    # The life of the loop

    def run(self) -> None:
        """Run until `stop`. Raises WattlineError when it cannot start; limits stay as they are."""
        state_dir = self.settings.state_dir
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = WriterLock(state_dir)
        except OSError as error:
            raise WattlineError(
                f"state_dir {state_dir}: {error.strerror or error}: give a directory of its own"
            ) from error
        try:
            self._open()
            while not self._stopping:
                self._turn()
            self._give_back()
        finally:
            self._close(lock)

    def _open(self) -> None:
        settings, state = self.settings, self._journal.load()
        self._audit = Audit(settings.state_dir)
        self._actuator = Actuator(
            settings,
            self._journal,
            incarnation=_fresh_incarnation(state.incarnation),
            switch=self._switch,
            tally=self._tally,
            now=self._clock,
        )
        self._granted = GrantedLimits(self._actuator)
        self._drop_in: AnnotatedLimits | None = None
        if settings.mode is Mode.ANNOTATIONS:
            if settings.safe_default_w is None:
                raise WattlineError("annotations need safe_default_w")
            self._drop_in = AnnotatedLimits(
                self._actuator,
                safe_default_w=settings.safe_default_w,
                namespace=settings.namespace,
            )
        self._operator = Operator(
            self._actuator, self._audit, self._switch, self._drop_in, lambda: self._brake_file
        )
        if self._journal.set_aside is not None:
            log.error("journal was damaged", extra={"why": self._journal.set_aside})
            self._audit.write(what="journal_set_aside", by="agent", why=self._journal.set_aside)
        log.info(
            "agent starts",
            extra={
                "node": settings.node,
                "mode": settings.mode.value,
                "incarnation": self._actuator.node.incarnation,
            },
        )
        self._switch.start()
        self._discovery = Discovery(self._driver, self._events.put)
        self._discovery.look()
        if self._grants is not None:
            self._grants.start(self._from_grants)
        if self._pods is not None:
            self._pods.start()
        if self._watch is not None:
            self._watch.start(self._events.put)

    def _from_grants(self, event: GrantFile | GrantsRefused | BrakeFile) -> None:
        """In the source's thread: a brake does not wait for the loop."""
        if isinstance(event, BrakeFile) and event.present:
            call = BrakeCall(trigger="file", by="file", budget_version=event.budget_version)
            self._switch.call(call)
        self._events.put(event)

    def _give_back(self) -> None:
        """On the way out: in annotation mode, original limits; under grants limits are held."""
        if self._drop_in is not None:
            self._drop_in.release_all()
            deadline_s = self._clock() + _GIVE_BACK_S
            while self._clock() < deadline_s and any(
                entry.releasing for entry in self._actuator.entries.values()
            ):
                self._turn(until_s=deadline_s)
        self._actuator.pump()
        self._take_picture()

    def _close(self, lock: WriterLock) -> None:
        """Let go of everything; the lock only if no call to a GPU can still be under way."""
        if self._grants is not None:
            self._grants.stop()
        if self._pods is not None:
            self._pods.stop()
        if self._watch is not None:
            self._watch.stop()
        if self._owners is not None:
            self._owners.close()
        self._switch.close()
        quiet = self._discovery.close(_JOIN_S) if hasattr(self, "_discovery") else True
        if hasattr(self, "_actuator"):
            for entry in self._actuator.entries.values():
                quiet = entry.lane.close(_JOIN_S) and quiet
        self._refuse_commands()
        if quiet:
            self._driver.close()
            lock.release()
        else:
            log.error("a call to a GPU still hangs: the lock stays until this process has ended")

    def _refuse_commands(self) -> None:
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if isinstance(event, _Asked):
                event.answer.put(Answer(False, "the agent is stopping"))

    # One turn

    def _turn(self, until_s: float | None = None) -> None:
        """Wait for something to do, take in all that has come, and do what follows from it."""
        for event in self._wait(until_s):
            self._take(event)
        now_s = self._clock()
        for uuid in self._actuator.node.tick(now_s):
            self._changed = True
            log.warning("lease ended", extra={"gpu": uuid})
        if now_s >= self._next_tick_s:
            self._tick(now_s)
        if self._undecided and self._drop_in is not None:
            self._undecided = False
            self._drop_in.apply()
        self._actuator.pump()
        due = self._picture_due_s is not None and now_s >= self._picture_due_s
        if self._changed or due or (self._picture_due_s is not None and not self._unread):
            self._take_picture()

    def _wait(self, until_s: float | None) -> list[Event]:
        now_s = self._clock()
        due_s = [self._next_tick_s, self._picture_due_s, until_s]
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
            case GrantFile():
                self._granted.on_grants(event, self._clock())
                self._changed = True
            case GrantsRefused():
                self._granted.on_refused(event)
                self._changed = True
            case BrakeFile():
                self._on_brake_file(event)
            case Braked():
                self._on_braked(event)
            case OwnersSeen():
                self._on_owners(event)
            case _Asked():
                self._on_asked(event)
            case _LookAgain():
                self._discovery.look()
                self.pods_changed()
            case _Stop():
                self._stopping = True

    def _tick(self, now_s: float) -> None:
        """Ask every GPU for readings, and look after those that are missing or hang."""
        self._next_tick_s = now_s + self.settings.readback_s
        self._picture_due_s = now_s + min(0.25, self.settings.readback_s / 2)
        facts = now_s >= self._next_facts_s
        if facts:
            self._next_facts_s = now_s + _FACTS_S
        for entry in self._actuator.entries.values():
            busy_s = entry.lane.busy_since_s
            if busy_s is not None and now_s - busy_s > self.settings.hung_s:
                self._actuator.on_hung(entry)
            elif entry.present:
                self._unread.add(entry.uuid)
                entry.lane.read(facts=facts or not entry.known)
        if now_s >= self._next_search_s:
            self._search(now_s)

    def _search(self, now_s: float) -> None:
        """Enumerate anew: often while something is missing, else as rarely as a reconcile."""
        missing = not self._actuator.entries or any(
            not entry.present or not entry.sure for entry in self._actuator.entries.values()
        )
        self._search_s = min(2 * self._search_s, _LONGEST_SEARCH_S) if missing else _FIRST_SEARCH_S
        self._next_search_s = now_s + (self._search_s if missing else self.settings.reconcile_s)
        self._tally.add("wattline_agent_enumerations_total")
        self._discovery.look()

    # What comes in

    def _on_readings(self, readings: Readings) -> None:
        entry = self._actuator.entries[readings.uuid]
        known = entry.known
        self._unread.discard(readings.uuid)
        self._actuator.on_readings(readings)
        self._search_if_gone(readings.error)
        if entry.known and not known:
            self._changed = self._undecided = True
            if self._brake_file or self._actuator.braked:
                self._actuator.brake_entry(entry)

    def _search_if_gone(self, error: GpuError | None) -> None:
        if error is not None and error.fault in _GONE:
            self._next_search_s = min(self._next_search_s, self._clock() + _FIRST_SEARCH_S)

    def _on_enumerated(self, found: Enumerated) -> None:
        self._enumeration_error = None if found.error is None else str(found.error)
        self._changed = True
        if found.error is not None:
            log.warning("GPUs cannot be listed", extra={"why": self._enumeration_error})
            return
        self._enumerated = True
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
        self._brake_file = event.present
        self._changed = self._undecided = True
        self._actuator.node.see_budget(event.budget_version)
        node, actuator = self._actuator.node, self._actuator
        held = event.present or actuator.operator_hold is not None or actuator.braked
        node.operator_hold = held
        if not event.present:
            log.info("the brake file is gone", extra={"audit": True})
            self._audit.write(what="brake_file_gone", by="file")

    def _on_braked(self, braked: Braked) -> None:
        call = braked.call
        self._changed = True
        self._actuator.on_braked(braked)
        if self._drop_in is not None and call.trigger != "file":
            self._actuator.braked = True
            self._actuator.node.operator_hold = True
        self._tally.add(counter_key("wattline_agent_brakes_total", by=call.trigger))
        self._audit.write(what="brake", trigger=call.trigger, by=call.by)

    def _on_owners(self, seen: OwnersSeen) -> None:
        self._changed = self._undecided = True
        before, self._seen = self._seen, seen
        if seen.joined is None:
            self._tally.add("wattline_agent_owner_failures_total")
        else:
            self._owners_s = seen.seen_s
        for what, error, old in (
            ("pods", seen.pods_error, before and before.pods_error),
            ("owners", seen.owners_error, before and before.owners_error),
        ):
            if error is not None and error != old:
                log.warning("listing failed", extra={"what": what, "why": error})
        names = {pod.uid: f"{pod.namespace}/{pod.name}" for pod in seen.pods or ()}
        for entry in self._actuator.entries.values():
            if seen.joined is not None:
                keys = seen.joined.owners.get(entry.uuid, frozenset())
                entry.owners = tuple(sorted(_owner_name(key, names) for key in keys))
        if self._drop_in is not None:
            self._drop_in.on_owners(seen)

    def _on_asked(self, asked: _Asked) -> None:
        if asked.dropped:
            return
        self._changed = self._undecided = True
        asked.answer.put(self._operator.carry_out(asked.command))

    # What goes out

    def _take_picture(self) -> None:
        self._changed = False
        self._picture_due_s = None
        self._unread.clear()
        now_s = self._clock()
        drop_in = self._drop_in
        reason_of = self._granted.reason if drop_in is None else drop_in.reason
        counters = dict(self._tally.counts)
        if self._pods is not None:
            counters[LIST_FAILURES] = self._pods.failures()
        scene = Scene(
            version=__version__,
            made_s=time.monotonic(),
            now_s=now_s,
            sources=self._ages(now_s),
            counters=counters,
            not_ready=tuple(self._missing()),
            owner_method=None if self._seen is None else self._seen.method,
            reasons={entry.uuid: reason_of(entry) for entry in self._actuator.entries.values()},
        )
        snapshot = take_picture(self._actuator, scene)
        self.snapshot = snapshot
        path = self.settings.state_dir / "report.json"
        try:
            # Atomic but not flushed: after a crash a new incarnation speaks anyway.
            replace_file(path, snapshot.report, durable=False, mode=0o644)
        except OSError as error:
            log.error("report not written", extra={"why": error.strerror or str(error)})

    def _ages(self, now_s: float) -> dict[str, float | None]:
        ages: dict[str, float | None] = {}
        if self._grants is not None and self.settings.mode is Mode.GRANTS:
            ages["grants"] = self._grants.age_s()
        if self._pods is not None:
            ages["pods"] = self._pods.age_s()
        if self._owners is not None:
            ages["owners"] = None if self._owners_s is None else now_s - self._owners_s
        return ages

    def _missing(self) -> list[str]:
        """Why the agent is not ready."""
        reasons = []
        entries = self._actuator.entries.values()
        if self._enumeration_error is not None:
            reasons.append(f"GPUs cannot be listed: {self._enumeration_error}")
        elif not self._enumerated:
            reasons.append("GPUs have not been listed yet")
        elif not entries:
            reasons.append("no GPU on this node")
        reasons += [
            f"GPU {entry.uuid} has not been read yet" for entry in entries if not entry.known
        ]
        if self.settings.mode is Mode.GRANTS:
            if not self._granted.read:
                reasons.append(self._granted.refusal or "no grants have been read yet")
        elif self._seen is None or self._seen.pods is None or self._seen.joined is None:
            reasons.append("pods and their GPUs have not been listed yet")
        return reasons


_GONE = (GpuFault.LOST, GpuFault.STALE_HANDLE, GpuFault.UNAVAILABLE)


def _fresh_incarnation(last: int) -> int:
    """A number that no start had before: 52 random bits, which every JSON reader keeps exactly."""
    while True:
        incarnation = int.from_bytes(os.urandom(7)) >> 4
        # Brakes and expiries count up from it, so it must stay clear of the last start's numbers.
        if incarnation and abs(incarnation - last) > 1_000_000:
            return incarnation


def _owner_name(key: PodName | str, names: dict[str, str]) -> str:
    return f"{key.namespace}/{key.name}" if isinstance(key, PodName) else names.get(key, key)
