"""Which watts of a predictor are believed.

AIConfigurator's power comes from kernels that were measured at the default limit, where it has any:
most of its tables have none, some rows were averaged over too long a time, and real data once gave
1,275 W for decode on a 700 W board. So: a figure counts only if enough of the pass was measured;
one well above the board's limit is replaced by that limit and kept raw beside it; and one missing
side takes the limit for both, because half a picture would move watts to the wrong side. The factor
1.1 and the rule of the missing side are those of NVIDIA Dynamo's power optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

LEAST_COVERAGE = 0.9
"""Share of a pass, by time, whose power was measured: AIConfigurator's own threshold."""

CREDIBLE = 1.1
"""Draw over the board's limit up to which a figure is taken as it is."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a predictor says of one side.

    raw_w: watts per GPU, None where it withholds them. coverage: None where it does not say.
    """

    raw_w: float | None
    coverage: float | None

    @property
    def usable(self) -> bool:
        """Whether it is a figure, and enough of it was measured."""
        if self.raw_w is None or self.coverage is None:
            return False
        return isfinite(self.raw_w) and self.raw_w > 0.0 and self.coverage >= LEAST_COVERAGE


@dataclass(frozen=True, slots=True)
class SideWatts:
    """Watts of one side as used. raw_w: as predicted, None where that did not count.

    clamped: the prediction was not credible, the limit stands for it.
    """

    watts: float
    raw_w: float | None = None
    clamped: bool = False

    @property
    def predicted(self) -> bool:
        """Whether the predictor said so; otherwise the board's limit stands."""
        return self.raw_w is not None


def believed(prefill: Predicted, decode: Predicted, limit_w: float) -> tuple[SideWatts, SideWatts]:
    """Watts of both sides on a board with a power limit of `limit_w`."""
    if not (prefill.usable and decode.usable):
        return SideWatts(limit_w), SideWatts(limit_w)
    return _side(prefill.raw_w, limit_w), _side(decode.raw_w, limit_w)


def _side(raw_w: float | None, limit_w: float) -> SideWatts:
    assert raw_w is not None
    if raw_w > CREDIBLE * limit_w:
        return SideWatts(limit_w, raw_w, clamped=True)
    return SideWatts(raw_w, raw_w)
