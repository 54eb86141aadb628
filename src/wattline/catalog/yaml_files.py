"""Read YAML that people write by hand, and say in one line what is wrong with it.

Plain YAML 1.1 turns `off` into false, `1:30` into 90 and a key without a value into null. Here a
word is a word, true and false are the only booleans, and null, repeated keys, anchors and tags are
refused. Pydantic checks the rest; its first complaint becomes an `InputError` with file, line and
field.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from wattline.core.errors import InputError

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 20
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)\Z", re.IGNORECASE)
_NULL = ("", "~", "null", "Null", "NULL")
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)

FieldPath = tuple[str | int, ...]
_Model = TypeVar("_Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of everything read from YAML: no unknown keys, no silent conversions, no infinities."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key",
                        "{remedy}",
                        {"key": key, "remedy": did_you_mean(key, list(cls.model_fields), "key")},
                    )
        return data


def did_you_mean(name: object, known: list[str], kind: str) -> str:
    """Remedy for a name that is not among `known`: the nearest one, and the list."""
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {kind}; {hint}known: {', '.join(known)}"


def parse(model: type[_Model], text: str | bytes, where: str) -> _Model:
    """`text` checked against `model`; InputError names `where`, line, field, value and remedy."""
    value, lines = load(text, where)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _problem(error.errors(include_url=False)[0], value, lines, where) from error


def load(text: str | bytes, where: str) -> tuple[Any, dict[FieldPath, int]]:
    """Plain values of a YAML (or JSON) text, and the line on which each field stands."""
    if len(text) > _MAX_BYTES:
        raise InputError(where, f"{len(text)} bytes", "at most 1 MiB")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise InputError(where, error.object[error.start : error.start + 8], "use UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{where}:{line}", error.problem, "not valid YAML") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(where, str(error).splitlines()[0], "not valid YAML") from error
    except RecursionError as error:
        raise InputError(where, "deeply nested", f"nest at most {_MAX_DEPTH} deep") from error
    if node is None:
        raise InputError(where, "empty", "see `wattline scenario show demo` for an example")
    reader = _Reader(where)
    return reader.value(node, ()), reader.lines


class _Reader:
    """Turns YAML nodes into plain values under the rules above."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._seen: set[int] = set()
        self.lines: dict[FieldPath, int] = {}

    def value(self, node: yaml.Node, path: FieldPath) -> Any:
        line = node.start_mark.line + 1
        self.lines[path] = line
        if id(node) in self._seen:
            raise self._refused(line, path, "an alias", "write the value out")
        self._seen.add(id(node))
        if node.tag not in _PLAIN_TAGS:
            raise self._refused(line, path, node.tag, "tags are not used here")
        if len(path) > _MAX_DEPTH:
            raise self._refused(line, path, "deeply nested", f"nest at most {_MAX_DEPTH} deep")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path, line)

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refused(line, path, "a key that is not a word", "use plain keys")
            key = str(key_node.value)
            if not key.isprintable():
                raise self._refused(line, path, key, "keys are printable")
            if key in values:
                raise self._refused(line, (*path, key), "twice", "keep one of the two")
            values[key] = self.value(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.Node, path: FieldPath, line: int) -> Any:
        text = str(node.value)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise self._refused(line, path, text, "half of a character is no text")
        plain = getattr(node, "style", None) is None
        if not plain:
            return text
        if text in _NULL:
            raise self._refused(line, path, text, "give a value or leave the key out")
        if text in ("true", "false"):
            return text == "true"
        if _NOT_FINITE.match(text):
            raise self._refused(line, path, text, "must be a finite number")
        if _INTEGER.match(text) and len(text) <= 18:
            return int(text)
        return float(text) if _FLOAT.match(text) else text

    def _refused(self, line: int, path: FieldPath, found: str, remedy: str) -> InputError:
        return InputError(_place(self._where, line, path), found, remedy)


def _short(text: str) -> str:
    """What a check says, of bounded length: it may quote the value that it refuses."""
    most = 500
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def _place(where: str, line: int | None, path: FieldPath) -> str:
    at = f"{where}:{line}" if line is not None else where
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return f"{at}: {name}" if name else at


def _problem(
    details: ErrorDetails, value: Any, lines: dict[FieldPath, int], where: str
) -> InputError:
    path = _path_in(value, details["loc"])
    context = details.get("ctx", {})
    found: object = details["input"]
    remedy = details["msg"]
    if details["type"] == "unknown_key":
        path = (*path, context["key"])
        found = found[context["key"]] if isinstance(found, dict) else found
    elif details["type"] == "missing":
        path, found, remedy = (*path, str(details["loc"][-1])), "missing", "this key is required"
    elif details["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path, found, remedy = _bad_tag(path, found, context)
    elif details["type"] == "value_error":
        remedy = _short(str(context["error"]))
    line = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)
    return InputError(_place(where, line, path), found, remedy[:1].lower() + remedy[1:])


def _bad_tag(
    path: FieldPath, found: object, context: dict[str, Any]
) -> tuple[FieldPath, object, str]:
    key = str(context["discriminator"]).strip("'")
    if "tag" not in context:
        return path, found, f"give it a {key}"
    known = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
    return (*path, key), context["tag"], did_you_mean(context["tag"], known, key)


def _path_in(value: Any, loc: tuple[str | int, ...]) -> FieldPath:
    """`loc` less the parts that pydantic adds (names of union members)."""
    path: list[str | int] = []
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(part)
    return tuple(path)
