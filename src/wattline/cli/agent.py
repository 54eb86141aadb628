"""`wattline agent`: one small process per GPU node, and what a person asks of it."""

from __future__ import annotations

import click


@click.group()
def agent() -> None:
    """Keep the GPUs of this node at their granted or annotated limits.

    \b
      wattline agent check      what could the agent do here? writes nothing
      wattline agent run        run it in the foreground
      wattline agent status     what is, and why
    """  # noqa: D301  # click wants the backspace itself
