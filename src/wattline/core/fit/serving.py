"""Fit of the engine's and the GPU's parameters from steady serving measurements.

The fitted numbers are the parameters of `RooflineEngine` themselves, so that what is fitted here is
what decisions and the simulated plant use. The time of a pass is a sum with one coefficient per
parameter; the coefficients are read off the engine once per run (by switching every other cost
off), which makes a step of the fit a few matrix products. Predictions and errors come from the
engine itself.

Parameters are fitted as logarithms, efficiencies as log-odds, with a normal prior: one value for
all GPU products and a small deviation for each. A product without measurements gets the parameters
of the one fitted product of its architecture, else those without deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from wattline.core.fit.parameters import (
    EFFICIENCIES,
    EVENNESS,
    HALVES,
    HOST_REQUEST_S,
    HOST_S,
    OVERHEADS,
    OVERLAP,
    PROMPT_STALL,
    QUANTISED,
    REQUEST_S,
    WATTS,
    Belief,
    ProductParams,
)
from wattline.core.fit.solve import Prior, Vector, fit_robust
from wattline.core.fit.workload import (
    ServingRun,
    Surroundings,
    pass_mix,
    steady_state,
)
from wattline.core.fleet import GpuProduct
from wattline.core.power import CapResponse
from wattline.core.roofline import EngineParams, RooflineEngine, roofline_engine

_UNEVEN = 0.6
"""Evenness at which the change of seconds with it is read off; between it and 1 it is linear to a
few percent. Predictions do not use this approximation."""

SCALE = 0.1
"""Relative error from which a row counts linearly, not quadratically."""
WATTS_WEIGHT = 1.5
"""A relative error in watts counts this many times one in rate: watts scatter less."""
PRIOR_STRENGTH = 10.0
"""A prior counts as this many runs: runs of one model are far from independent."""

_CAP_SHARPNESS = 12.0
_CLOCK_EXPONENT = 2.0
"""How sharply the limit cuts in, and the exponent of a whole pass's watts over its clock (between
2.4 for arithmetic and 0 for what does not follow the clock): a smooth stand-in for
`CapResponse.settle` while fitting."""
_TASKS = tuple(REQUEST_S)
_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingFit:
    """Fitted parameters of every product with measurements, and of all of them together."""

    products: Mapping[str, ProductParams]
    architectures: Mapping[str, str]
    shared: ProductParams
    runs: int

    def params_for(self, gpu: GpuProduct) -> ProductParams:
        """Parameters of `gpu`, of its architecture, or of all products: the nearest there are."""
        own = self.products.get(gpu.name)
        if own is not None:
            return own
        kin = [n for n in sorted(self.products) if self.architectures[n] == gpu.architecture]
        return self.products[kin[0]] if len(kin) == 1 else self.shared

    def predict(self, run: ServingRun, *, engine_alone: bool = False) -> tuple[float, float]:
        """Watts per GPU and output tokens per second, from the engine that decisions use.

        `engine_alone` leaves out what lies around its passes (see `Surroundings`), as decisions and
        the plant do.
        """
        params = self.params_for(run.gpu)
        response = params.response(run.gpu)
        if engine_alone:
            nothing = Surroundings(
                request_s=0.0, host_s=0.0, host_request_s=0.0, prompt_stall=1.0, host_w=0.0
            )
            return steady_state(run, engine_of(run, params.engine, response), nothing)
        around = Surroundings(
            request_s=params.request_s[run.known_task],
            host_s=params.host_s[run.known_task] * run.contention,
            host_request_s=params.host_request_s[run.known_task] * run.contention,
            prompt_stall=params.prompt_stall if run.dp > 1 else 1.0,
            host_w=params.base_share * run.gpu.default_limit_w,
        )
        return steady_state(run, engine_of(run, params.engine, response), around)


def engine_of(run: ServingRun, params: EngineParams, response: CapResponse) -> RooflineEngine:
    """Build the engine of a run. Attention is cut over the GPUs of one data parallel copy."""
    return roofline_engine(
        run.model,
        run.gpu,
        params=params,
        response=response,
        tp=max(1, run.gpus // run.dp),
        dp=run.dp,
        expert_parallel=run.expert_parallel,
        precision=run.precision,
    )


class _Layout:
    """Where each parameter and each product's deviation from it stands in the vector."""

    def __init__(self, products: Sequence[str]) -> None:
        self.products = tuple(products)
        self.beliefs: dict[str, Belief] = {
            **EFFICIENCIES,
            **OVERHEADS,
            **HALVES,
            "quantised": QUANTISED,
            "evenness": EVENNESS,
            "overlap": OVERLAP,
        }
        self.beliefs |= {f"watts {name}": belief for name, belief in WATTS.items()}
        self.beliefs |= {f"request {task}": belief for task, belief in REQUEST_S.items()}
        self.beliefs |= {f"host {task}": belief for task, belief in HOST_S.items()}
        self.beliefs |= {f"host request {task}": belief for task, belief in HOST_REQUEST_S.items()}
        self.beliefs["prompt_stall"] = PROMPT_STALL
        self.index = {name: position for position, name in enumerate(self.beliefs)}
        means = [belief.fitted(belief.value) for belief in self.beliefs.values()]
        spreads = [belief.fitted_spread(belief.spread) for belief in self.beliefs.values()]
        self.deviation: dict[str, int] = {}
        for name, belief in self.beliefs.items():
            if belief.product_spread > 0.0:
                self.deviation[name] = len(means)
                means += [0.0] * len(self.products)
                spread = belief.fitted_spread(belief.product_spread)
                spreads += [spread] * len(self.products)
        self.prior = Prior(np.array(means), np.array(spreads))

    def values(self, theta: Vector, name: str) -> Vector:
        """Return the parameter of each product, and last the one without deviations."""
        fitted = np.full(len(self.products) + 1, theta[self.index[name]])
        start = self.deviation.get(name)
        if start is not None:
            fitted[:-1] += theta[start : start + len(self.products)]
        values = 1.0 / (1.0 + np.exp(-fitted)) if self.beliefs[name].share else np.exp(fitted)
        return np.asarray(values)


@dataclass(frozen=True, slots=True)
class _Table:
    """Runs as columns.

    `seconds` is (runs, coefficients, 3 kinds, 2 passes) at parameters of 1, `uneven` the change of
    that per unit by which the evenness of routing falls short of 1.
    """

    seconds: Vector
    uneven: Vector
    quantised: Vector
    product: NDArray[np.int64]
    task: NDArray[np.int64]
    mixed_share: Vector
    prompts: Vector
    contention: Vector
    stalls: Vector
    batch: Vector
    log_rate: Vector
    log_share: Vector
    weight: Vector


_SWITCHED_OFF = EngineParams(
    **dict.fromkeys(EFFICIENCIES, inf),
    **dict.fromkeys(OVERHEADS, 0.0),
    **dict.fromkeys(HALVES, 0.0),
    ep_imbalance=1.0,
)
_NO_WATTS = CapResponse(static_w=0.0, compute_w=0.0, memory_w=0.0, idle_w=0.0)
_COEFFICIENTS = (*EFFICIENCIES, *OVERHEADS, *HALVES)
"""What a pass's seconds are a sum over: one term per parameter, two for GEMMs and expert GEMMs,
whose `HALVES` term is the time that does not grow with the tokens."""
_DIVIDED_BY: Mapping[str, str] = {
    "expert_spread": "expert_bandwidth",
    "gemm_half_tokens": "gemm_mfu",
    "moe_half_tokens": "moe_mfu",
}
"""Terms that an efficiency divides too."""


def fit_serving(runs: Sequence[ServingRun]) -> ServingFit:
    """Fit on runs whose watts and rate are both measured; at least one is needed.

    Every family of models has the weight of the square root of its runs, so that no family decides
    alone. Raises InputError where the catalog lacks a number of a product that a run needs.
    """
    products = sorted({run.gpu.name for run in runs})
    layout = _Layout(products)
    table = _table(runs, products)
    residual = _residual(layout, table)
    weights = np.concatenate([table.weight, table.weight])
    theta = fit_robust(residual, layout.prior, weights, scale=SCALE, strength=PRIOR_STRENGTH)
    fitted = {
        name: _product_params(layout, theta, position, (name,))
        for position, name in enumerate(products)
    }
    return ServingFit(
        products=fitted,
        architectures={run.gpu.name: run.gpu.architecture for run in runs},
        shared=_product_params(layout, theta, -1, tuple(products)),
        runs=len(runs),
    )


def _residual(layout: _Layout, table: _Table) -> Callable[[Vector], Vector]:
    def residual(theta: Vector) -> Vector:
        log_step, log_share = _model(layout, table, theta)
        rate = np.log(table.batch) - log_step - table.log_rate
        return np.concatenate([rate, WATTS_WEIGHT * (log_share - table.log_share)])

    return residual


def _model(layout: _Layout, table: _Table, theta: Vector) -> tuple[Vector, Vector]:
    """Logarithms of seconds per step and of watts over the default limit, per run."""

    def of(name: str) -> Vector:
        return layout.values(theta, name)[table.product]

    eight_bit = of("quantised")[:, None] ** table.quantised
    factors = np.column_stack(
        [1.0 / of(name) if name in EFFICIENCIES else of(name) for name in _COEFFICIENTS]
    )
    for name, efficiency in _DIVIDED_BY.items():
        factors[:, _COEFFICIENTS.index(name)] /= of(efficiency)
    factors /= eight_bit
    short = (1.0 - of("evenness"))[:, None, None, None]
    seconds = np.einsum("rk,rkcp->rcp", factors, table.seconds + short * table.uneven)
    compute, memory, other = seconds[:, 0], seconds[:, 1], seconds[:, 2]
    exposed = 1.0 - of("overlap")[:, None]

    def total(busy: Vector) -> Vector:
        longer, shorter = np.maximum(busy, memory), np.minimum(busy, memory)
        return np.asarray(longer + exposed * shorter + other)

    base, passes = of("watts base"), total(compute)
    wanted = of("watts memory")[:, None] * memory + of("watts compute")[:, None] * compute
    wanted = base[:, None] + wanted / passes
    over = (1.0 + wanted**_CAP_SHARPNESS) ** (1.0 / _CAP_SHARPNESS)
    passes = total(compute * over ** (1.0 / _CLOCK_EXPONENT))
    share = table.mixed_share * np.where(table.stalls > 0.0, of("prompt_stall"), 1.0)

    def mean(per_pass: Vector) -> Vector:
        return np.asarray(per_pass[:, 0] + share * (per_pass[:, 1] - per_pass[:, 0]))

    def by_task(name: str) -> Vector:
        columns = np.column_stack([of(f"{name} {task}") for task in _TASKS])
        return np.asarray(columns[np.arange(table.task.size), table.task])

    host = table.contention * (by_task("host") + by_task("host request") * table.prompts)
    gpu = mean(passes)
    step = np.sqrt(gpu**2 + host**2) + by_task("request") * table.prompts
    return np.log(step), np.log((mean(passes * wanted / over) + base * (step - gpu)) / step)


def _table(runs: Sequence[ServingRun], products: Sequence[str]) -> _Table:
    families = [run.family for run in runs]
    weight = np.array([families.count(family) ** -0.5 for family in families])
    mixes = [pass_mix(run) for run in runs]
    even = np.array([_coefficients(run, 1.0) for run in runs])
    return _Table(
        seconds=even,
        uneven=np.array([_uneven(run, seconds) for run, seconds in zip(runs, even, strict=True)]),
        quantised=np.array([_quantised(run) for run in runs]),
        product=np.array([products.index(run.gpu.name) for run in runs]),
        task=np.array([_TASKS.index(run.known_task) for run in runs]),
        mixed_share=np.array([mix.mixed_share for mix in mixes]),
        prompts=np.array([run.prompts_per_pass for run in runs]),
        contention=np.array([run.contention for run in runs]),
        stalls=np.array([float(run.dp > 1) for run in runs]),
        batch=np.array([run.batch for run in runs]),
        log_rate=np.log([run.rate or 1.0 for run in runs]),
        log_share=np.log([(run.watts or 1.0) / run.gpu.default_limit_w for run in runs]),
        weight=weight / weight.mean(),
    )


def _coefficients(run: ServingRun, evenness: float) -> Vector:
    """Seconds (coefficients, 3 kinds, 2 passes) with one parameter at 1 and the others off."""
    mix = pass_mix(run)
    off = replace(_SWITCHED_OFF, routing_evenness=evenness)

    def seconds(**switched_on: float) -> Vector:
        engine = engine_of(run, replace(off, **switched_on), _NO_WATTS)
        return np.array([engine.time(mix.decode), engine.time(mix.mixed)]).T

    rows = []
    for name in _COEFFICIENTS:
        divisor = _DIVIDED_BY.get(name)
        if divisor is None:
            rows.append(seconds(**{name: 1.0}))
        else:
            rows.append(seconds(**{name: 1.0, divisor: 1.0}) - seconds(**{divisor: 1.0}))
    return np.array(rows)


def _uneven(run: ServingRun, even: Vector) -> Vector:
    """Change of `even`, the coefficients at even routing, per unit of evenness short of 1."""
    if not run.model.is_moe:
        return np.zeros_like(even)
    return np.asarray((_coefficients(run, _UNEVEN) - even) / (1.0 - _UNEVEN))


def _quantised(run: ServingRun) -> Vector:
    """1 for each coefficient that the efficiency of 8-bit weights divides, else 0."""
    params = replace(_SWITCHED_OFF, expert_bandwidth=1.0, gemm_mfu=1.0)
    whole = engine_of(run, params, _NO_WATTS)
    half = engine_of(run, replace(params, quantised_efficiency=0.5), _NO_WATTS)
    work = pass_mix(run).decode
    once, twice = whole.time(work), half.time(work)
    dense, experts = twice.compute_s > once.compute_s, twice.memory_s > once.memory_s
    affected = {"gemm_mfu": dense, "gemm_half_tokens": dense}
    affected |= dict.fromkeys(("moe_mfu", "moe_half_tokens"), experts)
    affected |= dict.fromkeys(("expert_bandwidth", "expert_spread"), experts)
    return np.array([float(affected.get(name, False)) for name in _COEFFICIENTS])


def _product_params(
    layout: _Layout, theta: Vector, position: int, based_on: tuple[str, ...]
) -> ProductParams:
    """Return the parameters at one position of `_Layout.values`, rounded."""

    def value(name: str) -> float:
        return float(f"{layout.values(theta, name)[position]:.{_DIGITS}g}")

    engine = EngineParams(
        **{name: value(name) for name in _COEFFICIENTS},
        quantised_efficiency=value("quantised"),
        routing_evenness=value("evenness"),
        ep_imbalance=1.0,
    )
    return ProductParams(
        engine=engine,
        base_share=value("watts base"),
        memory_share=value("watts memory"),
        compute_share=value("watts compute"),
        overlap=value("overlap"),
        request_s={task: value(f"request {task}") for task in _TASKS},
        host_s={task: value(f"host {task}") for task in _TASKS},
        host_request_s={task: value(f"host request {task}") for task in _TASKS},
        prompt_stall=value("prompt_stall"),
        based_on=based_on,
    )
