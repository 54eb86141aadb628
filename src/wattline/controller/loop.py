"""The loop: see, decide, record, act; once a tick, and at once when an operator asks.

Nothing that fails outside ends it. What cannot be seen is missing with a reason, what cannot be
recorded is counted, what cannot be decided leaves limits as they are, and is said. Only another
controller that has taken over ends it, and a request to end.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any

from wattline.controller.budget import InForce
from wattline.controller.gather import Failure
from wattline.controller.give_back import Originals, originals_of
from wattline.controller.history import stand_in
from wattline.controller.observe import Seen, snapshot_of
from wattline.controller.pace import LEAST_PAUSE_S, early_s
from wattline.controller.parts import Parts, node_views, problems_of
from wattline.controller.replicas import ReplicaNumbers, StartTimes, carry_out_replicas
from wattline.controller.sources import (
    NO_LOAD,
    ReplicaView,
    no_demand,
)
from wattline.controller.view import Counters, TickView
from wattline.core.decide import decide
from wattline.core.decision import Decision
from wattline.core.errors import InputError, SafetyError, WattlineError
from wattline.core.fleet import Setting
from wattline.core.snapshot import DemandView, Phase, Snapshot
from wattline.core.state import State
from wattline.drivers.dynamo.sources import DemandReading, PoolLoad
from wattline.drivers.grant_files import NodeReport
from wattline.drivers.grant_log import FencedError
from wattline.recording.orders import Carried, Order, OrderKind, carry_out, given_back_w

log = logging.getLogger(__name__)


class Controller:
    """One controller. `clock`: seconds since 1970 that never run backwards.

    first_tick and state: where an earlier controller's recording ended, if it is to be gone on
    with.
    """

    def __init__(
        self,
        parts: Parts,
        clock: Callable[[], float],
        *,
        first_tick: int = 0,
        state: State | None = None,
    ) -> None:
        self.parts = parts
        self.view: TickView | None = None
        self._clock = clock
        self._tick = first_tick
        self._state = state
        self._plan: tuple[Setting, ...] | None = None
        if state is not None and not parts.advisory:
            self._plan = tuple(pool.setting for pool in state.pools)
        self._demand_seen_s = [clock()] * len(parts.demand)
        self._budget_version: int | None = None
        self._numbers = ReplicaNumbers()
        self._starts = StartTimes()
        self._replicas: tuple[ReplicaView, ...] | None = None
        self._replicas_why: str | None = None
        self._counters = Counters()
        self._refused: Counter[str] = Counter()
        self._replica_problems: list[str] = []
        self._decision_why: str | None = None
        self._reload = ""
        self._attested: SimpleQueue[tuple[str, str, str]] = SimpleQueue()
        self._wake = threading.Event()
        self._stop = threading.Event()

    # For others to call

    def wake(self) -> None:
        """Ask for a tick now."""
        self._wake.set()

    def attest_off(self, node: str, by: str, why: str) -> None:
        """Take somebody's word that a silent node is powered off: with the next tick.

        InputError for a node that is not there, or that is still heard.
        """
        view = self.view
        found = [] if view is None else [entry for entry in view.nodes if entry.name == node]
        if not found:
            raise InputError("node", node, f"use one of {', '.join(self.parts.site.nodes)}")
        if found[0].why is None:
            raise InputError("node", node, "it still reports: switch it off first")
        self._attested.put((node, by, why))
        self._wake.set()

    def originals(self, what: str) -> tuple[Originals, float]:
        """What a node or GPU would be given back, and the watts that may be booked.

        InputError where nothing can be given back.
        """
        if not self.parts.caps.gives_back or self.view is None:
            remedy = "this controller grants no limits: give back on the node, or wait for a tick"
            raise InputError("restore", what, remedy)
        found = originals_of(what, self.parts.site, self.parts.watches)
        return found, self.view.budget.budget.usable_w

    def stop(self) -> None:
        """Ask for the end. Limits stay as they are."""
        self._stop.set()
        self._wake.set()

    def note_reload(self, text: str, *, refused: bool) -> None:
        """Show what came of a reload."""
        self._reload = text
        if refused:
            n = self._counters.reloads_refused + 1
            self._counters = replace(self._counters, reloads_refused=n)

    # The loop

    def run(self, tick_s: float, between: Callable[[], None] = lambda: None) -> None:
        """Until `stop`. `between` runs before each tick. FencedError when it must not go on."""
        due_s = monotonic()
        while not self._stop.is_set():
            self._wake.clear()
            between()
            began_s = monotonic()
            view = self._try_tick()
            if began_s >= due_s:  # one that somebody asked for comes on top of the others
                due_s += tick_s
            if due_s < monotonic():
                self._counters = replace(self._counters, late_ticks=self._counters.late_ticks + 1)
                due_s = monotonic()
            self._stop.wait(max(0.0, began_s + LEAST_PAUSE_S - monotonic()))
            self._wake.wait(max(0.0, min(due_s - monotonic(), early_s(view, self._clock()))))

    def _try_tick(self) -> TickView | None:
        try:
            return self.tick()
        except (FencedError, SafetyError):
            raise
        except Exception:  # a defect in one tick must not leave the fleet without a next one
            log.exception("a tick failed: limits stay as they are")
            self._counters = replace(self._counters, failed_ticks=self._counters.failed_ticks + 1)
            return None

    def close(self) -> None:
        """End the recording, let go of the log, and close what is connected."""
        parts = self.parts
        parts.recorder.close()
        parts.caps.close()
        # By the names of the calls, so that one which still hangs is left alone.
        calls: dict[str, Callable[[], Any]] = {
            f"node-{index}": source.close for index, source in enumerate(parts.reports)
        }
        for index, demand in enumerate(parts.demand):
            if demand is not None:
                calls[f"demand-{index}"] = demand.close
        for index, load in enumerate(parts.loads):
            if load is not None:
                calls[f"load-{index}"] = load.close
        for deployment, sender in parts.admission.senders.items():
            calls[f"admission-{deployment}"] = sender.close
        if parts.history is not None:
            calls["prometheus"] = parts.history.close
        calls["models"] = parts.models.close
        parts.gatherer.gather(calls)

    def tick(self) -> TickView:
        """See, decide, record, act, once."""
        parts = self.parts
        began_s = monotonic()
        now_s = round(self._clock(), 3)
        if parts.models.poll(now_s, self._state):
            # Settings change here only, and the recording with them, so that it replays.
            settings = parts.models.apply(parts.site.settings)
            parts.site = replace(parts.site, settings=settings)
            parts.recorder.begin(parts.header(parts.site))
        replicas = self._replica_views()
        outcomes = parts.gatherer.gather(self._calls(now_s, replicas))
        self._release_attested(now_s)
        # After that, because a report of a released GPU books it again.
        self._hear(outcomes, now_s)
        in_force = parts.budget.now(now_s)
        if in_force.budget.version != self._budget_version:
            parts.caps.set_budget(in_force.budget, now_s)
            self._budget_version = in_force.budget.version
        orders = parts.orders.in_force(now_s)
        snapshot = self._snapshot(now_s, in_force, replicas, orders, outcomes)
        decision = self._decide(snapshot)
        carried = None
        if decision is not None:
            carried = carry_out(snapshot, decision, orders, parts.site.settings)
            parts.recorder.append(snapshot, decision, carried if orders else None)
            self._act(snapshot, decision, carried, replicas)
            self._state = decision.next_state
            if not parts.advisory:
                self._plan = tuple(plan.setting for plan in decision.plan)
        self._tick += 1
        missing = self._counters.missing + len(snapshot.missing)
        self._counters = replace(
            self._counters,
            ticks=self._counters.ticks + 1,
            failed_ticks=self._counters.failed_ticks + (decision is None),
            missing=missing,
            refused=tuple(sorted(self._refused.items())),
            admission_partial_failures=parts.admission.partial_failures,
            prefill_thresholds_untold=self._counters.prefill_thresholds_untold
            + parts.admission.untold(decision),
        )
        self.view = self._view(began_s, in_force, snapshot, decision, carried)
        return self.view

    # Seeing

    def _replica_views(self) -> Sequence[ReplicaView]:
        """Replicas as they are, or as they were last seen: not known is not gone."""
        try:
            self._replicas = tuple(self.parts.replicas.replicas())
            self._replicas_why = None
        except (WattlineError, OSError) as error:
            self._replicas_why = f"replicas: {error}"
        return self._replicas or ()

    def _calls(self, now_s: float, replicas: Sequence[ReplicaView]) -> dict[str, Callable[[], Any]]:
        parts = self.parts
        calls: dict[str, Callable[[], Any]] = {
            f"node-{index}": source.read for index, source in enumerate(parts.reports)
        }
        for index, demand in enumerate(parts.demand):
            if demand is not None:
                calls[f"demand-{index}"] = partial(demand.read, now_s)
        for index, load in enumerate(parts.loads):
            urls = self._worker_urls(index, replicas)
            if load is not None and urls is not None:
                calls[f"load-{index}"] = partial(load.read, now_s, urls)
        return calls

    def _worker_urls(self, index: int, replicas: Sequence[ReplicaView]) -> list[str] | None:
        """Pages of a pool's serving workers; None where nobody says which there are."""
        name = self.parts.site.fleet.pools[index].name
        urls = list(self.parts.worker_urls.get(name, ()))
        serving = [r for r in replicas if r.pool == name and r.phase is Phase.READY]
        urls += [r.metrics_url for r in serving if r.metrics_url is not None]
        return urls if urls or not serving else None

    def _hear(self, outcomes: Mapping[str, Any], now_s: float) -> None:
        for index, watch in enumerate(self.parts.watches):
            report = outcomes[f"node-{index}"]
            if isinstance(report, NodeReport):
                if watch.hear(report, now_s):
                    self.parts.caps.hear(report, now_s)
                if report.budget_version is not None:
                    self.parts.budget.above(report.budget_version)
            else:
                watch.miss(report.why)

    def _release_attested(self, now_s: float) -> None:
        while not self._attested.empty():
            node, by, why = self._attested.get()
            self.parts.caps.release(node, by, why, now_s)
            log.warning("released", extra={"audit": True, "node": node, "by": by, "why": why})

    def _demand(
        self, outcomes: Mapping[str, Any], now_s: float
    ) -> tuple[tuple[DemandView, ...], list[str]]:
        views, missing = [], []
        for index, deployment in enumerate(self.parts.site.fleet.deployments):
            reading = outcomes.get(f"demand-{index}", Failure("no frontends are configured"))
            if self.parts.history is not None:
                reading, why = stand_in(self.parts.history, index, reading, now_s)
                missing += [f"{deployment.name}: {each}" for each in why]
            if isinstance(reading, DemandReading):
                seen_s = now_s - reading.view.age_s
                self._demand_seen_s[index] = max(self._demand_seen_s[index], seen_s)
                views.append(reading.view)
                missing += [f"{deployment.name}: {why}" for why in reading.missing]
            else:
                views.append(no_demand(round(now_s - self._demand_seen_s[index], 3)))
                missing.append(f"{deployment.name}: demand: {reading.why}")
        return tuple(views), missing

    def _loads(self, outcomes: Mapping[str, Any]) -> tuple[tuple[PoolLoad, ...], list[str]]:
        loads, missing = [], []
        for index, pool in enumerate(self.parts.site.fleet.pools):
            load = outcomes.get(f"load-{index}", Failure("no workers are configured"))
            if isinstance(load, PoolLoad):
                loads.append(load)
                missing += [f"{pool.name}: {why}" for why in load.missing]
            else:
                loads.append(NO_LOAD)
                missing.append(f"{pool.name}: load: {load.why}")
        return tuple(loads), missing

    def _snapshot(
        self,
        now_s: float,
        in_force: InForce,
        replicas: Sequence[ReplicaView],
        orders: Sequence[Order],
        outcomes: Mapping[str, Any],
    ) -> Snapshot:
        parts = self.parts
        meter: Mapping[str, float] = {}
        history_missing: list[str] = []
        if parts.history is not None:
            parts.history.poll(now_s)
            meter, history_missing = parts.history.metered(parts.watches, parts.site.gpus_at, now_s)
            if self._state is not None:
                self._state = parts.history.warmed(self._state, parts.site.settings)
        demand, demand_missing = self._demand(outcomes, now_s)
        loads, load_missing = self._loads(outcomes)
        cordoned = {gpu for o in orders if o.kind is OrderKind.CORDON for gpu in o.gpus}
        own = [] if self._replicas_why is None else [self._replicas_why]
        seen = Seen(
            tick=self._tick,
            now_s=now_s,
            budget=in_force.budget,
            nodes=parts.watches,
            caps=parts.caps.view(parts.watches, now_s),
            replicas=replicas,
            numbers=self._numbers.of(replicas),
            starts_s={} if self._replicas is None else self._starts.ages_s(replicas, now_s),
            demand=demand,
            loads=loads,
            plan=self._plan,
            cordoned=frozenset(cordoned),
            pinned_w={o.pool: o.cap_w for o in orders if o.pool and o.cap_w is not None},
            given_back_w=given_back_w(
                orders,
                parts.site.fleet,
                parts.site.uuid,
                parts.site.pool,
                in_force.budget.usable_w,
            ),
            missing=tuple(own + demand_missing + load_missing + history_missing),
            state=self._state,
            meter=meter,
        )
        return snapshot_of(seen, parts.site)

    # Deciding and acting

    def _decide(self, snapshot: Snapshot) -> Decision | None:
        if self._replicas is None:
            self._decision_why = f"no decision: {self._replicas_why}"
            return None
        try:
            decision = decide(snapshot, self.parts.site.settings)
        except (WattlineError, ArithmeticError, LookupError, ValueError) as error:
            if self._decision_why is None:
                log.exception("no decision: limits stay as they are")
            self._decision_why = f"no decision: {type(error).__name__}: {error}"
            return None
        self._decision_why = None
        return decision

    def _act(
        self,
        snapshot: Snapshot,
        decision: Decision,
        carried: Carried,
        replicas: Sequence[ReplicaView],
    ) -> None:
        parts, now_s = self.parts, snapshot.time_s
        if parts.advisory:
            return
        parts.caps.give_back(carried.given_back)
        self._refused.update(parts.caps.act(carried.caps, now_s))
        # Where replicas cannot be seen, GPUs that seem to be free need not be.
        seen = self._replicas_why is None
        done, wrong = carry_out_replicas(
            parts.replicas,
            replicas,
            carried.replicas if seen else (),
            carried.drain if seen else (),
            snapshot,
            parts.site,
            self._numbers.of(replicas),
        )
        for text in done:
            log.info("replicas", extra={"what": text})
        if wrong and wrong != self._replica_problems:
            log.error("replicas", extra={"why": "; ".join(wrong)})
        self._replica_problems = wrong
        starts = sum(text.startswith("start") for text in done)
        self._counters = replace(
            self._counters,
            starts=self._counters.starts + starts,
            drains=self._counters.drains + len(done) - starts,
            replica_failures=self._counters.replica_failures + len(wrong),
        )
        parts.plugin.write(snapshot, decision, parts.site)
        parts.admission.update(
            decision.admission, now_s, parts.gatherer, may_send=carried.admission
        )

    # Showing

    def _view(
        self,
        began_s: float,
        in_force: InForce,
        snapshot: Snapshot,
        decision: Decision | None,
        carried: Carried | None,
    ) -> TickView:
        parts = self.parts
        caps = parts.caps.view(parts.watches, snapshot.time_s)
        recorder = parts.recorder.status
        nodes = node_views(parts, snapshot.time_s)
        own = list(self._replica_problems)
        if self._decision_why is not None:
            own.append(self._decision_why)
        made_s = monotonic()
        return TickView(
            made_s=made_s,
            took_s=made_s - began_s,
            advisory=parts.advisory,
            budget=in_force,
            snapshot=snapshot,
            decision=decision,
            carried=carried,
            caps=caps,
            nodes=nodes,
            frontends=parts.admission.views,
            admission_mode=parts.admission.mode,
            recorder=recorder,
            problems=(*problems_of(parts, nodes, caps, recorder), *own),
            reload=self._reload,
            counters=self._counters,
            models=parts.models.view,
            batch_tokens=parts.site.batch_tokens,
            history=None if parts.history is None else parts.history.view(snapshot.time_s),
        )
