"""When the next tick is due, besides the regular one: soon, where a raise waits for watts."""

from __future__ import annotations

from math import inf
from time import monotonic

from wattline.controller.view import TickView

LEAST_PAUSE_S = 0.05
"""Between two ticks, however often somebody asks for one."""
WAITS_W = 1.0
"""Planned watts above the granted ones from which a raise counts as waiting."""
HEAR_S = 0.3
"""After a lowering that a raise waits for: by then the agent has reported it."""


def early_s(view: TickView | None, now_s: float) -> float:
    """Seconds until a raise that waits for watts may go on; infinite where none waits.

    That is when lowered draws have settled. How long they have stood counts from when it is heard
    that they were lowered, so that is asked for soon. `now_s`: by the clock of the snapshots.
    """
    if view is None or view.carried is None or view.advisory or view.decision is None:
        return inf
    facts, steps = view.decision.facts, view.carried.caps
    if facts is None or facts.planned_w <= sum(view.caps.granted_w) + WAITS_W:
        return inf
    before_w = view.snapshot.gpus.granted_w
    lowered = any(w < before_w[gpu] for gpu, w in zip(steps.gpu, steps.cap_w, strict=True))
    heard_s = view.made_s + HEAR_S - monotonic() if lowered else inf
    if view.caps.settles_s is None:
        return heard_s
    # In whole milliseconds, as the time of a tick is.
    return min(heard_s, view.caps.settles_s + 0.002 - now_s)
