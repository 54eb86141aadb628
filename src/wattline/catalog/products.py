"""GPU products: one YAML file each in `gpus/`."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from wattline.catalog.files import (
    Sourced,
    Strict,
    Watts,
    data_files,
    parse_yaml,
    unknown_name,
)
from wattline.core.errors import InputError
from wattline.core.fleet import GpuProduct

Flops = Sourced[Literal["FLOP/s"]]
Bytes = Sourced[Literal["B"]]
BytesPerSecond = Sourced[Literal["B/s"]]
Megahertz = Sourced[Literal["MHz"]]
Seconds = Sourced[Literal["s"]]


class GpuFile(Strict):
    """A product's file. A number that no public source gives is absent."""

    name: Annotated[str, Field(min_length=1)]
    aliases: tuple[str, ...] = ()
    architecture: Literal["volta", "ampere", "ada", "hopper", "blackwell"]
    min_limit_w: Watts
    default_limit_w: Watts
    max_limit_w: Watts
    idle_w: Watts | None = None
    loaded_idle_w: Watts | None = None
    peak_flops: dict[Literal["bf16", "fp8", "fp4", "int8"], Flops]
    hbm_bytes: Bytes
    hbm_bytes_per_s: BytesPerSecond
    interconnect_bytes_per_s: BytesPerSecond | None = None
    min_clock_mhz: Megahertz | None = None
    max_clock_mhz: Megahertz | None = None
    settle_s: Seconds

    @model_validator(mode="after")
    def _ordered(self) -> GpuFile:
        limits = (self.min_limit_w.value, self.default_limit_w.value, self.max_limit_w.value)
        if not (0.0 < limits[0] <= limits[1] <= limits[2]):
            raise ValueError(f"limits must rise from minimum over default to maximum: {limits}")
        if "bf16" not in self.peak_flops:
            raise ValueError("peak_flops must hold bf16, in which attention runs")
        return self


def parse_gpu(text: str, where: str) -> GpuFile:
    """Check the text of a product file."""
    return parse_yaml(GpuFile, text, where)


@cache
def gpu_files() -> tuple[GpuFile, ...]:
    """All product files, with their sources, in order of name."""
    entries = data_files("gpus", ".yaml")
    return tuple(parse_gpu(e.read_text("utf-8"), f"gpus/{e.name}") for e in entries)


def gpu_names() -> tuple[str, ...]:
    """Names of the GPU products that the catalog holds."""
    return tuple(file.name for file in gpu_files())


def gpu(name: str) -> GpuProduct:
    """Look up a GPU product by name or alias, whatever the case; InputError if unknown."""
    return _product(gpu_file(name).name)


def gpu_file(name: str) -> GpuFile:
    """Look up a product's file, with its sources."""
    found = _index().get(name.lower())
    if found is None:
        raise unknown_name("GPU product", name, gpu_names())
    return found


@cache
def _index() -> dict[str, GpuFile]:
    index: dict[str, GpuFile] = {}
    for file in gpu_files():
        for name in (file.name, *file.aliases):
            if index.setdefault(name.lower(), file) is not file:
                raise InputError(f"gpus/{file.name}.yaml, aliases", name, "used twice")
    return index


@cache
def _product(name: str) -> GpuProduct:
    file = _index()[name.lower()]

    def known(number: Sourced[Any] | None) -> float | None:
        return None if number is None else number.value

    return GpuProduct(
        name=file.name,
        architecture=file.architecture,
        min_limit_w=file.min_limit_w.value,
        default_limit_w=file.default_limit_w.value,
        max_limit_w=file.max_limit_w.value,
        idle_w=known(file.idle_w),
        peak_flops={k: v.value for k, v in sorted(file.peak_flops.items())},
        hbm_bytes=file.hbm_bytes.value,
        hbm_bytes_per_s=file.hbm_bytes_per_s.value,
        interconnect_bytes_per_s=known(file.interconnect_bytes_per_s),
        min_clock_mhz=known(file.min_clock_mhz),
        max_clock_mhz=known(file.max_clock_mhz),
        settle_s=file.settle_s.value,
        loaded_idle_w=known(file.loaded_idle_w),
    )
