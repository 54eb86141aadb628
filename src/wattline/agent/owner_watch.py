"""Who holds which GPU, asked for by a thread of its own: in a burst after each event, else rarely.

PodResources has no watch, and its calls may block; the loop gets the joined result only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.drivers.kubelet.join import Joined, OwnerJoin
from wattline.drivers.kubelet.schedule import BurstSchedule
from wattline.drivers.pods import OwnerSource, Pod, PodSource, SourceError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnersSeen:
    """One look. pods None: that listing failed; joined None: that of owners did. Errors say why."""

    seen_s: float
    pods: Sequence[Pod] | None
    joined: Joined | None
    method: str | None
    pods_error: str | None = None
    owners_error: str | None = None


class OwnerWatch:
    """Looks at pods and owners; `post` takes each look that differs, from the watch's thread."""

    def __init__(
        self,
        pods: PodSource | None,
        owners: OwnerSource,
        *,
        namespace: str | None,
        reconcile_s: float,
        now: Callable[[], float],
    ) -> None:
        self._pods = pods
        self._owners = owners
        self._join = OwnerJoin(namespace)
        self._now = now
        self._schedule = BurstSchedule(now(), reconcile_s=reconcile_s)
        self._wake = threading.Condition()
        self._events = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self, post: Callable[[OwnersSeen], None]) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._run, args=(post,), name="owners", daemon=True)
        self._thread.start()

    def event(self) -> None:
        """Something about this node's pods has changed: look again, in a burst. Any thread."""
        with self._wake:
            self._events += 1
            self._schedule.event(self._now())
            self._wake.notify()

    def stop(self) -> None:
        """End the thread; one that hangs in a call is left behind."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(2.0)

    def look(self) -> tuple[OwnersSeen, bool]:
        """Ask now; also whether nothing is left to wait for."""
        pods: Sequence[Pod] | None = ()
        pods_error = owners_error = None
        joined = method = None
        try:
            # Before the owners: a pod that comes in between is then unknown, and looked for again.
            pods = () if self._pods is None else self._pods.pods()
        except Exception as error:
            pods, pods_error = None, _why(error)
        seen_s = self._now()
        try:
            ownership = self._owners.owners()
            joined = self._join.join(ownership, pods or (), seen_s)
            method = ownership.method.value
        except Exception as error:
            owners_error = _why(error)
        seen = OwnersSeen(
            seen_s=seen_s,
            pods=pods,
            joined=joined,
            method=method,
            pods_error=pods_error,
            owners_error=owners_error,
        )
        settled = pods is not None and joined is not None
        waits = joined is not None and self._pods is not None and bool(joined.waiting)
        return seen, settled and not waits

    def _run(self, post: Callable[[OwnersSeen], None]) -> None:
        while True:
            with self._wake:
                while not self._closing and (wait_s := self._schedule.next_s() - self._now()) > 0:
                    self._wake.wait(wait_s)
                if self._closing:
                    return
                began_s, events = self._now(), self._events
            seen, settled = self.look()
            with self._wake:
                # An event during the look may be about what the look has missed.
                self._schedule.listed(began_s, settled=settled and events == self._events)
            post(seen)


def _why(error: Exception) -> str:
    """A failed listing in words. A bug in a source freezes limits as any failure does."""
    if isinstance(error, SourceError):
        return str(error)
    log.error("a listing met a bug", exc_info=error)
    return f"{type(error).__name__}: {error}"
