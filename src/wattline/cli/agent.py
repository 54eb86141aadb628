"""`wattline agent`: one small process per GPU node, and what a person asks of it."""

from __future__ import annotations

import json
import os
import pwd
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wattline.agent.settings import (
    CONFIG_ENV,
    ENV_PREFIX,
    SETTINGS,
    AgentSettings,
    flag_name,
    is_switch,
    load_settings,
)
from wattline.core.errors import WattlineError

if TYPE_CHECKING:
    from wattline.agent.commands import Command

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def agent() -> None:
    """Keep the GPUs of this node at their granted or annotated limits.

    \b
      wattline agent check      what could the agent do here? writes nothing
      wattline agent run        run it in the foreground
      wattline agent status     what is, and why
    """  # noqa: D301  # click wants the backspace itself


def _settings_options(command: F) -> F:
    """`--config`, and a flag for every setting."""
    for name, setting in reversed(list(SETTINGS.items())):
        text = setting.text.replace("`", "")
        if is_switch(name):
            flag = f"{flag_name(name)}/--no-{flag_name(name)[2:]}"
            option = click.option(flag, name, default=None, help=text)
        else:
            words = setting.values.replace("`", "").replace(", ", "|")
            values = words if "`" in setting.values else words.upper()
            option = click.option(flag_name(name), name, metavar=values, help=text)
        command = option(command)
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar=CONFIG_ENV,
        help=f"Settings as YAML; flags and {ENV_PREFIX}* variables go over it.",
    )(command)


def _settings(
    config: Path | None, flags: dict[str, object], *, whole: bool = True
) -> tuple[AgentSettings, dict[str, str]]:
    """The settings and where each came from; warnings are said."""

    def warned(line: str) -> None:
        click.echo(f"wattline: {line}", err=True)

    settings, _, origins = load_settings(config, os.environ, flags, warned, whole=whole)
    return settings, origins


@agent.command(epilog="Example: wattline agent run --grants /etc/wattline/grants --node gpu-node-1")
@_settings_options
def run(config: Path | None, **flags: object) -> None:
    """Run the agent in the foreground until SIGTERM.

    \b
    SIGTERM, SIGINT  stop: annotated limits are given back, granted ones stay
    SIGUSR1          brake: all GPUs to their brake watts, now
    SIGHUP           look for GPUs and pods anew; settings are read at the start only

    Exit code 0: asked to stop. 1: could not run. 2: settings.
    """  # noqa: D301  # click wants the backspace itself
    from wattline.cli.agent_run import run_agent

    run_agent(*_settings(config, flags))


@agent.command(epilog="Example: wattline agent check --mode annotations --safe-default-w 500")
@_settings_options
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check(config: Path | None, output: str, **flags: object) -> None:
    """Say what the agent could and could not do on this node. Writes nothing.

    Without any settings it looks at the GPUs and the kubelet all the same.

    Exit code 0: it could do its work. 1: something stands in its way.
    """
    from wattline.agent import check as checks
    from wattline.agent.status import table
    from wattline.cli.agent_run import sources_to_check

    settings, _ = _settings(config, flags, whole=False)
    rows = checks.check(settings, sources_to_check(settings))
    if output == "json":
        document = [
            {"level": row.level, "about": row.about, "found": row.found, "remedy": row.remedy}
            for row in rows
        ]
        click.echo(json.dumps(document, indent=2))
    else:
        shown = [(row.level, row.about, _with_remedy(row.found, row.remedy)) for row in rows]
        for line in table(("", "about", "found"), shown):
            click.echo(_coloured(line))
    if any(row.level is checks.Level.FAIL for row in rows):
        sys.exit(1)


def _with_remedy(found: str, remedy: str) -> str:
    return f"{found}: {remedy}" if remedy else found


_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def _coloured(line: str) -> str:
    """The level in colour; click takes it out again where the output is no terminal."""
    level = line.split(" ", 1)[0]
    colour = _COLOURS.get(level)
    return line if colour is None else click.style(level, fg=colour) + line[len(level) :]


def _state_dir_option(command: F) -> F:
    return click.option(
        "--state-dir",
        type=click.Path(path_type=Path),
        envvar=f"{ENV_PREFIX}STATE_DIR",
        default=Path("/var/lib/wattline-agent"),
        show_default=True,
        help="State directory of the agent to ask; its control socket is in it.",
    )(command)


@agent.command(epilog="Example: wattline agent status --watch 1")
@_state_dir_option
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--watch", type=click.FloatRange(0.1, 3600), metavar="S", help="Again every S.")
def status(state_dir: Path, output: str, watch: float | None) -> None:
    """Show every GPU of the node: limits, draw, why, and whose it is."""
    from wattline.agent.control import fetch
    from wattline.agent.status import status_lines

    while True:
        content = fetch(state_dir / "control.sock", "/status")
        if watch is not None and sys.stdout.isatty():
            click.clear()
        if output == "json":
            click.echo(content, nl=False)
        else:
            click.echo("\n".join(status_lines(json.loads(content))))
        if watch is None:
            return
        time.sleep(watch)


def _why_option(command: F) -> F:
    return click.option("--why", required=True, metavar="TEXT", help="Shown to everybody.")(command)


@agent.command(epilog='Example: wattline agent hold --why "PSU 2 is being changed"')
@_state_dir_option
@_why_option
def hold(state_dir: Path, why: str) -> None:
    """Obey no raise until `resume`.

    Lowerings and brakes are still obeyed.
    """
    from wattline.agent.commands import Hold

    _ask(state_dir, Hold(by=_user(), why=why))


@agent.command(epilog='Example: wattline agent pin 3 300 --why "GPU 3 runs hot"')
@click.argument("gpu")
@click.argument("watts", type=float)
@_state_dir_option
@_why_option
def pin(gpu: str, watts: float, state_dir: Path, why: str) -> None:
    """Keep GPU at WATTS until `resume`.

    GPU is an index or a UUID. WATTS may not be more than the GPU holds: `status` shows that.
    """
    from wattline.agent.commands import Pin

    _ask(state_dir, Pin(by=_user(), why=why, gpu=gpu, watts=watts))


@agent.command(epilog="Example: wattline agent resume 3")
@click.argument("gpu", required=False)
@_state_dir_option
def resume(gpu: str | None, state_dir: Path) -> None:
    """End a pin, or all that a person ordered.

    With GPU: its pin. Without: every pin, the hold, and with annotations a brake called by hand;
    under grants GPUs stay at their brake watts until they get new grants.
    """
    from wattline.agent.commands import Resume

    _ask(state_dir, Resume(by=_user(), gpu=gpu))


@agent.command(epilog="Example: wattline agent restore 3")
@click.argument("gpu", required=False)
@_state_dir_option
def restore(gpu: str | None, state_dir: Path) -> None:
    """Give original limits back, of GPU or of all.

    Never above what a GPU holds: under grants a grant must book its original limit first.
    """
    from wattline.agent.commands import Restore

    _ask(state_dir, Restore(by=_user(), gpu=gpu))


@agent.command(epilog="Example: wattline agent brake")
@_state_dir_option
def brake(state_dir: Path) -> None:
    """Take all GPUs to their brake watts, now.

    With annotations `resume` ends it, under grants new grants do.
    """
    from wattline.agent.commands import Brake

    _ask(state_dir, Brake(by=_user()))


def _ask(state_dir: Path, command: Command) -> None:
    """Send a command; say what came of it, and exit with 1 if it was refused."""
    from wattline.agent.control import send

    answer = send(state_dir / "control.sock", command)
    if not answer.done:
        raise WattlineError(answer.text)
    click.echo(answer.text)


def _user() -> str:
    """Who types, for the audit; the agent adds the uid that the kernel tells it."""
    name = os.environ.get("SUDO_USER")
    if name:
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
