"""A live stack to hurt: stand-ins beside it, a steady load on it, and somebody who watches it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from live_faults_proxy import Proxy
from wattline.catalog.fleet_spec import DeploymentSpec, PoolSpec, SloSpec
from wattline.core.errors import WattlineError
from wattline.live import load
from wattline.live.environment import Environment
from wattline.live.load import BROKEN, OK, LoadSpec, Row
from wattline.live.stack import CONTROLLER, PROMETHEUS, LiveStack
from wattline.live.stack_spec import StackSpec, merged
from wattline.recording.record import Recording
from wattline.sim.replay import replay
from wattline.virtual.judge import Verdict

NAME = "tiny"
BUDGET_W, CUT_W = 1400.0, 1000.0
RPS, PROMPT_TOKENS, OUTPUT_TOKENS = 3.0, 400, 24
HEADROOM = 99.0
SHED = 529
"""What a frontend answers when all workers are busy; 503: a worker that it chose is not there."""
REST_S, HOLDS_S = 60.0, 60.0
LOOK_S = 0.1
UNDER_WAY_S = 2.0
"""Requests sent so long before a fault may be under way when it comes."""
_SMALL_DISK = "size=8m,mode=700"


def spec(*, each: int = 2, frontends: int = 2, plugin: bool = False) -> StackSpec:
    """Prefill and decode on a node each, and watts that do not suffice for all at once.

    each: GPUs and workers of a pool. plugin: for the planner: no Prometheus, but a plan on disk.
    """
    pools = [
        PoolSpec(name=role, role=role, gpu="H100", gpus=each, min_replicas=each, startup_s=1.0)
        for role in ("prefill", "decode")
    ]
    return StackSpec(
        deployment=DeploymentSpec(
            name=NAME, model="Llama-3.1-8B", slo=SloSpec(ttft_s=0.5, itl_s=0.03), pools=pools
        ),
        budget_w=BUDGET_W / 2 * each,
        nodes=2,
        frontends=frontends,
        prometheus=not plugin,
        plugin=plugin,
        settle_s=0.2,
        stream_steps=4,
        drain_s=5.0,
        scrape_s=1.0,
        changes={
            "recorder": {"segment_mib": 1.0, "total_mib": 4.0, "retry_s": 2.0},
            # So that a few requests a second ask for all the watts there are.
            "decision": {"headroom": HEADROOM, "cap_hold_s": 2.0},
        },
    )


class FaultStack(LiveStack):
    """A live stack whose controller sees frontends and Prometheus through stand-ins."""

    def __init__(self, folder: Path, wanted: StackSpec, environment: Environment) -> None:
        super().__init__(folder, wanted, environment)
        self.proxies: dict[str, Proxy] = {}
        self.disk = folder / "recording"
        self.mounted = False

    def _start_controller(self) -> None:
        hidden = [*self.frontends, *([PROMETHEUS] if self.spec.prometheus else [])]
        self.proxies = {name: Proxy(self.urls[name]) for name in hidden}
        self.disk.mkdir(mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", _SMALL_DISK, "live-faults", str(self.disk)]
        self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        sources: dict[str, Any] = {
            "frontends": {NAME: [self.proxies[name].url for name in self.frontends]}
        }
        if self.spec.prometheus:
            url = self.proxies[PROMETHEUS].url
            sources["prometheus"] = {"url": url, "interval_s": 2.0, "limit_s": 2.0}
        seen = {"sources": sources, "recorder": {"folder": str(self.disk)}}
        self.spec = dataclasses.replace(self.spec, changes=merged(self.spec.changes, seen))
        super()._start_controller()

    def close(self) -> None:
        """End the stand-ins as well."""
        super().close()
        for proxy in self.proxies.values():
            proxy.close()
        self.proxies = {}
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=False)
            self.mounted = False


@dataclass(frozen=True, slots=True)
class Look:
    """One look at `/state`. at_s: monotonic; time_s: of the tick, by the controller's clock."""

    at_s: float
    tick: int
    time_s: float
    epoch: int
    texts: tuple[str, ...]


class Watch:
    """Looks at the controller's state all the time, from a thread of its own."""

    def __init__(self, stack: LiveStack) -> None:
        self.looks: list[Look] = []
        self._stack = stack
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            with contextlib.suppress(OSError, ValueError, KeyError):
                state = self._stack.state()
                texts = (*state["problems"], *state["missing"], *state["budget"]["exposures"])
                history = state["prometheus"] or {}
                texts += tuple(text for text in (history.get("why"),) if text)
                texts += tuple(f"Prometheus: {text}" for text in history.get("missing", ()))
                self.looks.append(
                    Look(time.monotonic(), state["tick"], state["time_s"], state["epoch"], texts)
                )

    def texts(self, since_s: float) -> Iterator[str]:
        """All that was said since then."""
        for look in list(self.looks):
            if look.at_s >= since_s:
                yield from look.texts

    def longest_pause_s(self, since_s: float) -> float:
        """Longest time between two ticks since then, by the ticks' own clock.

        Where looks missed some, their mean; a restart is left out.
        """
        longest_s = 0.0
        seen = [look for look in list(self.looks) if look.at_s >= since_s]
        for before, after in pairwise(seen):
            ticks = after.tick - before.tick
            if ticks > 0 and before.epoch == after.epoch:
                longest_s = max(longest_s, (after.time_s - before.time_s) / ticks)
        return longest_s

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one fault.

    recover_s: from the end of its cause until what the scenario names holds again; None: it never
    did. cut_ws: watt-seconds above the budget that a cut left until it was enforced. lost: requests
    without an answer; refused_over: of them such that found nobody listening, which a balancer in
    front would have sent elsewhere; lost_at: the frontend that each lost one was sent to. shed:
    rejected by the frontend because workers were busy. pause_s: longest time between two ticks of
    the controller.
    """

    fault: str
    how: str
    holds: str
    ours_ws: float = 0.0
    cut_ws: float = 0.0
    cut_s: float = 0.0
    sent: int = 0
    lost: int = 0
    refused_over: int = 0
    lost_at: list[int] = field(default_factory=list)
    shed: int = 0
    recover_s: float | None = None
    pause_s: float = 0.0
    said: str = ""
    failures: list[str] = field(default_factory=list)
    window: tuple[float, float] = (0.0, 0.0)


class Load:
    """A steady load on both frontends from a process of its own."""

    def __init__(self, stack: LiveStack, seconds: float) -> None:
        self._out = stack.folder / "load.jsonl"
        self.start_s = time.monotonic() + 1.0
        count = round(seconds * RPS)
        wanted = LoadSpec(
            frontends=[stack.urls[name] for name in stack.frontends],
            model=stack.spec.model_name,
            model_dir=str(stack.environment.model_dir),
            out=str(self._out),
            start_s=self.start_s,
            end_s=seconds + 30.0,
            requests=[(n / RPS, PROMPT_TOKENS, OUTPUT_TOKENS) for n in range(count)],
        )
        self._process = subprocess.Popen(load.command(wanted, stack.folder / "load.json"))

    def rows(self) -> list[Row]:
        """Requests that have ended."""
        return load.read_rows(self._out)

    def end(self) -> None:
        """Send no more."""
        self._process.kill()
        self._process.wait()

    def count(self, outcome: Outcome, from_s: float, to_s: float) -> None:
        """Fill in what became of the requests that were sent between these times."""
        for row in self.rows():
            if not from_s <= row.planned_s + self.start_s <= to_s:
                continue
            outcome.sent += 1
            outcome.shed += row.status == SHED
            if row.status not in (OK, SHED):
                outcome.lost += 1
                outcome.lost_at.append(row.frontend)
                refused = row.status == BROKEN and "ConnectionRefused" in (row.why or "")
                outcome.refused_over += refused


class Harness:
    """Carries faults out one after another on one stack, from rest to rest."""

    def __init__(self, stack: FaultStack, traffic: Load, sabotage: str | None = None) -> None:
        self.stack = stack
        self.traffic = traffic
        self.watch = Watch(stack)
        self.sabotage = sabotage
        self.outcomes: list[Outcome] = []

    def close(self) -> None:
        """End the load and the watching."""
        self.watch.close()
        self.traffic.end()

    def fault(
        self,
        name: str,
        how: str,
        holds: str,
        inject: Callable[[Outcome], float],
        condition: Callable[[], object],
        named: str | None = None,
    ) -> Outcome:
        """One fault, from rest.

        inject: does it, takes the cause away, and returns when (monotonic). condition: what must
        hold again. named: a pattern of what the controller must have said meanwhile.
        """
        outcome = Outcome(fault=name, how=how, holds=holds)
        self.outcomes.append(outcome)
        stack = self.stack
        self.rest(outcome)
        began_s = time.monotonic()
        stack.watts.observe()
        try:
            mended_s = inject(outcome)
            try:
                stack.until(condition, holds, HOLDS_S)
                outcome.recover_s = time.monotonic() - mended_s
            except WattlineError as error:
                outcome.failures.append(str(error))
        finally:
            self._judge(outcome, stack.watts.verdict())
        outcome.window = (began_s, time.monotonic())
        outcome.pause_s = self.watch.longest_pause_s(began_s)
        if named is not None:
            said = [text for text in self.watch.texts(began_s) if re.search(named, text)]
            if said:
                outcome.said = said[0]
            else:
                outcome.failures.append(f"the controller said nothing of {named!r}")
        return outcome

    def _judge(self, outcome: Outcome, verdict: Verdict) -> None:
        outcome.ours_ws = verdict.ours_watt_seconds
        cuts = [each for each in verdict.exposures if each.kind in ("cut", "cut, raise under way")]
        outcome.cut_ws = sum(each.watt_seconds for each in cuts)
        outcome.cut_s = max((each.over_s for each in cuts), default=0.0)
        if verdict.ours_watt_seconds > 0.0:
            outcome.failures.append(f"over the budget by us: {verdict.ours[:3]}")
        outcome.failures += [
            f"{each.kind}: {each.able_s:.1f} s with nothing in the way, {each.stated_s:g} s stated"
            for each in verdict.exposures
            if not (each.in_time and each.ended)
        ]

    def rest(self, outcome: Outcome) -> None:
        """Wait until nothing is wrong."""
        end_s = time.monotonic() + REST_S
        while (found := self.unrest()) is not None:
            if time.monotonic() > end_s:
                outcome.failures.append(f"no rest before the fault: {found}")
                return
            time.sleep(LOOK_S)

    def unrest(self) -> str | None:
        """What is not as it is at rest: all serve and are heard, the budget is used and kept."""
        try:
            state = self.stack.state()
            thresholds = self.thresholds()
        except OSError as error:
            return f"no answer: {error}"
        # The engines here tell no cached tokens.
        said = [*state["problems"], *(t for t in state["missing"] if "cached" not in t)]
        outage = state["deployments"][0]["facts"]["outage"]
        watts = self.stack.watts
        for wrong, what in (
            (self._short(state), "workers"),
            (outage, "demand"),
            (said, "said"),
            (not thresholds, "thresholds"),
            (not 0.9 * watts.usable_w <= watts.enforced_w() <= watts.usable_w, "watts in use"),
        ):
            if wrong:
                return f"{what}: {wrong}"
        return None

    def _short(self, state: dict[str, Any]) -> list[str]:
        """Pools with fewer workers than they have GPUs."""
        wanted = {pool.name: pool.min_replicas for pool in self.stack.spec.deployment.pools}
        return [p["name"] for p in state["pools"] if p["ready"] != wanted[p["name"]]]

    def answered(self, seconds: float) -> bool:
        """All that was sent in the newest `seconds` of what has ended was answered."""
        rows = self.traffic.rows()
        since_s = time.monotonic() - self.traffic.start_s - seconds
        newest = [row.status in (OK, SHED) for row in rows if row.planned_s >= since_s]
        return len(newest) >= (seconds - 1.0) * RPS and all(newest)

    def thresholds(self) -> bool:
        """Every frontend itself says that it has what the controller wants it to have."""
        state = self.stack.state()
        wanted = state["deployments"][0]["admission"]
        held = []
        for name in self.stack.frontends:
            status, body = self.stack.get(f"{self.stack.urls[name]}/busy_threshold")
            if status != 200:
                return False
            held.append(_prefill_threshold(body))
        want = wanted["active_prefill_tokens"]
        return all(each is not None and abs(each - want) <= 1.0 for each in held)

    def expect(self, outcome: Outcome, what: str, found: object) -> None:
        """Note a failure unless `found`."""
        if not found:
            outcome.failures.append(what)

    @contextlib.contextmanager
    def hindered(self, node: str | None, why: str) -> Iterator[None]:
        """Tell the judge that nothing could be repaired there meanwhile."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            spans = self.stack.watts.known.hindered.setdefault(node, [])
            spans.append((why, (began_s, time.monotonic())))

    def replayed(self) -> str | None:
        """None when the whole recording is replayed to the byte, else the difference."""
        self.stack.end(CONTROLLER)
        outcome = replay(Recording(self.stack.disk))
        return None if outcome.difference is None else str(outcome.difference)

    def finish(self) -> None:
        """Count requests, once those of the last window had time to end."""
        time.sleep(3.0)
        for outcome, later in pairwise([*self.outcomes, None]):
            assert outcome is not None
            began_s, ended_s = outcome.window
            if later is not None:
                # What is under way when the next fault comes is that one's.
                ended_s = min(ended_s, later.window[0] - UNDER_WAY_S)
            self.traffic.count(outcome, began_s - UNDER_WAY_S, ended_s)


def _prefill_threshold(body: bytes) -> float | None:
    import json

    document: dict[str, Any] = json.loads(body)
    for entry in document.get("thresholds", []):
        value = entry.get("active_prefill_tokens_threshold")
        return None if value is None else float(value)
    return None


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "python": sys.version.split()[0],
        "passed": not any(outcome.failures for outcome in outcomes),
        "faults": [
            {k: v for k, v in dataclasses.asdict(outcome).items() if k != "window"}
            for outcome in outcomes
        ],
    }
