"""One tick's snapshot, out of what the sources gave; what is missing says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wattline.controller.caps import CapsView, enforced_w
from wattline.controller.nodes import NodeWatch
from wattline.controller.site import Site
from wattline.controller.sources import ReplicaView
from wattline.core import snapshot as snapshot_module
from wattline.core.fleet import Setting
from wattline.core.snapshot import (
    Budget,
    DemandView,
    GpuTable,
    Phase,
    PoolView,
    Snapshot,
)
from wattline.core.state import State
from wattline.drivers.dynamo.sources import PoolLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything of one tick. `plan`: the setting last planned per pool, None before the first.

    cordoned: GPUs that take no new replica. pinned_w: caps that operators want, per pool's name.
    given_back_w: original limit per GPU that is to get it back: no plan counts on its replica, and
    its watts are kept for it. numbers: of the replicas within their pools. meter: draw per GPU
    whose agent tells none. starts_s: seconds that replicas have been loading for, by name.
    """

    tick: int
    now_s: float
    budget: Budget
    nodes: Sequence[NodeWatch]
    caps: CapsView
    replicas: Sequence[ReplicaView]
    numbers: dict[str, int]
    demand: tuple[DemandView, ...]
    loads: tuple[PoolLoad, ...]
    plan: tuple[Setting, ...] | None
    cordoned: frozenset[str]
    pinned_w: Mapping[str, float]
    given_back_w: Mapping[str, float]
    missing: tuple[str, ...]
    state: State | None
    meter: Mapping[str, float] = field(default_factory=dict)
    starts_s: Mapping[str, float] = field(default_factory=dict)


def snapshot_of(seen: Seen, site: Site) -> Snapshot:
    """Put the snapshot together."""
    holder = {gpu: view for view in seen.replicas for gpu in view.gpus}
    enforced = seen.caps.enforced_w
    if enforced is None:
        enforced = tuple(
            enforced_w(seen.nodes[node], uuid, seen.now_s)
            for uuid, node in zip(site.uuid, site.node, strict=True)
        )
    phase = tuple(_phase(uuid, holder, seen) for uuid in site.uuid)
    silent = [why for node in seen.nodes if (why := node.silent(seen.now_s)) is not None]
    return Snapshot(
        schema=snapshot_module.SCHEMA,
        tick=seen.tick,
        time_s=seen.now_s,
        budget=seen.budget,
        gpus=GpuTable(
            uuid=site.uuid,
            pool=site.pool,
            replica=tuple(
                seen.numbers[holder[uuid].name] if uuid in holder else -1 for uuid in site.uuid
            ),
            phase=phase,
            enforced_w=enforced,
            granted_w=seen.caps.granted_w,
            booked_w=seen.caps.booked_w,
            draw_w=_draws(seen, site),
            clock=seen.caps.clock,
            derate=(1.0,) * len(site.uuid),
        ),
        pools=tuple(
            _pool_view(seen, site, index, enforced, phase) for index in range(len(site.fleet.pools))
        ),
        demand=seen.demand,
        missing=(*silent, *_unreadable(seen, site), *seen.caps.notes, *seen.missing),
        state=seen.state,
    )


def _phase(uuid: str, holder: dict[str, ReplicaView], seen: Seen) -> Phase:
    view = holder.get(uuid)
    if view is not None:
        # What a GPU that is given back holds is no plan's, as with one that drains.
        return Phase.DRAINING if _leaves(view, seen) else view.phase
    # A free GPU of a cordoned node is out of reach for plans, as a lost one is.
    return Phase.LOST if uuid in seen.cordoned or uuid in seen.given_back_w else Phase.PARKED


def _leaves(view: ReplicaView, seen: Seen) -> bool:
    return any(uuid in seen.given_back_w for uuid in view.gpus)


def _reserved_w(seen: Seen, site: Site, index: int) -> float:
    """What GPUs of the pool that are given back lack to their original limits."""
    lowest_w = site.fleet.product_of(site.fleet.pools[index]).min_limit_w
    return round(
        sum(
            max(0.0, seen.given_back_w[uuid] - max(booked_w, lowest_w))
            for uuid, pool, booked_w in zip(site.uuid, site.pool, seen.caps.booked_w, strict=True)
            if pool == index and uuid in seen.given_back_w
        ),
        3,
    )


def _draws(seen: Seen, site: Site) -> tuple[float | None, ...]:
    """Measured draw per GPU, None where the node is silent or has no meter, and nobody else."""
    draws: list[float | None] = []
    for uuid, number in zip(site.uuid, site.node, strict=True):
        own_w = seen.nodes[number].draw_w(uuid, seen.now_s)
        draws.append(seen.meter.get(uuid) if own_w is None else own_w)
    return tuple(draws)


def _unreadable(seen: Seen, site: Site) -> list[str]:
    """GPUs of nodes that answer, of which nothing is said or nothing can be read."""
    found = []
    for uuid, number in zip(site.uuid, site.node, strict=True):
        node = seen.nodes[number]
        if node.silent(seen.now_s) is not None:
            continue
        entry = node.gpu(uuid)
        if entry is None:
            found.append(f"GPU {uuid}: node {node.name} does not report it")
        elif entry.report is None:
            found.append(f"GPU {uuid}: {entry.facts.fault or 'its limit cannot be read'}")
    return found


def _pool_view(
    seen: Seen,
    site: Site,
    index: int,
    enforced: tuple[float | None, ...],
    phase: tuple[Phase, ...],
) -> PoolView:
    pool = site.fleet.pools[index]
    phases = [
        Phase.DRAINING if _leaves(view, seen) else view.phase
        for view in seen.replicas
        if view.pool == pool.name
    ]
    load = seen.loads[index]
    if seen.plan is None:
        setting = _present_setting(site, index, enforced, phase)
    else:
        setting = seen.plan[index]
    return PoolView(
        ready=phases.count(Phase.READY),
        starting=phases.count(Phase.STARTING),
        draining=phases.count(Phase.DRAINING),
        setting=setting,
        queued_prefill_tokens=load.queued_prefill_tokens,
        active_kv_tokens=load.active_kv_tokens,
        running=load.running,
        pinned_w=seen.pinned_w.get(pool.name),
        reserved_w=_reserved_w(seen, site, index) if seen.given_back_w else 0.0,
        starts=tuple(
            sorted(
                (seen.numbers[view.name], seen.starts_s[view.name])
                for view in seen.replicas
                if view.pool == pool.name and view.name in seen.starts_s
            )
        ),
    )


def _present_setting(
    site: Site, index: int, enforced: tuple[float | None, ...], phase: tuple[Phase, ...]
) -> Setting:
    """The mean limit in force on the pool's serving GPUs; its lowest limit if none is known."""
    known = [
        watts
        for gpu, watts in enumerate(enforced)
        if site.pool[gpu] == index and phase[gpu] is Phase.READY and watts is not None
    ]
    product = site.fleet.product_of(site.fleet.pools[index])
    if not known:
        return Setting(product.min_limit_w)
    mean_w = round(sum(known) / len(known), 3)
    return Setting(min(max(mean_w, product.min_limit_w), product.max_limit_w))
