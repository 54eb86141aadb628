"""`wattline demo-live`: a live deployment on this machine under a budget that is cut."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click

from wattline.cli.options import command_line
from wattline.core.errors import WattlineError


@click.command(
    epilog="""\b
Examples:
  wattline demo-live
  wattline demo-live --seconds 45 --out out/short
  wattline demo-live --trace conversation_trace.jsonl
  wattline explain out/demo-live/recording
"""
)
@click.option(
    "--seconds", type=float, help="Length of the traffic; times in the scenario follow.  [90]"
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A recorded trace, of which the first seconds are sent.  [five minutes of Azure's]",
)
@click.option("--seed", type=click.IntRange(min=0), help="Generated traffic of this seed instead.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/demo-live"),
    show_default=True,
    help="Folder for the report, the recording and the logs; must be new, or an earlier run.",
)
@click.option("--plain", is_flag=True, help="Lines instead of a picture that moves.")
def demo_live(
    seconds: float | None, trace: Path | None, seed: int | None, out: Path, plain: bool
) -> None:
    """Run a whole deployment on this machine, and cut its budget in the middle.

    NVIDIA Dynamo's frontend, worker processes that the controller starts, a virtual GPU node with
    the agent, and Prometheus where it is on PATH; real HTTP requests, over loopback only. Dynamo is
    installed into a folder of its own first (0.7 GB, once). Takes about two minutes, and a C
    compiler. Everything ends with it.

    Exit code 1 if a promise was broken: limits above the budget by our doing, a cut that was not
    enforced in time, a request without an answer.
    """
    from rich.console import Console

    from wattline.live import environment
    from wattline.live.demo import Demo
    from wattline.live.demo_plan import load_plan
    from wattline.live.demo_report import Results, report_file
    from wattline.live.demo_view import LiveView, PlainView, View
    from wattline.sim.rundir import RunFolder

    plan = load_plan(seconds=seconds, trace=trace, seed=seed)
    console = Console()
    with RunFolder(out) as kept:
        dynamo = environment.build(say=lambda line: click.echo(f"dynamo: {line}"))
        folder = Path(tempfile.mkdtemp(prefix="wattline-live-"))
        moving = console.is_terminal and not plain
        view: View = LiveView(console) if moving else PlainView(_write)
        demo = Demo(folder, plan, dynamo, view)
        try:
            with view:
                outcome = demo.run()
            results = Results(outcome)
            results.keep(demo, kept, command_line())
        except WattlineError as error:
            raise WattlineError(f"{error} (logs are kept in {folder})") from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    results.show(console)
    console.print(f"\nReport: {report_file(out)}", highlight=False, soft_wrap=True)
    if not outcome.passed:
        sys.exit(1)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
