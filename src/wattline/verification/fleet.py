"""One state of the explored fleet as a value."""

from __future__ import annotations

from typing import NamedTuple

NOBODY = -2
"""No coordinator, or one that never does anything again."""
SHARED = -1
"""The second coordinator uses the log of the first."""


class Fleet(NamedTuple):
    """One state. first, second: coordinators; the second, if there is one, is in charge.

    plan: number of the plan pursued; cut: the budget is cut; top_epoch: the newest ever opened.
    used: how often each fault of the bounds has happened.
    """

    first: int
    second: int
    first_log: int
    second_log: int
    plan: int
    replans: int
    cut: bool
    top_epoch: int
    used: tuple[int, ...]
    sites: tuple[int, ...]


def at(fleet: Fleet, node: int, site: int) -> Fleet:
    """`fleet` with another state of one node."""
    sites = fleet.sites
    if sites[node] == site:
        return fleet
    return fleet._replace(sites=(*sites[:node], site, *sites[node + 1 :]))
