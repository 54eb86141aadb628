"""`wattline demo-node`: a virtual GPU node under a budget, live in the terminal."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click

from wattline.virtual.demo import Demo, verdict_lines
from wattline.virtual.demo_view import LiveView, PlainView


@click.command()
@click.option("--plain", is_flag=True, help="Lines instead of a table that moves.")
@click.option("--seed", default=7, show_default=True, help="Of the plan and of the GPUs' names.")
def demo_node(plain: bool, seed: int) -> None:
    """Show a node agent at work: eight virtual H100, a budget, a cut, a rival, a brake.

    The agent, the coordinator and NVML's binding are the real ones; the GPUs are a library in C
    that stands in for NVIDIA's. Takes about half a minute and needs a C compiler.

    Exit code 1 if an action of ours took the limits above the budget.
    """
    folder = Path(tempfile.mkdtemp(prefix="wattline-demo-"))
    size = shutil.get_terminal_size()
    live = not plain and sys.stdout.isatty()
    view = LiveView(_write, size.columns, size.lines) if live else PlainView(_write)
    try:
        demo = Demo(folder, view, seed)
        try:
            outcome = demo.run()
        finally:
            demo.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    click.echo()
    for line in verdict_lines(outcome):
        click.echo(line)
    if not outcome.passed:
        sys.exit(1)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
