"""The heap of events, and what replicas share."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush

from wattline.sim.plant.outcomes import Outcomes

Handler = Callable[[float, int], None]
Event = tuple[float, int, Handler, int]


class Kernel:
    """Events as (time, sequence number, handler, tag): ties go to the event that was made first.

    A handler gets the time and its tag; a replica's tag is its epoch, so that an event that was
    overtaken by another change is told by its old tag and ignored. Times are rounded to 1e-9 s.
    The three `segment` lists say from when on the GPUs of a row draw so many watts each.
    """

    __slots__ = (
        "heap",
        "outcomes",
        "preemptions",
        "segment_row",
        "segment_s",
        "segment_w",
        "sequence",
    )

    def __init__(self, outcomes: Outcomes) -> None:
        self.heap: list[Event] = []
        self.sequence = 0
        self.outcomes = outcomes
        self.preemptions = 0
        self.segment_s: list[float] = []
        self.segment_row: list[int] = []
        self.segment_w: list[float] = []

    def push(self, at_s: float, handler: Handler, tag: int) -> None:
        """Call `handler(at_s, tag)` at `at_s`."""
        self.sequence += 1
        heappush(self.heap, (round(at_s, 9), self.sequence, handler, tag))

    def draw(self, now: float, row: int, watts: float) -> None:
        """From now on each GPU of `row` draws `watts`."""
        self.segment_s.append(now)
        self.segment_row.append(row)
        self.segment_w.append(watts)
