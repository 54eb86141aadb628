"""Help of every command, and what `scenario` and `models` list."""

from __future__ import annotations

import json

import click
import pytest
from cli_fixtures import wattline

from wattline import __version__
from wattline.cli.main import COMMANDS, cli


def _commands(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += _commands(command, *path, name)
    return found


@pytest.mark.parametrize("path", [(), *_commands(cli)], ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    outcome = wattline(*path, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith(" ".join(("Usage: wattline", *path)))
    assert "\\b" not in outcome.out
    assert "\b" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100


def test_commands_say_the_same_from_outside_and_inside() -> None:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name


def test_version() -> None:
    assert wattline("--version").out == f"wattline, version {__version__}\n"


def test_no_command_shows_the_help() -> None:
    outcome = wattline()
    assert outcome.code == 2
    assert "Start here:" in outcome.err


def test_scenarios_are_listed_with_one_line_each() -> None:
    rows = json.loads(wattline("scenario", "list", "--json").out)
    assert {"demo", "azure-conv-h200", "mooncake-h200", "mix-shift-h200", "faults"} <= {
        row["name"] for row in rows
    }
    for row in rows:
        assert set(row) == {"name", "description"}
        assert row["description"]
        assert "\n" not in row["description"]
    assert len(wattline("scenario", "list").out.splitlines()) == len(rows)


def test_models_are_listed() -> None:
    document = json.loads(wattline("models", "list", "--json").out)
    assert {"H100-80GB-HBM3", "H200", "B200"} <= {gpu["name"] for gpu in document["gpus"]}
    assert "Llama-3.3-70B" in {model["name"] for model in document["models"]}
