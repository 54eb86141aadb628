"""The reference page of scenarios, rendered from the schema so that the two cannot disagree.

`python -m wattline.sim.scenario_docs > docs/reference/scenario.md`
"""

from __future__ import annotations

from pydantic import BaseModel

from wattline.catalog import fleet_spec
from wattline.catalog.yaml_docs import table
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
        parts.extend(table(model) for model in models)
    return "".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
