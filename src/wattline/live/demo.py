"""The live demonstration: real processes, real HTTP load, a budget that is cut in the middle.

What is said about limits is read from the GPUs' registers by an observer that misses no change;
what is said about requests, by a client in a process of its own.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattline.core.errors import WattlineError
from wattline.core.snapshot import Phase
from wattline.live import load
from wattline.live.demo_history import History, ask_history
from wattline.live.demo_plan import DemoPlan
from wattline.live.demo_record import BudgetSpan, EnergySampler, Levels, Measured
from wattline.live.demo_view import Frame, PoolRow, Served, View
from wattline.live.environment import Environment
from wattline.live.load import OK, OVERLOADED, UNFINISHED, LoadSpec, Row
from wattline.live.stack import LiveStack
from wattline.recording.record import Recording
from wattline.sim.replay import Replay, replay
from wattline.sim.scenario_build import BudgetChange
from wattline.virtual.observer import ObserverError

FRAME_S = 0.5
STEP_S = 0.05
HEAD_START_S = 1.5
RECENT_S = 10.0
_LOAD = "load"
_SETTLED_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Something that must hold, and whether it did."""

    text: str
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended.

    cores: processor cores that each kind of process took, on average over the window. history: what
    Prometheus kept; None where none ran, and why.
    """

    measured: Measured
    replayed: Replay
    cores: Mapping[str, float]
    history: History | None
    history_missing: str | None
    promises: tuple[Promise, ...]

    @property
    def passed(self) -> bool:
        """Whether all promises were kept."""
        return all(promise.held for promise in self.promises)


class Demo:
    """One run. `folder` is a new one, for everything that processes write."""

    def __init__(self, folder: Path, plan: DemoPlan, environment: Environment, view: View) -> None:
        self._folder = folder
        self._plan = plan
        self._view = view
        self._stack = LiveStack(folder, plan.stack(), environment)
        self._pools = [pool.name for pool in plan.scenario.pools]
        self._energy = EnergySampler(self._stack.watts, self._pools)
        self._start_s = 0.0
        self._start_wall_s = 0.0
        self._spans: list[BudgetSpan] = []
        self._title = ""
        self._frame_s = 0.0
        self._said: dict[str, tuple[int, int]] = {}
        self._cpu_s: dict[str, float] = {}

    @property
    def recording(self) -> Path:
        """The controller's recording."""
        return self._folder / "controller" / "recording"

    @property
    def rows_file(self) -> Path:
        """What became of each request."""
        return self._folder / "requests.jsonl"

    def run(self) -> Outcome:
        """All of it. WattlineError when a process ends early or something does not come about."""
        began_s = time.monotonic()
        with self._stack, self._observed():
            self._begin()
            self._serve()
            history, cores = self._history(), self._cores()
            state = self._stack.state()
            measured, why = self._measured(state, began_s)
        replayed = replay(Recording(self.recording))
        return Outcome(
            measured=measured,
            replayed=replayed,
            cores=cores,
            history=history,
            history_missing=self._stack.prometheus_missing,
            promises=promises(measured, replayed, why),
        )

    @contextlib.contextmanager
    def _observed(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._energy.stop()

    # What happens

    def _begin(self) -> None:
        stack = self._stack
        gpus = sum(pool.gpus for pool in self._plan.scenario.pools)
        self._say(
            f"{gpus} virtual GPUs, an agent, Dynamo's frontend and a controller start; "
            f"budget {self._plan.budget_w:.0f} W"
        )
        if stack.prometheus_missing is not None:
            self._say(stack.prometheus_missing)
        stack.ready()
        workers = ", ".join(note.replica for note in stack.workers())
        self._say(f"the frontend answers; workers that the controller started: {workers}")
        # The simulated run starts from chips that follow their limits, and so does this one.
        stack.until(self._chips_as_planned(), "limits as planned", _SETTLED_LIMIT_S)
        observer = stack.watts.observe()
        usable_w = stack.watts.usable_w
        self._spans = [
            BudgetSpan(observer.start_s, observer.start_s, self._plan.budget_w, usable_w, "first")
        ]
        self._energy.start()

    def _chips_as_planned(self) -> Callable[[], bool]:
        """Whether the limits have been those of the plan for as long as a chip takes to follow."""
        settle_s = max(product.settle_s for product in self._plan.experiment.fleet.products)
        since_s: float | None = None

        def look() -> bool:
            nonlocal since_s
            now_s = time.monotonic()
            if not as_planned(self._stack.state()):
                since_s = None
            elif since_s is None:
                since_s = now_s
            return since_s is not None and now_s - since_s >= settle_s

        return look

    def _serve(self) -> None:
        """Send the load, change the budget on the way, and wait for the end of the window."""
        plan = self._plan
        self._cpu_s = self._stack.processor_s()
        self._start_load()
        self._title = "under load"
        for change in plan.changes:
            if change.announced_s < plan.experiment.end_s:
                self._pump_to(change.announced_s)
                self._change(change)
        self._pump_to(plan.experiment.duration_s)
        self._title = "the last requests finish"
        self._pump_to(plan.experiment.end_s)

    def _start_load(self) -> None:
        stack, plan = self._stack, self._plan
        wall_s, now_s = time.time(), time.monotonic()
        self._start_s = now_s + HEAD_START_S  # an interpreter starts, and the first prompts
        self._start_wall_s = wall_s + HEAD_START_S
        spec = LoadSpec(
            frontends=[stack.urls[name] for name in stack.frontends],
            model=stack.spec.model_name,
            model_dir=str(stack.environment.model_dir),
            out=str(self.rows_file),
            start_s=self._start_s,
            end_s=plan.experiment.end_s,
            requests=plan.requests,
            seed=plan.experiment.seed,
        )
        stack.processes.add(_LOAD, load.command(spec, self._folder / "load.json"), {})
        tokens = sum(output for _, _, output in plan.requests) / plan.experiment.duration_s
        rate_rps = len(plan.requests) / plan.experiment.duration_s
        self._say(
            f"LOAD {len(plan.requests)} chat completions over HTTP, {rate_rps:.1f} a second, "
            f"{tokens:,.0f} tokens/s asked for"
        )

    def _change(self, change: BudgetChange) -> None:
        stack = self._stack
        before = self._spans[-1]
        cut = change.total_w < before.total_w
        word = "CUT " if cut else "BACK"
        self._title = f"the budget is {'cut to' if cut else 'back at'} {change.total_w:.0f} W"
        at_s = time.monotonic()
        stack.set_budget(change.total_w, why=change.cause)
        now = BudgetSpan(at_s, at_s, change.total_w, stack.watts.usable_w, change.cause)
        self._spans[-1] = BudgetSpan(
            before.start_s, at_s, before.total_w, before.usable_w, before.cause
        )
        self._spans.append(now)
        self._say(f"{word} budget {before.total_w:.0f} W to {change.total_w:.0f} W")
        if cut:
            stack.until(stack.watts.within, "limits under the cut", 30.0)
            observer = stack.watts.observer
            assert observer is not None
            last_s = max((c.at_s for c in list(observer.changes) if c.at_s >= at_s), default=at_s)
            self._say(f"     limits are under it {(last_s - at_s) * 1000:.0f} ms after the call")

    def _history(self) -> History | None:
        url = self._stack.urls.get("prometheus")
        if url is None:
            return None
        return ask_history(self._stack.get, url, self._start_wall_s, time.time())

    def _cores(self) -> dict[str, float]:
        """By kind of process. The load's has ended by now: a client is not part of a deployment."""
        cores: dict[str, float] = {}
        span_s = time.monotonic() - self._start_s
        for name, used_s in self._stack.processor_s().items():
            kind = name.partition("-")[0]
            kind = f"workers of {kind}" if kind in self._pools else kind
            used_s -= self._cpu_s.get(name, 0.0)
            cores[kind] = cores.get(kind, 0.0) + used_s / span_s
        return cores

    # What is shown

    def _say(self, text: str) -> None:
        at_s = None if self._start_s == 0.0 else time.monotonic() - self._start_s
        self._view.event(at_s if at_s is None or at_s >= 0.0 else None, text)

    def _pump_to(self, at_s: float) -> None:
        """Let time pass until `at_s` of the load, and show it."""
        end_s = self._start_s + at_s
        while (now_s := time.monotonic()) < end_s:
            self._check()
            if now_s - self._frame_s >= FRAME_S:
                self._frame_s = now_s
                # A page that is late for a moment is no reason to end: the next one comes.
                with contextlib.suppress(OSError):
                    self._show(self._stack.state())
            time.sleep(min(STEP_S, max(0.0, end_s - time.monotonic())))

    def _check(self) -> None:
        for process in self._stack.processes:
            if not process.alive and (process.name != _LOAD or process.exit_code != 0):
                raise WattlineError(
                    f"{process.name} ended with exit code {process.exit_code}: {process.said()}"
                )

    def _show(self, state: dict[str, Any]) -> None:
        watts, plan = self._stack.watts, self._plan
        at_s = time.monotonic() - self._start_s
        slo = plan.experiment.fleet.deployments[0].slo
        rows = []
        for pool in state["pools"]:
            name = pool["name"]
            self._tell_replicas(name, pool["ready"], pool["starting"])
            rows.append(
                PoolRow(
                    name=name,
                    ready=pool["ready"],
                    starting=pool["starting"],
                    draining=pool["draining"],
                    cap_w=pool["plan"]["setting"]["cap_w"] if "plan" in pool else 0.0,
                    enforced_w=watts.enforced_w([name]),
                    drawn_w=watts.drawn_w([name]),
                    queued_tokens=pool["queued_prefill_tokens"],
                    reason=pool["reason"],
                )
            )
        self._view.frame(
            Frame(
                at_s=at_s,
                of_s=plan.experiment.end_s,
                title=self._title,
                budget_w=watts.budget_w,
                usable_w=watts.usable_w,
                booked_w=state["budget"]["booked_w"],
                enforced_w=watts.enforced_w(),
                drawn_w=watts.drawn_w(),
                most_w=plan.experiment.fleet.max_limit_w,
                pools=tuple(rows),
                served=served(load.read_rows(self.rows_file), plan, at_s),
                ttft_target_s=slo.ttft_s,
                itl_target_s=slo.itl_s,
            )
        )

    def _tell_replicas(self, pool: str, ready: int, starting: int) -> None:
        before = self._said.get(pool)
        self._said[pool] = (ready, starting)
        if before is None:
            return
        if starting > before[1]:
            self._say(f"     a worker of {pool} starts")
        if ready > before[0]:
            self._say(f"     {pool}: {ready} workers serve")

    # What is left

    def _measured(self, state: dict[str, Any], began_s: float) -> tuple[Measured, str | None]:
        """The measurements, and why the observation of limits cannot be used, if it cannot."""
        stack = self._stack
        self._energy.stop()
        stack.process(_LOAD).wait(HEAD_START_S)
        last = self._spans[-1]
        self._spans[-1] = BudgetSpan(
            last.start_s, time.monotonic(), last.total_w, last.usable_w, last.cause
        )
        observer = stack.watts.observer
        assert observer is not None
        hole = None
        try:
            verdict = stack.watts.verdict()
        except ObserverError as error:
            hole = str(error)
            verdict = stack.watts.judged(observer)
        stack.end("controller")
        ticks = [(tick.snapshot, tick.decision) for tick in Recording(self.recording).ticks()]
        counters = state["counters"]
        measured = Measured(
            plan=self._plan,
            start_s=self._start_s,
            start_wall_s=self._start_wall_s,
            rows=load.read_rows(self.rows_file),
            ticks=ticks,
            energy=self._energy,
            levels=Levels(observer, [stack.uuids[pool] for pool in self._pools]),
            budgets=self._spans,
            verdict=verdict,
            replica_changes=counters["starts"] + counters["drains"],
            wall_s=round(time.monotonic() - began_s, 1),
        )
        return measured, hole

    def keep(self, target: Path) -> None:
        """Copy recording, requests and the processes' logs to a folder."""
        shutil.copytree(self.recording, target / "recording")
        shutil.copy(self.rows_file, target / "requests.jsonl")
        (target / "logs").mkdir()
        workers = self._folder / "controller" / "workers"
        for path in (*self._folder.glob("*.log"), *workers.glob("*.log")):
            shutil.copy(path, target / "logs")


def as_planned(state: Mapping[str, Any]) -> bool:
    """Whether every GPU that serves obeys its pool's plan; `state` is the controller's."""
    caps_w = {pool["name"]: pool["plan"]["setting"]["cap_w"] for pool in state["pools"]}
    return all(
        gpu["enforced_w"] is not None and abs(gpu["enforced_w"] - caps_w[gpu["pool"]]) < 1.0
        for gpu in state["gpus"]
        if gpu["phase"] == Phase.READY
    )


def served(rows: Sequence[Row], plan: DemoPlan, now_s: float) -> Served:
    """What clients saw until now; rates and latencies over the last seconds."""
    slo = plan.experiment.fleet.deployments[0].slo
    since_s = max(0.0, now_s - RECENT_S)
    span_s = max(1.0, now_s - since_s)
    done = [row for row in rows if row.status == OK]
    good = [
        row
        for row in done
        if row.ttft_s is not None and row.ttft_s <= slo.ttft_s and (row.itl_s or 0.0) <= slo.itl_s
    ]
    recent = [row for row in done if (row.last_s or 0.0) >= since_s]
    ttft_s = sorted(row.ttft_s for row in recent if row.ttft_s is not None)
    itl_s = sorted(row.itl_s for row in recent if row.itl_s is not None)
    arrivals = [at for at, _, _ in plan.requests if at <= now_s]
    return Served(
        sent=len(arrivals),
        answered=len(done),
        good=len(good),
        turned_away=sum(row.status in OVERLOADED for row in rows),
        broken=sum(row.status not in (OK, UNFINISHED, *OVERLOADED) for row in rows),
        offered_rps=sum(at >= since_s for at in arrivals) / span_s,
        good_rps=sum((row.last_s or 0.0) >= since_s for row in good) / span_s,
        ttft_p50_s=_quantile(ttft_s, 0.5),
        ttft_p99_s=_quantile(ttft_s, 0.99),
        itl_p50_s=_quantile(itl_s, 0.5),
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def promises(measured: Measured, replayed: Replay, hole: str | None) -> tuple[Promise, ...]:
    """What must have held, on what was measured."""
    verdict = measured.verdict
    late = [each for each in verdict.exposures if not (each.in_time and each.ended)]
    broken = measured.broken
    under_way = sum(row.status == UNFINISHED for row in measured.rows)
    recomputed = f"{replayed.decisions} recorded decisions recomputed to the byte"
    if replayed.difference is not None:
        recomputed += f": tick {replayed.difference.tick} differs"
    return (
        Promise(
            text=f"enforced limits above the budget less its guard band, by our doing: "
            f"{verdict.ours_watt_seconds:.1f} W·s, over {verdict.changes} changes of limits",
            held=verdict.ours_watt_seconds == 0.0,
        ),
        Promise(
            text="every cut enforced within 3 s" + (f": {len(late)} were not" if late else ""),
            held=not late,
        ),
        Promise(
            text="no change of a limit went unobserved" + (f": {hole}" if hole else ""),
            held=hole is None,
        ),
        Promise(
            text=f"{len(measured.rows)} requests: each answered or turned away"
            + (f", but {under_way} under way when the run ended" if under_way else "")
            + (f"; {len(broken)} broke: {broken[0].why}" if broken else ""),
            held=not broken,
        ),
        Promise(text=recomputed, held=replayed.difference is None),
    )
