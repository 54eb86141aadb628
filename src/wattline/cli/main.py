"""The `wattline` command: finds the subcommand, turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import sys

import click

from wattline import __version__
from wattline.core.errors import WattlineError

# Subcommands are imported when called: `wattline --help` must not pay for numpy.
COMMANDS = {
    "simulate": ("wattline.cli.simulate:simulate", "Run one policy in closed loop on a trace."),
    "compare": ("wattline.cli.compare:compare", "Run several policies at several budgets."),
    "plan": ("wattline.cli.plan:plan", "Decide on one snapshot and say why."),
    "explain": ("wattline.cli.explain:explain", "Say why a recorded run did what it did."),
    "replay": ("wattline.cli.replay:replay", "Recompute every recorded decision."),
    "scenario": ("wattline.cli.scenario:scenario", "List, show and check scenarios."),
    "models": ("wattline.cli.models:models", "GPU products, language models, cap response."),
    "profile": ("wattline.cli.profile:profile", "Fit models to measurements."),
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
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="wattline")
def cli() -> None:
    r"""Keep an LLM inference fleet inside a hard watt budget, and serve the most within it.

    \b
    Start here:
      wattline compare demo --out out/demo     several policies on the embedded default
      wattline simulate demo --out out/run     one run, recorded
      wattline explain out/run                 why it did what it did
    """


def main() -> None:
    """Run the command line; exit 0 ok, 1 failed, 2 usage or bad input, 3 would change."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("wattline: interrupted", err=True)
        sys.exit(130)
    except WattlineError as error:
        click.echo(f"wattline: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing to report, nobody to report to.
        sys.stderr.close()
        sys.exit(1)
