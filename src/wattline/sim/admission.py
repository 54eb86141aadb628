"""Admission thresholds that follow the caps that chips follow, the same way for every policy."""

from __future__ import annotations

from collections.abc import Sequence

from wattline.core.admit import InForce, admission
from wattline.core.decision import PoolPlan
from wattline.core.fleet import Fleet, Setting
from wattline.core.followed import Recent, followed, with_newest
from wattline.core.settings import Settings
from wattline.core.snapshot import Phase
from wattline.sim.mixes import RunningMix
from wattline.sim.plant.outcomes import DemandCounters
from wattline.sim.plant.plant import GpuColumns, Plant

CAP_STEP_W = 10.0
"""Caps in force are rounded to this step, so that thresholds change seldom."""


class AdmissionControl:
    """Sets the frontends' thresholds from what serves now and what a request looks like."""

    def __init__(self, plant: Plant, settings: Settings) -> None:
        self._plant = plant
        self._settings = settings
        self._fleet = settings.fleet
        self._first_gpu = first_gpus(settings.fleet)
        self._settle_s = [self._fleet.product_of(pool).settle_s for pool in self._fleet.pools]
        self._recent: list[Recent] = [() for _ in self._fleet.pools]
        self._mixes = [
            RunningMix(settings.expected_mix(index))
            for index in range(len(settings.fleet.deployments))
        ]
        self._key: object = None

    def count(self, counters: Sequence[DemandCounters]) -> None:
        """Take in what the frontends counted in a tick."""
        for mix, counter in zip(self._mixes, counters, strict=True):
            mix.add(counter)

    def update(self, columns: GpuColumns, plan: Sequence[PoolPlan]) -> None:
        """Derive the thresholds anew if anything they depend on has changed."""
        self._recent = [
            with_newest(recent, self._plant.now_s, setting, settle_s)
            for recent, setting, settle_s in zip(
                self._recent, self._settings_in_force(columns, plan), self._settle_s, strict=True
            )
        ]
        in_force = tuple(
            InForce(self._plant.pool_view(index).ready, followed(recent))
            for index, recent in enumerate(self._recent)
        )
        mixes = tuple(mix.current for mix in self._mixes)
        rates_rps = tuple(mix.rate_rps for mix in self._mixes)
        if (in_force, mixes, rates_rps) == self._key:
            return
        self._key = (in_force, mixes, rates_rps)
        for index, deployment in enumerate(self._fleet.deployments):
            thresholds = admission(
                index,
                fleet=self._fleet,
                engines=self._settings.engines,
                pools=in_force,
                mix=mixes[index],
                slo=deployment.slo,
                rate_rps=rates_rps[index],
            )
            self._plant.set_admission(index, thresholds)

    def _settings_in_force(self, columns: GpuColumns, plan: Sequence[PoolPlan]) -> list[Setting]:
        """Mean cap and clock of each pool's ready GPUs; its plan's if none is ready."""
        settings = []
        for index, first in enumerate(self._first_gpu):
            ready = [
                gpu
                for gpu in range(first, first + self._fleet.pools[index].gpus)
                if columns.phase[gpu] is Phase.READY
            ]
            if not ready:
                settings.append(plan[index].setting)
                continue
            cap_w = sum(columns.enforced_w[gpu] for gpu in ready) / len(ready)
            clock = min(columns.clock[gpu] for gpu in ready)
            settings.append(Setting(CAP_STEP_W * round(cap_w / CAP_STEP_W), clock))
        return settings


def first_gpus(fleet: Fleet) -> list[int]:
    """Index of the first GPU of each pool."""
    return [sum(pool.gpus for pool in fleet.pools[:index]) for index in range(len(fleet.pools))]
