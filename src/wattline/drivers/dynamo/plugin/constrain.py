"""The rule of the CONSTRAIN plugin: ceilings for both roles that keep a deployment in its watts.

Pure: a request, what the controller plans, and what was allowed before give a verdict. The planner
merges roles separately, so the split of the one budget between them is made here:

- A role is charged at `held` replicas: the larger of ready and expected, because what starts and
  what drains draws too. With unknown expected counts it is the larger of ready and all that was
  allowed since they were last known, and no role may grow beyond that.
- While the held replicas fit, growth is given out of what is left, in proportion to what each role
  asks for. While they do not (a cut, dearer replicas), growth under way is called back as far as it
  is not ready; and while not even the ready ones fit, the proposals shrink in proportion towards
  the floors. Floors are kept even where they do not fit: then the limits that the node agents
  enforce are what holds the budget, and the verdict says so.
- A ceiling never exceeds the proposal. Neither SET (the planner drops it) nor AT_LEAST (it would
  beat every ceiling) is ever used.
- Without a usable plan nothing grows: ceilings are the ready counts. Without worker counts nothing
  may move at all.

Watts are computed in whole milliwatts, costs rounded up and room rounded down, so that sums are
exact. Differences from the clamp that Dynamo ships: docs/guides/dynamo-plugin.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from wattline.drivers.dynamo.plugin.messages import (
    DECODE,
    Accept,
    Override,
    OverrideType,
    Reject,
    StageRequest,
    StageResult,
    Target,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """What the controller says of one role.

    watts_per_replica_w: the most that one replica may be booked at, now or as planned (GPUs of a
    replica times the larger of both), above 0. min_replicas: floor. wanted_replicas: what the
    controller would have, for PROPOSE; None: no opinion.
    """

    watts_per_replica_w: float
    min_replicas: int = 1
    wanted_replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerPlan:
    """What one deployment may book.

    guard_w is kept free. elsewhere_w is booked beside the replicas of these roles: other pools,
    idle and draining GPUs, overhead. version counts up with every change of the content.
    """

    version: int
    budget_w: float
    roles: Mapping[str, RolePlan]
    guard_w: float = 0.0
    elsewhere_w: float = 0.0

    @property
    def usable_w(self) -> float:
        """Watts for the replicas of the roles; below 0 where not even the rest fits."""
        return self.budget_w - self.guard_w - self.elsewhere_w


class Code(StrEnum):
    """Why a verdict is what it is."""

    UNCHANGED = "unchanged"
    CLAMPED = "clamped"
    RECALLED = "recalled"
    SHRUNK = "shrunk"
    FLOORS = "floors_over_budget"
    COUNTS_UNSETTLED = "counts_unsettled"
    HELD = "held"
    NOTHING_PROPOSED = "nothing_proposed"
    NO_COUNTS = "no_counts"


_SENTENCES = {
    Code.UNCHANGED: "the proposal fits",
    Code.CLAMPED: "growth is cut to what is left",
    Code.RECALLED: "growth under way does not fit: it is called back",
    Code.SHRUNK: "what is there does not fit: replicas are to go",
    Code.FLOORS: "not even the floors fit: the limits of the node agents hold the budget",
    Code.COUNTS_UNSETTLED: "expected counts are unknown: no growth beyond what was allowed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Ceilings per role, empty where there are none, and why.

    charged_w: the most that the roles may be booked at under these ceilings; None: not known.
    """

    code: Code
    reason: str
    ceilings: Mapping[str, int] = field(default_factory=dict)
    charged_w: float | None = None
    usable_w: float | None = None

    def result(self) -> StageResult:
        """The answer to the planner."""
        if self.code is Code.NOTHING_PROPOSED:
            return Accept()
        if self.code is Code.NO_COUNTS:
            return Reject(self.reason)
        targets = [
            Target(role, count, OverrideType.AT_MOST) for role, count in self.ceilings.items()
        ]
        return Override(tuple(targets), self.reason)


@dataclass(frozen=True, slots=True)
class _Role:
    """One role to be charged. A role that is not proposed is ready and wanted as it is held."""

    name: str
    target: int
    ready: int
    held: int
    floor: int
    cost_mw: int


def constrain(
    request: StageRequest,
    plan: PowerPlan | None,
    *,
    why_no_plan: str = "",
    allowed: Mapping[str, int] | None = None,
) -> Verdict:
    """Ceilings for what is proposed.

    plan None: there is none that may be relied on, for the reason `why_no_plan`. allowed: per role
    what may be under way (`remember`); a role that is missing there may have got nothing.
    """
    proposed = {t.role: t.replicas for t in request.proposal or () if t.replicas is not None}
    if not proposed:
        return Verdict(code=Code.NOTHING_PROPOSED, reason="nothing is proposed")
    blind = [role for role in proposed if request.workers(role).ready is None]
    if blind:
        reason = f"wattline: worker counts of {' and '.join(blind)} are unknown: nothing may move"
        return Verdict(code=Code.NO_COUNTS, reason=reason)
    if plan is None:
        return _held(request, proposed, why_no_plan)
    lacking = _lacking(request, proposed, plan)
    if lacking:
        return _held(request, proposed, lacking)
    return _within(request, proposed, plan, allowed or {})


def remember(
    request: StageRequest, verdict: Verdict, allowed: Mapping[str, int]
) -> Mapping[str, int]:
    """What may be under way after this verdict, should expected counts be unknown next time.

    The ceiling or what was expected, and while that is unknown all that was allowed before.
    """
    known = {}
    for role, ceiling in verdict.ceilings.items():
        expected = request.workers(role).expected
        known[role] = max(ceiling, allowed.get(role, 0) if expected is None else expected)
    return known


def propose(plan: PowerPlan | None) -> StageResult:
    """SET to what the controller wants, for roles where it wants something."""
    if plan is None:
        return Accept()
    targets = [
        Target(name, role.wanted_replicas, OverrideType.SET)
        for name, role in plan.roles.items()
        if role.wanted_replicas is not None
    ]
    if not targets:
        return Accept()
    return Override(tuple(targets), f"wattline: plan {plan.version}")


def _lacking(request: StageRequest, proposed: Mapping[str, int], plan: PowerPlan) -> str:
    """What of the picture is missing, so that watts cannot be added up; empty: nothing."""
    for role, count in proposed.items():
        if role not in plan.roles and (count or request.workers(role).ready):
            return f"the plan names no watts for {role}"
    for role in plan.roles:
        if role not in proposed and request.workers(role).ready is None:
            return f"worker counts of {role}, which the plan names, are unknown"
    return ""


def _held(request: StageRequest, proposed: Mapping[str, int], why: str) -> Verdict:
    ceilings = {
        role: min(count, request.workers(role).ready or 0) for role, count in proposed.items()
    }
    reason = f"wattline: {_said(ceilings)}: {why}: nothing grows"
    return Verdict(code=Code.HELD, reason=reason, ceilings=ceilings)


def _within(
    request: StageRequest, proposed: Mapping[str, int], plan: PowerPlan, allowed: Mapping[str, int]
) -> Verdict:
    roles = [_role(request, name, role, proposed, allowed) for name, role in plan.roles.items()]
    settled = all(request.workers(name).expected is not None for name in plan.roles)
    counts, code = _fit(roles, math.floor(plan.usable_w * 1000.0), may_grow=settled)
    charged_mw = sum(r.cost_mw * max(r.held, counts[r.name]) for r in roles)
    ceilings = {name: counts.get(name, 0) for name in proposed}
    charged_w = charged_mw / 1000.0
    reason = (
        f"wattline: {_said(ceilings)}: {_SENTENCES[code]} ({charged_w:.0f} W of "
        f"{plan.usable_w:.0f} W, plan {plan.version})"
    )
    return Verdict(
        code=code, reason=reason, ceilings=ceilings, charged_w=charged_w, usable_w=plan.usable_w
    )


def _role(
    request: StageRequest,
    name: str,
    plan: RolePlan,
    proposed: Mapping[str, int],
    allowed: Mapping[str, int],
) -> _Role:
    workers = request.workers(name)
    coming = allowed.get(name, 0) if workers.expected is None else workers.expected
    held = max(workers.ready or 0, coming)
    moves = name in proposed
    return _Role(
        name=name,
        target=proposed.get(name, held),
        ready=(workers.ready or 0) if moves else held,
        held=held,
        floor=plan.min_replicas if moves else held,
        cost_mw=math.ceil(plan.watts_per_replica_w * 1000.0),
    )


def _fit(roles: Sequence[_Role], usable_mw: int, *, may_grow: bool) -> tuple[dict[str, int], Code]:
    """Counts of at most the targets, and why. What shrinks frees nothing until it is gone."""
    wanted = {role.name: role.target for role in roles}
    held_mw = sum(role.cost_mw * role.held for role in roles)
    if held_mw <= usable_mw:
        if may_grow:
            counts = _grown(roles, wanted, {r.name: r.held for r in roles}, usable_mw - held_mw)
            return counts, Code.UNCHANGED if counts == wanted else Code.CLAMPED
        counts = {role.name: min(role.target, role.held) for role in roles}
        return counts, Code.UNCHANGED if counts == wanted else Code.COUNTS_UNSETTLED
    ready_mw = sum(role.cost_mw * role.ready for role in roles)
    if ready_mw <= usable_mw:
        under_way = {role.name: min(role.target, role.held) for role in roles}
        ready = {role.name: role.ready for role in roles}
        return _grown(roles, under_way, ready, usable_mw - ready_mw), Code.RECALLED
    return _shrunk(roles, usable_mw)


def _grown(
    roles: Sequence[_Role], wanted: Mapping[str, int], base: Mapping[str, int], free_mw: int
) -> dict[str, int]:
    """At most what is wanted; what it exceeds `base` by, out of `free_mw`."""
    more = {role.name: max(0, wanted[role.name] - base[role.name]) for role in roles}
    given = _share(roles, more, free_mw)
    return {name: min(wanted[name], base[name]) + given[name] for name in given}


def _shrunk(roles: Sequence[_Role], usable_mw: int) -> tuple[dict[str, int], Code]:
    """Counts of at most what is ready; a proposal below its floor is left as it is."""
    base = {role.name: min(role.target, role.ready) for role in roles}
    least = {role.name: min(base[role.name], role.floor) for role in roles}
    room_mw = usable_mw - sum(role.cost_mw * least[role.name] for role in roles)
    if room_mw < 0:
        return least, Code.FLOORS
    above = {role.name: base[role.name] - least[role.name] for role in roles}
    given = _share(roles, above, room_mw)
    return {name: count + given[name] for name, count in least.items()}, Code.SHRUNK


def _share(roles: Sequence[_Role], asked: Mapping[str, int], room_mw: int) -> dict[str, int]:
    """Replicas for each role out of `room_mw`: in proportion, the rest to the dearest that fit.

    Of two that cost the same, decode comes first: a decode replica short sheds requests that have
    already been paid for in prefill.
    """
    total_mw = sum(role.cost_mw * asked[role.name] for role in roles)
    if total_mw <= room_mw:
        return dict(asked)
    given = {role.name: asked[role.name] * room_mw // total_mw for role in roles}
    left_mw = room_mw - sum(role.cost_mw * given[role.name] for role in roles)
    for role in sorted(roles, key=lambda r: (-r.cost_mw, r.name != DECODE)):
        more = min(asked[role.name] - given[role.name], left_mw // role.cost_mw)
        given[role.name] += more
        left_mw -= more * role.cost_mw
    return given


def _said(ceilings: Mapping[str, int]) -> str:
    return ", ".join(f"{role} at most {count}" for role, count in ceilings.items())
