"""What a node holds for its GPUs, and what it says about that."""

from __future__ import annotations

from collections.abc import Hashable
from copy import copy
from typing import Generic, Self

from wattline.grants.messages import Gpu, Report
from wattline.grants.node_state import FOREVER_S, GpuState, Journalled, JournalledGpu, Why
from wattline.grants.watts import watts_or_none


class Holdings(Generic[Gpu]):
    """State of one node: what can be asked of it; `Node` is what changes it."""

    def __init__(self, incarnation: int, epoch: int, budget_version: int | None) -> None:
        self.incarnation = incarnation
        self.epoch = epoch
        self.budget_version = budget_version
        self.operator_hold = False
        self.report_sequence = 0
        self._gpus: dict[Gpu, GpuState] = {}

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """GPUs of the node, in the order in which they were found."""
        return tuple(self._gpus)

    def state(self, gpu: Gpu) -> GpuState:
        """Return all that is known about `gpu`."""
        return self._gpus[gpu]

    def wanted_w(self, gpu: Gpu) -> float:
        """Return the limit that should be enforced now."""
        return self._gpus[gpu].wanted_mw / 1000

    def held_w(self, gpu: Gpu) -> float:
        """Return the largest limit that the node may write by itself."""
        return self._gpus[gpu].held_mw / 1000

    def why(self, gpu: Gpu) -> Why:
        """Say why `gpu` is wanted at the limit that it is wanted at."""
        state = self._gpus[gpu]
        if state.restored:
            return Why.RESTORED
        if state.pin_mw is not None and state.pin_mw <= state.held_mw:
            return Why.PINNED
        if state.braked:
            return Why.BRAKED
        if state.expired:
            return Why.EXPIRED
        if self.operator_hold:
            return Why.HELD
        return Why.FOUND if state.grant_mw is None else Why.GRANTED

    def rival_w(self, gpu: Gpu) -> float | None:
        """Return an enforced limit that is not ours, None while what is wanted is enforced.

        While a write is under way, or due for the first time, nobody else is to blame.
        """
        state = self._gpus[gpu]
        if state.writing_mw is not None or state.attempted_mw != state.wanted_mw:
            return None
        return None if state.enforced_mw == state.wanted_mw else state.enforced_mw / 1000

    def next_deadline_s(self) -> float:
        """Return the time of the next expiry or repair; infinity if none is due."""
        due_s = FOREVER_S
        for state in self._gpus.values():
            if not state.expired:
                due_s = min(due_s, state.lease_end_s)
            under_way = state.writing_mw is not None and not state.write_returned
            writable = state.wanted_mw >= state.min_mw and not under_way
            if writable and state.enforced_mw != state.wanted_mw:
                due_s = min(due_s, state.next_repair_s)
        return due_s

    def report(self, gpu: Gpu, read_s: float) -> Report[Gpu]:
        """Say what is known about `gpu`, as of its newest reading, taken at `read_s`.

        Not to be called for a GPU that does not answer: an old reading must not pass for a new one.
        """
        state = self._gpus[gpu]
        self.report_sequence += 1
        return Report(
            gpu=gpu,
            incarnation=self.incarnation,
            epoch=self.epoch,
            sequence=state.sequence if state.epoch == self.epoch else 0,
            report_sequence=self.report_sequence,
            enforced_w=state.enforced_mw / 1000,
            held_w=state.reported_held_mw / 1000,
            standing_s=max(0.0, read_s - state.since_s),
            budget_version=self.budget_version,
            persistence=state.persistence,
        )

    def reports(self, read_s: float) -> list[Report[Gpu]]:
        """Report on every GPU; all were read at `read_s`."""
        return [self.report(gpu, read_s) for gpu in self._gpus]

    def copy(self) -> Self:
        """Return a node that changes on its own."""
        other = copy(self)
        other._gpus = dict(self._gpus)
        return other

    def freeze(self) -> Hashable:
        """Return everything that changes as one value; times are as they are."""
        return (
            self.incarnation,
            self.epoch,
            self.budget_version,
            self.operator_hold,
            self.report_sequence,
            tuple(self._gpus.items()),
        )

    def journal_state(self) -> Journalled[Gpu]:
        """Return what must be on disk before the next write begins (JOURNAL_BEFORE_WRITE)."""
        return Journalled(
            incarnation=self.incarnation,
            epoch=self.epoch,
            budget_version=self.budget_version,
            gpus={
                gpu: JournalledGpu(
                    held_w=state.held_mw / 1000,
                    brake_w=state.brake_mw / 1000,
                    lease_s=state.lease_s,
                    expiry_w=watts_or_none(state.expiry_mw),
                )
                for gpu, state in self._gpus.items()
            },
        )
