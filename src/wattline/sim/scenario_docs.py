"""The reference page of scenarios, rendered from the schema so that the two cannot disagree.

`python -m wattline.sim.scenario_docs > docs/reference/scenario.md`
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from wattline.catalog import fleet_spec
from wattline.sim import faults, scenario, traffic

_INTRO = """# Scenario reference

<!-- Rendered from the schema by wattline.sim.scenario_docs; a test compares. Do not edit. -->

A scenario is a YAML file. Units are in the names: `_w` watts, `_s` seconds, `_percent`, `_rps`
requests per second. Rules that are stricter than YAML's own: a word is a word (`off` is not
false), booleans are `true` and `false`, null, anchors and repeated keys are refused, and so is a
key that is not listed here. `wattline scenario check FILE` says what is wrong, with the line.
"""

_SECTIONS: tuple[tuple[str, str, tuple[type[BaseModel], ...]], ...] = (
    (
        "Scenario",
        "The file itself.",
        (scenario.Scenario,),
    ),
    (
        "Fleet",
        "What is served and by which GPUs.",
        (fleet_spec.DeploymentSpec, fleet_spec.SloSpec, fleet_spec.PoolSpec),
    ),
    (
        "Engines",
        "`engine` of a deployment, told apart by `kind`.",
        (fleet_spec.RooflineEngine, fleet_spec.PolynomialEngine, fleet_spec.ProfileEngine),
    ),
    (
        "Traffic",
        "Items of `traffic`, told apart by `kind`.",
        (
            traffic.ConversationTraffic,
            traffic.SwingSpec,
            traffic.SurgeSpec,
            traffic.MixShiftTraffic,
            traffic.ConstantTraffic,
            traffic.TraceTraffic,
        ),
    ),
    (
        "Budget",
        "Percentages are of the sum of the GPUs' maximum limits.",
        (scenario.BudgetSpec, scenario.PlannedChange, scenario.StaticCaps),
    ),
    (
        "Plant and telemetry",
        "How the simulated hardware behaves and what is seen of it.",
        (scenario.PlantSpec, scenario.LimiterSpec, scenario.TelemetrySpec),
    ),
    (
        "Faults",
        "Items of `faults`, told apart by `kind`.",
        (*faults.FAULT_TYPES, faults.Target),
    ),
)


def reference() -> str:
    """Render the whole page as markdown."""
    parts = [_INTRO]
    for title, text, models in _SECTIONS:
        parts.append(f"\n## {title}\n\n{text}\n")
        parts.extend(_table(model) for model in models)
    return "".join(parts)


def _table(model: type[BaseModel]) -> str:
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


if __name__ == "__main__":
    print(reference(), end="")
