"""Calibration of one tick of the decision: what is learned, and what plans stand on then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wattline.core.calibration.factors import RIGHT, RoleFactors
from wattline.core.calibration.learn import Tick, first, learn
from wattline.core.calibration.sight import PoolSight, sights
from wattline.core.calibration.state import DeploymentCalibration
from wattline.core.demand import Demand, outage_reason
from wattline.core.derive import Layout
from wattline.core.fleet import Role, Slo
from wattline.core.snapshot import Snapshot
from wattline.core.transition import GpuArrays


def calibrated(
    snapshot: Snapshot,
    layout: Layout,
    arrays: GpuArrays,
    before: Sequence[DeploymentCalibration],
    demand: Sequence[Demand],
) -> tuple[tuple[DeploymentCalibration, ...], frozenset[int]]:
    """Calibration after this tick, and the deployments whose models were found to be off in it.

    Such a deployment is planned anew in this very tick, which answers the drift: the next one is
    not counted before `interval_s`. Both are empty where calibration is off.
    """
    settings, fleet = layout.settings, layout.settings.fleet
    terms = settings.calibration
    if terms is None:
        return (), frozenset()
    roles = [pool.role for pool in fleet.pools]
    seen = sights(snapshot.gpus, arrays, snapshot.pools, roles, settings.engines)
    after, drifted = [], set()
    for index, members in enumerate(layout.pools_of):
        view, wanted = snapshot.demand[index], demand[index]
        own = [seen[pool] for pool in members]
        tick = Tick(
            now_s=snapshot.time_s,
            view=view,
            mix=wanted.mix,
            slo=fleet.deployments[index].slo,
            pools=own,
            shares=_shares(layout, members, own, wanted),
        )
        old = before[index] if len(before) == len(layout.pools_of) else None
        if outage_reason(view, settings.stale_s) is not None:
            after.append(first(tick) if old is None else old)
            continue
        new = learn(old, tick, terms)
        if old is not None and new.drift.fired > old.drift.fired:
            drifted.add(index)
            new = replace(new, drift=new.drift.swept(snapshot.time_s))
        after.append(new)
    return tuple(after), frozenset(drifted)


def _shares(
    layout: Layout, members: Sequence[int], own: Sequence[PoolSight], demand: Demand
) -> list[float]:
    """Share of the prompts that each pool of a deployment takes in: as their rates."""
    takes = [pool.role is not Role.DECODE and pool.view.ready > 0 for pool in own]
    if sum(takes) <= 1:
        return [float(take) for take in takes]
    rates = []
    for index, pool, take in zip(members, own, takes, strict=True):
        ready = pool.view.ready
        rates.append(ready * max(layout.table(index, demand, ready).rate_rps) if take else 0.0)
    total = sum(rates)
    return [rate / total if total > 0.0 else 0.0 for rate in rates]


def in_force(
    demand: tuple[Demand, ...], calibration: Sequence[DeploymentCalibration]
) -> tuple[Demand, ...]:
    """Demands with the corrections that plans stand on; unchanged where there are none."""
    if not calibration:
        return demand
    return tuple(
        replace(
            wanted,
            factors=tuple(
                RoleFactors(entry.role, entry.in_force)
                for entry in state.roles
                if entry.in_force != RIGHT
            ),
        )
        for wanted, state in zip(demand, calibration, strict=True)
    )


def tightened(slo: Slo, demand: Demand) -> Slo:
    """Targets that models have to meet for the real thing to meet `slo`."""
    ttft = max((entry.factors.ttft for entry in demand.factors), default=1.0)
    itl = max((entry.factors.itl for entry in demand.factors), default=1.0)
    return Slo(slo.ttft_s / ttft, slo.itl_s / itl)


def estimated(
    calibration: Sequence[DeploymentCalibration],
    demand: Sequence[Demand],
    capacities_rps: Sequence[float],
) -> tuple[DeploymentCalibration, ...]:
    """Note what the plan is estimated to serve, for the next tick to be held against."""
    return tuple(
        replace(
            state,
            estimate_tokens_per_s=round(
                rate * (wanted.mix.input_tokens + wanted.mix.output_tokens), 3
            ),
        )
        for state, wanted, rate in zip(calibration, demand, capacities_rps, strict=False)
    )
