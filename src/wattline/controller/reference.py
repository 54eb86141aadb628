"""The reference page of the controller, rendered from settings, commands and metrics.

`python -m wattline.controller.reference > docs/reference/controller.md`
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from wattline.catalog import fleet_spec
from wattline.catalog.yaml_docs import table
from wattline.controller import (
    calibration_spec,
    commands,
    models_settings,
    outside_settings,
    settings,
)
from wattline.controller.metric_catalogue import CATALOGUE, DYNAMO, NOT_EXPORTED

_INTRO = """# Controller reference

<!-- Rendered by wattline.controller.reference; a test compares. Do not edit. -->

`wattline run --config FILE` reads one YAML file. Units are in the names: `_w` watts, `_s` seconds,
`_mib` MiB. A word is a word (`off` is not false); null, anchors, repeated keys and keys that are
not listed here are refused. `--check-config` says what is wrong, with the line.

On SIGHUP the file is read again. These keys, and what is below them, may change then; a file that
changes any other, or cannot be used, is refused as a whole, and the reason is shown in `/state`:
"""

_HTTP = """
## HTTP

| path | answer |
|---|---|
| `GET /metrics` | Prometheus text |
| `GET /healthz` | 200 while ticks come, else 503 |
| `GET /readyz` | 200, or 503 with a line per problem |
| `GET /state` | the newest tick as JSON |
| `POST /budget`, `/hold`, `/pin`, ... | a command of those below as JSON, with the token |

Commands need `Authorization: Bearer TOKEN`, the content of `token_file`; without a `token_file`
they are refused. Where `listen` is not loopback, reading needs the token too, but for the two
probes.
A command answers 200 with `{"done": ...}`, 400 for what cannot be, 507 when it cannot be kept on
disk; then it is not in force.
"""

_METRICS = """
## Metrics

What is not known is not on the page; nothing is 0 for want of a value. The names of Dynamo's power
feature keep their labels and their meaning, but for what stands in the table after this one.

| name | type | labels | meaning |
|---|---|---|---|
"""

_DIFFERENCES = """
### What is different on purpose

Of the names that Dynamo's power feature has as well. Its code puts `dynamo_planner_aic_c_` before
the correction factors where its registry of names has `dynamo_aic_c_`; here they are as in the
registry. `dynamo_power_agent_*` are the agent's: docs/reference/agent-metrics.md.

| name | here |
|---|---|
"""

_SETTINGS: tuple[tuple[str, tuple[type[BaseModel], ...]], ...] = (
    ("Settings", (settings.ControllerSettings,)),
    (
        "Fleet",
        (fleet_spec.DeploymentSpec, fleet_spec.SloSpec, fleet_spec.PoolSpec, settings.NodeSpec),
    ),
    (
        "Engines",
        (fleet_spec.RooflineEngine, fleet_spec.PolynomialEngine, fleet_spec.ProfileEngine),
    ),
    ("Budget", (settings.BudgetSpec, settings.BudgetWindow)),
    ("Seeing", (settings.SourcesSpec, outside_settings.PrometheusSpec)),
    (
        "Acting",
        (
            settings.ActuationSpec,
            settings.WorkerCommand,
            outside_settings.AnnotationsSpec,
            outside_settings.PodsSpec,
        ),
    ),
    (
        "Deciding",
        (settings.DecisionSpec, settings.ExpectedMix, calibration_spec.CalibrationSpec),
    ),
    ("Predicted engines", (models_settings.ModelsSpec, models_settings.AicSpec)),
    ("Recording", (settings.RecorderSpec,)),
)
_COMMANDS = (
    commands.BudgetCommand,
    commands.HoldCommand,
    commands.PinCommand,
    commands.CordonCommand,
    commands.RestoreCommand,
    commands.ResumeCommand,
    commands.AttestOffCommand,
    commands.ModelsCommand,
)


def reference() -> str:
    """Render the whole page as markdown."""
    parts = [_INTRO, "\n" + ", ".join(f"`{key}`" for key in settings.CHANGEABLE) + ".\n"]
    for title, models in _SETTINGS:
        parts.append(f"\n## {title}\n")
        parts.extend(table(model) for model in models)
    parts.append(_HTTP)
    parts.extend(table(model) for model in _COMMANDS)
    parts.extend(_metrics())
    return "".join(parts)


def _metrics() -> Iterator[str]:
    yield _METRICS
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |\n"
    yield _DIFFERENCES
    for metric in DYNAMO:
        if metric.differs:
            yield f"| `{metric.name}` | {metric.differs} |\n"
    for name, why in NOT_EXPORTED.items():
        yield f"| `{name}` | Not exported: {why}. |\n"


if __name__ == "__main__":
    print(reference(), end="")
