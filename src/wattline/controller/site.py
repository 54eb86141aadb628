"""The fleet that a controller has: what the decision is told of it, and where each GPU stands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from wattline.catalog.fleet_spec import to_engines, to_fleet
from wattline.controller.settings import ControllerSettings
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet, GpuProduct, Role
from wattline.core.mix import Mix
from wattline.core.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Settings of the decision, and columns over all GPUs in the order of the snapshot.

    uuid: name. pool and node: indexes. nodes: names.
    """

    settings: Settings
    uuid: tuple[str, ...]
    pool: tuple[int, ...]
    node: tuple[int, ...]
    nodes: tuple[str, ...]

    @property
    def fleet(self) -> Fleet:
        """Pools and products."""
        return self.settings.fleet

    @property
    def gpus_at(self) -> tuple[tuple[str, int], ...]:
        """Name and node of every GPU."""
        return tuple(zip(self.uuid, self.node, strict=True))

    @property
    def batch_tokens(self) -> tuple[int | None, ...]:
        """Per deployment: the smallest of its prefill workers' largest batches."""
        pools = list(zip(self.fleet.pools, self.settings.engines, strict=True))
        return tuple(
            min(
                (
                    engine.max_batched_tokens
                    for pool, engine in pools
                    if pool.deployment == deployment.name and pool.role is not Role.DECODE
                ),
                default=None,
            )
            for deployment in self.fleet.deployments
        )

    def product(self, gpu: int) -> GpuProduct:
        """The product of GPU number `gpu`."""
        return self.fleet.product_of(self.fleet.pools[self.pool[gpu]])

    def gpus_of(self, node: str) -> tuple[str, ...]:
        """UUIDs of a node's GPUs."""
        index = self.nodes.index(node)
        return tuple(uuid for uuid, at in zip(self.uuid, self.node, strict=True) if at == index)


def build_site(settings: ControllerSettings, path: Path) -> Site:
    """Build the site; `path` is the settings' file. InputError for what the catalog lacks."""
    where = str(path)
    core = core_settings(settings, path)
    columns = [
        (uuid, index, number)
        for index, pool in enumerate(core.fleet.pools)
        for number, node in enumerate(settings.nodes)
        for uuid in node.gpus.get(pool.name, [])
    ]
    site = Site(
        settings=core,
        uuid=tuple(uuid for uuid, _, _ in columns),
        pool=tuple(pool for _, pool, _ in columns),
        node=tuple(node for _, _, node in columns),
        nodes=tuple(node.name for node in settings.nodes),
    )
    _check_watts(settings, site, where)
    return site


def core_settings(settings: ControllerSettings, path: Path) -> Settings:
    """The decision's settings."""
    fleet = to_fleet(settings.deployments, str(path))
    if settings.actuation.replicas == "none":
        # All run, whatever would be better: nothing here can start or stop one.
        pools = tuple(
            replace(pool, min_replicas=count, max_replicas=count)
            for pool in fleet.pools
            for count in (pool.gpus // pool.gpus_per_replica,)
        )
        fleet = replace(fleet, pools=pools)
    engines = to_engines(settings.deployments, fleet, path.parent, str(path))
    decision = settings.decision
    expected = []
    for deployment in fleet.deployments:
        mix = decision.expected.get(deployment.name)
        expected.append(
            Mix(1024.0, 256.0) if mix is None else Mix(mix.input_tokens, mix.output_tokens)
        )
    return Settings(
        fleet=fleet,
        engines=engines,
        objective=decision.objective,
        headroom=decision.headroom,
        cap_step_w=decision.cap_step_w,
        expected=tuple(expected),
        rate_window_s=decision.rate_window_s,
        mix_window_s=decision.mix_window_s,
        stale_s=decision.stale_s,
        drain_s=decision.drain_s,
        forecast=decision.forecast,
        season_s=decision.season_s,
        replica_interval_s=decision.replica_interval_s,
        replica_down_s=decision.replica_down_s,
        replica_hold_s=decision.replica_hold_s,
        cap_hold_s=decision.cap_hold_s,
        repair_s=decision.repair_s,
        calibration=settings.calibration.settings(),
    )


def _check_watts(settings: ControllerSettings, site: Site, where: str) -> None:
    """Refuse budgets and limits that no fleet of these GPUs can keep."""
    fleet = site.fleet
    lowest_w = sum(pool.gpus * fleet.product_of(pool).min_limit_w for pool in fleet.pools)
    budget = settings.budget
    for name, total_w in (
        ("total_w", budget.total_w),
        *((f"schedule[{i}].total_w", w.total_w) for i, w in enumerate(budget.schedule)),
    ):
        need_w = lowest_w / (1.0 - budget.guard_percent / 100.0)
        if total_w < need_w:
            raise InputError(
                f"{where}: budget.{name}",
                total_w,
                f"{fleet.gpu_count} GPUs at their lowest limits and the guard take {need_w:,.0f} W",
            )
    for name in ("expiry_w", "brake_w"):
        watts = getattr(settings.actuation, name)
        for product in fleet.products:
            if watts is not None and not product.min_limit_w <= watts <= product.max_limit_w:
                raise InputError(
                    f"{where}: actuation.{name}",
                    watts,
                    f"limits of {product.name} are {product.min_limit_w:g} to "
                    f"{product.max_limit_w:g} W",
                )
