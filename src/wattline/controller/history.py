"""Prometheus in the loop: asked now and then in a thread of its own, and never waited for.

It serves what the pages that are read each tick cannot: demand before the start, which warms the
forecast up; the draw of GPUs whose agent has no meter; and demand while no frontend can be read,
with its age, so that what is too old is an outage as ever. A server that hangs, lies or is gone
costs these values, with a reason, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from wattline.controller.gather import Failure, SlowCall
from wattline.controller.history_batch import Batch, DemandPart
from wattline.controller.nodes import NodeWatch
from wattline.core.settings import Settings
from wattline.core.state import State
from wattline.core.warmup import Past, warm_up
from wattline.drivers.dynamo.sources import DemandReading
from wattline.drivers.prometheus_catalogue import GpuPower

log = logging.getLogger(__name__)

_WARM_WITHIN_S = 300.0
"""Demand from before the start is of no use once the state has a history of its own."""
_LEAST_INTERVAL_S = 1.0
_CLOSE_LIMIT_S = 60.0


class Reader(Protocol):
    """Who asks the server; its calls may take long."""

    def read(self, now_s: float, *, past: bool) -> Batch:
        """Ask everything at once."""

    def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterReading:
    """Draw or limit of one GPU, watts. age_s: since Prometheus took the sample, and until now."""

    watts: float
    age_s: float
    host: str | None
    pods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryView:
    """What Prometheus is good for now. age_s: of the newest whole batch; None: none came yet.

    why: while it cannot be asked. demand: deployments that it stands in for, and how old that is.
    warmed: per deployment, bins that were taken over, or why none were.
    """

    url: str
    age_s: float | None
    why: str | None
    missing: tuple[str, ...]
    demand: Mapping[str, float]
    warmed: Mapping[str, str]
    draw: Mapping[str, MeterReading]
    used: tuple[str, ...]


def stand_in(
    desk: HistoryDesk, index: int, reading: DemandReading | Failure, now_s: float
) -> tuple[DemandReading | Failure, list[str]]:
    """What a deployment's demand is taken from: its frontends if they tell it, else Prometheus.

    And why it is not the frontends.
    """
    if isinstance(reading, DemandReading) and reading.view.arrivals is not None:
        desk.frontends_seen(index)
        return reading, []
    own = [reading.why] if isinstance(reading, Failure) else list(reading.missing)
    instead = desk.demand(index, now_s)
    if isinstance(instead, str):
        return reading, [instead]
    return instead, [f"frontends: {why}" for why in own]


class HistoryDesk:
    """Keeps the newest batch, and says what of it can be used.

    names: of the deployments. interval_s: between two batches; stale_s: while it stands in for
    frontends it is asked twice as often as that. draw_age_s: an older draw is missing. warm: take
    over demand from before the start.
    """

    def __init__(
        self,
        reader: Reader,
        names: Sequence[str],
        *,
        url: str,
        interval_s: float,
        stale_s: float,
        draw_age_s: float,
        warm: bool,
    ) -> None:
        self._reader = reader
        self._names = tuple(names)
        self._url = url
        self._interval_s = interval_s
        self._stale_s = stale_s
        self._draw_age_s = draw_age_s
        self._call = SlowCall("prometheus")
        self._demand: tuple[DemandPart, ...] | None = None
        self._draw: Mapping[str, GpuPower] = {}
        self._limit: Mapping[str, GpuPower] = {}
        self._demand_at_s = self._draw_at_s = self._limit_at_s = 0.0
        self._whole_s: float | None = None
        self._missing: tuple[str, ...] = ()
        self._why: str | None = "not asked yet"
        self._asked_s: float | None = None
        self._began_s: float | None = None
        self._cold = set(range(len(self._names))) if warm else set()
        self._past: list[Past | None] = [None] * len(self._names)
        self._warmed: dict[str, str] = {}
        self._standing_in: dict[str, float] = {}
        self._used: tuple[str, ...] = ()

    # Asking

    def poll(self, now_s: float) -> None:
        """Take a batch that has come, and begin the next when it is due. Waits for nothing."""
        if self._began_s is None:
            self._began_s = now_s
        outcome = self._call.take()
        if isinstance(outcome, Batch):
            self._take(outcome)
        elif isinstance(outcome, Failure):
            self._fail(outcome.why)
        waiting_s = self._call.waiting_s
        if waiting_s is not None and waiting_s > self._interval_s:
            self._fail(f"no answer for {waiting_s:.0f} s")
        if self._cold and now_s - self._began_s > _WARM_WITHIN_S:
            self._give_up_warming()
        due = self._asked_s is None or now_s - self._asked_s >= self._pause_s()
        if due and self._call.begin(partial(self._reader.read, now_s, past=bool(self._cold))):
            self._asked_s = now_s

    def _pause_s(self) -> float:
        if self._standing_in:
            return max(_LEAST_INTERVAL_S, min(self._interval_s, self._stale_s / 2.0))
        return self._interval_s

    def _take(self, batch: Batch) -> None:
        """Take over what was answered; of the rest, what was known before grows older."""
        self._missing = batch.why
        if batch.demand is not None:
            self._demand, self._demand_at_s = batch.demand, batch.at_s
        if batch.draw is not None:
            self._draw, self._draw_at_s = batch.draw, batch.at_s
        if batch.limit is not None:
            self._limit, self._limit_at_s = batch.limit, batch.at_s
        for index, part in enumerate(batch.past or ()):
            if part.past is not None:
                self._past[index] = part.past
            elif index in self._cold:
                self._warmed[self._names[index]] = part.why or "nothing"
        if batch.trouble is not None:
            self._fail(batch.trouble)
            return
        if self._why is not None:
            log.info("Prometheus answers", extra={"url": self._url})
        self._why, self._whole_s = None, batch.at_s

    def _fail(self, why: str) -> None:
        if self._why is None:
            log.warning("Prometheus does not answer", extra={"url": self._url, "why": why})
        self._why = why

    # Warming up

    def warmed(self, state: State, settings: Settings) -> State:
        """The state with the past of each deployment, once, after it has been seen."""
        ready: list[Past | None] = [None] * len(self._names)
        for index in tuple(self._cold):
            past, demand = self._past[index], state.demand[index]
            if past is None or demand.seen_until_s is None:
                continue
            ready[index] = past
            self._cold.discard(index)
            bins = len(past.rates_rps)
            self._warmed[self._names[index]] = f"{bins} bins of {settings.history_bin_s:g} s"
        if not any(ready):
            return state
        log.info("the forecast is warmed up", extra={"deployments": dict(self._warmed)})
        return warm_up(state, ready, settings)

    def _give_up_warming(self) -> None:
        for index in self._cold:
            why = self._warmed.get(self._names[index], self._why or "nothing came")
            self._warmed[self._names[index]] = f"not warmed up: {why}"
        self._cold.clear()

    # What can be used

    def demand(self, index: int, now_s: float) -> DemandReading | str:
        """A deployment's counts for want of its frontends, or why there are none."""
        name = self._names[index]
        # From now on it is asked more often, whether or not it has anything.
        self._standing_in.setdefault(name, 0.0)
        if self._demand is None:
            return f"Prometheus: {self._why}"
        part = self._demand[index]
        if part.view is None:
            return f"Prometheus: {'; '.join(part.why)}"
        age_s = round(part.view.age_s + max(0.0, now_s - self._demand_at_s), 3)
        self._standing_in[name] = age_s
        return DemandReading(
            view=replace(part.view, age_s=age_s),
            missing=(
                f"demand comes from Prometheus, {age_s:.0f} s old",
                *(f"Prometheus: {why}" for why in part.why),
            ),
        )

    def frontends_seen(self, index: int) -> None:
        """The frontends tell it themselves: nobody has to stand in."""
        self._standing_in.pop(self._names[index], None)

    def draw(self, now_s: float) -> dict[str, MeterReading]:
        """Draw per GPU that is young enough."""
        return self._young(self._draw, max(0.0, now_s - self._draw_at_s))

    def limit(self, now_s: float) -> dict[str, MeterReading]:
        """Limit in force per GPU that is young enough, where it was asked for."""
        return self._young(self._limit, max(0.0, now_s - self._limit_at_s))

    def _young(self, gpus: Mapping[str, GpuPower], since_s: float) -> dict[str, MeterReading]:
        return {
            uuid: MeterReading(
                watts=each.draw_w,
                age_s=round(each.age_s + since_s, 3),
                host=each.host,
                pods=tuple(f"{namespace}/{pod}" for namespace, pod in each.pods),
            )
            for uuid, each in gpus.items()
            if each.age_s is not None and each.age_s + since_s <= self._draw_age_s
        }

    def metered(
        self, watches: Sequence[NodeWatch], gpus: Sequence[tuple[str, int]], now_s: float
    ) -> tuple[dict[str, float], list[str]]:
        """Draw of the GPUs whose agents tell none, and lines on what stands in and what is missing.

        gpus: name, and index of the node.
        """
        without = [uuid for uuid, at in gpus if watches[at].draw_w(uuid, now_s) is None]
        draw = self.draw(now_s)
        taken = {uuid: draw[uuid] for uuid in without if uuid in draw}
        self._used = tuple(taken)
        lines = [] if self._why is None else [f"Prometheus: {self._why}"]
        if taken:
            oldest_s = max(reading.age_s for reading in taken.values())
            lines.append(
                f"draw of {len(taken)} GPUs comes from Prometheus, up to {oldest_s:.0f} s old"
            )
        nobody = [uuid for uuid in without if uuid not in draw]
        if nobody:
            lines.append(
                f"draw of {len(nobody)} GPUs, {nobody[0]} among them, is told neither by their "
                "agents nor, young enough, by Prometheus"
            )
        return {uuid: reading.watts for uuid, reading in taken.items()}, lines

    def view(self, now_s: float) -> HistoryView:
        """As it stands."""
        whole_s = self._whole_s
        return HistoryView(
            url=self._url,
            age_s=None if whole_s is None else round(max(0.0, now_s - whole_s), 3),
            why=self._why,
            missing=self._missing,
            demand=dict(self._standing_in),
            warmed=dict(self._warmed),
            draw=self.draw(now_s),
            used=self._used,
        )

    def close(self) -> None:
        """Close all connections, when the batch that is under way has come to its time limit."""
        if self._call.end(_CLOSE_LIMIT_S):
            self._reader.close()
