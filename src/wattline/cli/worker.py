"""`wattline worker`: a real Dynamo worker whose engine is the simulator's, in real time."""

from __future__ import annotations

import os
from pathlib import Path

import click

from wattline.core.fleet import Role
from wattline.live.environment import Environment, default_home, require
from wattline.live.worker_command import on_node, worker_command
from wattline.live.worker_spec import ENGINES, WorkerSpec


@click.command()
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), default="aggregated",
    show_default=True, help="What it does.",
)  # fmt: skip
@click.option(
    "--node", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="Folder of the virtual node.",
)  # fmt: skip
@click.option(
    "--gpus", required=True, metavar="GPUS", help="UUIDs or indices, with commas between."
)
@click.option("--model", default="Qwen3-8B", show_default=True, help="What the engine costs.")
@click.option("--served-name", help="Name that requests use; the model's by default.")
@click.option(
    "--model-dir", type=click.Path(path_type=Path, file_okay=False),
    help="Tokenizer and card; one without weights by default.",
)  # fmt: skip
@click.option(
    "--discovery", type=click.Path(path_type=Path, file_okay=False), envvar="DYN_FILE_KV",
    help="Folder where Dynamo's processes find each other; NODE/dynamo by default.",
)  # fmt: skip
@click.option(
    "--dynamo", type=click.Path(path_type=Path, file_okay=False), help="Environment of Dynamo."
)
@click.option("--system-port", type=click.IntRange(0, 32767), help="Dynamo's own page; none.")
@click.option("--namespace", help="Dynamo namespace.")
@click.option("--component", help="By default prefill or backend, by role.")
@click.option("--engine", type=click.Choice(ENGINES), help="Model of passes.")
@click.option("--precision", help="Of the weights; the model's own.")
@click.option("--max-num-seqs", type=click.IntRange(1), help="Most sequences in a batch.")
@click.option("--max-batched-tokens", type=click.IntRange(1), help="Most tokens in a pass.")
@click.option("--block-tokens", type=click.IntRange(1), help="Tokens of a block of the cache.")
@click.option("--startup-s", type=click.FloatRange(0), help="From start to registered.")
@click.option("--drain-s", type=click.FloatRange(0), help="For requests in flight at the end.")
@click.option("--quiet-s", type=click.FloatRange(0), help="For requests on their way at the end.")
@click.option("--default-max-tokens", type=click.IntRange(1), help="Where a request names none.")
@click.option("--stream-steps", type=click.IntRange(1), help="Decode steps per item of an answer.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Of its page; 0: a free one.")
@click.option("--name", help="Label of its own series.")
def worker(
    role: str,
    node: Path,
    gpus: str,
    model: str,
    served_name: str | None,
    model_dir: Path | None,
    discovery: Path | None,
    dynamo: Path | None,
    system_port: int | None,
    **given: object,
) -> None:
    """Serve requests as a Dynamo worker, on GPUs of a virtual node.

    The process is replaced by Dynamo's interpreter and keeps its id. It drains on SIGTERM and
    Ctrl-C. Defaults that are not shown are in docs/guides/live-worker.md.
    """
    environment: Environment = require(home=dynamo or default_home())
    gpus_file, uuids = on_node(node, gpus)
    values = {key: value for key, value in given.items() if value is not None}
    spec = WorkerSpec(
        role=Role(role),
        gpus=uuids,
        gpus_file=str(gpus_file),
        model=model,
        model_dir=str(model_dir or environment.model_dir),
        served_name=served_name or model,
        **values,  # type: ignore[arg-type]  # click has checked the types
    )
    spec.check()
    argv, env = worker_command(environment, spec, discovery or node / "dynamo", system_port)
    os.execve(argv[0], argv, {**os.environ, **env})
