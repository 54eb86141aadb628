"""Grants mode: the coordinator's messages reach the protocol's state; a restore needs a grant."""

from __future__ import annotations

import logging
from dataclasses import replace

from wattline.agent.actuator import Actuator
from wattline.agent.gpus import GpuEntry
from wattline.agent.grant_source import GrantsRefused
from wattline.agent.metric_catalogue import counter_key
from wattline.agent.snapshot import Reason
from wattline.drivers.grant_files import GpuGrant, GrantFile
from wattline.grants.messages import Grant
from wattline.grants.node_state import Outcome

log = logging.getLogger(__name__)


class GrantedLimits:
    """What the grant source says, applied to the node's state. Used by the loop's thread only."""

    def __init__(self, actuator: Actuator) -> None:
        self._actuator = actuator
        self.read = False
        """Whether grants have ever been read."""
        self.refusal: str | None = None
        """Why the newest grants cannot be obeyed; None: they can."""
        self.refused_s = 0.0
        """Since when, on the loop's clock; means nothing without a refusal."""
        self.unknown: tuple[str, ...] = ()
        """GPUs of the newest grants that are not on this node."""

    def on_refused(self, refused: GrantsRefused, now_s: float) -> None:
        """Grants that cannot be used: those obeyed before stay in force."""
        if self.refusal is None:
            self.refused_s = now_s
        self.refusal = refused.why
        self._actuator.tally.add("wattline_agent_grant_files_refused_total")
        log.warning("grants refused", extra={"why": refused.why})

    def on_grants(self, grants: GrantFile, now_s: float) -> None:
        """Act on a new set of messages: adoptions, grants, and what is to be given back."""
        node = self._actuator.node
        self.read, self.refusal = True, None
        node.see_budget(grants.budget_version)
        unknown = []
        for adopt in grants.adopt:
            outcome = node.on_adopt(adopt)
            self._count(outcome)
            if outcome is Outcome.UNKNOWN_GPU:
                unknown.append(adopt.gpu)
        for message in grants.grants:
            if self._grant(message, now_s) is Outcome.UNKNOWN_GPU:
                unknown.append(message.grant.gpu)
        for uuid in grants.restore:
            entry = self._actuator.entries.get(uuid)
            if entry is not None and entry.ours and not entry.releasing:
                self._restore(entry)
        elsewhere = [uuid for uuid in unknown if uuid not in self._actuator.entries]
        if not self._actuator.entries:
            elsewhere = []  # the GPUs have not been listed yet
        if elsewhere and tuple(elsewhere) != self.unknown:
            log.warning("grants for GPUs that are not on this node", extra={"gpus": elsewhere})
        self.unknown = tuple(elsewhere)

    def _grant(self, message: GpuGrant, now_s: float) -> Outcome:
        actuator, grant = self._actuator, self._writable(message.grant)
        entry = actuator.entries.get(grant.gpu)
        was_restored = entry is not None and entry.known and self._is_restored(entry)
        outcome = actuator.node.on_grant(grant, now_s)
        self._count(outcome)
        if entry is None or not outcome.acted:
            if outcome not in (Outcome.OTHER_INCARNATION, Outcome.UNKNOWN_GPU):
                extra = {"gpu": grant.gpu, "why": outcome.value, "watts": grant.watts}
                log.warning("grant not obeyed", extra=extra)
            return outcome
        if outcome is not Outcome.RENEWED:
            entry.ours, entry.releasing = True, False
            if was_restored:
                actuator.node.resume(grant.gpu)
            log.info(
                "grant",
                extra={
                    "gpu": grant.gpu,
                    "result": outcome.value,
                    "watts": grant.watts,
                    "epoch": grant.epoch,
                    "sequence": grant.sequence,
                },
            )
        entry.clock.wanted = message.clock_mhz
        return outcome

    def _writable(self, grant: Grant[str]) -> Grant[str]:
        """The grant as far as the driver can write it: no more is held than can be enforced."""
        down = self._actuator.settings.writable_w
        return replace(
            grant,
            watts=down(grant.watts),
            brake_w=down(grant.brake_w),
            expiry_w=None if grant.expiry_w is None else down(grant.expiry_w),
        )

    def _is_restored(self, entry: GpuEntry) -> bool:
        return self._actuator.node.state(entry.uuid).restored

    def _restore(self, entry: GpuEntry) -> None:
        original_w = entry.record.original_w
        if original_w is None:
            entry.remark = "its original limit is not known: it cannot be given back"
        elif entry.record.pinned_w is not None:
            entry.remark = "it is pinned by a person: it is not given back until they resume"
        elif not self._actuator.node.restore(entry.uuid, original_w):
            held_w = self._actuator.node.held_w(entry.uuid)
            entry.remark = f"its original {original_w:g} W is above the {held_w:g} W that it holds"
        else:
            entry.remark = None
            self._actuator.release(entry)

    def _count(self, outcome: Outcome) -> None:
        key = counter_key("wattline_agent_grants_total", result=outcome.value)
        self._actuator.tally.add(key)

    def reason(self, entry: GpuEntry) -> Reason:
        """Why a GPU has the limit that it has."""
        if not entry.known:
            return Reason.FOUND
        return Reason(self._actuator.node.why(entry.uuid).value)
