"""Language models: one YAML file per shape in `models/`, or any directory with a `config.json`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from wattline.catalog.files import Sourced, Strict, data_files, parse_yaml, unknown_name
from wattline.catalog.hf import parse_config, read_model_dir
from wattline.core.errors import InputError
from wattline.core.fleet import ModelSpec

Precision = Literal["bf16", "fp8", "int8", "int4", "mxfp4", "nvfp4"]
Parameters = Sourced[Literal["parameters"]]


class Checkpoint(Strict):
    """A checkpoint of the same shape in another precision."""

    name: str
    precision: Precision
    source: str


class ModelFile(Strict):
    """A model's file: its published `config.json`, and parameter counts to check it against."""

    name: Annotated[str, Field(min_length=1)]
    aliases: tuple[str, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    published_params: Parameters
    published_active_params: Parameters | None = None
    config_source: str
    config: dict[str, Any]


def parse_model(text: str, where: str) -> ModelFile:
    """Check the text of a model file."""
    return parse_yaml(ModelFile, text, where)


@cache
def model_files() -> tuple[ModelFile, ...]:
    """All model files, in order of name."""
    entries = data_files("models", ".yaml")
    return tuple(parse_model(e.read_text("utf-8"), f"models/{e.name}") for e in entries)


def model_names() -> tuple[str, ...]:
    """Names of the models that the catalog holds."""
    return tuple(file.name for file in model_files())


def model(name_or_dir: str | Path) -> ModelSpec:
    """Look up a model by name or alias, or read a directory (or file) with a `config.json`.

    Names are compared without case, with or without the organisation before the slash. InputError
    with the nearest names if neither is found.
    """
    name = str(name_or_dir)
    if isinstance(name_or_dir, str):
        found = _index().get(name.lower())
        if found is not None:
            return found
    path = Path(name_or_dir)
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    if exists or name.endswith(".json"):
        return read_model_dir(path)
    raise unknown_name("model", name, (*model_names(), *_full_names()))


def model_file(name: str) -> ModelFile:
    """Look up a model's file, with its sources, by any of its names."""
    for file in model_files():
        known = (file.name, *file.aliases, *(c.name for c in file.checkpoints))
        if name.lower() in {part for n in known for part in _spellings(n)}:
            return file
    raise unknown_name("model", name, (*model_names(), *_full_names()))


def _spellings(name: str) -> tuple[str, str]:
    return name.lower(), name.rsplit("/", 1)[-1].lower()


def _full_names() -> list[str]:
    return [name for file in model_files() for name in file.aliases]


@cache
def _index() -> dict[str, ModelSpec]:
    """Every spelling of every model and checkpoint."""
    index: dict[str, ModelSpec] = {}
    for file in model_files():
        where = f"models/{file.name}.yaml"
        spec = parse_config(file.name, file.config, where)
        entries = [(file.name, spec), *((alias, spec) for alias in file.aliases)]
        for checkpoint in file.checkpoints:
            short = checkpoint.name.rsplit("/", 1)[-1]
            entries.append((checkpoint.name, _recast(spec, short, checkpoint.precision)))
        for name, entry in entries:
            for spelling in _spellings(name):
                if index.setdefault(spelling, entry) != entry:
                    raise InputError(f"{where}, aliases", name, "already names another model")
    return index


def _recast(spec: ModelSpec, name: str, precision: Precision) -> ModelSpec:
    return replace(spec, name=name, precision=precision, dense_precision=None)
