"""Fitted parameters as the files of the catalog have them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wattline.core.fit.ops import OpFit
from wattline.core.fit.parameters import EFFICIENCIES, HALVES, OVERHEADS, ProductParams
from wattline.core.fit.report import ServingReport
from wattline.core.fit.serving import ServingFit
from wattline.core.fit.workload import NODE_GPUS, PROMPT_TOKENS
from wattline.core.fleet import GpuProduct

_ENGINE_FIELDS = (
    *EFFICIENCIES,
    *OVERHEADS,
    *HALVES,
    "quantised_efficiency",
    "routing_evenness",
    "ep_imbalance",
)
_RESPONSE_FIELDS = (
    "static_w",
    "compute_w",
    "memory_w",
    "memory_clocked",
    "idle_w",
    "stall",
    "overlap",
)


def fitted_records(
    serving: ServingReport, products: list[GpuProduct], sources: list[str]
) -> list[dict[str, Any]]:
    """One record per product, in the form of `catalog/fitted/*.json`.

    `products` may hold some without serving measurements: they get the parameters of the fitted
    product of their architecture (or of all products), with the watts at their own limit, and say
    so in `coverage`. `sources` names the data.
    """
    evidence = {
        "data": sources,
        "rows": serving.fit.runs,
        "fit": serving.fit_errors.record(),
        "cross_validation": serving.cross_errors.record(),
        "fit_of_engine_alone": serving.alone_errors.record(),
    }
    return [_record(serving.fit, product, evidence) for product in products]


def op_record(fit: OpFit, sources: list[str]) -> dict[str, Any]:
    """Build the record of kernels' surfaces, for inspection: engines do not use it.

    Per product and kind: rows, coefficients of the quadratic (see `ops`), range of its terms.
    """
    return {
        "schema": "wattline.op-fit/1",
        "data": sources,
        "products": {
            name: {
                kind: {
                    "rows": int(surface.residuals.size),
                    "coefficients": [round(float(value), 6) for value in surface.coefficients],
                    "low": [round(float(value), 6) for value in surface.low],
                    "high": [round(float(value), 6) for value in surface.high],
                }
                for kind, surface in sorted(kinds.items())
            }
            for name, kinds in sorted(fit.surfaces.items())
        },
    }


def _record(fit: ServingFit, product: GpuProduct, evidence: dict[str, Any]) -> dict[str, Any]:
    params = fit.params_for(product)
    engine, response = asdict(params.engine), asdict(params.response(product))
    return {
        "product": product.name,
        "engine": {name: engine[name] for name in _ENGINE_FIELDS},
        "response": {name: response[name] for name in _RESPONSE_FIELDS},
        "coverage": _coverage(params, product, evidence),
        "evidence": {**evidence, "around_the_engine": _around(params)},
    }


def _coverage(params: ProductParams, product: GpuProduct, evidence: dict[str, Any]) -> str:
    errors = evidence["cross_validation"]
    if params.based_on == (product.name,):
        basis = "fitted to serving measurements at the default limit"
    else:
        others = ", ".join(params.based_on)
        basis = f"serving fit of {others} on this product's datasheet peaks and limit: not measured"
    if errors["watts_median_error"] is None:
        return f"{basis}; not cross-validated"
    return (
        f"{basis}; cross-validated median error {errors['watts_median_error']:.1%} watts, "
        f"{errors['token_rate_median_error']:.1%} token rate"
    )


def _around(params: ProductParams) -> dict[str, Any]:
    """What the benchmark adds around the engine, and the engine does not carry."""
    return {
        "prompt_tokens_assumed": dict(PROMPT_TOKENS),
        "request_s": dict(params.request_s),
        "host_s_per_pass_one_replica_per_gpu": dict(params.host_s),
        "host_s_per_request_one_replica_per_gpu": dict(params.host_request_s),
        "node_gpus": NODE_GPUS,
        "prompt_stall_of_data_parallel_copies": params.prompt_stall,
    }
