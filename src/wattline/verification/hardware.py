"""One GPU's power limit as hardware keeps it, with who is to blame for each level that it may draw.

Time is counted in ticks. A limit that falls is followed by the draw only after `settle` ticks.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Origin(IntEnum):
    """Who put a level there, and whether the coordinator in charge can know."""

    OURS = 0
    """Written by the node agent: must be booked at all times."""
    KNOWN = 1
    """Brought about from outside, and reported since: must be booked too."""
    OUTSIDE = 2
    """Brought about from outside and not yet reported: counted as exposure."""


class Level(NamedTuple):
    """A former limit that the draw may still follow."""

    ticks: int
    watts: float
    origin: Origin


class Hardware(NamedTuple):
    """requested_w: written last. floor_w, ceiling_w: clamps from out of band. lag: unsettled.

    requested_by: under a clamp, who asked for what it hides.
    """

    gpu: int
    requested_w: float
    enforced_w: float
    origin: Origin = Origin.OURS
    floor_w: float | None = None
    ceiling_w: float | None = None
    lag: tuple[Level, ...] = ()
    requested_by: Origin = Origin.OURS

    def clamped_w(self, watts: float) -> float:
        """What is enforced when `watts` are asked for."""
        if self.ceiling_w is not None:
            watts = min(watts, self.ceiling_w)
        return watts if self.floor_w is None else max(watts, self.floor_w)

    def enforce(self, requested_w: float, origin: Origin, settle: int) -> Hardware:
        """Take a request; who lowers a limit answers for no more than stood before."""
        enforced_w = self.clamped_w(requested_w)
        asked_by = origin if enforced_w != requested_w else Origin.OURS
        if enforced_w == self.enforced_w:
            kept = min(origin, self.origin) if enforced_w == requested_w else self.origin
            return self._replace(requested_w=requested_w, origin=kept, requested_by=asked_by)
        lag = self.lag
        if enforced_w < self.enforced_w and settle > 0:
            mine = Level(settle, self.enforced_w, self.origin)
            lag = (*[level for level in lag if not _covers(mine, level)], mine)
        raised_by_clamp = enforced_w > requested_w
        return self._replace(
            requested_w=requested_w,
            requested_by=asked_by,
            enforced_w=enforced_w,
            origin=self.origin if raised_by_clamp else origin,
            lag=lag,
        )

    def clamp(self, floor_w: float | None, ceiling_w: float | None, settle: int) -> Hardware:
        """Change the out-of-band clamps.

        A limit that a clamp raises is an outsider's; for one that comes back when a clamp is
        lifted, whoever asked for it answers.
        """
        asked_by = self.origin if self.enforced_w == self.requested_w else self.requested_by
        clamped = self._replace(floor_w=floor_w, ceiling_w=ceiling_w)
        after = clamped.enforce(self.requested_w, asked_by, settle)
        raised = after.enforced_w > max(self.enforced_w, self.requested_w)
        return after._replace(origin=Origin.OUTSIDE) if raised else after

    def tick(self) -> Hardware:
        """Let one tick pass."""
        if not self.lag:
            return self
        lag = tuple(
            [level._replace(ticks=level.ticks - 1) for level in self.lag if level.ticks > 1]
        )
        return self._replace(lag=lag)

    def told(self, watts: float) -> Hardware:
        """A report of `watts`, made since the outside event, has come: so much must be booked."""
        return self._recast(Origin.OUTSIDE, Origin.KNOWN, watts)

    def forgotten(self) -> Hardware:
        """A new coordinator is in charge, which was never told."""
        return self._recast(Origin.KNOWN, Origin.OUTSIDE, float("inf"))

    @property
    def booked_for_w(self) -> float:
        """The most that it may draw and for which the coordinator must have booked."""
        levels = [level.watts for level in self.lag if level.origin is not Origin.OUTSIDE]
        if self.origin is not Origin.OUTSIDE:
            levels.append(self.enforced_w)
        return max(levels, default=0.0)

    @property
    def most_draw_w(self) -> float:
        """The most that it may draw now."""
        return max([self.enforced_w, *[level.watts for level in self.lag]])

    def _recast(self, old: Origin, new: Origin, most_w: float) -> Hardware:
        def recast(origin: Origin, watts: float) -> Origin:
            return new if origin is old and watts <= most_w else origin

        lag = tuple([each._replace(origin=recast(each.origin, each.watts)) for each in self.lag])
        return self._replace(
            origin=recast(self.origin, self.enforced_w),
            requested_by=recast(self.requested_by, self.requested_w),
            lag=lag,
        )


def _covers(new: Level, old: Level) -> bool:
    return old.watts <= new.watts and old.ticks <= new.ticks and old.origin >= new.origin
