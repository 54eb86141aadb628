"""`wattline replay`: every recorded decision computed again."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(epilog="Example: wattline replay out/run")
@click.argument("run", type=click.Path(path_type=Path))
def replay(run: Path) -> None:
    """Recompute every decision of RUN (a folder or recording) and compare it to the byte.

    Exit code 0: all equal. 1: not; the first difference is shown.
    """
    from wattline.recording.record import Recording
    from wattline.sim.replay import replay as replay_recording

    recording = Recording(run)
    outcome = replay_recording(recording)
    for note in outcome.notes:
        click.echo(f"note: {note}", err=True)
    difference = outcome.difference
    if difference is None:
        click.echo(
            f"{outcome.decisions} decisions of {recording.header.policy} recomputed: all equal"
        )
        return
    click.echo(f"tick {difference.tick} (line {difference.line}) differs", err=True)
    click.echo(f"  recorded  ...{difference.recorded}...", err=True)
    click.echo(f"  replayed  ...{difference.replayed}...", err=True)
    sys.exit(1)
