"""Tables of the keys of a configuration file, rendered from its schema."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel


def table(model: type[BaseModel]) -> str:
    """A heading, what the model is, and a row per key."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    rows = [
        f"| `{name}` | {_kind(field, schema)} | {_default(name, field, required)} "
        f"| {_escaped(field.get('description', ''))} |\n"
        for name, field in schema["properties"].items()
        if name != "kind"
    ]
    about = " ".join((model.__doc__ or "").split())
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return f"\n### {_title(model)}\n\n{about}\n\n{head}{''.join(rows)}"


def _title(model: type[BaseModel]) -> str:
    kind = model.model_fields.get("kind")
    if kind is None:
        return model.__name__.removesuffix("Spec")
    return f"kind: {get_args(kind.annotation)[0]}"


def _default(name: str, field: dict[str, Any], required: list[str]) -> str:
    if name in required:
        return "required"
    default = field.get("default")
    if default is None or default == [] or isinstance(default, dict):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Say in a few words what value a field takes."""
    options = [o for o in field.get("anyOf", []) if o.get("type") != "null"]
    if options:
        return _kind(options[0], schema)
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return _named(field["$ref"])
    if "oneOf" in field:
        return "one of the kinds below"
    if field.get("type") == "array":
        return "list: " + _kind(field["items"], schema)
    if field.get("type") == "object":
        # Names with a pattern stand under it.
        values = [field.get("additionalProperties"), *field.get("patternProperties", {}).values()]
        found = next(value for value in values if isinstance(value, dict))
        return "map of names: " + _kind(found, schema)
    return {"string": "text", "boolean": "true or false"}.get(field["type"]) or _number(field)


def _named(reference_path: str) -> str:
    return reference_path.rsplit("/", 1)[-1].removesuffix("Spec")


def _number(field: dict[str, Any]) -> str:
    noun = "whole number" if field["type"] == "integer" else "number"
    low, above = field.get("minimum"), field.get("exclusiveMinimum")
    high, below = field.get("maximum"), field.get("exclusiveMaximum")
    lower = f"from {_plain(low)}" if low is not None else f"above {_plain(above or 0)}"
    upper = f"to {_plain(high)}" if high is not None else f"below {_plain(below or 0)}"
    return f"{noun} {lower} {upper}"


def _plain(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
