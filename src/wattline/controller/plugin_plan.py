"""What the plugin of Dynamo's planner is told of one deployment: a file, replaced at every tick."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from wattline.controller.site import Site
from wattline.core.decision import Decision
from wattline.core.snapshot import Phase, Snapshot
from wattline.drivers.dynamo.plugin.constrain import PowerPlan, RolePlan
from wattline.drivers.dynamo.plugin.state_file import write_state

log = logging.getLogger(__name__)


def power_plan(
    snapshot: Snapshot, decision: Decision, site: Site, deployment: str, version: int
) -> PowerPlan:
    """The deployment's budget: what a replica of each role may be booked at, and what is elsewhere.

    A role's replica is charged at the larger of its planned cap and the largest booking of one that
    serves. Watts of idle and draining GPUs, and of other deployments, are elsewhere.
    """
    gpus = snapshot.gpus
    roles: dict[str, RolePlan] = {}
    inside_w = 0.0
    for index, pool in enumerate(site.fleet.pools):
        if pool.deployment != deployment:
            continue
        booked = [
            gpus.booked_w[gpu]
            for gpu, owner in enumerate(gpus.pool)
            if owner == index and gpus.phase[gpu] in (Phase.READY, Phase.STARTING)
        ]
        inside_w += sum(booked)
        cap_w = max([decision.plan[index].setting.cap_w, *booked])
        roles[pool.role.value] = RolePlan(
            watts_per_replica_w=round(cap_w * pool.gpus_per_replica, 3),
            min_replicas=pool.min_replicas,
            wanted_replicas=decision.plan[index].replicas,
        )
    return PowerPlan(
        version=version,
        budget_w=snapshot.budget.total_w,
        guard_w=snapshot.budget.guard_w,
        elsewhere_w=round(max(0.0, sum(gpus.booked_w) - inside_w), 3),
        roles=roles,
    )


class PluginFiles:
    """Keeps the files of the deployments that have one."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._written: dict[str, PowerPlan] = {}
        self._why: dict[str, str] = {}

    def write(self, snapshot: Snapshot, decision: Decision, site: Site) -> None:
        """Write every file; one that cannot be written grows old, which the plugin notices."""
        for deployment, path in self._paths.items():
            before = self._written.get(deployment)
            version = snapshot.tick if before is None else before.version
            plan = power_plan(snapshot, decision, site, deployment, version)
            if before is not None and plan != before:
                plan = power_plan(snapshot, decision, site, deployment, snapshot.tick)
            try:
                write_state(path, plan, made_s=snapshot.time_s)
            except OSError as error:
                if deployment not in self._why:
                    log.error("plugin's file not written", extra={"path": str(path)})
                self._why[deployment] = f"{path}: {error.strerror or error}"
                continue
            self._why.pop(deployment, None)
            self._written[deployment] = plan

    @property
    def problems(self) -> tuple[str, ...]:
        """Files that could not be written."""
        return tuple(self._why.values())
