"""Replicas that are about to serve: watts are moved for them before their first request comes.

A replica loads under the lowest limit. Were its watts moved only when it serves, the requests that
it gets at once would be served at that limit until other GPUs have been lowered and have settled.
"""

from __future__ import annotations

import numpy as np

from wattline.core.fleet import Fleet
from wattline.core.snapshot import Snapshot
from wattline.core.transition import GpuArrays

# A lowering is sent in one tick and reported in the next, and a raise may be sent in the tick after
# its settle time is over: a tick is a second.
_TICKS_S = 3.0
# An overdue replica keeps its watts for so long: beyond it, what the others could have served with
# them is more than the few seconds that the replica would be slow.
_PATIENCE_S = 10.0


def lead_s(fleet: Fleet) -> float:
    """Seconds from the decision to move watts until the limits that get them are raised."""
    return max((product.settle_s for product in fleet.products), default=0.0) + _TICKS_S


def with_those_due(
    snapshot: Snapshot, fleet: Fleet, gpus: GpuArrays
) -> tuple[GpuArrays, tuple[int, ...]]:
    """GPUs in which replicas that are due count as if they served, and how many are due per pool.

    Due is a replica whose start is known and, by the `startup_s` of its pool, ends within the lead
    time. One that is overdue for longer than patience lasts loads like any other again.
    """
    serving, due = gpus.ready, [0] * len(fleet.pools)
    for index, (view, pool) in enumerate(zip(snapshot.pools, fleet.pools, strict=True)):
        first_s, last_s = pool.startup_s - lead_s(fleet), pool.startup_s + _PATIENCE_S
        numbers = [number for number, age_s in view.starts if first_s <= age_s <= last_s]
        if not numbers:
            continue
        own = gpus.starting & (gpus.pool == index) & np.isin(gpus.replica, numbers)
        due[index] = len(np.unique(gpus.replica[own]))
        serving = serving | own
    return gpus.with_ready(serving), tuple(due)


def without_those_due(rates_rps: tuple[float, ...], ready: int, due: int) -> tuple[float, ...]:
    """Rates per replica, of which `due` among `ready + due` do not serve yet.

    Due replicas then take watts and no load. Where nobody serves they are planned as if they did.
    """
    if not due or not ready:
        return rates_rps
    share = ready / (ready + due)
    return tuple(round(rate * share, 9) for rate in rates_rps)
