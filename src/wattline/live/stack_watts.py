"""The GPUs of a live stack as their registers have them; whose doing watts above the budget are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from wattline.core.errors import WattlineError
from wattline.live.stack_spec import StackSpec
from wattline.virtual.judge import Known, Verdict, judge
from wattline.virtual.node import VirtualNode
from wattline.virtual.observer import Observer, ObserverError


class StackWatts:
    """Limits, draw and energy, of all pools or of some by name.

    What enforced limits are judged against is the budget *less its guard band*. `known` is what the
    judge has to know: whoever injects a fault adds to it.
    """

    def __init__(self, spec: StackSpec) -> None:
        self._spec = spec
        self._gpus: dict[str, list[tuple[VirtualNode, str]]] = {}
        self._nodes: dict[str, VirtualNode] = {}
        self.known = Known()
        self.budget_w = spec.budget_w
        """The newest budget that was set through the stack."""
        self.observer: Observer | None = None

    def add(self, pool: str, node: VirtualNode, uuids: Sequence[str]) -> None:
        """Take the GPUs of a pool in."""
        self._gpus[pool] = [(node, uuid) for uuid in uuids]
        self._nodes[node.folder.name] = node

    def enforced_w(self, pools: Sequence[str] | None = None) -> float:
        """Sum of the limits in the registers."""
        return sum(node.gpus.enforced_mw(uuid) / 1000 for node, uuid in self._of(pools))

    def drawn_w(self, pools: Sequence[str] | None = None) -> float:
        """Sum of what the GPUs draw now."""
        return sum(node.gpus.state(uuid).draw_w for node, uuid in self._of(pools))

    def energy_j(self, pools: Sequence[str] | None = None) -> float:
        """Sum of the energy counters."""
        return sum(node.gpus.state(uuid).energy_j for node, uuid in self._of(pools))

    def _of(self, pools: Sequence[str] | None) -> Iterator[tuple[VirtualNode, str]]:
        for name, gpus in self._gpus.items():
            if pools is None or name in pools:
                yield from gpus

    @property
    def usable_w(self) -> float:
        """The newest budget less its guard band."""
        return self._usable_mw(self.budget_w) / 1000

    def within(self) -> bool:
        """Whether limits are within the usable budget now."""
        return self.enforced_w() <= self.usable_w

    def _usable_mw(self, budget_w: float) -> int:
        return round(budget_w * (1.0 - self._spec.guard_percent / 100.0) * 1000)

    def budget_changed(self, at_s: float, watts: float) -> None:
        """The budget is another one from `at_s` of the monotonic clock."""
        self.budget_w = watts
        self.known.budgets.append((at_s, self._usable_mw(watts)))

    def observe(self) -> Observer:
        """Watch every change of every limit from now on; the newest budget is in force."""
        self.observer = Observer({name: node.gpus_file for name, node in self._nodes.items()})
        self.known.budgets = [(self.observer.start_s, self._usable_mw(self.budget_w))]
        self.observer.start()
        return self.observer

    def verdict(self) -> Verdict:
        """End the observation: watt-seconds above the usable budget, by whose doing.

        ObserverError if it has a hole: a change that may have been missed.
        """
        if self.observer is None:
            raise WattlineError("limits were not observed")
        observer, self.observer = self.observer, None
        end_s = time.monotonic()
        observer.stop()
        return self.judged(observer, end_s)

    def judged(self, observer: Observer, end_s: float | None = None) -> Verdict:
        """The verdict on an observation that has ended, whether or not it has a hole."""
        return judge(
            observer.changes,
            self.known,
            observer.start_mw,
            observer.start_s,
            time.monotonic() if end_s is None else end_s,
            guard_mw=0,
        )

    def close(self) -> None:
        """End an observation that nobody asks about any more."""
        if self.observer is not None:
            with contextlib.suppress(ObserverError):
                self.observer.stop()
            self.observer = None
