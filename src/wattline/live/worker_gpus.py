"""A worker's GPUs on a virtual node: limits are read from them, the wanted draw goes into them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from wattline.catalog.products import gpu as catalog_gpu
from wattline.core.errors import InputError, WattlineError
from wattline.core.fleet import GpuProduct
from wattline.virtual.gpus import VirtualGpus
from wattline.virtual.products import PRODUCTS, VirtualProduct

_STEP_W = 1.0
"""Changes of the wanted draw below this are not written: each write is an entry of a GPU's log."""


class WorkerGpus:
    """The GPUs of one replica, all of one product. A context manager: at the end they idle."""

    def __init__(self, state_file: Path, uuids: tuple[str, ...]) -> None:
        """Raises InputError for a GPU that is not there, none at all, or two products."""
        if not uuids:
            raise InputError("worker, gpus", (), "name at least one GPU by its UUID")
        if len(set(uuids)) != len(uuids):
            raise InputError("worker, gpus", uuids, "each GPU once")
        self._gpus = VirtualGpus(state_file)
        try:
            names = {self._gpus.state(uuid).product for uuid in uuids}
            if len(names) != 1:
                raise InputError("worker, gpus", sorted(names), "a replica is of one product")
            self._virtual = _product_of(names.pop())
        except WattlineError:
            self._gpus.close()
            raise
        self.uuids = uuids
        self.product = _as_on_the_node(self._virtual)
        self._load_w = [-1.0] * len(uuids)

    def limits_w(self) -> tuple[float, ...]:
        """Watts that the chips obey by now: what was enforced a settle time ago."""
        return tuple(self._gpus.obeyed_mw(uuid) / 1000.0 for uuid in self.uuids)

    def enforced_w(self) -> tuple[float, ...]:
        """Enforced limits, as their registers have them."""
        return tuple(self._gpus.enforced_mw(uuid) / 1000.0 for uuid in self.uuids)

    def clocks(self) -> tuple[float, ...]:
        """Clock ceilings as fractions of the product's largest clock; 1.0: none.

        WattlineError for a GPU that fell off the bus: a real engine dies of that.
        """
        return tuple(self._clock(uuid) for uuid in self.uuids)

    def _clock(self, uuid: str) -> float:
        state = self._gpus.state(uuid)
        if state.lost_xid is not None or state.index is None:
            raise WattlineError(f"GPU {uuid} is gone (Xid {state.lost_xid}): the worker ends")
        if state.clock_ceiling_mhz is None:
            return 1.0
        return min(1.0, state.clock_ceiling_mhz / self._virtual.max_clock_mhz)

    def want(self, watts: float, clocks: tuple[float, ...]) -> None:
        """From now on the work wants `watts` per GPU under these clock ceilings.

        The virtual GPU lowers what is above its idle draw with the square of a ceiling itself, so
        that it is given the draw without any.
        """
        idle_w = float(self._virtual.idle_w)
        for place, (uuid, clock) in enumerate(zip(self.uuids, clocks, strict=True)):
            load_w = idle_w + max(0.0, watts - idle_w) / (clock * clock)
            if abs(load_w - self._load_w[place]) >= _STEP_W:
                self._load_w[place] = load_w
                self._gpus.set_load(uuid, load_w)

    def close(self) -> None:
        """Nothing runs on them any more."""
        try:
            for uuid in self.uuids:
                self._gpus.set_load(uuid, 0.0)
        finally:
            self._gpus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _product_of(name: str) -> VirtualProduct:
    for product in PRODUCTS.values():
        if name in (product.nvml_name, product.catalog_name):
            return product
    raise InputError("worker, gpus", name, "no product of virtual nodes has this name")


def _as_on_the_node(virtual: VirtualProduct) -> GpuProduct:
    """The catalog's product, with the limits and the idle draw that the node's GPUs have."""
    return replace(
        catalog_gpu(virtual.catalog_name),
        min_limit_w=float(virtual.min_limit_w),
        default_limit_w=float(virtual.default_limit_w),
        max_limit_w=float(virtual.max_limit_w),
        idle_w=float(virtual.idle_w),
    )
