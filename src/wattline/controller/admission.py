"""Busy thresholds at the frontends, brought to what a decision wants and kept there.

Every frontend process has thresholds of its own and forgets them at a restart. So they are read,
and sent where they differ: when something changed, when the last try failed, and every few seconds,
which notices a frontend that started anew. One that fails does not keep the others from theirs.

A threshold that is set cannot be cleared (NVIDIA Dynamo 1.6.1). The driver sends the largest value
in its place; for decode blocks even that still rejects under overload, and the view says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from wattline.controller.gather import Failure, Gatherer
from wattline.core.decision import Admission, Decision
from wattline.drivers.dynamo.thresholds import FrontendResult

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Frontends whose thresholds are as wanted are looked at again after so long."""

Mode = Literal["off", "inherit", "autoset"]


class ThresholdSender(Protocol):
    """Reads and sets the thresholds of one deployment's frontends; for one call at a time."""

    def send(
        self, frontend_urls: Sequence[str], model: str, wanted: Admission
    ) -> Sequence[FrontendResult]:
        """Bring every frontend to `wanted`; only those that differ are written to."""

    def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, slots=True)
class FrontendView:
    """One frontend. held: what it is known to have; why: the last failure, None after success.

    not_cleared: thresholds that should be unset and cannot be.
    """

    deployment: int
    url: str
    held: Admission | None
    why: str | None
    not_cleared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frontends:
    """The frontends of a deployment (index): addresses, and the model's name there."""

    deployment: int
    urls: tuple[str, ...]
    model: str


@dataclass(slots=True)
class _Group:
    frontends: Frontends
    sender: ThresholdSender
    views: tuple[FrontendView, ...]
    wanted: Admission | None = None
    looked_s: float = float("-inf")


class AdmissionDesk:
    """Keeps frontends at the thresholds of their deployment. `mode` may be changed."""

    def __init__(self, groups: Sequence[tuple[Frontends, ThresholdSender]], mode: Mode) -> None:
        self.mode: Mode = mode
        self.partial_failures = 0
        self.resent = 0
        """Times that a frontend had forgotten its thresholds."""
        self._groups = [
            _Group(
                frontends,
                sender,
                tuple(
                    FrontendView(frontends.deployment, url, None, None) for url in frontends.urls
                ),
            )
            for frontends, sender in groups
        ]

    def untold(self, decision: Decision | None) -> int:
        """Deployments whose threshold in prompt tokens the decision could not tell."""
        if decision is None or self.mode == "off":
            return 0
        return sum(each.active_prefill_tokens is None for each in decision.admission)

    def update(
        self, wanted: Sequence[Admission], now_s: float, gatherer: Gatherer, *, may_send: bool
    ) -> None:
        """Bring the frontends to what is wanted per deployment, if that is our task now."""
        if self.mode != "autoset" or not may_send:
            return
        asked = []
        for group in self._groups:
            target = _rounded(wanted[group.frontends.deployment])
            failing = any(view.why is not None for view in group.views)
            due = now_s - group.looked_s >= LOOK_S
            if target != group.wanted or failing or due:
                group.wanted, group.looked_s = target, now_s
                asked.append((group, target))
        calls = {
            f"admission-{group.frontends.deployment}": partial(
                group.sender.send, group.frontends.urls, group.frontends.model, target
            )
            for group, target in asked
        }
        for (group, _), outcome in zip(asked, gatherer.gather(calls).values(), strict=True):
            self._take(group, outcome)

    def _take(self, group: _Group, outcome: Sequence[FrontendResult] | Failure) -> None:
        before = {view.url: view for view in group.views}
        deployment = group.frontends.deployment
        if isinstance(outcome, Failure):
            views = [FrontendView(deployment, url, None, outcome.why) for url in before]
        else:
            views = [
                FrontendView(deployment, each.url, _held(each), each.failure, each.not_cleared)
                for each in outcome
            ]
            self.resent += sum(each.restarted for each in outcome)
        for view in views:
            if view.why is not None and before[view.url].why is None:
                log.error("thresholds not set", extra={"frontend": view.url, "why": view.why})
            elif view.why is None and before[view.url].why is not None:
                log.info("thresholds set again", extra={"frontend": view.url})
        failed = [view.why is not None for view in views]
        self.partial_failures += any(failed) and not all(failed)
        group.views = tuple(views)

    @property
    def views(self) -> tuple[FrontendView, ...]:
        """All frontends."""
        return tuple(view for group in self._groups for view in group.views)

    @property
    def problems(self) -> tuple[str, ...]:
        """Frontends that are not as wanted."""
        return tuple(f"frontend {v.url}: {v.why}" for v in self.views if v.why is not None)

    @property
    def senders(self) -> dict[int, ThresholdSender]:
        """Per deployment: who sends; to be closed at the end."""
        return {group.frontends.deployment: group.sender for group in self._groups}


def _held(result: FrontendResult) -> Admission | None:
    if result.held is None:
        return None
    return Admission(
        active_decode_blocks=result.held.decode_blocks,
        active_prefill_tokens=result.held.prefill_tokens,
        active_prefill_tokens_frac=result.held.prefill_fraction,
    )


def _rounded(admission: Admission) -> Admission:
    """Without what is noise, so that it is not sent."""

    def cut(value: float | None, digits: int) -> float | None:
        return None if value is None else round(value, digits)

    return Admission(
        active_decode_blocks=cut(admission.active_decode_blocks, 3),
        active_prefill_tokens=cut(admission.active_prefill_tokens, 0),
        active_prefill_tokens_frac=cut(admission.active_prefill_tokens_frac, 3),
    )
