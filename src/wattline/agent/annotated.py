"""Limits from pod annotations: what to do with one GPU, by who holds it. Pure.

The rules are those of the strict generation of NVIDIA Dynamo's Power Agent (deploy/power-agent):

| pods on the GPU | what happens |
|---|---|
| none | keep a limit of ours: the worker that comes back finds it |
| only pods without the annotation | give back a limit of ours; else leave the GPU alone |
| one pod, annotated | its value; the safe default if it cannot be read |
| several pods, all annotated and equal | that value |
| several pods, one differs, cannot be read or has none | the safe default |
| one that the listing does not have, alone or on a GPU of ours | change nothing until it does |
| one that the listing does not have, beside an annotated one | the safe default |
| unknown, because a listing failed | change nothing |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from wattline.agent.metric_catalogue import (
    CLAMPED_TO_MAX,
    CLAMPED_TO_MIN,
    MULTI_POD_AGREE,
    MULTI_POD_CONFLICT,
    SAFE_DEFAULT_APPLIED,
)
from wattline.agent.snapshot import Reason
from wattline.drivers.gpu.device import LimitRange
from wattline.drivers.pods import Pod, PodName

# Python's int() without what nobody means by a number: underscores, other scripts' digits. More
# digits than nine are no watts; zero and less are refused by Dynamo's admission webhook too.
_WATTS = re.compile(r"[ \t\r\n]*\+?([0-9]{1,9})[ \t\r\n]*", re.ASCII)


class Action(StrEnum):
    """What is to be done with a GPU's limit."""

    ENFORCE = "enforce"
    KEEP = "keep"
    """Nothing: the limit stays as it is, whoever set it."""
    RELEASE = "release"
    """Give the original limit back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done with one GPU and why.

    watts: with ENFORCE, inside the GPU's range. asked_w: before that was brought into the range.
    counters: keys of `AgentSnapshot.counters` to count once when the decision is a new one for
    this GPU. note: for people, where there is more to say than the reason.
    """

    action: Action
    reason: Reason
    watts: float | None = None
    asked_w: float | None = None
    counters: tuple[str, ...] = ()
    note: str | None = None


def parse_limit(text: str) -> int | None:
    """Watts of an annotation's text; None: it cannot be obeyed.

    Accepted are ASCII digits (1 to 999999999) with an optional `+` and white space around them.
    Refused are zero, negative numbers, fractions (`480.0`), exponents, underscores and digits of
    other scripts.
    """
    match = _WATTS.fullmatch(text)
    watts = int(match[1]) if match else 0
    return watts if watts > 0 else None


def clamp(watts: float, limits: LimitRange | None) -> tuple[float, str | None]:
    """`watts` inside the range, and the counter's key if it had to be moved; None: no range."""
    if limits is not None and watts < limits.min_w:
        return limits.min_w, CLAMPED_TO_MIN
    if limits is not None and watts > limits.max_w:
        return limits.max_w, CLAMPED_TO_MAX
    return watts, None


class PodIndex:
    """One listing of pods, looked up by name or by UID. Pods that have ended hold nothing."""

    def __init__(self, pods: Iterable[Pod], namespace: str | None = None) -> None:
        """`namespace`: the only one that was listed; pods of others have not opted in."""
        self._namespace = namespace
        self._by_uid: dict[str, Pod] = {}
        self._by_name: dict[PodName, Pod] = {}
        for pod in pods:
            name = PodName(pod.namespace, pod.name)
            self._by_uid[pod.uid] = pod
            if pod.static_uid is not None:
                self._by_uid[pod.static_uid] = pod
            before = self._by_name.get(name)
            if before is None or before.finished:
                self._by_name[name] = pod

    def split(self, owners: Iterable[PodName | str]) -> tuple[list[Pod], list[str]]:
        """Pods that hold something, and owners that the listing does not have, in fixed order."""
        known: dict[str, Pod] = {}
        unknown: list[str] = []
        for owner in owners:
            if isinstance(owner, PodName):
                pod = self._by_name.get(owner)
                shown = f"{owner.namespace}/{owner.name}"
                if pod is None and self._namespace not in (None, owner.namespace):
                    pod = Pod(owner.namespace, owner.name, uid=shown, limit=None)
            else:
                pod = self._by_uid.get(owner)
                shown = owner
            if pod is None:
                unknown.append(shown)
            elif not pod.finished:
                known[pod.uid] = pod
        return [known[uid] for uid in sorted(known)], sorted(unknown)


def decide(
    owners: Iterable[PodName | str] | None,
    pods: PodIndex | None,
    *,
    ours: bool,
    limits: LimitRange | None,
    safe_default_w: float,
) -> Decision:
    """What to do with a GPU that `owners` hold.

    owners None or pods None: that listing failed. ours: the present limit was written by us and
    not given back. limits None: the GPU does not tell its range.
    """
    if owners is None or pods is None:
        which = "pods" if pods is None else "owners"
        return Decision(
            action=Action.KEEP, reason=Reason.FROZEN, note=f"the listing of {which} failed"
        )
    known, unknown = pods.split(owners)
    opted_in = [pod for pod in known if pod.limit is not None]
    if unknown and (ours or not opted_in):
        note = f"not in the listing of pods: {', '.join(unknown)}"
        return Decision(action=Action.KEEP, reason=Reason.FROZEN, note=note)
    if not known and not unknown:
        return Decision(action=Action.KEEP, reason=Reason.KEPT if ours else Reason.FOUND)
    if not opted_in:
        if ours:
            return Decision(action=Action.RELEASE, reason=Reason.RESTORED)
        return Decision(action=Action.KEEP, reason=Reason.LEFT_ALONE)
    return _enforce(known, unknown, limits, safe_default_w)


def _enforce(
    known: Sequence[Pod], unknown: Sequence[str], limits: LimitRange | None, safe_default_w: float
) -> Decision:
    """The limit of a GPU that at least one annotated pod holds."""
    values = [None if pod.limit is None else parse_limit(pod.limit) for pod in known]
    shared = len(known) + len(unknown) > 1
    counters: list[str] = []
    note = None
    agreed = values[0] if not unknown and len(set(values)) == 1 else None
    if agreed is not None:
        asked_w, reason = float(agreed), Reason.ANNOTATED
        counters += [MULTI_POD_AGREE] if shared else []
    elif shared:
        asked_w, reason = safe_default_w, Reason.SAFE_DEFAULT_CONFLICT
        counters += [MULTI_POD_CONFLICT, SAFE_DEFAULT_APPLIED]
        said = [f"{pod.namespace}/{pod.name}={_shown(pod.limit)}" for pod in known]
        note = f"pods do not agree: {', '.join([*said, *(f'{name}=?' for name in unknown)])}"
    else:
        asked_w, reason = safe_default_w, Reason.SAFE_DEFAULT_INVALID
        counters.append(SAFE_DEFAULT_APPLIED)
        pod = known[0]
        note = f"{pod.namespace}/{pod.name} asks for {_shown(pod.limit)}: give whole watts"
    watts, moved = clamp(asked_w, limits)
    if moved is not None:
        counters.append(moved)
    return Decision(
        action=Action.ENFORCE,
        reason=reason,
        watts=watts,
        asked_w=asked_w,
        counters=tuple(counters),
        note=note,
    )


def _shown(limit: str | None) -> str:
    """An annotation's text as one short printable word."""
    if limit is None:
        return "none"
    return ascii(limit if len(limit) <= 40 else limit[:37] + "...")
