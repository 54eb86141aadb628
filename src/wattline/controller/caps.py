"""Power limits: from decided steps to grants on the nodes, and what is booked for them.

The coordinator of `wattline.grants` decides what may be granted; here it meets its log on disk and
the nodes' grant files. What is not in the log is not sent: while the disk takes nothing, grants
wait, bookings stay, and the controller is not ready.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Protocol

from wattline.controller.nodes import NodeWatch
from wattline.controller.settings import ActuationSpec
from wattline.controller.site import Site
from wattline.core.decision import CapSteps
from wattline.core.snapshot import Budget
from wattline.drivers.grant_files import GpuGrant, GrantFile, NodeReport, write_grants
from wattline.drivers.grant_log import FencedError, GrantLog, GrantLogError
from wattline.drivers.grant_records import decode_records, encode_record
from wattline.grants.answers import Refusal, Terms
from wattline.grants.book import GpuLimits
from wattline.grants.coordinator import Coordinator
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Adopt, Grant, Message
from wattline.grants.records import Opened, Record, read_log

log = logging.getLogger(__name__)

_COMPACT_BYTES = 1 << 20
_TOKEN_BITS = 20
_NO_CEILING = 1.0 - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsView:
    """Columns over all GPUs, and what stands in the way. Watts.

    enforced_w: limits in force where others than the nodes' reports tell them, too; None: only
    those. notes: how that is known. settles_s: when the next bookings may fall because lowered
    draws have settled; None: none is on the way.
    """

    granted_w: tuple[float, ...]
    booked_w: tuple[float, ...]
    clock: tuple[float, ...]
    problems: tuple[str, ...] = ()
    exposure_w: float = 0.0
    exposures: tuple[str, ...] = ()
    epoch: int | None = None
    enforced_w: tuple[float | None, ...] | None = None
    notes: tuple[str, ...] = ()
    settles_s: float | None = None


class Caps(Protocol):
    """Who may change power limits."""

    def hear(self, report: NodeReport, now_s: float) -> None:
        """Take a node's news in."""

    def view(self, nodes: Sequence[NodeWatch], now_s: float) -> CapsView:
        """The columns as they stand."""

    def set_budget(self, budget: Budget, now_s: float) -> None:
        """From now on this is what may be booked."""

    def set_terms(self, spec: ActuationSpec) -> None:
        """From now on grants carry these terms."""

    def release(self, node: str, by: str, why: str, now_s: float) -> None:
        """Book nothing for a node that `by` attests to be powered off or gone."""

    @property
    def gives_back(self) -> bool:
        """Whether original limits can be given back."""

    def give_back(self, gpus: Sequence[str]) -> None:
        """From now on nodes let go of these GPUs once they hold their original limits."""

    def act(self, caps: CapSteps, now_s: float) -> Mapping[str, int]:
        """Carry steps out as far as is allowed; how many were refused, by reason."""

    def close(self) -> None:
        """Let go; limits stay as they are."""


class WatchedCaps:
    """Caps that are only looked at: in advisory mode, and where another agent owns them.

    Booked is what is enforced, or a GPU's largest limit while nobody says: nothing is promised.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    def hear(self, report: NodeReport, now_s: float) -> None:
        """Nothing to keep."""

    def view(self, nodes: Sequence[NodeWatch], now_s: float) -> CapsView:
        """What the nodes report."""
        enforced = [
            enforced_w(nodes[node], uuid, now_s)
            for uuid, node in zip(self._site.uuid, self._site.node, strict=True)
        ]
        booked = tuple(
            self._site.product(gpu).max_limit_w if watts is None else watts
            for gpu, watts in enumerate(enforced)
        )
        return CapsView(granted_w=booked, booked_w=booked, clock=(1.0,) * len(booked))

    def set_budget(self, budget: Budget, now_s: float) -> None:
        """Nothing to keep."""

    def set_terms(self, spec: ActuationSpec) -> None:
        """Nothing to keep."""

    def release(self, node: str, by: str, why: str, now_s: float) -> None:
        """Nothing is booked that could be released."""

    @property
    def gives_back(self) -> bool:
        """No: somebody else owns the limits."""
        return False

    def give_back(self, gpus: Sequence[str]) -> None:
        """Nothing is ours."""

    def act(self, caps: CapSteps, now_s: float) -> Mapping[str, int]:
        """Carry out nothing."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


def enforced_w(node: NodeWatch, uuid: str, now_s: float) -> float | None:
    """The limit that a GPU obeys by its node's newest report; None while it is silent."""
    entry = node.gpu(uuid)
    if entry is None or entry.report is None or node.silent(now_s) is not None:
        return None
    return entry.report.enforced_w


@dataclass(slots=True)
class _Outbox:
    """What one node is to be told: the newest message per GPU."""

    path: Path
    messages: dict[str, Message[str]] = field(default_factory=dict)
    unsent: bool = False
    why: str | None = None


class GrantedCaps:
    """Caps by grants, out of a durable log.

    Opens an epoch that nobody has used, then reads what the log proves: every GPU is booked at the
    most that it may have been granted, until its node answers. Raises FencedError while another
    controller has the log open, InputError for a damaged log, OSError for what the disk refuses.
    """

    def __init__(
        self,
        site: Site,
        *,
        spec: ActuationSpec,
        grant_files: Sequence[Path],
        log_path: Path,
        budget: Budget,
        silent_after_s: float,
        seen_epoch: int,
    ) -> None:
        """`seen_epoch`: the newest that any node has reported."""
        self._site = site
        self._index = {uuid: gpu for gpu, uuid in enumerate(site.uuid)}
        self._outboxes = [_Outbox(path) for path in grant_files]
        self._clock = [1.0] * len(site.uuid)
        self._records: list[Record[str]] = []
        self._messages: list[Message[str]] = []
        self._log_why: str | None = None
        self._budget_version = budget.version
        self._wide: dict[str, str] = {}
        self._given_back: frozenset[str] = frozenset()
        self._log = GrantLog(log_path)
        try:
            self._coordinator = self._open(str(log_path), budget, silent_after_s, seen_epoch)
        except BaseException:
            self._log.close()
            raise
        self.set_terms(spec)

    def _open(
        self, where: str, budget: Budget, silent_after_s: float, seen_epoch: int
    ) -> Coordinator[str]:
        epoch = _new_epoch(max(self._log.epoch, seen_epoch))
        self._log.open_epoch(epoch, [encode_record(Opened(epoch))])
        past = read_log(decode_records(self._log.replay.records, where))
        log.info(
            "a new epoch",
            extra={
                "epoch": epoch,
                "records": len(self._log.replay.records),
                "known_gpus": len(past.booked_mw),
                "torn_bytes": self._log.replay.torn_bytes,
            },
        )
        limits = {}
        for gpu, uuid in enumerate(self._site.uuid):
            product = self._site.product(gpu)
            limits[uuid] = GpuLimits(
                product.min_limit_w,
                product.max_limit_w,
                product.settle_s,
                product.default_limit_w,
                self._site.nodes[self._site.node[gpu]],
            )
        known = {uuid: mw for uuid, mw in past.booked_mw.items() if uuid in limits}
        ledger = Ledger(
            limits,
            budget.total_w,
            budget.guard_w,
            epoch=epoch,
            booked_mw=known,
            silent_after_s=silent_after_s,
        )
        return Coordinator(ledger, budget_version=budget.version)

    # Seeing

    def hear(self, report: NodeReport, now_s: float) -> None:
        """Take a node's news in; FencedError when another controller has taken over."""
        for entry in report.gpus:
            gpu = self._index.get(entry.gpu)
            if gpu is None or entry.report is None:
                continue
            self._coordinator.on_report(entry.report, now_s)
            largest_w, known_w = entry.facts.max_w, self._site.product(gpu).max_limit_w
            if largest_w is not None and largest_w > known_w:
                self._wide[entry.gpu] = (
                    f"GPU {entry.gpu} accepts up to {largest_w:g} W, its product {known_w:g} W: "
                    "correct the pool's gpu"
                )
        self._check_fence()

    def _check_fence(self) -> None:
        if self._coordinator.fenced_by is not None:
            raise FencedError(
                f"epoch {self._coordinator.fenced_by} is in force on a node: another controller "
                "has taken over; end it, or this one"
            )

    def view(self, nodes: Sequence[NodeWatch], now_s: float) -> CapsView:
        """Grants and bookings as they stand."""
        ledger = self._coordinator.ledger
        ledger.advance(now_s)
        booked = ledger.booked_column_w()
        granted = []
        for gpu, uuid in enumerate(self._site.uuid):
            watts = ledger.granted_w(uuid)
            if watts is None:
                watts = enforced_w(nodes[self._site.node[gpu]], uuid, now_s)
            granted.append(booked[gpu] if watts is None else watts)
        files = [f"{box.path}: {box.why}" for box in self._outboxes if box.why is not None]
        logged = [] if self._log_why is None else [self._log_why]
        return CapsView(
            granted_w=tuple(granted),
            booked_w=booked,
            clock=tuple(self._clock),
            problems=(*logged, *files, *self._wide.values()),
            exposure_w=ledger.exposure_w,
            exposures=tuple(
                f"{each.cause.value}: {each.watts:g} W"
                + ("" if each.gpu is None else f", GPU {each.gpu}")
                for each in ledger.exposures
            ),
            epoch=self._coordinator.epoch,
            settles_s=ledger.settles_s,
        )

    # Changing

    def set_budget(self, budget: Budget, now_s: float) -> None:
        """From now on this is what may be booked, and grants name its version."""
        self._budget_version = budget.version
        self._coordinator.set_budget(budget.total_w, budget.guard_w, now_s, version=budget.version)

    def set_terms(self, spec: ActuationSpec) -> None:
        """Grants from now on carry these terms."""
        self._lease_s, self._expiry_w, self._brake_w = spec.lease_s, spec.expiry_w, spec.brake_w

    def release(self, node: str, by: str, why: str, now_s: float) -> None:
        """Book nothing for the node's GPUs; a later report of one undoes that."""
        for uuid in self._site.gpus_of(node):
            self._coordinator.release(uuid, by, why, now_s)

    @property
    def gives_back(self) -> bool:
        """Yes, by a grant that books them."""
        return True

    def give_back(self, gpus: Sequence[str]) -> None:
        """From now on nodes let go of these GPUs once they hold their original limits."""
        changed = self._given_back.symmetric_difference(gpus)
        self._given_back = frozenset(gpus)
        for gpu in changed:
            self._outboxes[self._site.node[self._index[gpu]]].unsent = True

    def act(self, caps: CapSteps, now_s: float) -> Mapping[str, int]:
        """Grant the steps, lowerings first, as far as watts are free; log, then send."""
        self._check_fence()
        refused: Counter[str] = Counter()
        ledger = self._coordinator.ledger
        steps = list(zip(caps.gpu, caps.cap_w, caps.clock, strict=True))
        steps.sort(key=lambda step: step[1] * 1000 > ledger.book(self._site.uuid[step[0]]).leave_mw)
        for gpu, cap_w, clock in steps:
            answer = self._grant(self._site.uuid[gpu], cap_w, now_s)
            if isinstance(answer, Refusal):
                refused[answer.reason.value] += 1
            else:
                self._clock[gpu] = clock
        self._lease_what_stands(frozenset(caps.gpu), now_s)
        self._coordinator.due(now_s)
        self._send()
        return refused

    def _grant(self, uuid: str, watts: float, now_s: float) -> Grant[str] | Refusal[str]:
        expiry_w = None if self._expiry_w is None else min(self._expiry_w, watts)
        terms = Terms(lease_s=self._lease_s, brake_w=self._brake_w, expiry_w=expiry_w)
        return self._coordinator.grant(uuid, watts, now_s, terms)

    def _lease_what_stands(self, besides: frozenset[int], now_s: float) -> None:
        """Give GPUs without a live grant one for what they enforce: never a raise.

        A node that has just started, or has braked, then has a lease and obeys what comes next.
        """
        ledger = self._coordinator.ledger
        for gpu, uuid in enumerate(self._site.uuid):
            book = ledger.book(uuid)
            if gpu in besides or ledger.granted_w(uuid) is not None or not book.proven:
                continue
            if book.enforced_mw is not None and book.min_mw <= book.enforced_mw <= book.max_mw:
                self._grant(uuid, book.enforced_mw / 1000, now_s)

    def _send(self) -> None:
        """Durable first; what could not be logged is kept and tried again with the next tick."""
        step = self._coordinator.take()
        self._records += step.records
        self._messages += step.messages
        try:
            if self._records:
                encoded = [encode_record(record) for record in self._records]
                self._log.append(encoded, epoch=self._coordinator.epoch)
                self._records.clear()
            self._log_why = None
        except FencedError:
            raise
        except GrantLogError as error:
            if self._log_why is None:
                log.error("no grant is sent until the log can be written", extra={"why": error})
            self._log_why = str(error)
            return
        for message in self._messages:
            outbox = self._outboxes[self._site.node[self._index[message.gpu]]]
            outbox.messages[message.gpu] = message
            outbox.unsent = True
        self._messages.clear()
        for number, outbox in enumerate(self._outboxes):
            if outbox.unsent:
                self._write(number, outbox)
        if self._log.size_bytes > _COMPACT_BYTES:
            self._compact()

    def _compact(self) -> None:
        records = (Opened(self._coordinator.epoch), self._coordinator.compacted())
        try:
            self._log.compact([encode_record(record) for record in records])
        except FencedError:
            raise
        except GrantLogError as error:
            log.warning("the grant log stays long", extra={"why": str(error)})

    def _write(self, number: int, outbox: _Outbox) -> None:
        """Replace a node's file; one that cannot be written is tried again with the next tick."""
        messages, node = outbox.messages.values(), self._site.nodes[number]
        document = GrantFile(
            node=node,
            epoch=self._coordinator.epoch,
            budget_version=self._budget_version,
            grants=tuple(self._gpu_grant(each) for each in messages if isinstance(each, Grant)),
            adopt=tuple(each for each in messages if isinstance(each, Adopt)),
            restore=tuple(gpu for gpu in self._site.gpus_of(node) if gpu in self._given_back),
        )
        try:
            write_grants(outbox.path, document)
        except OSError as error:
            why = error.strerror or str(error)
            if outbox.why is None:
                log.error("grants not written", extra={"path": str(outbox.path), "why": why})
            outbox.why = why
            return
        outbox.unsent, outbox.why = False, None

    def _gpu_grant(self, grant: Grant[str]) -> GpuGrant:
        gpu = self._index[grant.gpu]
        highest_mhz = self._site.product(gpu).max_clock_mhz
        clock = self._clock[gpu]
        if clock > _NO_CEILING or highest_mhz is None:
            return GpuGrant(grant=grant)
        return GpuGrant(grant=grant, clock_mhz=round(clock * highest_mhz))

    def close(self) -> None:
        """Let go of the log. Nodes keep their limits; leases run out as their terms say."""
        self._log.close()


def _new_epoch(newest: int) -> int:
    """An epoch above `newest` that another controller without our log does not choose too."""
    counter = (newest >> _TOKEN_BITS) + 1
    return (counter << _TOKEN_BITS) | SystemRandom().getrandbits(_TOKEN_BITS)


def newest_epoch(reports: Sequence[NodeReport]) -> int:
    """The newest epoch that any of the reports shows, 0 for none."""
    shown = [entry.report.epoch for report in reports for entry in report.gpus if entry.report]
    return max(shown, default=0)
