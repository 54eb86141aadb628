"""A decision without a run: a file that holds a scenario's fleet and one snapshot of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wattline.core.errors import InputError
from wattline.core.settings import Settings
from wattline.core.snapshot import Snapshot
from wattline.recording.codec import settings_from_json, snapshot_from_python

_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class PlanInput:
    """Settings and the snapshot to decide on."""

    settings: Settings
    snapshot: Snapshot


def read_plan_input(path: Path) -> PlanInput:
    """Read `settings` and `snapshot` from a YAML or JSON file, as `explain --snapshot` writes it.

    InputError: file, field, value and remedy.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InputError(str(path), "a larger file", f"at most {_MOST_BYTES >> 20} MiB")
        text = content.decode("utf-8")
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "give a readable file") from error
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"byte {error.start}", "must be UTF-8 text") from error
    document = _parse(path, text)
    if not isinstance(document, dict):
        raise InputError(str(path), document, "must hold `settings` and `snapshot`")
    unknown = sorted(str(key) for key in document if key not in ("settings", "snapshot"))
    if unknown:
        raise InputError(f"{path}: {unknown[0]}", "unknown", "keys are `settings` and `snapshot`")
    for key in ("settings", "snapshot"):
        if not isinstance(document.get(key), dict):
            raise InputError(f"{path}: {key}", document.get(key), "must be a mapping")
    try:
        return PlanInput(
            settings_from_json(document["settings"], str(path)),
            snapshot_from_python(document["snapshot"], f"{path}: snapshot"),
        )
    except RecursionError as error:
        raise InputError(str(path), "deeply nested", "nest as `explain --snapshot` does") from error


class _Plain(yaml.SafeLoader):
    """YAML without aliases, which let a few lines stand for more values than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="an alias: write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


def _parse(path: Path, text: str) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(text)
        return yaml.load(text, Loader=_Plain)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}{line}", error.problem or "", "not valid YAML") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(str(path), str(error)[:80], "not valid YAML or JSON") from error
