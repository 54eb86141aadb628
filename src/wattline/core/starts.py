"""Replicas that are about to serve: watts are moved for them before their first request comes.

A replica loads under the lowest limit. Were its watts moved only when it serves, the requests that
it gets at once would be served at that limit until other GPUs have been lowered and have settled.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wattline.core.fleet import Fleet
from wattline.core.snapshot import PoolView, Snapshot
from wattline.core.transition import GpuArrays

# A lowering is sent in one tick, reported in the next, and has settled by the one after its settle
# time; a tick is a second.
_TICKS_S = 3.0
# An overdue replica keeps its watts for so long: beyond it, what the others could have served with
# them is more than the few seconds that the replica would be slow.
_PATIENCE_S = 10.0


def lead_s(fleet: Fleet) -> float:
    """Seconds from the decision to move watts until the GPUs that get them run at their limit.

    Both the GPUs that are lowered and those that are raised take their settle time.
    """
    return 2.0 * max((product.settle_s for product in fleet.products), default=0.0) + _TICKS_S


def with_those_due(
    snapshot: Snapshot, fleet: Fleet, gpus: GpuArrays
) -> tuple[GpuArrays, tuple[PoolView, ...]]:
    """GPUs and pools in which replicas that are due count as if they served.

    Due is a replica whose start is known and, by the `startup_s` of its pool, ends within the lead
    time. One that is overdue for longer than patience lasts loads like any other again.
    """
    serving, views = gpus.ready, list(snapshot.pools)
    for index, (view, pool) in enumerate(zip(snapshot.pools, fleet.pools, strict=True)):
        first_s, last_s = pool.startup_s - lead_s(fleet), pool.startup_s + _PATIENCE_S
        numbers = [number for number, age_s in view.starts if first_s <= age_s <= last_s]
        if not numbers:
            continue
        own = gpus.starting & (gpus.pool == index) & np.isin(gpus.replica, numbers)
        due = len(np.unique(gpus.replica[own]))
        serving = serving | own
        views[index] = replace(view, ready=view.ready + due, starting=view.starting - due)
    return gpus.with_ready(serving), tuple(views)
