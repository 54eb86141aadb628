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
from pathlib import Path

from wattline.agent.actuator import Actuator
from wattline.agent.brake import BrakeCall, BrakeSwitch
from wattline.agent.commands import Answer, Command
from wattline.agent.discovery import Discovery
from wattline.agent.drop_in import AnnotatedLimits
from wattline.agent.grant_source import BrakeFile, GrantEvent, GrantSource
from wattline.agent.granted import GrantedLimits
from wattline.agent.journal import Journal
from wattline.agent.lock import WriterLock
from wattline.agent.operations import Audit, Operator
from wattline.agent.owner_watch import OwnerWatch
from wattline.agent.settings import AgentSettings
from wattline.agent.snapshot import AgentSnapshot, Mode
from wattline.agent.turns import Asked, Event, LookAgain, Parts, Stop, Turns
from wattline.core.errors import WattlineError
from wattline.drivers.gpu.device import GpuDriver
from wattline.drivers.pods import OwnerSource, PodSource
from wattline.drivers.trusted_files import replace_file

log = logging.getLogger(__name__)

_GIVE_BACK_S = 20.0
"""For giving limits back on the way out; what is left over is an orphan for the next start."""
_GONE_S = 3.0
"""The same for a GPU that does not answer."""
_ANSWER_S = 5.0
_JOIN_S = 1.0


def lease_clock() -> float:
    """Monotonic seconds that go on while the machine is suspended, so that leases end in time.

    A node that slept through its lease must not wake up and act on it; steps of the wall clock do
    not show here.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


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
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._driver = driver
        self._switch = BrakeSwitch(self._events.put)
        self._grants = grants
        self._pods = pods
        self._owners = owners
        self._clock = clock
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
        self._turns: Turns | None = None

    # For any thread

    @property
    def snapshot(self) -> AgentSnapshot | None:
        """The newest picture; None until the loop has looked for the first time."""
        return None if self._turns is None else self._turns.snapshot

    def stop(self) -> None:
        """End `run`; limits are given back first in annotation mode, and held under grants."""
        self._events.put(Stop())

    def submit(self, command: Command) -> Answer:
        """Have a command carried out, and wait for its answer for a few seconds."""
        asked = Asked(command)
        self._events.put(asked)
        try:
            return asked.answer.get(timeout=_ANSWER_S)
        except queue.Empty:
            asked.dropped = True
            began = "it has begun, see status" if asked.begun else "nothing was changed"
            return Answer(False, f"the agent's loop did not answer within {_ANSWER_S:g} s: {began}")

    def call_brake(self, trigger: str, by: str) -> None:
        """Brake; safe to call from a signal handler."""
        self._switch.call(BrakeCall(trigger=trigger, by=by))

    def pods_changed(self) -> None:
        """Something about this node's pods has changed: ask who holds which GPU."""
        if self._watch is not None:
            self._watch.event()

    def look_again(self) -> None:
        """Look for GPUs, pods and owners anew; safe to call from a signal handler."""
        self._events.put(LookAgain())

    # The life of the loop

    def run(self) -> None:
        """Run until `stop`. Raises WattlineError when it cannot start; limits stay as they are."""
        state_dir = self.settings.state_dir
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = state_dir.stat().st_mode
            if mode & 0o022:
                # A journal that others can write could not be believed at the next start.
                state_dir.chmod(mode & 0o7755)
            lock = WriterLock(state_dir)
            for left_over in state_dir.glob(".*.tmp"):
                left_over.unlink(missing_ok=True)  # of a process that was killed while it wrote
        except OSError as error:
            raise WattlineError(
                f"state_dir {state_dir}: {error.strerror or error}: give a directory of its own"
            ) from error
        try:
            turns = self._turns = self._open()
            while not turns.stopping:
                turns.turn()
            self._give_back(turns)
        finally:
            self._close(lock)

    def _open(self) -> Turns:
        settings, state = self.settings, self._journal.load()
        audit = Audit(settings.state_dir)
        actuator = Actuator(
            settings,
            self._journal,
            incarnation=_fresh_incarnation(state.incarnation),
            switch=self._switch,
            now=self._clock,
        )
        drop_in = _drop_in(settings, actuator)
        if self._journal.set_aside is not None:
            log.error("journal was damaged", extra={"why": self._journal.set_aside})
            audit.write(what="journal_set_aside", by="agent", why=self._journal.set_aside)
        log.info(
            "agent starts",
            extra={
                "node": settings.node,
                "mode": settings.mode.value,
                "incarnation": actuator.node.incarnation,
            },
        )
        parts = Parts(
            actuator=actuator,
            granted=GrantedLimits(actuator),
            drop_in=drop_in,
            operator=Operator(actuator, audit, self._switch, drop_in),
            audit=audit,
            discovery=Discovery(self._driver, self._events.put),
            grants=self._grants,
            pods=self._pods,
            watch=self._watch,
        )
        self._switch.start()
        if self._grants is not None:
            self._grants.start(self._from_grants)
        if self._pods is not None:
            self._pods.start()
        if self._watch is not None:
            self._watch.start(self._events.put)
        return Turns(parts, self._events, self._clock)

    def _from_grants(self, event: GrantEvent) -> None:
        """In the source's thread: a brake does not wait for the loop."""
        if isinstance(event, BrakeFile) and event.present:
            call = BrakeCall(trigger="file", by="file", budget_version=event.budget_version)
            self._switch.call(call)
        self._events.put(event)

    def _give_back(self, turns: Turns) -> None:
        """On the way out: in annotation mode, original limits; under grants limits are held."""
        actuator, drop_in = turns.parts.actuator, turns.parts.drop_in
        if drop_in is not None:
            drop_in.release_all()
            began_s = self._clock()
            while (now_s := self._clock()) < began_s + _GIVE_BACK_S and any(
                entry.releasing and (entry.sure or now_s < began_s + _GONE_S)
                for entry in actuator.entries.values()
            ):
                turns.turn(until_s=began_s + _GIVE_BACK_S)
        actuator.pump()
        turns.take_picture()

    def _close(self, lock: WriterLock) -> None:
        """Let go of everything; the lock only if no call to a GPU can still be under way."""
        for source in (self._grants, self._pods, self._watch):
            if source is not None:
                source.stop()
        if self._owners is not None:
            self._owners.close()
        self._switch.close()
        quiet = self._turns is None or self._turns.close(_JOIN_S)
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
            if isinstance(event, Asked):
                event.answer.put(Answer(False, "the agent is stopping"))


def _drop_in(settings: AgentSettings, actuator: Actuator) -> AnnotatedLimits | None:
    if settings.mode is not Mode.ANNOTATIONS:
        return None
    if settings.safe_default_w is None:
        raise WattlineError("mode annotations: give safe_default_w")
    return AnnotatedLimits(
        actuator, safe_default_w=settings.safe_default_w, namespace=settings.namespace
    )


def _fresh_incarnation(last: int) -> int:
    """A number that no start had before: 52 random bits, which every JSON reader keeps exactly."""
    while True:
        incarnation = int.from_bytes(os.urandom(7)) >> 4
        # Brakes and expiries count up from it, so it must stay clear of the last start's numbers.
        if incarnation and abs(incarnation - last) > 1_000_000:
            return incarnation
