"""The node's side of the grant protocol: obeys, expires, brakes, reads back, repairs, reports.

One `Node` per node and start of its agent; pure: time is `now_s`, the node's monotonic clock, and
whoever runs it does the reading and writing. The order of work for a limit is

    watts = node.write_due(gpu, now_s)      # None: nothing to write
    ... node.journal_state() is made durable ...
    node.begin_write(gpu, watts, now_s)     # from here on the write may happen at any time
    ... the device is written and read back ...
    node.end_write(gpu, enforced_w, now_s)  # with what the device says that it enforces

and `on_enforced` for readings without a write. Rules are named in `grants/rules.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wattline.grants.holdings import Holdings
from wattline.grants.messages import Adopt, Gpu, Grant, Message
from wattline.grants.node_state import (
    Found,
    GpuState,
    Journalled,
    JournalledGpu,
    Outcome,
    first_state,
)
from wattline.grants.watts import milliwatts

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
"""Pauses between writes of our own value over another's: the first repair is immediate, then they
double, so that two writers do not fight for ever."""


class Node(Holdings[Gpu]):
    """The state of one node.

    `incarnation` must never have been used before on this node, nor be reached from an earlier one
    by adding one for each brake or expiry: nanoseconds of a wall clock do, so does a counter on
    disk. `found` is what the start reads from its GPUs; one that cannot be read is left out until
    it can (`add_gpu`). `journal` is what the start before left, None if nothing is left.
    """

    def __init__(
        self,
        found: Mapping[Gpu, Found],
        *,
        incarnation: int,
        journal: Journalled[Gpu] | None = None,
        now_s: float = 0.0,
    ) -> None:
        if journal is None:
            super().__init__(incarnation, 0, None)
        else:
            super().__init__(incarnation, journal.epoch, journal.budget_version)
        for gpu, entry in found.items():
            self.add_gpu(gpu, entry, now_s, None if journal is None else journal.gpus.get(gpu))

    # Messages

    def on_grant(self, grant: Grant[Gpu], now_s: float) -> Outcome:
        """Act on `grant`, or say why not."""
        state = self._gpus.get(grant.gpu)
        if state is None:
            return Outcome.UNKNOWN_GPU
        if self._repeats(state, grant) and grant.sequence == state.grant_sequence:
            end_s = now_s + state.lease_s
            self._gpus[grant.gpu] = replace(state, lease_end_s=end_s, expired=False)
            return Outcome.RENEWED
        refusal = self._refusal(state, grant)
        if refusal is not None:
            return refusal
        wanted_mw = milliwatts("grant: watts", grant.watts)
        brake_mw = milliwatts("grant: brake_w", grant.brake_w)
        expiry = None if grant.expiry_w is None else milliwatts("grant: expiry_w", grant.expiry_w)
        if not state.min_mw <= wanted_mw <= state.max_mw:
            return Outcome.OUT_OF_RANGE
        outcome = Outcome.ACCEPTED
        if grant.lowers_only:
            wanted_mw = min(wanted_mw, state.held_mw)
        elif wanted_mw > state.held_mw:
            outcome = self._accepts_raise(grant)
        self.epoch = grant.epoch
        self.see_budget(grant.budget_version)
        taken = outcome is Outcome.ACCEPTED
        self._gpus[grant.gpu] = replace(
            state,
            held_mw=wanted_mw if taken else state.held_mw,
            epoch=grant.epoch,
            sequence=grant.sequence,
            grant_sequence=grant.sequence,
            grant_mw=wanted_mw if taken else state.held_mw,
            follows=grant.lowers_only,
            brake_mw=max(state.min_mw, brake_mw),
            lease_s=grant.lease_s,
            lease_end_s=now_s + grant.lease_s,
            expiry_mw=None if expiry is None else max(state.min_mw, expiry),
            expired=False,
            braked=state.braked and not taken,
            pin_mw=None if state.restored and taken else state.pin_mw,
            restored=state.restored and not taken,
        )
        return outcome

    def on_adopt(self, adopt: Adopt[Gpu]) -> Outcome:
        """Take up the epoch of `adopt`; what is held stays held."""
        state = self._gpus.get(adopt.gpu)
        if state is None:
            return Outcome.UNKNOWN_GPU
        if self._repeats(state, adopt):
            return Outcome.RENEWED
        refusal = self._refusal(state, adopt)
        if refusal is not None:
            return refusal
        self.epoch = adopt.epoch
        self.see_budget(adopt.budget_version)
        self._gpus[adopt.gpu] = replace(state, epoch=adopt.epoch, sequence=adopt.sequence)
        return Outcome.ACCEPTED

    def _repeats(self, state: GpuState, message: Message[Gpu]) -> bool:
        """True for the newest message acted on, once more."""
        return (
            message.incarnation == self.incarnation
            and message.epoch == self.epoch == state.epoch
            and message.sequence == state.sequence
        )

    def _refusal(self, state: GpuState, message: Message[Gpu]) -> Outcome | None:
        """Rules ONE_INCARNATION, EPOCH_FENCES and NEWEST_ONLY."""
        if message.incarnation != self.incarnation:
            return Outcome.OTHER_INCARNATION
        if message.epoch < self.epoch:
            return Outcome.OLDER_EPOCH
        if (message.epoch, message.sequence) <= (state.epoch, state.sequence):
            return Outcome.OLDER_SEQUENCE
        return None

    def _accepts_raise(self, grant: Grant[Gpu]) -> Outcome:
        """Rule NEWEST_BUDGET, and the operator's hold."""
        if self.operator_hold:
            return Outcome.DECLINED_OPERATOR
        seen = self.budget_version
        if seen is not None and grant.budget_version is not None and grant.budget_version < seen:
            return Outcome.DECLINED_BUDGET
        return Outcome.ACCEPTED

    def see_budget(self, version: int | None) -> None:
        """Note the newest version of the budget that the node has seen."""
        if version is not None and (self.budget_version is None or version > self.budget_version):
            self.budget_version = version

    # Lowerings by the node itself

    def brake(self, budget_version: int | None = None) -> None:
        """Take every GPU to its brake watts at once; newer grants may raise it again.

        A brake that must last until somebody ends it is this and `operator_hold`.
        """
        self.see_budget(budget_version)
        self._gpus = {
            gpu: replace(state, held_mw=min(state.held_mw, state.brake_mw), braked=True)
            for gpu, state in self._gpus.items()
        }
        self._new_incarnation()

    def tick(self, now_s: float) -> tuple[Gpu, ...]:
        """Let leases end whose time has come; return the GPUs whose lease just ended."""
        ended = [
            gpu
            for gpu, state in self._gpus.items()
            if state.lease_end_s <= now_s and not state.expired
        ]
        lowered = False
        for gpu in ended:
            state = self._gpus[gpu]
            held_mw = state.held_mw
            if state.expiry_mw is not None:
                held_mw = min(held_mw, state.expiry_mw)
            lowered = lowered or held_mw < state.held_mw
            self._gpus[gpu] = replace(state, held_mw=held_mw, expired=True)
        if lowered:
            self._new_incarnation()
        return tuple(ended)

    def _new_incarnation(self) -> None:
        """Rule OWN_LOWERING_NEW_INCARNATION: whatever is under way to the old one is dead."""
        self.incarnation += 1
        self._gpus = {gpu: replace(state, sequence=0) for gpu, state in self._gpus.items()}

    # The operator

    def hold(self) -> None:
        """Obey no raise until `resume`; lowerings and brakes are still obeyed."""
        self.operator_hold = True

    def pin(self, gpu: Gpu, watts: float) -> bool:
        """Keep `gpu` at `watts` until `resume`; False above what it holds or below its range."""
        state = self._gpus[gpu]
        pin_mw = milliwatts("pin: watts", watts)
        if not state.min_mw <= pin_mw <= state.held_mw:
            return False
        self._gpus[gpu] = replace(state, pin_mw=pin_mw, restored=False)
        return True

    def resume(self, gpu: Gpu | None = None) -> None:
        """End the pin of `gpu`, or with None every pin and the hold."""
        if gpu is None:
            self.operator_hold = False
        for each in self._gpus if gpu is None else (gpu,):
            self._gpus[each] = replace(self._gpus[each], pin_mw=None, restored=False)

    def restore(self, gpu: Gpu, original_w: float) -> bool:
        """Want the original limit, if what is held covers it (rule RESTORE_IS_A_RAISE)."""
        state = self._gpus[gpu]
        original_mw = milliwatts("restore: original_w", original_w)
        if original_mw > state.held_mw:
            return False
        self._gpus[gpu] = replace(state, pin_mw=original_mw, restored=True)
        return True

    # Writing and reading back

    def write_due(self, gpu: Gpu, now_s: float) -> float | None:
        """Return watts to write now, None if nothing is: a new limit at once, a repair in time."""
        state = self._gpus[gpu]
        if state.writing_mw is not None and not state.write_returned:
            return None
        # Found below its range, and nothing above that is booked: it cannot be written.
        if state.wanted_mw < state.min_mw:
            return None
        if state.attempted_mw != state.wanted_mw:
            return state.wanted_mw / 1000
        hidden = state.grant_mw is not None and state.comes_back_mw > state.wanted_mw
        if (state.enforced_mw == state.wanted_mw and not hidden) or now_s < state.next_repair_s:
            return None
        return state.wanted_mw / 1000

    def begin_write(self, gpu: Gpu, watts: float, now_s: float) -> None:
        """A call that writes `watts` is about to begin (rule WRITES_UNDER_WAY_ARE_HELD)."""
        state = self._gpus[gpu]
        written_mw = milliwatts("begin_write: watts", watts)
        differs = state.enforced_mw != written_mw or state.comes_back_mw > written_mw
        repairs = state.attempted_mw == written_mw and differs
        backoff_s = state.backoff_s
        if repairs:
            backoff_s = min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * backoff_s))
        self._gpus[gpu] = replace(
            state,
            writing_mw=max(written_mw, state.writing_mw or 0),
            writing_since_s=now_s,
            write_returned=False,
            attempted_mw=written_mw,
            backoff_s=backoff_s,
            next_repair_s=now_s + backoff_s if repairs else state.next_repair_s,
            repairs=state.repairs + repairs,
        )

    def end_write(
        self,
        gpu: Gpu,
        enforced_w: float | None,
        now_s: float,
        requested_w: float | None = None,
    ) -> None:
        """The call has returned, for good or ill, and `enforced_w` was read after it.

        None: it could not be read back; what was written stays held until a reading comes.
        """
        self._gpus[gpu] = replace(self._gpus[gpu], write_returned=True)
        if enforced_w is not None:
            self.on_enforced(gpu, enforced_w, now_s, requested_w)

    def on_enforced(
        self, gpu: Gpu, enforced_w: float, now_s: float, requested_w: float | None = None
    ) -> None:
        """Take in a limit read at `now_s`, after every call that is over.

        requested_w: what the register asks for, read with it; None: as far as was known before.
        What was only found is never written back (rule FOUND_IS_NOT_WRITTEN): before the first
        grant, and after one that lowers only, what is held falls with what is enforced.
        """
        state = self._gpus[gpu]
        enforced_mw = milliwatts(f"enforced limit of {gpu}", enforced_w)
        # What a clamp hid may have come back for a moment since the reading before.
        stood = enforced_mw == state.enforced_mw and not state.comes_back_mw
        writing_mw = state.writing_mw
        if writing_mw is not None and state.write_returned:
            # Another limit may have stood in between, from the begin of the call until now.
            stood = stood and (writing_mw == enforced_mw or now_s <= state.writing_since_s)
            writing_mw = None
        held_mw, attempted_mw = state.held_mw, state.attempted_mw
        if state.follows and enforced_mw < held_mw:
            held_mw = attempted_mw = enforced_mw
        at_peace = enforced_mw == state.wanted_mw and now_s >= (
            state.next_repair_s + state.backoff_s
        )
        self._gpus[gpu] = replace(
            state,
            held_mw=held_mw,
            attempted_mw=attempted_mw,
            enforced_mw=enforced_mw,
            since_s=state.since_s if stood else now_s,
            writing_mw=writing_mw,
            register_mw=(
                state.register_mw
                if requested_w is None
                else milliwatts(f"requested limit of {gpu}", requested_w)
            ),
            backoff_s=0.0 if at_peace else state.backoff_s,
        )

    # GPUs that come and go

    def add_gpu(
        self, gpu: Gpu, found: Found, now_s: float, journalled: JournalledGpu | None = None
    ) -> None:
        """A GPU that is new, or can be read for the first time."""
        self._gpus[gpu] = first_state(f"GPU {gpu}", found, journalled, now_s)

    def drop_gpu(self, gpu: Gpu) -> None:
        """A GPU that is gone for good (replaced): no word about it any more."""
        del self._gpus[gpu]

    def set_persistence(self, gpu: Gpu, persistence: bool | None) -> None:
        """Take in whether the driver stays loaded when `gpu` is idle; None: not known."""
        self._gpus[gpu] = replace(self._gpus[gpu], persistence=persistence)

    def set_range(self, gpu: Gpu, min_w: float, max_w: float) -> None:
        """Take in a range of limits that has changed."""
        self._gpus[gpu] = replace(
            self._gpus[gpu],
            min_mw=milliwatts("min_w", min_w),
            max_mw=milliwatts("max_w", max_w),
        )
