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
        views[index] = _joined(view, due)
    return gpus.with_ready(serving), tuple(views)


def _joined(view: PoolView, due: int) -> PoolView:
    """The view with `due` more ready; each replica holds as much as those do that serve now.

    One that does not serve yet takes nothing off the others, whose caps must stay fast enough.
    """
    ready = view.ready + due
    times = ready / view.ready if view.ready else 1.0
    return replace(
        view,
        ready=ready,
        starting=view.starting - due,
        queued_prefill_tokens=_scaled(view.queued_prefill_tokens, times),
        running=_scaled(view.running, times),
    )


def _scaled(count: float | None, times: float) -> float | None:
    return None if count is None else round(count * times, 6)
