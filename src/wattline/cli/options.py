"""Options and output that several commands share."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from wattline.core.errors import InputError
from wattline.sim.files import check_writable, write_text

if TYPE_CHECKING:
    from wattline.sim.experiment import Experiment

F = TypeVar("F", bound=Callable[..., Any])


def traffic_options(command: F) -> F:
    """Options that choose the traffic of a run."""
    for option in reversed(
        [
            click.option(
                "--trace",
                type=click.Path(path_type=Path, dir_okay=False),
                help="Traffic from FILE: Azure CSV, Mooncake JSONL or our own JSONL; .gz too.",
            ),
            click.option(
                "--from",
                "from_s",
                type=float,
                metavar="S",
                help="Leave out what arrives before S seconds of the trace.",
            ),
            click.option(
                "--until",
                "until_s",
                type=float,
                metavar="S",
                help="Leave out what arrives after S seconds of the trace.",
            ),
            click.option(
                "--scale-load",
                metavar="X|saturate",
                help="Multiply the load; `saturate`: 1.1 x what the uncapped fleet can serve.",
            ),
            click.option(
                "--seed",
                type=click.IntRange(0, 2**53),
                help="Seed of everything random [scenario's own].",
            ),
        ]
    ):
        command = option(command)
    return command


def _writable(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and str(path) != "-":
        check_writable(path)
    return path


def json_option(command: F) -> F:
    """Where figures go as JSON; a path that cannot be written is refused before the work."""
    return click.option(
        "--json",
        "json_path",
        type=click.Path(path_type=Path),
        callback=_writable,
        help="Figures to FILE; - prints.",
        metavar="FILE",
    )(command)


def write_json(path: Path, document: object) -> None:
    """Write `document` as JSON at once or not at all; `-` prints it."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if str(path) == "-":
        click.echo(text, nl=False)
    else:
        write_text(path, text)


def command_line() -> str:
    """What was typed, for reports and recordings; bytes that are no UTF-8 as question marks."""
    typed = shlex.join(["wattline", *sys.argv[1:]])
    return typed.encode("utf-8", "replace").decode("utf-8")


def scenario_argument(command: F) -> F:
    """The scenario to run: a built-in name or a file; the embedded default if left out."""
    return click.argument("scenario", default="demo")(command)


def experiment_from(
    scenario: str,
    *,
    trace: Path | None,
    from_s: float | None,
    until_s: float | None,
    scale_load: str | None,
    seed: int | None,
) -> Experiment:
    """Load the scenario and make it ready, as the options say."""
    from wattline.sim.experiment import Traffic, prepare
    from wattline.sim.scenario import folder_of, load

    return prepare(
        load(scenario),
        Traffic(trace=trace, from_s=from_s, until_s=until_s, scale_load=_load(scale_load)),
        seed=seed,
        folder=folder_of(scenario),
    )


def _load(text: str | None) -> float | Literal["saturate"]:
    if text is None:
        return 1.0
    if text == "saturate":
        return "saturate"
    try:
        factor = float(text)
    except ValueError:
        factor = float("nan")
    if not 0.001 <= factor <= 1000.0:
        raise InputError("--scale-load", text, "give a factor from 0.001 to 1000, or `saturate`")
    return factor
