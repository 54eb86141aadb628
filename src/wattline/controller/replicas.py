"""Replicas: those that always run, those of a supervisor, and the steps that change them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from wattline.controller.site import Site
from wattline.controller.sources import Replicas, ReplicaView
from wattline.core.decision import ReplicaStep
from wattline.core.errors import WattlineError
from wattline.core.snapshot import Phase, Snapshot

log = logging.getLogger(__name__)

_PARKED_SLACK_W = 0.75  # a register may round to whole watts


class FixedReplicas:
    """As many replicas as the GPUs hold, always serving: somebody else runs them."""

    def __init__(self, site: Site) -> None:
        self._views: list[ReplicaView] = []
        for index, pool in enumerate(site.fleet.pools):
            gpus = [uuid for uuid, at in zip(site.uuid, site.pool, strict=True) if at == index]
            for number in range(len(gpus) // pool.gpus_per_replica):
                first = number * pool.gpus_per_replica
                held = tuple(gpus[first : first + pool.gpus_per_replica])
                self._views.append(
                    ReplicaView(
                        name=f"{pool.name}-{number}", pool=pool.name, gpus=held, phase=Phase.READY
                    )
                )

    def replicas(self) -> Sequence[ReplicaView]:
        """All of them."""
        return self._views

    def start(self, pool: str, gpus: Sequence[str]) -> str:
        """Refuse: nothing here can."""
        raise WattlineError(f"pool {pool}: actuation.replicas is `none`")

    def drain(self, replica: str) -> None:
        """Refuse: nothing here can."""
        raise WattlineError(f"replica {replica}: actuation.replicas is `none`")


class _Worker(Protocol):
    """What a supervisor says of a worker, as far as it is needed here."""

    @property
    def replica(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def gpus(self) -> tuple[str, ...]: ...
    @property
    def phase(self) -> str: ...
    @property
    def metrics_url(self) -> str: ...


class WorkerSupervisor(Protocol):
    """A supervisor of local processes; `phase` is starting, ready, draining or dead."""

    def replicas(self) -> Sequence[_Worker]:
        """All workers, dead ones included."""

    def start(self, pool: str, gpus: Sequence[str]) -> str:
        """Start one; its name."""

    def drain(self, replica: str) -> None:
        """Let it end."""


class SupervisedReplicas:
    """The workers of a supervisor as replicas."""

    def __init__(self, supervisor: WorkerSupervisor) -> None:
        self._supervisor = supervisor

    def replicas(self) -> Sequence[ReplicaView]:
        """Those that are not dead: they hold their GPUs."""
        return [
            ReplicaView(
                name=worker.replica,
                pool=worker.pool,
                gpus=worker.gpus,
                phase=Phase(str(worker.phase)),
                metrics_url=worker.metrics_url,
            )
            for worker in self._supervisor.replicas()
            if str(worker.phase) != "dead"
        ]

    def start(self, pool: str, gpus: Sequence[str]) -> str:
        """Start one; its name."""
        return self._supervisor.start(pool, gpus)

    def drain(self, replica: str) -> None:
        """Let it end."""
        self._supervisor.drain(replica)


class ReplicaNumbers:
    """Numbers of replicas within their pools: the lowest that is free, kept for life."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._pools: dict[str, str] = {}

    def of(self, views: Sequence[ReplicaView]) -> dict[str, int]:
        """Number per replica; numbers of those that are gone become free."""
        names = {view.name for view in views}
        self._numbers = {name: n for name, n in self._numbers.items() if name in names}
        for view in views:
            self._pools[view.name] = view.pool
            if view.name not in self._numbers:
                taken = {n for name, n in self._numbers.items() if self._pools[name] == view.pool}
                free = (n for n in range(len(taken) + 1) if n not in taken)
                self._numbers[view.name] = next(free)
        self._pools = {name: pool for name, pool in self._pools.items() if name in names}
        return self._numbers


class StartTimes:
    """Since when replicas load; of those that did so at the first look that is not known."""

    def __init__(self) -> None:
        self._since_s: dict[str, float | None] | None = None

    def ages_s(self, views: Sequence[ReplicaView], now_s: float) -> dict[str, float]:
        """Seconds since its start, of each replica that loads and of which that is known."""
        loading = [view.name for view in views if view.phase is Phase.STARTING]
        before = self._since_s
        if before is None:
            self._since_s = dict.fromkeys(loading)
        else:
            self._since_s = {name: before.get(name, now_s) for name in loading}
        return {
            name: round(now_s - since_s, 3)
            for name, since_s in self._since_s.items()
            if since_s is not None
        }


def carry_out_replicas(
    replicas: Replicas,
    views: Sequence[ReplicaView],
    steps: Sequence[ReplicaStep],
    drain: Sequence[tuple[int, int]],
    snapshot: Snapshot,
    site: Site,
    numbers: dict[str, int],
) -> tuple[list[str], list[str]]:
    """Start and drain what the steps say; returns what was done and what went wrong, in words.

    A replica starts only on parked GPUs that are booked at their lowest limit, while no more is
    booked than may be: its watts are free. The newest replicas are drained first.
    """
    done: list[str] = []
    wrong: list[str] = []
    pools = [pool.name for pool in site.fleet.pools]
    by_number = {(pools.index(v.pool), numbers.get(v.name, -1)): v.name for v in views}
    leaving = [by_number[key] for key in drain if key in by_number]
    for step in steps:
        if step.change < 0:
            leaving += _surplus(views, pools[step.pool], -step.change, leaving)
    for name in leaving:
        try:
            replicas.drain(name)
            done.append(f"drain {name}")
        except (WattlineError, OSError) as error:
            wrong.append(f"drain {name}: {error}")
    if sum(snapshot.gpus.booked_w) > snapshot.budget.usable_w:
        return done, wrong
    for step in steps:
        for gpus in _places(step, snapshot, site):
            try:
                done.append(f"start {replicas.start(pools[step.pool], gpus)}")
            except (WattlineError, OSError) as error:
                wrong.append(f"start in {pools[step.pool]}: {error}")
    return done, wrong


def _surplus(
    views: Sequence[ReplicaView], pool: str, count: int, leaving: Sequence[str]
) -> list[str]:
    """The newest replicas of a pool that serve or start, the starting ones first."""
    present = [v for v in views if v.pool == pool and v.phase is not Phase.DRAINING]
    present = [v for v in present if v.name not in leaving]
    starting = [v.name for v in reversed(present) if v.phase is Phase.STARTING]
    ready = [v.name for v in reversed(present) if v.phase is Phase.READY]
    return [*starting, *ready][:count]


def _places(step: ReplicaStep, snapshot: Snapshot, site: Site) -> list[tuple[str, ...]]:
    """GPUs for each replica that may start, whole nodes' GPUs together where they suffice."""
    pool = site.fleet.pools[step.pool]
    lowest_w = site.fleet.product_of(pool).min_limit_w
    gpus = snapshot.gpus
    free = [
        gpu
        for gpu in range(len(gpus.uuid))
        if gpus.pool[gpu] == step.pool
        and gpus.phase[gpu] is Phase.PARKED
        and gpus.enforced_w[gpu] is not None
        and gpus.booked_w[gpu] <= lowest_w + _PARKED_SLACK_W
    ]
    free.sort(key=lambda gpu: site.node[gpu])
    places = []
    for _ in range(max(0, step.change)):
        if len(free) < pool.gpus_per_replica:
            break
        chosen, free = free[: pool.gpus_per_replica], free[pool.gpus_per_replica :]
        places.append(tuple(gpus.uuid[gpu] for gpu in chosen))
    return places
