"""A node as the closed loop meets it: obeys grants, writes limits, reads them back, reports.

It stands for the node agent and the network: messages take a moment, may be lost while the node is
silent, and what the hardware enforces is read back and never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.grants.ledger import Grant, Report

# Waits between attempts to write our own value over a rival's: doubling, so that two writers do not
# fight for ever. The first repair is immediate.
_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True)
class Order:
    """What travels to a node for one GPU: the grant and the clock ceiling that goes with it."""

    grant: Grant
    clock: float


@dataclass(slots=True)
class _Held:
    """What the node holds for one GPU."""

    gpu: int
    epoch: int
    sequence: int
    watts: float
    clock: float
    since_s: float
    enforced_w: float
    backoff_s: float = 0.0
    next_repair_s: float = 0.0


class Node:
    """One node of the simulated fleet.

    `write(gpu, watts, clock)` writes a limit and returns what is then enforced; `read(gpu)` reads
    the enforced limit, None while the GPU does not answer. `on_repair(gpu)` is told when the node
    has written its own value over somebody else's.
    """

    def __init__(
        self,
        gpus: Sequence[int],
        *,
        write: Callable[[int, float, float], float],
        read: Callable[[int], float | None],
        on_repair: Callable[[int], None],
        epoch: int,
        initial_w: Sequence[float],
        initial_clock: Sequence[float],
    ) -> None:
        self.silent = False
        self._write = write
        self._read = read
        self._on_repair = on_repair
        self._report_sequence = 0
        self._held = [
            # What stood before the first grant has stood long: nothing is left to settle.
            _Held(gpu, epoch, 0, watts, clock, float("-inf"), watts)
            for gpu, watts, clock in zip(gpus, initial_w, initial_clock, strict=True)
        ]
        self._by_gpu = {held.gpu: held for held in self._held}

    def deliver(self, order: Order, now_s: float) -> None:
        """Obey `order` if it is newer than everything obeyed so far; lost while silent."""
        if self.silent:
            return
        grant = order.grant
        held = self._by_gpu[grant.gpu]
        if (grant.epoch, grant.sequence) <= (held.epoch, held.sequence):
            return
        held.epoch, held.sequence = grant.epoch, grant.sequence
        held.watts, held.clock = grant.watts, order.clock
        self._enforce(held, now_s)

    def _enforce(self, held: _Held, now_s: float) -> None:
        enforced_w = self._write(held.gpu, held.watts, held.clock)
        if enforced_w != held.enforced_w:
            held.since_s = now_s
            held.enforced_w = enforced_w

    def report_and_repair(self, now_s: float) -> list[Report]:
        """Read back and report every GPU that answers, as found; then repair what differs.

        A silent node does none of it. Repairs of one GPU are spaced ever wider apart.
        """
        if self.silent:
            return []
        self._report_sequence += 1
        reports = []
        for held in self._held:
            enforced_w = self._read(held.gpu)
            if enforced_w is None:
                continue
            if enforced_w != held.enforced_w:
                held.since_s = now_s
                held.enforced_w = enforced_w
            reports.append(self._report(held, now_s))
            if enforced_w == held.watts:
                if now_s >= held.next_repair_s + held.backoff_s:
                    held.backoff_s = 0.0
            elif now_s >= held.next_repair_s:
                self._repair(held, now_s)
        return reports

    def _report(self, held: _Held, now_s: float) -> Report:
        return Report(
            gpu=held.gpu,
            epoch=held.epoch,
            sequence=held.sequence,
            report_sequence=self._report_sequence,
            enforced_w=held.enforced_w,
            standing_s=now_s - held.since_s,
        )

    def _repair(self, held: _Held, now_s: float) -> None:
        self._enforce(held, now_s)
        held.backoff_s = min(_LONGEST_BACKOFF_S, max(_FIRST_BACKOFF_S, 2 * held.backoff_s))
        held.next_repair_s = now_s + held.backoff_s
        self._on_repair(held.gpu)
