"""The coordinator's side of the grant protocol, around the booking ledger.

Pure: reports and plans come in, records and messages come out. Whoever runs it calls `take` after
every step, makes the records durable first and sends the messages only then (rule
DURABLE_BEFORE_SENT):

    step = coordinator.take()
    log.append(step.records)   # refused: another coordinator has opened an epoch; then `fence`
    network.send(step.messages)

To start: append `Opened(next_epoch(...))` to the log, read the log after that, and build the
coordinator with what it says; without a log, with an epoch above any that a report has shown. Every
GPU is then booked at the most that it may have been granted, until its node answers (rule
FIRST_KNOW_THEN_RAISE).
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Generic, Self

from wattline.core.errors import InputError
from wattline.grants.answers import Refusal, RefusalReason, Terms
from wattline.grants.book import GpuLimits
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Gpu, Grant, Message, Report
from wattline.grants.records import Compacted, Granted, Lowered, Record, Released
from wattline.grants.watts import milliwatts

RESEND_S = 2.0
"""A message that no report answers is sent again after so long."""
RENEW_SHARE = 1 / 3
"""A lease is renewed after this share of it, so that two renewals may be lost."""
RETRY_DECLINED_S = 10.0
"""A raise that a node declined (an operator's hold) is tried again after so long."""


@dataclass(frozen=True, slots=True)
class Step(Generic[Gpu]):
    """What a step of the coordinator asks for: `records` durable first, then `messages` sent."""

    records: tuple[Record[Gpu], ...]
    messages: tuple[Message[Gpu], ...]


class Coordinator(Generic[Gpu]):
    """Grants watts out of one budget to the GPUs in its ledger.

    The ledger's epoch must be this coordinator's own: opened in the log, or above any that a report
    has shown. `terms` go with every grant that does not bring its own. `budget_version`: of the
    budget that the ledger was built with; None: budgets have no versions. `brake_deadline_s`: the
    least time that nodes get between the announcement of a cut and its being judged.
    """

    def __init__(
        self,
        ledger: Ledger[Gpu],
        *,
        terms: Terms | None = None,
        budget_version: int | None = None,
        brake_deadline_s: float = 0.0,
        resend_s: float = RESEND_S,
        retry_declined_s: float = RETRY_DECLINED_S,
    ) -> None:
        self.ledger = ledger
        self.terms = terms or Terms()
        self.budget_version = budget_version
        self.fenced_by: int | None = None
        self._brake_deadline_s = brake_deadline_s
        self._resend_s = resend_s
        self._retry_declined_s = retry_declined_s
        self._seen_budget = budget_version
        self._logged_mw = {gpu: ledger.book(gpu).booked_mw for gpu in ledger.gpus}
        self._records: list[Record[Gpu]] = []
        self._messages: list[Message[Gpu]] = []
        self._unanswered: dict[Gpu, float] = {}
        self._renewals: list[tuple[float, int, int, Gpu]] = []
        self._renewal_count = 0
        self._retry_s: dict[Gpu, float] = {}

    @property
    def epoch(self) -> int:
        """Epoch that this coordinator's messages carry."""
        return self.ledger.epoch

    # Hearing

    def on_report(self, report: Report[Gpu], now_s: float) -> bool:
        """Take a report in; False when it is a repeat or older than one already taken.

        Raises KeyError for a GPU that was never added, InputError for watts that are none.
        """
        gpu = report.gpu
        book = self.ledger.book(gpu)
        if report.epoch > self.epoch or (
            report.epoch == self.epoch and report.sequence > book.sent
        ):
            self.fence(report.epoch)
        if not self.ledger.on_report(report, now_s):
            return False
        version = report.budget_version
        if version is not None and (self._seen_budget is None or version > self._seen_budget):
            self._seen_budget = version
        if self.ledger.acted_on_newest(gpu):
            self._unanswered.pop(gpu, None)
        if book.sent < book.addressed_from:
            self._ask(gpu, now_s)
        return True

    def _ask(self, gpu: Gpu, now_s: float) -> None:
        """Ask an incarnation that nothing has been sent to yet what it holds."""
        adopt = self.ledger.adopt(gpu, self.budget_version)
        if adopt is not None and self.fenced_by is None:
            self._messages.append(adopt)
            self._unanswered.pop(gpu, None)
            self._unanswered[gpu] = now_s

    def fence(self, epoch: int) -> None:
        """Another coordinator has opened `epoch`: stop for good (rule EPOCH_FENCES)."""
        self.fenced_by = max(epoch, self.fenced_by or 0)
        self._messages.clear()
        self._records.clear()

    # Granting

    def grant(
        self, gpu: Gpu, watts: float, now_s: float, terms: Terms | None = None
    ) -> Grant[Gpu] | Refusal[Gpu]:
        """Book `watts` for `gpu` and put the grant out to be sent, or say why not."""
        ledger = self.ledger
        ledger.advance(now_s)
        reason = self._refusal(gpu, watts)
        if reason is not None:
            return Refusal(gpu, watts, reason, ledger.free_w)
        self._log_lowered()
        answer = ledger.grant(gpu, watts, now_s, terms or self.terms, self.budget_version)
        if isinstance(answer, Refusal):
            return answer
        booked_mw = ledger.book(gpu).booked_mw
        self._logged_mw[gpu] = booked_mw
        self._records.append(
            Granted(
                epoch=answer.epoch,
                gpu=gpu,
                incarnation=answer.incarnation,
                sequence=answer.sequence,
                watts_mw=milliwatts("watts", answer.watts),
                booked_mw=booked_mw,
            )
        )
        self._send_grant(answer, now_s)
        self._unanswered.pop(gpu, None)
        self._unanswered[gpu] = now_s
        return answer

    def _refusal(self, gpu: Gpu, watts: float) -> RefusalReason | None:
        """Rules EPOCH_FENCES and NEWEST_BUDGET; the ledger has the others."""
        if self.fenced_by is not None:
            return RefusalReason.FENCED
        raises = milliwatts("watts", watts) > self.ledger.book(gpu).leave_mw
        if raises and self._seen_budget != self.budget_version:
            return RefusalReason.OLDER_BUDGET
        return None

    def pursue(self, plan: Mapping[Gpu, float], now_s: float) -> list[Refusal[Gpu]]:
        """Grant what `plan` says and no grant says yet: lowerings first, then what raises it can.

        To be called again, until nothing is refused: watts come free as reports come in. Returns
        what could not be granted yet. O(GPUs of the plan).
        """
        self.ledger.advance(now_s)
        book = self.ledger.book
        wanted = [(watts, gpu) for gpu, watts in plan.items() if self._asks(gpu, watts, now_s)]
        wanted.sort(key=lambda entry: entry[0] * 1000 > book(entry[1]).leave_mw)
        answers = [self.grant(gpu, watts, now_s) for watts, gpu in wanted]
        return [answer for answer in answers if isinstance(answer, Refusal)]

    def _asks(self, gpu: Gpu, watts: float, now_s: float) -> bool:
        """True if `gpu` has no leave for `watts`, and there is a point in asking for it now."""
        granted_w = self.ledger.granted_w(gpu)
        wanted_w = round(watts * 1000) / 1000
        if granted_w == wanted_w:
            return False
        newest = self.ledger.newest_grant(gpu)
        if granted_w is None or newest is None or newest.watts != wanted_w:
            return True
        if newest.lowers_only:
            return self.ledger.fits(gpu, watts)
        if now_s < self._retry_s.get(gpu, now_s):
            return False
        self._retry_s[gpu] = now_s + self._retry_declined_s
        return True

    def _send_grant(self, grant: Grant[Gpu], now_s: float) -> None:
        self._messages.append(grant)
        if grant.lease_s < float("inf"):
            self._renewal_count += 1
            renew_s = now_s + grant.lease_s * RENEW_SHARE
            entry = (renew_s, self._renewal_count, grant.sequence, grant.gpu)
            heapq.heappush(self._renewals, entry)

    def due(self, now_s: float) -> None:
        """Send again what no report has answered for a while, and renew leases.

        Both are the same message as before, so neither needs a record.
        """
        self.ledger.advance(now_s)
        if self.fenced_by is not None:
            return
        while self._unanswered:
            gpu, sent_s = next(iter(self._unanswered.items()))
            if now_s - sent_s < self._resend_s:
                break
            del self._unanswered[gpu]
            message = self._newest_message(gpu)
            if message is not None and not self.ledger.acted_on_newest(gpu):
                self._unanswered[gpu] = now_s
                self._messages.append(message)
        while self._renewals and self._renewals[0][0] <= now_s:
            _, _, sequence, gpu = heapq.heappop(self._renewals)
            message = self._newest_message(gpu)
            if isinstance(message, Grant) and message.sequence == sequence:
                self._send_grant(message, now_s)

    def _newest_message(self, gpu: Gpu) -> Message[Gpu] | None:
        """Return what was addressed to the present incarnation last, None if nothing was."""
        if gpu not in self._logged_mw:
            return None  # removed
        book = self.ledger.book(gpu)
        sent: list[Message[Gpu]] = [
            message
            for message in (book.newest, book.adopt)
            if message is not None and message.sequence >= book.addressed_from
        ]
        return max(sent, key=lambda message: message.sequence, default=None)

    # The budget and the fleet

    def set_budget(
        self,
        budget_w: float,
        guard_w: float,
        now_s: float,
        *,
        version: int | None = None,
        effective_s: float | None = None,
    ) -> None:
        """Take a new budget; see `Ledger.set_budget`. One of no newer version is ignored.

        A cut is judged from `effective_s` (None: now), or from now plus the brake's deadline if
        that is later; raises are judged by it at once.
        """
        if version is not None:
            if self.budget_version is not None and version <= self.budget_version:
                return
            self.budget_version = version
            self._seen_budget = max(version, self._seen_budget or version)
        at_s = now_s if effective_s is None else effective_s
        if budget_w - guard_w < self.ledger.usable_w:
            at_s = max(at_s, now_s + self._brake_deadline_s)
        self.ledger.set_budget(budget_w, guard_w, now_s, at_s)

    def add(self, gpu: Gpu, limits: GpuLimits) -> None:
        """A GPU that is to be booked from now on: at its largest limit, until its node answers."""
        self.ledger.add(gpu, limits)
        self._logged_mw[gpu] = self.ledger.book(gpu).booked_mw

    def release(self, gpu: Gpu, by: str, why: str, now_s: float) -> None:
        """Book nothing for `gpu` because `by` attests that it is powered off or gone.

        Audited in the log; undone by any later report of it (rule ATTESTED_RELEASE). InputError
        when fenced: nothing can be logged any more.
        """
        if self.fenced_by is not None:
            raise InputError(
                f"release of GPU {gpu}",
                f"epoch {self.fenced_by}",
                "another coordinator is in charge: ask that one",
            )
        self._log_lowered()
        self.ledger.release(gpu, now_s)
        self._unanswered.pop(gpu, None)
        self._logged_mw[gpu] = 0
        self._records.append(Released(self.epoch, gpu, by, why))

    def remove(self, gpu: Gpu) -> None:
        """Forget a GPU that has been released; InputError while anything is booked for it."""
        self.ledger.remove(gpu)
        del self._logged_mw[gpu]
        self._unanswered.pop(gpu, None)
        self._retry_s.pop(gpu, None)

    # What goes out

    def _log_lowered(self) -> None:
        """Log bounds that have fallen, before a grant that may live on what that freed."""
        for gpu in self.ledger.take_fallen():
            if gpu not in self._logged_mw:
                continue
            booked_mw = self.ledger.book(gpu).booked_mw
            if booked_mw < self._logged_mw[gpu]:
                self._logged_mw[gpu] = booked_mw
                self._records.append(Lowered(self.epoch, gpu, booked_mw))

    def take(self) -> Step[Gpu]:
        """Return what is to be logged, then sent, since the last call; nothing once fenced."""
        if self.fenced_by is not None:
            return Step((), ())
        self._log_lowered()
        step = Step(tuple(self._records), tuple(self._messages))
        self._records.clear()
        self._messages.clear()
        return step

    def compacted(self) -> Compacted[Gpu]:
        """Return one record that stands for the whole log so far. To be taken after `take`."""
        for gpu in self.ledger.gpus:
            self._logged_mw[gpu] = self.ledger.book(gpu).booked_mw
        return Compacted(self.epoch, tuple(self._logged_mw.items()))

    def copy(self) -> Self:
        """Return a coordinator that changes on its own."""
        other = copy(self)
        other.ledger = self.ledger.copy()
        other._logged_mw = dict(self._logged_mw)
        other._records, other._messages = list(self._records), list(self._messages)
        other._unanswered = dict(self._unanswered)
        other._renewals = list(self._renewals)
        other._retry_s = dict(self._retry_s)
        return other

    def freeze(self) -> Hashable:
        """Return everything that decides what may be booked next; resends and renewals are not."""
        return (
            self.ledger.freeze(),
            self.budget_version,
            self._seen_budget,
            self.fenced_by,
            tuple(self._logged_mw.items()),
            tuple(self._records),
            tuple(self._messages),
        )
