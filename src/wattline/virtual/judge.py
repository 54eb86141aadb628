"""Judges one observed run: whose watts stood above the budget, how long, and was it in time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from wattline.virtual.account import Account, Exposure
from wattline.virtual.observer import Change

REPAIR_S = 2.0
"""Stated time to detect and repair: a reading each second, and one more for the write on a machine
that a whole fleet shares. Counted while the node's agent runs and its GPU can be written."""

UNDER_WAY_S = 0.5
"""A write that a hindrance held up happens within so long after its end."""

CUT_S = 3.0
"""Stated time to bring a cut about while coordinator and nodes run: a report each second, a plan, a
write, a read-back; the settle time is the coordinator's to wait for, not the registers'."""

Span = tuple[float, float]


@dataclass(slots=True)
class Known:
    """What the injector knows, on the monotonic clock, to be told apart from what we do.

    agents, rivals: process ids of our agents and of the stand-ins for other writers. told: per kind
    and node, the spans in which it made outside changes. hindered: per node, spans in which nothing
    could be repaired there (agent down or stopped, driver refusing), with why; the key None stands
    for the coordinator. unmanaged: per node, spans in which its agent had no journal and no grant
    yet, so that it could not tell a limit of ours from another's: the coordinator's to mend.
    budgets: (from when in force, milliwatts), rising in time.
    """

    agents: set[int] = field(default_factory=set)
    rivals: set[int] = field(default_factory=set)
    told: list[tuple[str, str, Span]] = field(default_factory=list)
    hindered: dict[str | None, list[tuple[str, Span]]] = field(default_factory=dict)
    unmanaged: dict[str, list[Span]] = field(default_factory=dict)
    budgets: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class JudgedExposure:
    """One exposure. `able_s`: longest time on end in which nothing hindered its repair."""

    kind: str
    node: str | None
    gpu: str | None
    start_s: float
    watt_seconds: float
    peak_w: float
    over_s: float
    able_s: float
    stated_s: float
    hindered_by: tuple[str, ...]
    in_time: bool
    ended: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one run."""

    ours_watt_seconds: float
    ours: tuple[dict[str, Any], ...]
    exposures: tuple[JudgedExposure, ...]
    most_enforced_w: float
    least_margin_w: float
    changes: int


def cause_of(change: Change, known: Known, requester: str | None) -> str | None:
    """The outside event behind a change; None: one of us, or nobody who has told of it.

    requester: the outside event that asked for the limit which a clamp has kept away so far.
    """
    if change.cause == "nvml":
        return "rival writer" if change.pid in known.rivals else None
    if change.cause == "out_of_band":
        if change.enforced_mw > change.requested_mw:
            return _told(change, known, "out-of-band raise")
        # What comes back when a clamp is lifted is what was asked for last.
        return requester if change.enforced_mw > change.before_mw else "out-of-band clamp"
    if change.cause in ("reload", "control", "rival"):
        return _told(change, known, None)
    return None  # a driver that unloads because our agent went away is ours to have booked


UNDER_WAY = "cut, raise under way"


def under_way(change: Change, known: Known) -> bool:
    """A raise that was booked before a cut, and held up past it: a hung driver, a stopped process.

    The cut's doing, not ours: from the grant on it was booked, and nobody could call it back.
    """
    cuts_s = [
        at_s
        for (_, before_mw), (at_s, after_mw) in pairwise(known.budgets)
        if after_mw < before_mw and at_s <= change.at_s
    ]
    return any(
        start_s <= cut_s <= end_s and change.at_s <= end_s + UNDER_WAY_S
        for place in (change.node, None)
        for why, (start_s, end_s) in known.hindered.get(place, [])
        if not why.startswith("agent down")
        for cut_s in cuts_s
    )


def _told(change: Change, known: Known, only: str | None) -> str | None:
    for kind, node, (start_s, end_s) in known.told:
        if node == change.node and start_s <= change.at_s <= end_s and only in (None, kind):
            return kind
    return None


def judge(
    changes: Sequence[Change],
    known: Known,
    start_mw: Mapping[str, int],
    start_s: float,
    end_s: float,
    guard_mw: int,
) -> Verdict:
    """Add up everything that was seen between `start_s` and `end_s`."""
    account = Account(start_mw, known.budgets[0][1], guard_mw, start_s)
    steps: list[tuple[float, Change | int]] = [(c.at_s, c) for c in changes]
    steps += [(at_s, budget_mw) for at_s, budget_mw in known.budgets[1:]]
    requesters: dict[str, str | None] = {}
    node_of: dict[str, str] = {}
    for at_s, step in sorted(steps, key=lambda entry: entry[0]):
        if isinstance(step, int):
            account.set_budget(at_s, step)
            continue
        cause = cause_of(step, known, requesters.get(step.gpu))
        excuse = UNDER_WAY if cause is None and under_way(step, known) else None
        if step.cause != "out_of_band":
            requesters[step.gpu] = cause
        node_of[step.gpu] = step.node
        account.change(
            at_s, step.gpu, step.enforced_mw, cause, excuse, requested_mw=step.requested_mw
        )
    account.finish(end_s)
    return Verdict(
        ours_watt_seconds=account.ours_watt_seconds,
        ours=tuple(
            {"at_s": over.at_s - start_s, "gpu": over.gpu, "over_w": over.over_w}
            for over in account.ours
        ),
        exposures=tuple(
            _judged(exposure, known, node_of, start_s)
            for exposure in account.exposures
            if exposure.watt_seconds > 0
        ),
        most_enforced_w=account.most_enforced_mw / 1000,
        least_margin_w=account.least_margin_mw / 1000,
        changes=len(changes),
    )


def _judged(
    exposure: Exposure, known: Known, node_of: Mapping[str, str], start_s: float
) -> JudgedExposure:
    node = None if exposure.gpu is None else node_of[exposure.gpu]
    # A raise is repaired where it was made. A cut is brought about by all of them, and so is a
    # raise that its node cannot take for one: out of band, or before its agent's start.
    alone = False
    if node is not None and exposure.kind not in ("out-of-band raise", UNDER_WAY):
        alone = not _hindered_at(exposure.start_s, known.hindered.get(node, [])) and not any(
            from_s < over_to_s and to_s > over_from_s
            for from_s, to_s in known.unmanaged.get(node, [])
            for over_from_s, over_to_s in exposure.over_spans
        )
    concerned: Iterable[str | None] = (node,) if alone else known.hindered
    hindered = [entry for key in concerned for entry in known.hindered.get(key, [])]
    able_s, reasons = _able_s(exposure.over_spans, hindered)
    limit_s = REPAIR_S if alone else CUT_S
    return JudgedExposure(
        kind=exposure.kind,
        node=node,
        gpu=exposure.gpu,
        start_s=exposure.start_s - start_s,
        watt_seconds=exposure.watt_seconds,
        peak_w=exposure.peak_w,
        over_s=exposure.over_s,
        able_s=able_s,
        stated_s=limit_s,
        hindered_by=reasons,
        in_time=able_s <= limit_s,
        ended=exposure.end_s is not None,
    )


def _hindered_at(at_s: float, hindered: Sequence[tuple[str, Span]]) -> bool:
    return any(start_s <= at_s <= end_s for _, (start_s, end_s) in hindered)


def _able_s(
    over: Sequence[Span], hindered: Sequence[tuple[str, Span]]
) -> tuple[float, tuple[str, ...]]:
    """Longest time on end above the budget in which nothing stood in the way of a repair."""
    longest_s = 0.0
    reasons: set[str] = set()
    for start_s, end_s in over:
        clear = [(start_s, end_s)]
        for why, (from_s, to_s) in hindered:
            if from_s < end_s and to_s > start_s:
                reasons.add(why)
                clear = _without(clear, from_s, to_s)
        longest_s = max([longest_s, *(end - start for start, end in clear)])
    return longest_s, tuple(sorted(reasons))


def _without(spans: Sequence[Span], from_s: float, to_s: float) -> list[Span]:
    left = []
    for start_s, end_s in spans:
        if start_s < from_s:
            left.append((start_s, min(end_s, from_s)))
        if end_s > to_s:
            left.append((max(start_s, to_s), end_s))
    return [span for span in left if span[1] > span[0]]
