"""The command of one worker process: argv, variables, and which GPUs of a node it gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wattline.core.errors import InputError
from wattline.live.environment import Environment
from wattline.live.supervisor import WorkerPool
from wattline.live.worker_spec import WorkerSpec
from wattline.virtual.gpus import VirtualGpus

_MARGIN_S = 60.0


def worker_command(
    environment: Environment, spec: WorkerSpec, discovery: Path, system_port: int | None = None
) -> tuple[list[str], dict[str, str]]:
    """Argv and the variables to add. `discovery`: the folder that all Dynamo processes share.

    `system_port`: where Dynamo's runtime shows its own series; None: nowhere.
    """
    env = environment.variables(discovery)
    if system_port is not None:
        env["DYN_SYSTEM_PORT"] = str(system_port)
    argv = [str(environment.python), "-m", "wattline.live.worker", spec.to_json()]
    return argv, env


def worker_pool(environment: Environment, spec: WorkerSpec, discovery: Path) -> WorkerPool:
    """A pool of such workers for a supervisor, named as the specification.

    The supervisor fills in GPUs, ports and names. It kills a worker that has not ended well after
    its own limit, and one that is not registered well after its start-up time. GPUs of a worker
    that died are set to idle, as hardware does by itself.
    """
    argv, env = worker_command(environment, spec, discovery)
    return WorkerPool(
        name=spec.name,
        argv=(*argv, "gpus={gpus}", "metrics_port={metrics_port}", "name={replica}"),
        env={**env, "DYN_SYSTEM_PORT": "{system_port}"},
        start_limit_s=spec.startup_s + _MARGIN_S,
        drain_limit_s=spec.quiet_s + spec.drain_s + _MARGIN_S,
        after_death=idle_gpus(Path(spec.gpus_file)),
    )


def idle_gpus(state_file: Path) -> Callable[[tuple[str, ...]], None]:
    """Sets GPUs of a virtual node to idle: a worker that was killed could not do it itself."""

    def after_death(uuids: tuple[str, ...]) -> None:
        with VirtualGpus(state_file) as gpus:
            for uuid in set(uuids) & set(gpus.uuids()):
                gpus.set_load(uuid, 0.0)

    return after_death


def state_file_of(node: Path) -> Path:
    """Where a virtual node's folder keeps its GPUs; InputError where there is no node."""
    state_file = node.absolute() / "gpus.state"
    if not state_file.exists():
        raise InputError("virtual node", str(node), "there is none: `wattline virtual-node create`")
    return state_file


def on_node(node: Path, gpus: str) -> tuple[Path, tuple[str, ...]]:
    """State file and UUIDs of `gpus` (UUIDs or indices, with commas) of a virtual node's folder."""
    state_file = state_file_of(node)
    with VirtualGpus(state_file) as found:
        uuids = found.uuids()
        named = [word.strip() for word in gpus.split(",") if word.strip()]
        for word in named:
            if word.isdecimal() and int(word) >= len(uuids):
                raise InputError("GPU", word, f"the node has {len(uuids)} GPUs")
            if not word.isdecimal() and word not in uuids:
                raise InputError("GPU", word, "no GPU of the node has this UUID")
        return state_file, tuple(uuids[int(w)] if w.isdecimal() else w for w in named)
