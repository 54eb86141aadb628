"""The flight recorder: every snapshot and decision of a run, and the way back.

A recording is JSON lines, gzipped: a header with everything a policy is built from, then two lines
per tick, the snapshot and the decision. A snapshot's state is null where it is the previous
decision's `next_state`, which it always is within one run; reading puts it back. A recording of
another schema is refused.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Self

from pydantic import TypeAdapter, ValidationError

from wattline.core import decision as decision_module
from wattline.core import snapshot as snapshot_module
from wattline.core.decision import Decision
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet
from wattline.core.settings import Settings
from wattline.core.snapshot import Snapshot
from wattline.core.state import State
from wattline.sim.recorded_values import check_columns, check_fleet, check_numbers
from wattline.sim.scenario_build import AnyEngine

SCHEMA = "wattline.recording/1"

_SNAPSHOT = TypeAdapter(Snapshot)
_DECISION = TypeAdapter(Decision)
_STATE = TypeAdapter(State)
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
    import typing

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


class Recorder:
    """Writes a recording; use as a context manager. A failed run leaves no file behind."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._raw: IO[bytes] = self._partial.open("wb")
        # A fixed name and time: the same run gives the same bytes.
        self._file = gzip.GzipFile(
            filename="", mode="wb", fileobj=self._raw, compresslevel=3, mtime=0
        )
        self._previous: State | None = None
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
        self._file.write(json.dumps(document, allow_nan=False).encode() + b"\n")

    def append(self, snapshot: Snapshot, decision: Decision) -> None:
        """Record one tick."""
        follows = snapshot.state is not None and snapshot.state is self._previous
        stored = replace(snapshot, state=None) if follows else snapshot
        self._file.write(snapshot_to_json(stored) + b"\n" + decision_to_json(decision) + b"\n")
        self._previous = decision.next_state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._file.close()
        self._raw.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Tick:
    """One recorded tick: the snapshot as decided on, the decision and its exact bytes."""

    line: int
    snapshot: Snapshot
    decision: Decision
    decision_json: bytes


class Recording:
    """Reads a recording: `header` at once, ticks one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path / "recording.jsonl.gz" if path.is_dir() else path
        if not self.path.exists():
            raise InputError(
                str(self.path), "no such file", "give the folder or file that --out wrote"
            )
        first = next(self._lines(), None)
        if first is None:
            raise InputError(str(self.path), "empty", "record the run again")
        self.header = self._read_header(first[1])

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        try:
            with gzip.open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        raise InputError(
                            f"{self.path}:{number}", "cut off", "the file is truncated"
                        )
                    yield number, line
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{self.path}:{number + 1}", str(error), "not a complete gzip file; record again"
            ) from error

    def _read_header(self, line: bytes) -> Header:
        where = f"{self.path}:1"
        document = self._json_object(line, where)
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

    def _json_object(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(where, line[:60], f"not JSON: {error}") from error
        if not isinstance(document, dict):
            raise InputError(where, document, "must be a JSON object")
        return document

    def ticks(self) -> Iterator[Tick]:
        """The recorded ticks in order."""
        previous: State | None = None
        snapshot: Snapshot | None = None
        number = 1
        for number, line in self._lines():
            if number == 1:
                continue
            if snapshot is None:
                snapshot = snapshot_from_json(line, f"{self.path}:{number}: snapshot")
                if snapshot.state is None:
                    snapshot = replace(snapshot, state=previous)
                continue
            raw = line.rstrip(b"\n")
            try:
                decision = _DECISION.validate_json(raw)
            except ValidationError as error:
                raise _first_problem(error, f"{self.path}:{number}: decision") from error
            yield Tick(number, snapshot, decision, raw)
            previous = decision.next_state
            snapshot = None
        if snapshot is not None:
            raise InputError(
                f"{self.path}:{number}", "a snapshot without its decision", "the file is truncated"
            )
