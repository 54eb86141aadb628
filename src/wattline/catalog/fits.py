"""Fitted parameters: one JSON file per GPU product in `fitted/`, written by `wattline profile fit`.

A product without a file of its own borrows that of the product of its architecture nearest in
watts, scaled to its limit; failing that, plain assumptions. `Fit.coverage` says which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Annotated, Any

from pydantic import Field, ValidationError

from wattline.catalog.files import Strict, data_files, invalid
from wattline.catalog.products import gpu, gpu_names
from wattline.core.errors import InputError
from wattline.core.fleet import GpuProduct
from wattline.core.power import CapResponse
from wattline.core.roofline import EngineParams

ASSUMED_COMPUTE_SHARE = 0.70
ASSUMED_MEMORY_SHARE = 0.25
"""Watts of busy arithmetic and of saturated memory over the largest limit where nothing was
measured: with loaded idle they add up to the limit, at which large GEMMs of Hopper and Blackwell
run (ai-dynamo/aiconfigurator op power tables: 0.96 to 0.99 of the limit)."""


class FittedFile(Strict):
    """A fitted file: parameters by the names of `EngineParams` and `CapResponse`.

    `evidence` holds the data that they were fitted to and the errors left, as the fit reports them.
    """

    product: str
    engine: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]]
    response: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]]
    coverage: Annotated[str, Field(min_length=8)]
    evidence: Annotated[dict[str, Any], Field(default_factory=dict)]


@dataclass(frozen=True, slots=True)
class Fit:
    """Parameters of engines on one product, and what they stand on."""

    params: EngineParams
    response: CapResponse
    coverage: str


def parse_fitted(text: str, where: str) -> FittedFile:
    """Check the text of a fitted file."""
    try:
        file = FittedFile.model_validate(json.loads(text))
    except ValidationError as error:
        raise invalid(where, error) from None
    except ValueError as error:
        raise InputError(where, str(error), "repair the JSON") from None
    for section, kind in (("engine", EngineParams), ("response", CapResponse)):
        known = {field.name for field in fields(kind)}
        for name in getattr(file, section):
            if name not in known:
                raise InputError(f"{where}, {section}", name, f"use {', '.join(sorted(known))}")
    return file


@cache
def fitted_files() -> dict[str, FittedFile]:
    """All packaged fits by product name."""
    found = {}
    for entry in data_files("fitted", ".json"):
        file = parse_fitted(entry.read_text("utf-8"), f"fitted/{entry.name}")
        found[file.product] = file
    return found


@cache
def fit(product_name: str) -> Fit:
    """Return the parameters for engines on a product; InputError if it is unknown."""
    product = gpu(product_name)
    own = fitted_files().get(product.name)
    if own is not None:
        return fit_of(own, product)
    relatives = [
        gpu(name)
        for name in gpu_names()
        if name in fitted_files() and gpu(name).architecture == product.architecture
    ]
    if relatives:
        nearest = min(relatives, key=lambda p: (abs(p.max_limit_w - product.max_limit_w), p.name))
        lent = fit_of(fitted_files()[nearest.name], nearest)
        scale = product.max_limit_w / nearest.max_limit_w
        response = replace(
            lent.response,
            static_w=lent.response.static_w * scale,
            compute_w=lent.response.compute_w * scale,
            memory_w=lent.response.memory_w * scale,
            idle_w=_loaded_idle_w(product, lent.response.idle_w * scale),
        )
        coverage = f"borrowed from {nearest.name} (same architecture), scaled to its watts"
        return Fit(lent.params, response, coverage)
    assumed = assumed_response(product)
    return Fit(EngineParams(), assumed, "assumed: no measurement of this architecture")


def fit_of(file: FittedFile, product: GpuProduct) -> Fit:
    """Build a file's parameters; fields that it leaves out keep their assumed values."""
    try:
        engine = replace(EngineParams(), **file.engine)
        response = replace(assumed_response(product), **file.response)
    except ValueError as error:
        raise InputError(f"fitted/{file.product}.json", str(error), "fit it anew") from None
    return Fit(engine, response, file.coverage)


def assumed_response(product: GpuProduct) -> CapResponse:
    """Guess the answer to caps of a product without measurements, from its limits and idle draw."""
    idle_w = _loaded_idle_w(product, None)
    return CapResponse(
        static_w=idle_w,
        compute_w=ASSUMED_COMPUTE_SHARE * product.max_limit_w,
        memory_w=ASSUMED_MEMORY_SHARE * product.max_limit_w,
        idle_w=idle_w,
    )


def _loaded_idle_w(product: GpuProduct, otherwise: float | None) -> float:
    if product.loaded_idle_w is not None:
        return product.loaded_idle_w
    if otherwise is not None:
        return otherwise
    raise InputError(
        f"GPU product {product.name}, loaded_idle_w",
        None,
        "unknown, but needed to know what a replica without load draws: add it with its source",
    )
