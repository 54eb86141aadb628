"""Typed reading of the catalog's data files: every number carries its unit and its source."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Generic, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wattline.core.errors import InputError

Unit = TypeVar("Unit", bound=str)
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Base of all catalog files: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sourced(Strict, Generic[Unit]):
    """One number with its unit and where it comes from."""

    value: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    unit: Unit
    source: Annotated[str, Field(min_length=8)]


Watts = Sourced[Literal["W"]]


def data_files(folder: str, suffix: str) -> list[Traversable]:
    """List the packaged files of a catalog folder, in order of name."""
    entries = (files("wattline.catalog") / folder).iterdir()
    return sorted((e for e in entries if e.name.endswith(suffix)), key=lambda e: e.name)


def parse_yaml(kind: type[Model], text: str, where: str) -> Model:
    """Check YAML text against `kind`; InputError with file, field, value and what to do."""
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise InputError(where, line, "repair the YAML") from None
    try:
        return kind.model_validate(loaded)
    except ValidationError as error:
        raise invalid(where, error) from None


def invalid(where: str, error: ValidationError) -> InputError:
    """Turn the first complaint of a schema into one line."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "file"
    found = None if first["type"] == "missing" else first["input"]
    return InputError(f"{where}, {field}", found, first["msg"].lower())


def unknown_name(what: str, name: str, known: Iterable[str]) -> InputError:
    """Build the error for a name that the catalog does not hold, with the nearest ones."""
    names = sorted(set(known))
    short = {known_name.lower(): known_name for known_name in names}
    near = difflib.get_close_matches(name.lower(), short, n=3, cutoff=0.5)
    nearest = ", ".join(short[match] for match in near)
    hint = f"did you mean {nearest}?" if nearest else f"known are {', '.join(names)}"
    return InputError(what, name, hint)
