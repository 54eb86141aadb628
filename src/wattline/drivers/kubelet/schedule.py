"""When to ask the kubelet: PodResources has no watch, so pods' events say when to look. Pure."""

from __future__ import annotations

from collections.abc import Sequence

BURST_S = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 2.0)
"""Listings after an event, in seconds from it: a pod is admitted milliseconds to about a second
after the API server says that it is bound."""
RECONCILE_S = 60.0


class BurstSchedule:
    """Listings in a bounded burst after each event, and rarely without any. Time is a value.

    Events that come during a burst start it anew; listings stay `MIN_GAP_S` apart, so that a storm
    of events asks at most 50 times a second, and the burst ends as soon as nothing is waited for.
    """

    MIN_GAP_S = 0.02

    def __init__(
        self,
        now_s: float,
        *,
        burst_s: Sequence[float] = BURST_S,
        reconcile_s: float = RECONCILE_S,
    ) -> None:
        self._burst_s = tuple(burst_s)
        self._reconcile_s = reconcile_s
        self._pending: list[float] = [now_s]
        self._listed_s: float | None = None
        self._reconcile_at_s = now_s

    def event(self, now_s: float) -> None:
        """Something about this node's pods has changed."""
        self._pending = [now_s + offset_s for offset_s in self._burst_s]

    def next_s(self) -> float:
        """When the next listing is due; it may be in the past."""
        due_s = min(self._pending, default=self._reconcile_at_s)
        due_s = min(due_s, self._reconcile_at_s)
        return due_s if self._listed_s is None else max(due_s, self._listed_s + self.MIN_GAP_S)

    def listed(self, now_s: float, *, settled: bool) -> None:
        """A listing that began at `now_s` is in; `settled`: it left nothing to wait for.

        A listing that failed is one that did not settle.
        """
        self._listed_s = now_s
        self._reconcile_at_s = now_s + self._reconcile_s
        self._pending = [] if settled else [at_s for at_s in self._pending if at_s > now_s]
