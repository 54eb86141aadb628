"""The `wattline` command: finds the subcommand, turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
from types import FrameType
from typing import NamedTuple, NoReturn

import click

from wattline import __version__
from wattline.core.errors import WattlineError


class Entry(NamedTuple):
    """Where a subcommand lives, what it does, and the extra whose libraries it needs."""

    path: str
    text: str
    extra: str


# Subcommands are imported when called: `wattline --help` must not pay for numpy, and the agent's
# installation has no numpy at all.
COMMANDS = {
    "simulate": Entry(
        "wattline.cli.simulate:simulate", "Run one policy in closed loop on a trace.", "sim"
    ),
    "compare": Entry(
        "wattline.cli.compare:compare", "Run several policies at several budgets.", "sim"
    ),
    "plan": Entry("wattline.cli.plan:plan", "Decide on one snapshot and say why.", "sim"),
    "explain": Entry(
        "wattline.cli.explain:explain", "Say why a recorded run did what it did.", "sim"
    ),
    "replay": Entry("wattline.cli.replay:replay", "Recompute every recorded decision.", "sim"),
    "scenario": Entry("wattline.cli.scenario:scenario", "List, show and check scenarios.", "sim"),
    "models": Entry(
        "wattline.cli.models:models", "GPU products, language models, cap response.", "sim"
    ),
    "profile": Entry("wattline.cli.profile:profile", "Fit models to measurements.", "sim"),
    "agent": Entry("wattline.cli.agent:agent", "Make the GPUs of this node obey.", "agent"),
    "run": Entry("wattline.cli.run:run", "Keep a live fleet inside its budget.", "controller"),
    "operate": Entry(
        "wattline.cli.operate:operate",
        "Hold, pin, cordon; tell a controller its budget.",
        "controller",
    ),
    "dynamo-plugin": Entry(
        "wattline.cli.dynamo_plugin:dynamo_plugin", "Ceilings for Dynamo's planner.", "controller"
    ),
    "worker": Entry(
        "wattline.cli.worker:worker", "A Dynamo worker with the simulator's engine.", "controller"
    ),
    "demo-node": Entry(
        "wattline.cli.demo_node:demo_node", "A virtual 8-GPU node under a budget, live.", "agent"
    ),
    "demo-live": Entry(
        "wattline.cli.demo_live:demo_live",
        "A live Dynamo deployment under a budget, and a cut.",
        "controller",
    ),
    "virtual-node": Entry(
        "wattline.cli.virtual_node:virtual_node", "GPUs and a kubelet without hardware.", "agent"
    ),
}


class LazyGroup(click.Group):
    """A group whose subcommands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table above: the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand `cmd_name`, imported now; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].path.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.text) for name, entry in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="wattline")
def cli() -> None:
    """Keep an LLM inference fleet inside a hard watt budget, and serve the most within it.

    \b
    Start here:
      wattline compare demo --out out/demo     several policies on the embedded default
      wattline simulate demo --out out/run     one run, recorded
      wattline explain out/run                 why it did what it did
      wattline demo-node                       a virtual GPU node, its agent, a cut and a brake
      wattline demo-live                       Dynamo's frontend and workers under a budget, live
    """  # noqa: D301  # click wants the backspace itself


def main() -> None:
    """Run the command line; exit 0 ok, 1 failed, 2 usage or bad input, 3 would change.

    130 and 143 after an interrupt (Ctrl-C) and a request to end (SIGTERM), as shells have it.
    """
    asked: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        # As an exception, so that what is half-written is cleared away.
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a job in the background
        signal.signal(signal.SIGINT, end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a sign shows another
    try:
        cli.main(prog_name="wattline", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        if asked:  # whatever it is: libraries make errors of their own from an interrupt in them
            _end(asked[0])
        _report(error)
        raise


def _end(number: int) -> NoReturn:
    if number == signal.SIGINT:
        _fail("interrupted", 130)
    sys.exit(128 + number)


def _report(error: BaseException) -> None:
    """End with one line and an exit code; returns where the error is not a user's to mend."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            sys.exit(error.exit_code)
        case click.UsageError():
            path = "wattline" if error.ctx is None else error.ctx.command_path
            _fail(f"{error.format_message()} See `{path} --help`.", error.exit_code)
        case WattlineError():
            _fail(str(error), error.exit_code)
        case click.Abort():
            _fail("interrupted", 130)
        case ModuleNotFoundError():
            _fail(_missing_library(error), 2)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}", 1)


def _missing_library(error: ModuleNotFoundError) -> str:
    """Which extra brings the missing library; a missing module of our own is a bug, raised on."""
    called = next((argument for argument in sys.argv[1:] if argument in COMMANDS), None)
    if called is None or error.name is None or error.name.split(".")[0] == "wattline":
        raise error
    return (
        f"{called}: {error.name} is not installed: pip install 'wattline[{COMMANDS[called].extra}]'"
    )


def _fail(message: str, exit_code: int) -> NoReturn:
    """Say what went wrong in one line and end."""
    click.echo(f"wattline: {' '.join(message.splitlines())}", err=True)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # A full disk: what cannot be written must not be tried again, and reported, at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)
