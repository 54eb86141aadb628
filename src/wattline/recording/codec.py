"""Settings, snapshots and decisions as JSON, to the byte the same for equal values."""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from wattline.catalog.fleet_spec import AnyEngine
from wattline.core import decision as decision_module
from wattline.core import snapshot as snapshot_module
from wattline.core.decision import Decision
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet
from wattline.core.settings import Settings
from wattline.core.snapshot import Snapshot
from wattline.recording.values import check_columns, check_fleet, check_numbers

SCHEMA = "wattline.recording/1"

_SNAPSHOT = TypeAdapter(Snapshot)
_DECISION = TypeAdapter(Decision)
_FLEET = TypeAdapter(Fleet)
_ENGINES: TypeAdapter[tuple[AnyEngine, ...]] = TypeAdapter(tuple[AnyEngine, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a recording was made with; `policy_context` is the policy's own JSON."""

    policy: str
    settings: Settings
    policy_context: dict[str, Any]
    scenario: dict[str, Any]
    run: dict[str, Any]


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values."""
    document: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name == "fleet":
            value = _FLEET.dump_python(value, mode="json")
        elif field.name == "engines":
            value = _ENGINES.dump_python(value, mode="json")
        else:
            value = TypeAdapter[Any](type(value)).dump_python(value, mode="json")
        document[field.name] = value
    return document


def settings_from_json(document: dict[str, Any], where: str) -> Settings:
    """The inverse of `settings_to_json`; unknown or missing keys are refused."""
    known = {field.name: field for field in fields(Settings)}
    check_numbers(document, f"{where}: settings")
    for key in document:
        if key not in known:
            raise InputError(f"{where}: settings.{key}", document[key], "unknown setting")
    hints = _settings_types()
    values: dict[str, Any] = {}
    for name, value in document.items():
        adapter: TypeAdapter[Any] = TypeAdapter(hints[name])
        values[name] = validated(adapter, value, f"{where}: settings.{name}")
    for key in ("fleet", "engines"):
        if key not in values:
            raise InputError(f"{where}: settings.{key}", "missing", "this key is required")
    check_fleet(values["fleet"], f"{where}: settings.fleet")
    return Settings(**values)


def _settings_types() -> dict[str, Any]:
    hints = typing.get_type_hints(Settings)
    hints["engines"] = tuple[AnyEngine, ...]
    return hints


def validated(adapter: TypeAdapter[Any], value: Any, where: str) -> Any:
    """`value` through `adapter`; the first problem as one line that names the field."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise _first_problem(error, where) from error


def _first_problem(error: ValidationError, where: str) -> InputError:
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    return InputError(f"{where}: {path}" if path else where, first.get("input"), first["msg"])


def snapshot_to_json(snapshot: Snapshot) -> bytes:
    """A snapshot as canonical JSON bytes."""
    return _SNAPSHOT.dump_json(snapshot)


def snapshot_from_json(text: bytes | str, where: str) -> Snapshot:
    """A snapshot from JSON; another schema is refused."""
    try:
        snapshot = _SNAPSHOT.validate_json(text)
    except ValidationError as error:
        raise _first_problem(error, where) from error
    return _checked(snapshot, where)


def snapshot_from_python(value: Any, where: str) -> Snapshot:
    """A snapshot from plain JSON values."""
    check_numbers(value, where)
    try:
        # By way of JSON text, so that lists become tuples under the same rules as in a recording.
        text = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise InputError(where, str(error), "only text, finite numbers, lists, maps") from error
    return snapshot_from_json(text, where)


def _checked(snapshot: Snapshot, where: str) -> Snapshot:
    if snapshot.schema != snapshot_module.SCHEMA:
        raise InputError(
            f"{where}: schema", snapshot.schema, f"this version reads {snapshot_module.SCHEMA}"
        )
    check_columns(snapshot, where)
    return snapshot


def decision_to_json(decision: Decision) -> bytes:
    """A decision as canonical JSON bytes: equal bytes, equal decisions."""
    return _DECISION.dump_json(decision)


def decision_from_json(text: bytes, where: str) -> Decision:
    """A decision from JSON; InputError names the first field that cannot be read."""
    try:
        return _DECISION.validate_json(text)
    except ValidationError as error:
        raise _first_problem(error, where) from error


def header_to_json(header: Header) -> bytes:
    """The first line of a recording, without its line feed."""
    document = {
        "schema": SCHEMA,
        "snapshot_schema": snapshot_module.SCHEMA,
        "decision_schema": decision_module.SCHEMA,
        "policy": header.policy,
        "policy_context": header.policy_context,
        "settings": settings_to_json(header.settings),
        "scenario": header.scenario,
        "run": header.run,
    }
    return json.dumps(document, allow_nan=False).encode()


def header_from_json(line: bytes, where: str) -> Header:
    """The inverse of `header_to_json`; a recording of another schema is refused."""
    document = _json_object(line, where)
    for key, want in (
        ("schema", SCHEMA),
        ("snapshot_schema", snapshot_module.SCHEMA),
        ("decision_schema", decision_module.SCHEMA),
    ):
        if document.get(key) != want:
            raise InputError(f"{where}: {key}", document.get(key), f"this version reads {want}")
    for key in ("policy_context", "settings", "scenario", "run"):
        if not isinstance(document.get(key), dict):
            raise InputError(f"{where}: {key}", document.get(key), "must be an object")
    return Header(
        policy=str(document.get("policy")),
        settings=settings_from_json(document["settings"], where),
        policy_context=document["policy_context"],
        scenario=document["scenario"],
        run=document["run"],
    )


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(where, line[:60], f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(where, document, "must be a JSON object")
    return document
