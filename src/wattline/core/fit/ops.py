"""Watts of single kernels from what they do and how long they take.

Per GPU product and kind of kernel (op, and data type for GEMMs) a surface

    log(watts) = quadratic in log(FLOP/s over peak), log(bytes/s over peak), log(latency)

is fitted robustly, plus the local residual of the measured kernels nearest in shape; the power
limit cuts it off. Rows at the limit say only that the kernel wants at least that much, so for them
a surface above the limit is no error. About one row in eleven of the published tables reads low
because its sensor average still holds idle time; the loss is linear in large residuals, so that
those rows do not bend the surface, and nothing is left out of what is scored.

A product without rows is predicted from the fitted product of its architecture nearest in watts:
the same silicon spends the same joules per FLOP and byte, so rates count absolutely, and only the
limit is its own. Where the nearest kernels stood at the limit of the fitted product, a higher limit
raises the clock, and the dynamic watts grow as (rate over their rate)^`GAMMA`. Without a product of
the same architecture, rates and watts are taken relative to datasheet peaks and limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wattline.core.fit.kernels import KernelRun, peak_flops
from wattline.core.fit.solve import Vector
from wattline.core.fleet import GpuProduct

LONG_KERNEL_S = 0.3e-3
"""Kernels above it are reported apart: launch gaps do not count in them."""

GAMMA = 2.4
"""Exponent of dynamic watts over the clock: as in `core.power.CapResponse`."""

AT_LIMIT = 0.97
"""A row above this share of its limit is taken to be held by it."""

_SCALE = 0.05
_RIDGE = 1.0
_HELD_WEIGHT = 0.02
_ROUNDS = 30
_NEIGHBOURS = 12
_REACH = 1.0
"""Distance, in powers of two of one dimension, at which a neighbour's weight has fallen to 0.6."""
_OWN_WEIGHT = 0.25
"""Weight of no residual at all against those of neighbours."""
_FEW_ROWS = 30
_TIE = 1e-9
_CHUNK = 256
_RATE_RANGE = (1e-4, 0.9)
_BYTES_RANGE = (1e-3, 1.2)
_SECONDS_RANGE = (5e-6, 2e-3)


@dataclass(frozen=True, slots=True)
class Surface:
    """One kind of kernel on one product: coefficients, range of the features, measured kernels."""

    coefficients: Vector
    low: Vector
    high: Vector
    shapes: Vector
    residuals: Vector
    held: Vector
    log_rates: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class OpFit:
    """Surfaces per product and kind of kernel."""

    products: Mapping[str, GpuProduct]
    surfaces: Mapping[str, Mapping[str, Surface]]

    def base_for(self, gpu: GpuProduct) -> GpuProduct:
        """Choose the fitted product that predicts `gpu`: itself, kin, or the nearest in watts."""
        if gpu.name in self.products:
            return self.products[gpu.name]
        return min(
            self.products.values(),
            key=lambda known: (
                known.architecture != gpu.architecture,
                abs(known.default_limit_w - gpu.default_limit_w),
                known.name,
            ),
        )

    def predict(self, runs: Sequence[KernelRun]) -> list[float]:
        """Watts per GPU of each run, in whole milliwatts."""
        watts = [0.0] * len(runs)
        batches: dict[tuple[str, str], list[int]] = {}
        for index, run in enumerate(runs):
            batches.setdefault((run.gpu.name, kind_of(run)), []).append(index)
        for indices in batches.values():
            members = [runs[index] for index in indices]
            for index, value in zip(indices, self._predict(members), strict=True):
                watts[index] = round(float(value), 3)
        return watts

    def _predict(self, runs: Sequence[KernelRun]) -> Vector:
        """Watts of runs of one kind on one product."""
        gpu = runs[0].gpu
        base = self.base_for(gpu)
        surfaces = self.surfaces[base.name]
        surface = surfaces.get(kind_of(runs[0])) or _stand_in(surfaces, kind_of(runs[0]))
        kin = base.architecture == gpu.architecture
        reference = base if kin else gpu
        rates, bytes_, seconds = _rates(runs, reference)
        features = np.clip(_features(rates, bytes_, seconds), surface.low, surface.high)
        free = features @ surface.coefficients
        shapes = _shapes(runs)
        held = np.zeros(len(runs))
        faster = np.zeros(len(runs))
        if shapes.shape[1] == surface.shapes.shape[1]:
            residual, held, expected = _nearest(surface, shapes)
            free += residual
            faster = np.log(np.maximum(rates, 1e-9)) - expected
        watts = np.exp(free) * (1.0 if kin else gpu.default_limit_w / base.default_limit_w)
        limits = np.array([run.limit_w for run in runs])
        room = np.maximum(limits / base.default_limit_w, 1.0) if kin else np.ones(len(runs))
        idle_w = base.loaded_idle_w or 0.0
        raised = idle_w + (watts - idle_w) * np.exp(GAMMA * np.clip(faster, 0.0, np.log(room)))
        watts = watts + held * (raised - watts)
        return np.asarray(np.minimum(watts, limits))


def fit_ops(runs: Sequence[KernelRun]) -> OpFit:
    """Fit on runs with measured watts; at least one is needed."""
    products: dict[str, GpuProduct] = {}
    groups: dict[str, dict[str, list[KernelRun]]] = {}
    for run in runs:
        products[run.gpu.name] = run.gpu
        kinds = groups.setdefault(run.gpu.name, {})
        kinds.setdefault(kind_of(run), []).append(run)
    return OpFit(
        products=dict(sorted(products.items())),
        surfaces={
            name: {kind: _fit(members) for kind, members in sorted(groups[name].items())}
            for name in sorted(groups)
        },
    )


def kind_of(run: KernelRun) -> str:
    """Kernels that share a surface: an op, for GEMMs with its data type."""
    return f"{run.op}/{run.dtype}" if len(run.work.shape) == 3 else run.op


def _stand_in(surfaces: Mapping[str, Surface], kind: str) -> Surface:
    """Choose a surface for a kind not measured: of the same op, else the one with most rows."""
    op = kind.split("/", 1)[0]
    same = [name for name in surfaces if name.split("/", 1)[0] == op]
    names = same or list(surfaces)
    return surfaces[max(names, key=lambda name: (surfaces[name].residuals.size, name))]


def _rates(runs: Sequence[KernelRun], gpu: GpuProduct) -> tuple[Vector, Vector, Vector]:
    """FLOP/s and bytes/s over the peaks of `gpu`, and seconds."""
    seconds = np.array([run.latency_s for run in runs])
    flop = np.array([run.work.flop / peak_flops(gpu, run.work.arithmetic) for run in runs])
    moved = np.array([run.work.bytes / gpu.hbm_bytes_per_s for run in runs])
    return flop / seconds, moved / seconds, seconds


def _features(rates: Vector, bytes_: Vector, seconds: Vector) -> Vector:
    """Terms of the quadratic (rows, 10); ranges keep tiny and impossible rates in bounds."""
    axes = (
        np.log(np.clip(rates, *_RATE_RANGE)),
        np.log(np.clip(bytes_, *_BYTES_RANGE)),
        np.log(np.clip(seconds, *_SECONDS_RANGE) / 1e-4),
    )
    columns = [np.ones_like(rates), *axes]
    for first in range(3):
        columns += [axes[first] * axes[second] / 3.0 for second in range(first, 3)]
    return np.column_stack(columns)


def _shapes(runs: Sequence[KernelRun]) -> Vector:
    return np.array([run.work.shape for run in runs])


def _fit(runs: Sequence[KernelRun]) -> Surface:
    """Reweighted ridge regression: soft absolute loss, one-sided for rows at the limit."""
    rates, bytes_, seconds = _rates(runs, runs[0].gpu)
    features = _features(rates, bytes_, seconds)
    target = np.log([run.watts or run.limit_w for run in runs])
    held = target > np.log([AT_LIMIT * run.limit_w for run in runs])
    ridge = np.diag([1e-6] + [_RIDGE] * (features.shape[1] - 1))
    theta: Vector = np.zeros(features.shape[1])
    theta[0] = np.median(target)
    for _ in range(_ROUNDS if len(runs) >= _FEW_ROWS else 0):
        errors = target - features @ theta
        weights = 1.0 / np.sqrt(1.0 + (errors / _SCALE) ** 2)
        weights = np.where(held & (errors < 0.0), _HELD_WEIGHT * weights, weights)
        weighted = features * weights[:, None]
        solved = np.linalg.solve(weighted.T @ features + ridge, weighted.T @ target)
        theta = np.asarray(solved, dtype=np.float64)
    errors = target - features @ theta
    return Surface(
        coefficients=theta,
        low=features.min(axis=0),
        high=features.max(axis=0),
        shapes=_shapes(runs),
        residuals=np.where(held & (errors < 0.0), 0.0, errors),
        held=held.astype(np.float64),
        log_rates=np.log(np.maximum(rates, 1e-9)),
    )


def _nearest(surface: Surface, shapes: Vector) -> tuple[Vector, Vector, Vector]:
    """Weighted median residual, share held by the limit, and mean log rate, of near kernels."""
    count = min(_NEIGHBOURS, surface.residuals.size)
    parts = [
        _nearest_chunk(surface, shapes[start : start + _CHUNK], count)
        for start in range(0, len(shapes), _CHUNK)
    ]
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
    )


def _nearest_chunk(surface: Surface, shapes: Vector, count: int) -> tuple[Vector, Vector, Vector]:
    apart = ((shapes[:, None, :] - surface.shapes[None]) ** 2).sum(axis=2)
    # Equally near kernels are told apart by their place: which of them a partition would pick
    # differs between processors.
    apart += np.arange(apart.shape[1]) * _TIE
    near = np.sort(np.argpartition(apart, count - 1, axis=1)[:, :count], axis=1)
    weights = np.exp(-np.take_along_axis(apart, near, axis=1) / (2.0 * _REACH**2))
    total = np.maximum(weights.sum(axis=1), 1e-300)
    held = (weights * surface.held[near]).sum(axis=1) / (total + _OWN_WEIGHT)
    rate = (weights * surface.log_rates[near]).sum(axis=1) / total
    residuals = np.column_stack([surface.residuals[near], np.zeros(len(near))])
    weights = np.column_stack([weights, np.full(len(near), _OWN_WEIGHT)])
    order = np.argsort(residuals, axis=1, kind="stable")
    residuals = np.take_along_axis(residuals, order, axis=1)
    reached = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    middle = (reached >= reached[:, -1:] / 2.0).argmax(axis=1)
    return residuals[np.arange(len(near)), middle], held, rate
