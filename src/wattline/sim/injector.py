"""Makes a scenario's faults happen to the plant, the nodes and the telemetry."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from math import pi, sin

from wattline.core.fleet import Fleet
from wattline.sim import faults
from wattline.sim.exposure import ExposureMeter
from wattline.sim.node import Node
from wattline.sim.plant.plant import Plant
from wattline.sim.plant.workers import BiasSignal
from wattline.sim.result import RunEvent
from wattline.sim.telemetry import MetricsState, Telemetry

Wave = tuple[faults.BiasRamp | faults.BiasSine, tuple[int, ...]]

LastingFault = (
    faults.AgentSilent
    | faults.WriteRefused
    | faults.WriteClamped
    | faults.NodeLost
    | faults.HeatDerate
    | faults.BiasStep
    | faults.BiasRamp
    | faults.BiasSine
)

_METRICS = {
    faults.MetricsOutage: MetricsState.OUTAGE,
    faults.MetricsStale: MetricsState.STALE,
    faults.MetricsNan: MetricsState.NAN,
}


class Injector:
    """Holds what is to happen and lets it happen when its time has come.

    Budget changes are not here: the loop itself brings them in. `events` gets one entry per fault.
    """

    def __init__(
        self,
        injected: list[faults.Fault],
        *,
        fleet: Fleet,
        gpus_per_node: int,
        plant: Plant,
        nodes: list[Node],
        telemetry: Telemetry,
        meter: ExposureMeter,
        events: list[RunEvent],
    ) -> None:
        self._fleet = fleet
        self._gpus_per_node = gpus_per_node
        self._plant = plant
        self._nodes = nodes
        self._pool_of_gpu = [
            index for index, pool in enumerate(fleet.pools) for _ in range(pool.gpus)
        ]
        self._node_of_gpu = faults.node_of_gpus(fleet, gpus_per_node)
        self._telemetry = telemetry
        self._meter = meter
        self._events = events
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._waves: list[Wave] = []
        self._count = 0
        for number, fault in enumerate(injected):
            self._plan(fault, f"faults[{number}]")

    def advance(self, now_s: float) -> None:
        """Let everything happen that is due by `now_s`."""
        while self._due and self._due[0][0] <= now_s + 1e-9:
            due_s, _, action = heapq.heappop(self._due)
            action(max(due_s, now_s))
        for wave in list(self._waves):
            self._swing(wave, now_s)

    def _at(self, time_s: float, action: Callable[[float], None]) -> None:
        if time_s != float("inf"):
            self._count += 1
            heapq.heappush(self._due, (time_s, self._count, action))

    def _note(self, time_s: float, text: str) -> None:
        self._events.append(RunEvent(time_s=time_s, kind="fault", text=text))

    def _plan(self, fault: faults.Fault, where: str) -> None:
        if isinstance(fault, faults.BudgetCut | faults.BudgetRestore):
            return
        text = fault.kind.replace("_", " ")
        self._at(fault.at_s, lambda now: self._note(now, text))
        if isinstance(fault, faults.MetricsOutage | faults.MetricsStale | faults.MetricsNan):
            state = _METRICS[type(fault)]
            self._at(fault.at_s, lambda _: self._set_metrics(state))
            self._at(fault.until_s, lambda _: self._set_metrics(MetricsState.FINE))
        elif isinstance(fault, faults.ReplicaNeverReady):
            pool = [pool.name for pool in self._fleet.pools].index(fault.pool)
            self._at(fault.at_s, lambda _: self._plant.block_startup(pool, True))
            self._at(fault.until_s, lambda _: self._plant.block_startup(pool, False))
        else:
            gpus = faults.target_gpus(fault.target, self._fleet, self._gpus_per_node, where)
            if isinstance(fault, faults.RivalWriter):
                self._at(fault.at_s, lambda now: self._rival_writes(fault, gpus, now))
                return
            begin, end = self._effects(fault, gpus)
            self._at(fault.at_s, lambda _: begin())
            self._at(fault.until_s, lambda _: end())

    def _effects(
        self, fault: LastingFault, gpus: tuple[int, ...]
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """What a lasting fault does when it begins, and what undoes it."""
        if isinstance(fault, faults.AgentSilent):
            return partial(self._silence, gpus, True), partial(self._silence, gpus, False)
        if isinstance(fault, faults.WriteRefused):
            return partial(self._refuse, gpus, True), partial(self._refuse, gpus, False)
        if isinstance(fault, faults.WriteClamped):
            return partial(self._clamp, gpus, fault.floor_w), partial(self._clamp, gpus, None)
        if isinstance(fault, faults.NodeLost):
            return partial(self._lose, gpus), partial(self._give_back, gpus)
        if isinstance(fault, faults.HeatDerate):
            return partial(self._derate, gpus, fault.speed), partial(self._derate, gpus, 1.0)
        if isinstance(fault, faults.BiasStep):
            bias = partial(self._bias, fault.signal, gpus)
            return partial(bias, fault.factor), partial(bias, 1.0)
        wave = (fault, gpus)
        return partial(self._waves.append, wave), partial(self._end_wave, wave)

    def _set_metrics(self, state: MetricsState) -> None:
        self._telemetry.state = state

    def _silence(self, gpus: tuple[int, ...], silent: bool) -> None:
        for node in sorted({self._node_of_gpu[gpu] for gpu in gpus}):
            self._nodes[node].silent = silent

    def _refuse(self, gpus: tuple[int, ...], refuses: bool) -> None:
        for gpu in gpus:
            self._plant.refuse_writes(gpu, refuses)

    def _clamp(self, gpus: tuple[int, ...], floor_w: float | None) -> None:
        for gpu in gpus:
            self._plant.clamp_writes(gpu, floor_w)

    def _derate(self, gpus: tuple[int, ...], speed: float) -> None:
        for gpu in gpus:
            self._plant.set_derate(gpu, speed)

    def _lose(self, gpus: tuple[int, ...]) -> None:
        for node in sorted({self._node_of_gpu[gpu] for gpu in gpus}):
            self._plant.lose_node(node)

    def _give_back(self, gpus: tuple[int, ...]) -> None:
        """Nodes return at their default limits: a raise that nobody granted."""
        before_w = self._plant.enforced_w()
        for node in sorted({self._node_of_gpu[gpu] for gpu in gpus}):
            self._plant.return_node(node)
        after_w = self._plant.enforced_w()
        for gpu, (before, after) in enumerate(zip(before_w, after_w, strict=True)):
            self._raised(gpu, after - before, "node back at default limits")

    def _rival_writes(self, fault: faults.RivalWriter, gpus: tuple[int, ...], now_s: float) -> None:
        for gpu in gpus:
            before_w = self._plant.enforced_w()[gpu]
            after_w = self._plant.write_limit(gpu, fault.limit_w)
            self._raised(gpu, after_w - before_w, f"rival writer on GPU {gpu}")
        if now_s + fault.every_s < fault.until_s:
            self._at(now_s + fault.every_s, lambda now: self._rival_writes(fault, gpus, now))

    def _raised(self, gpu: int, by_w: float, text: str) -> None:
        self._meter.raised_from_outside(self._plant.now_s, gpu, by_w, text)

    def _bias(self, signal: BiasSignal, gpus: tuple[int, ...], factor: float) -> None:
        for pool in sorted({self._pool_of_gpu[gpu] for gpu in gpus}):
            self._plant.set_bias(signal, pool, factor)

    def _swing(self, wave: Wave, now_s: float) -> None:
        fault, gpus = wave
        since_s = now_s - fault.at_s
        if isinstance(fault, faults.BiasRamp):
            factor = 1.0 + (fault.factor - 1.0) * min(1.0, since_s / fault.ramp_s)
        else:
            factor = 1.0 + fault.amplitude * sin(2.0 * pi * since_s / fault.period_s)
        # Steps of a thousandth: the plant memoises its costs per factor.
        self._bias(fault.signal, gpus, round(factor, 3))

    def _end_wave(self, wave: Wave) -> None:
        self._waves.remove(wave)
        self._bias(wave[0].signal, wave[1], 1.0)
