"""Answers the planner's calls from what is in memory, and keeps count of them.

No call waits for anything but the one lock, which is held for microseconds. A call that cannot be
understood, or that fails in us, is answered with REJECT: the planner then executes nothing in that
tick. An error would count towards its breaker, and an open breaker means no constraint at all.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import monotonic

from wattline import __version__
from wattline.drivers.dynamo.plugin.constrain import (
    Code,
    PowerPlan,
    Verdict,
    constrain,
    propose,
    remember,
)
from wattline.drivers.dynamo.plugin.messages import (
    Accept,
    Override,
    Reject,
    StageResult,
    decode_stage_request,
    encode_lifecycle_answer,
    encode_stage_response,
)
from wattline.drivers.dynamo.plugin.state_file import Seen
from wattline.drivers.protobuf import WireError

log = logging.getLogger(__name__)

LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 1.0)
_REMEMBERED_INTERVALS = 5
_MISSED = 3.0
"""So many intervals without a call mean that calls went missing, not that one came late."""
_LEAST_MISSED_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """One look at the counts. Ages in seconds, None: never, or not known.

    calls: by (method, result). interval_s: between the planner's ticks, as seen. gaps: times that
    it went on after calls had gone missing. latency_counts: calls per bucket, the last one above
    all of `LATENCY_BUCKETS_S`.
    """

    calls: Mapping[tuple[str, str], int]
    codes: Mapping[Code, int]
    silence_s: float | None
    interval_s: float | None
    silent: bool
    gaps: int
    verdict: Verdict | None
    plan: PowerPlan | None
    plan_age_s: float | None
    plan_fault: str | None
    latency_counts: tuple[int, ...]
    latency_sum_s: float


@dataclass(slots=True)
class _Counts:
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    codes: Counter[Code] = field(default_factory=Counter)
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
    latency_sum_s: float = 0.0
    gaps: int = 0


class PluginService:
    """What is behind the gRPC methods: bytes in, bytes out. For any number of threads."""

    def __init__(
        self,
        *,
        stale_s: float,
        proposes: bool = False,
        now: Callable[[], float] = monotonic,
    ) -> None:
        """stale_s: age above which a plan is not relied on. proposes: whether PROPOSE has a say."""
        self._stale_s = stale_s
        self._proposes = proposes
        self._now = now
        self._lock = threading.Lock()
        self._seen: Seen | None = None
        self._fault: str | None = "no plan has been read yet"
        self._allowed: Mapping[str, int] = {}
        self._last_s: float | None = None
        self._intervals: deque[float] = deque(maxlen=_REMEMBERED_INTERVALS)
        self._verdict: Verdict | None = None
        self._counts = _Counts()

    def update(self, seen: Seen | None, fault: str | None) -> None:
        """Take a new look at the state file."""
        with self._lock:
            self._seen, self._fault = seen, fault

    def constrain(self, data: bytes) -> bytes:
        """`ConstrainPlugin/Constrain`."""
        began_s = self._now()
        with self._lock:
            result = self._constrain(data, began_s)
        return self._answered("Constrain", result, began_s)

    def propose(self, data: bytes) -> bytes:
        """`ProposePlugin/Propose`; the proposal passes through our own CONSTRAIN as any other."""
        began_s = self._now()
        result: StageResult = Accept()
        if self._proposes:
            plan, _ = self._usable(began_s)
            result = propose(plan)
        return self._answered("Propose", result, began_s)

    def bootstrap(self, data: bytes) -> bytes:
        """`PluginLifecycle/Bootstrap`: a planner has started, and what it was allowed is over."""
        self._forget("Bootstrap")
        return encode_lifecycle_answer(True, f"wattline {__version__}")

    def reset(self, data: bytes) -> bytes:
        """`PluginLifecycle/Reset`."""
        self._forget("Reset")
        return encode_lifecycle_answer(True, "")

    def view(self) -> ServiceView:
        """The counts now."""
        now_s = self._now()
        with self._lock:
            interval_s = median(self._intervals) if self._intervals else None
            silence_s = None if self._last_s is None else now_s - self._last_s
            seen, counts = self._seen, self._counts
            return ServiceView(
                calls=dict(counts.calls),
                codes=dict(counts.codes),
                silence_s=silence_s,
                interval_s=interval_s,
                silent=silence_s is None or self._missed(silence_s),
                gaps=counts.gaps,
                verdict=self._verdict,
                plan=None if seen is None else seen.plan,
                plan_age_s=None if seen is None else seen.age_s(now_s),
                plan_fault=self._fault,
                latency_counts=tuple(counts.latency),
                latency_sum_s=counts.latency_sum_s,
            )

    def _constrain(self, data: bytes, now_s: float) -> StageResult:
        self._called(now_s)
        try:
            request = decode_stage_request(data)
        except WireError as error:
            log.error("a request cannot be read", extra={"why": str(error)})
            return Reject(f"wattline: the request cannot be read ({error}): nothing may move")
        try:
            plan, why = self._usable(now_s)
            verdict = constrain(request, plan, why_no_plan=why, allowed=self._allowed)
        except Exception:  # a bug of ours must not lift the constraint
            log.exception("a request cannot be answered")
            return Reject("wattline: internal error, see the plugin's log: nothing may move")
        self._allowed = remember(request, verdict, self._allowed)
        if self._verdict is None or self._verdict.reason != verdict.reason:
            log.info("answer", extra={"code": verdict.code.value, "reason": verdict.reason})
        self._verdict = verdict
        self._counts.codes[verdict.code] += 1
        return verdict.result()

    def _usable(self, now_s: float) -> tuple[PowerPlan | None, str]:
        """The plan if it may be relied on, else why not."""
        seen = self._seen
        if seen is None:
            return None, self._fault or "no plan"
        age_s = seen.age_s(now_s)
        if age_s > self._stale_s:
            fault = f" ({self._fault})" if self._fault else ""
            return None, f"the plan is {age_s:.0f} s old, {self._stale_s:g} s are allowed{fault}"
        return seen.plan, ""

    def _called(self, now_s: float) -> None:
        """Note the time of a call. After missing calls nothing is known of what was done."""
        if self._last_s is not None:
            elapsed_s = now_s - self._last_s
            if self._missed(elapsed_s):
                self._counts.gaps += 1
                self._allowed = {}
                log.warning(
                    "calls went missing: the planner went on without the constraint, or restarted",
                    extra={"silence_s": round(elapsed_s, 1)},
                )
            self._intervals.append(elapsed_s)
        self._last_s = now_s

    def _missed(self, silence_s: float) -> bool:
        if not self._intervals:
            return False
        return silence_s > max(_LEAST_MISSED_S, _MISSED * median(self._intervals))

    def _forget(self, method: str) -> None:
        with self._lock:
            self._allowed = {}
            self._counts.calls[(method, "ok")] += 1

    def _answered(self, method: str, result: StageResult, began_s: float) -> bytes:
        answer = encode_stage_response(result)
        took_s = self._now() - began_s
        bucket = sum(took_s > bound for bound in LATENCY_BUCKETS_S)
        with self._lock:
            self._counts.calls[(method, _kind(result))] += 1
            self._counts.latency[bucket] += 1
            self._counts.latency_sum_s += took_s
        return answer


def _kind(result: StageResult) -> str:
    if isinstance(result, Override):
        return "override"
    return "accept" if isinstance(result, Accept) else "reject"
