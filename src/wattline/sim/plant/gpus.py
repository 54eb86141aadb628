"""Limits and clocks of all GPUs: what was written, what is enforced, what the chip follows by now.

The enforced register changes at the write. The chip follows it `settle_s` later, in both
directions, and draws by the old limit until then: late in lowering is the unsafe side, late in
raising the slow one.
"""

from __future__ import annotations

from collections import deque

from wattline.core.fleet import Fleet, GpuProduct
from wattline.core.snapshot import Phase


class GpuBank:
    """Columns over GPUs, numbered pool by pool; nodes of `gpus_per_node` GPUs within a pool."""

    def __init__(self, fleet: Fleet, gpus_per_node: int) -> None:
        self.products: list[GpuProduct] = []
        self.pool: list[int] = []
        self.node: list[int] = []
        self.first_gpu: list[int] = []
        self.nodes = 0
        for index, pool in enumerate(fleet.pools):
            self.first_gpu.append(len(self.pool))
            product = fleet.product_of(pool)
            self.products.extend([product] * pool.gpus)
            self.pool.extend([index] * pool.gpus)
            self.node.extend(self.nodes + i // gpus_per_node for i in range(pool.gpus))
            self.nodes += -(-pool.gpus // gpus_per_node)
        count = len(self.pool)
        self.replica = [-1] * count
        self.row = [0] * count
        self.phase = [Phase.PARKED] * count
        self.enforced_w = [product.min_limit_w for product in self.products]
        self.clock = [1.0] * count
        self.effective_w = list(self.enforced_w)
        self.effective_clock = [1.0] * count
        self.derate = [1.0] * count
        self.refuses = [False] * count
        self.write_floor_w: list[float | None] = [None] * count
        self._settling: list[deque[tuple[float, float, float]]] = [deque() for _ in range(count)]
        self._total_w = sum(self.enforced_w)
        self.changes: list[tuple[float, float]] = [(0.0, round(self._total_w, 6))]

    def set_now(self, gpu: int, cap_w: float, clock: float) -> None:
        """Limit and clock with immediate effect: the state that a run or a boot starts with."""
        self._settling[gpu].clear()
        product = self.products[gpu]
        cap_w = min(max(cap_w, product.min_limit_w), product.max_limit_w)
        self._total_w += cap_w - self.enforced_w[gpu]
        self.enforced_w[gpu] = self.effective_w[gpu] = cap_w
        self.clock[gpu] = self.effective_clock[gpu] = clock

    def write(self, gpu: int, cap_w: float, clock: float, now: float) -> float | None:
        """Write a limit; returns when the chip follows it, None when nothing changed."""
        if self.refuses[gpu]:
            return None
        product = self.products[gpu]
        cap_w = min(max(cap_w, product.min_limit_w), product.max_limit_w)
        floor_w = self.write_floor_w[gpu]
        if floor_w is not None:
            cap_w = max(cap_w, floor_w)
        clock = min(max(clock, 0.0), 1.0)
        if cap_w == self.enforced_w[gpu] and clock == self.clock[gpu]:
            return None
        self._total_w += cap_w - self.enforced_w[gpu]
        self.enforced_w[gpu] = cap_w
        self.clock[gpu] = clock
        self.note_total(now)
        settled_s = now + product.settle_s
        self._settling[gpu].append((settled_s, cap_w, clock))
        return settled_s

    def note_total(self, now: float) -> None:
        """Append the sum of the enforced limits; several changes at one time make one entry."""
        total_w = round(self._total_w, 6)
        if self.changes and self.changes[-1][0] == now:
            self.changes[-1] = (now, total_w)
        else:
            self.changes.append((now, total_w))

    def settle(self, gpus: tuple[int, ...], now: float) -> bool:
        """Let the chips follow what was written `settle_s` ago; True if anything changed."""
        changed = False
        for gpu in gpus:
            settling = self._settling[gpu]
            while settling and settling[0][0] <= now + 1e-9:
                _, cap_w, clock = settling.popleft()
                changed |= cap_w != self.effective_w[gpu] or clock != self.effective_clock[gpu]
                self.effective_w[gpu] = cap_w
                self.effective_clock[gpu] = clock
        return changed

    def pace(self, gpus: tuple[int, ...]) -> tuple[float, float, float]:
        """Cap, clock and derating of the slowest of some GPUs: what their replica runs at."""
        return (
            min(self.effective_w[gpu] for gpu in gpus),
            min(self.effective_clock[gpu] for gpu in gpus),
            min(self.derate[gpu] for gpu in gpus),
        )
