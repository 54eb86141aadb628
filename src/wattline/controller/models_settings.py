"""The `models` section of the controller's file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wattline.catalog.fleet_spec import Name
from wattline.catalog.yaml_files import StrictModel
from wattline.controller.setting_types import PathText, Seconds


class AicSpec(StrictModel):
    """Engines predicted by NVIDIA AIConfigurator (or AISimulate) in place of the roofline."""

    deployments: list[Name] = Field(default=[], max_length=100)
    """Deployments that it predicts; empty: all. Their engines are `roofline`, which stays in force
    until a sweep was good, and splits each pass for the cap response."""
    python: PathText | None = None
    """Interpreter that has the library; left out: the controller's own."""
    backend: Literal["vllm", "sglang", "trtllm"] = "vllm"
    """Serving framework whose measurements count."""
    backend_version: str | None = Field(default=None, max_length=40)
    """Its version; left out: the newest that the library has."""
    model_names: dict[Name, str] = Field(default={})
    """Per deployment: the library's name of its model, or a folder with a `config.json`; left out:
    the model's published names, of which the library takes the first that it knows."""
    systems: dict[str, str] = Field(default={})
    """Per GPU product: the library's name of a system with it; those of the catalog are known."""
    alternatives: list[Annotated[int, Field(ge=1, le=64)]] = Field(default=[], max_length=8)
    """Other tensor-parallel sizes to compare today's with, in requests per GPU. Advice only."""
    memory_fraction: float = Field(default=0.9, ge=0.1, le=0.99)
    """Share of the GPU's memory that the engine fills."""
    limit_s: Seconds = 120.0
    """Time limit of a sweep; its process is killed after that."""
    cache: PathText | None = None
    """Folder in which tables are kept; left out: `aic` in `state_dir`."""
    max_failures: int = Field(default=5, ge=1, le=10_000)
    """Sweeps that fail in a row until none is tried any more."""
    retry_s: Seconds = 30.0
    """Pause after one that failed."""
    regression: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Relative loss of predicted throughput that is counted as a regression."""


class ModelsSpec(StrictModel):
    """Where the engines of the pools come from."""

    aic: AicSpec | None = None
    """Predict them; left out: as each deployment's `engine` says."""
