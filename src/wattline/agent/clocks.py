"""The clock ceiling of one GPU: what is wanted, what is set; only ours is ever taken away."""

from __future__ import annotations

from dataclasses import dataclass

_RECHECK_S = 10.0
_TOLERANCE_MHZ = 30
"""Clocks move in steps of 15 MHz; a reading this far above a ceiling is not ours any more."""

_UNKNOWN = -1
"""A ceiling that we set may or may not be in force: the GPU cannot be asked for it."""


@dataclass(slots=True)
class ClockCeiling:
    """In MHz of the SM clock, None: no ceiling of ours.

    failed: a ceiling that could not be set, `error` why; where clocks cannot be set they cannot, so
    the same one is not tried again. sent: on its way to the GPU.
    """

    wanted: int | None = None
    set: int | None = None
    sent: int | None = None
    failed: int | None = None
    error: str | None = None
    looked_s: float = 0.0

    @classmethod
    def journalled(cls, ceiling: int | None) -> ClockCeiling:
        """A ceiling that an earlier run set, kept until a grant says otherwise."""
        return cls(wanted=ceiling, set=ceiling, sent=ceiling)

    @property
    def known(self) -> int | None:
        """The ceiling in force, as far as can be told."""
        return None if self.set == _UNKNOWN else self.set

    def due(self) -> tuple[int | None, bool]:
        """The ceiling to set, or whether to take ours away."""
        if self.wanted in (self.set, self.sent) or (self.wanted or 0) == self.failed:
            return None, False
        return self.wanted, self.wanted is None

    def doubt(self) -> None:
        """The driver may have been reloaded: a ceiling of ours may be gone."""
        if self.set is not None:
            self.set = self.sent = _UNKNOWN
            self.failed = None

    def recall(self) -> None:
        """What was on its way has been dropped."""
        self.sent = self.set

    def answered(self, ceiling: int | None, error: str | None) -> None:
        """Take in what came of setting `ceiling`, or with None of taking ours away."""
        if error is None:
            self.set = self.sent = ceiling
            self.failed = self.error = None
        else:
            self.sent = self.set
            self.failed, self.error = ceiling or 0, error

    def look(self, clock_mhz: int | None, now_s: float) -> None:
        """A clock above our ceiling shows that somebody took it away: set it again, not often."""
        if self.set in (None, _UNKNOWN) or clock_mhz is None:
            return
        if clock_mhz > self.set + _TOLERANCE_MHZ and now_s >= self.looked_s + _RECHECK_S:
            self.looked_s = now_s
            self.doubt()
