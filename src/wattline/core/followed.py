"""What chips follow: a raised limit is obeyed at once by the register, by the chip later.

A frontend that is told of a raise when the register has it admits for its settle time what the
chips cannot compute yet. So admission counts on the least that was in force within that time; what
is lowered counts at once.
"""

from __future__ import annotations

from wattline.core.fleet import Setting

Recent = tuple[tuple[float, Setting], ...]
"""Settings in force, oldest first, each with the second in which it was first seen."""


def with_newest(recent: Recent, now_s: float, setting: Setting, settle_s: float) -> Recent:
    """Add the setting in force now, and forget what no chip follows any more."""
    seen = recent if recent and recent[-1][1] == setting else (*recent, (now_s, setting))
    settled = [index for index, (time_s, _) in enumerate(seen) if time_s <= now_s - settle_s]
    return seen[settled[-1] :] if settled else seen


def followed(recent: Recent) -> Setting:
    """The least of the settings that chips may still follow."""
    return Setting(
        min(setting.cap_w for _, setting in recent), min(setting.clock for _, setting in recent)
    )
