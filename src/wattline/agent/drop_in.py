"""Annotation mode: pods and owners decide, by grants that the agent gives itself.

The same state as under a coordinator carries them out, so that brake, pins, holds, rival writers
and the journal work alike. A failed listing freezes; a released GPU gets its original limit back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from wattline.agent.actuator import Actuator
from wattline.agent.annotated import Action, Decision, PodIndex, decide
from wattline.agent.gpus import GpuEntry
from wattline.agent.metric_catalogue import counter_key
from wattline.agent.owner_watch import OwnersSeen
from wattline.agent.snapshot import Reason
from wattline.drivers.pods import Pod
from wattline.grants.messages import Grant
from wattline.grants.node_state import Outcome, Why

log = logging.getLogger(__name__)


class AnnotatedLimits:
    """What pods ask for, applied to the node's state. Used by the loop's thread only."""

    def __init__(self, actuator: Actuator, *, safe_default_w: float, namespace: str | None) -> None:
        self._actuator = actuator
        self._safe_default_w = safe_default_w
        self._namespace = namespace
        self._seen: OwnersSeen | None = None
        self._index: PodIndex | None = None

    def on_owners(self, seen: OwnersSeen) -> None:
        """A new look at pods and owners, good or failed."""
        self._seen = seen
        self._index = None if seen.pods is None else PodIndex(seen.pods, self._namespace)

    def apply(self) -> None:
        """Decide about every GPU by the newest look, and grant what follows from it."""
        seen = self._seen
        if seen is None:
            return
        for entry in self._actuator.entries.values():
            if entry.known:
                self._apply(entry, seen)

    def _apply(self, entry: GpuEntry, seen: OwnersSeen) -> None:
        limits = None if entry.facts is None else entry.facts.limits
        owners = None
        if seen.joined is not None and entry.uuid not in seen.joined.untold:
            owners = seen.joined.owners.get(entry.uuid, frozenset())
        decision = decide(
            owners,
            self._index,
            ours=entry.ours,
            limits=limits,
            safe_default_w=self._safe_default_w,
        )
        held = self._actuator.node.operator_hold  # by a person, or while braked: no raise
        pinned = entry.record.pinned_w is not None
        unresolved = () if seen.joined is None else seen.joined.unresolved
        if unresolved and self._would_release(entry, decision):
            note = f"not given back while a device cannot be told: {unresolved[0]}"
            decision = Decision(action=Action.KEEP, reason=Reason.FROZEN, note=note)
        if entry.orphan and not (held or pinned or decision.reason is Reason.FROZEN):
            decision = self._orphan(entry, decision)
        if decision.reason is Reason.KEPT and entry.releasing:
            return
        before, entry.decision = entry.decision, decision
        if decision != before:
            self._tell(entry, before, decision)
        if entry.record.let_go:
            return
        if decision.action is Action.ENFORCE and decision.watts is not None:
            if not held or decision.watts < self._actuator.node.held_w(entry.uuid):
                self._enforce(entry, decision.watts)
        elif decision.action is Action.RELEASE and not (held or pinned or entry.releasing):
            self.release(entry)

    @staticmethod
    def _would_release(entry: GpuEntry, decision: Decision) -> bool:
        """Whether this is taken to mean that nobody with an annotation is on the GPU."""
        nobody = entry.orphan and decision.reason is Reason.KEPT
        return nobody or decision.action is Action.RELEASE

    def _orphan(self, entry: GpuEntry, decision: Decision) -> Decision:
        """A limit that no pod is known to stand behind, at the first look that tells of pods."""
        entry.orphan = False
        kept = decision.reason is not Reason.KEPT
        result = "taken_up" if kept else "given_back"
        key = counter_key("wattline_agent_orphans_total", result=result)
        self._actuator.tally.add(key)
        if kept:
            return decision
        return Decision(action=Action.RELEASE, reason=Reason.RESTORED, note="nobody came back")

    def _tell(self, entry: GpuEntry, before: Decision | None, decision: Decision) -> None:
        if before is None or replace(before, note=None) != replace(decision, note=None):
            for key in decision.counters:
                self._actuator.tally.add(key)
        log.info(
            "limit decided",
            extra={
                "gpu": entry.uuid,
                "action": decision.action.value,
                "reason": decision.reason.value,
                "watts": decision.watts,
                "note": decision.note,
            },
        )

    def _enforce(self, entry: GpuEntry, watts: float) -> None:
        entry.releasing = False
        if not entry.ours or self._actuator.node.held_w(entry.uuid) != watts:
            entry.ours = self.grant(entry, watts) or entry.ours

    def release(self, entry: GpuEntry) -> bool:
        """Give the original limit back; False: it is not known or cannot be granted."""
        original_w = entry.record.original_w
        if original_w is None or not self.grant(entry, original_w):
            entry.remark = "its original limit cannot be given back"
            return False
        entry.remark = None
        self._actuator.release(entry)
        return True

    def grant(self, entry: GpuEntry, watts: float) -> bool:
        """Give ourselves leave for `watts`: in this mode no coordinator has to be asked."""
        node = self._actuator.node
        state = node.state(entry.uuid)
        lowest_w = state.min_mw / 1000
        outcome = node.on_grant(
            Grant(
                gpu=entry.uuid,
                incarnation=node.incarnation,
                epoch=max(1, node.epoch),
                sequence=state.sequence + 1,
                watts=watts,
                brake_w=min(max(self._actuator.settings.brake_w or lowest_w, lowest_w), watts),
                lease_s=math.inf,
            ),
            state.since_s,
        )
        if outcome is not Outcome.ACCEPTED:
            log.warning("limit not granted", extra={"gpu": entry.uuid, "why": outcome.value})
        return outcome is Outcome.ACCEPTED

    def release_all(self) -> None:
        """On the way out: give every limit of ours back, unless a brake or a person holds it."""
        if self._actuator.node.operator_hold:
            return
        for entry in self._actuator.entries.values():
            pinned = entry.record.pinned_w is not None
            if entry.known and entry.ours and not (entry.releasing or pinned):
                self.release(entry)

    def reason(self, entry: GpuEntry) -> Reason:
        """Why a GPU has the limit that it has."""
        if not entry.known:
            return Reason.FOUND
        why = self._actuator.node.why(entry.uuid)
        if why in (Why.PINNED, Why.BRAKED, Why.HELD) and entry.ours:
            return Reason(why.value)
        if entry.releasing or entry.record.let_go:
            return Reason.RESTORED
        return Reason.FOUND if entry.decision is None else entry.decision.reason

    @property
    def pods(self) -> Sequence[Pod] | None:
        """Pods of the newest look; None: there is none, or it failed."""
        return None if self._seen is None else self._seen.pods
