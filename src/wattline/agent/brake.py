"""The brake: all GPUs to their brake watts at once, ahead of everything and waiting for nothing.

It has a thread of its own that knows each GPU's brake watts beforehand, so that neither the loop
nor a slow disk stands in its way; the loop hears of it afterwards.

A brake never undoes a lowering. The loop sets new targets before it sends an order, and targets do
not change while a brake is handed out. So either the brake has the new targets, or all lanes have
it before the order, which they then drop because its maker did not know of this brake.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wattline.agent.lanes import Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeCall:
    """A call of the brake. trigger: `file`, `signal` or `command`; by: who, for the audit.

    budget_version: the version of the budget that the caller has seen, where it says so.
    """

    trigger: str
    by: str
    budget_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Braked:
    """The brake was called: every lane has its brake watts in front of it.

    count: how often it was; targets: watts by GPU, as the lanes got them.
    """

    call: BrakeCall
    count: int
    targets: Mapping[str, float]


class BrakeSwitch:
    """Carries brake calls to the lanes. `post` tells the loop, from the switch's own thread."""

    def __init__(self, post: Callable[[Braked], None]) -> None:
        self._post = post
        self._calls: queue.SimpleQueue[BrakeCall | None] = queue.SimpleQueue()
        self._handing_out = threading.Lock()
        self._targets: tuple[tuple[Lane, float], ...] = ()
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="brake", daemon=True)

    def start(self) -> None:
        """Begin to carry calls; those made before are carried first."""
        self._thread.start()

    def set_targets(self, targets: tuple[tuple[Lane, float], ...]) -> None:
        """Where a brake takes each GPU from now on, in watts.

        Waits for a brake that is being handed out: microseconds, no call to a GPU is in them.
        """
        with self._handing_out:
            self._targets = targets

    def call(self, call: BrakeCall) -> None:
        """Brake. Returns at once; may be called by any thread and by a signal handler."""
        self._calls.put(call)

    def close(self) -> None:
        """End the thread after the calls that are already made."""
        self._calls.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._count += 1
            with self._handing_out:
                targets = self._targets
                for lane, watts in targets:
                    lane.brake(watts, self._count)
            told = {lane.uuid: watts for lane, watts in targets}
            self._post(Braked(call=call, count=self._count, targets=told))
