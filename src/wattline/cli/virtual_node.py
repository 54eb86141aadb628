"""`wattline virtual-node`: a GPU node without hardware, made, loaded and broken by hand."""

from __future__ import annotations

import json
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from wattline.cli.signals import on_signals
from wattline.core.errors import InputError
from wattline.virtual.gpus import Group, NvmlCode, VirtualGpus
from wattline.virtual.kubelet import fault_of
from wattline.virtual.node import VirtualNode
from wattline.virtual.podresources import Claim
from wattline.virtual.products import PRODUCTS, profile

_FOLDER = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
_GPU = click.argument("gpu", metavar="GPU")
_GROUPS = [group.name.lower().replace("_", "-") for group in Group]
_CODES = [code.name.lower().replace("_", "-") for code in NvmlCode]


@click.group()
def virtual_node() -> None:
    """Make a GPU node without hardware, for tests and demonstrations.

    FOLDER holds the node. GPU is an NVML index, a UUID or `all`. What it cannot stand in for is
    said in docs/guides/virtual-node.md.
    """


@contextmanager
def _node(folder: Path) -> Iterator[VirtualNode]:
    if not (folder / "gpus.state").exists():
        raise InputError("virtual node", str(folder), "there is none: `virtual-node create` first")
    with VirtualNode(folder) as node:
        yield node


def _named(gpus: VirtualGpus, gpu: str) -> tuple[str, ...]:
    if gpu == "all":
        return gpus.uuids()
    if gpu.isdecimal():
        return (gpus.state(int(gpu)).uuid,)
    return (gpu,)


@virtual_node.command()
@_FOLDER
@click.option(
    "--profile", "name", default="h100", show_default=True, help="h100, h200, b200, mixed."
)
@click.option("--gpus", default=8, show_default=True, type=click.IntRange(1, 32))
@click.option("--persistence/--no-persistence", default=True, show_default=True)
@click.option(
    "--settle", "settle_s", type=click.FloatRange(min=0), help="Seconds; else the product's."
)
@click.option("--seed", default=0, show_default=True, help="UUIDs follow from it.")
def create(
    folder: Path, name: str, gpus: int, persistence: bool, settle_s: float | None, seed: int
) -> None:
    """Make a node in FOLDER."""
    if (folder / "gpus.state").exists():
        raise InputError("virtual node", str(folder), "there is one already: remove the folder")
    products = profile(name, gpus)
    with VirtualNode(
        folder, products, persistence=persistence, settle_s=settle_s, seed=seed
    ) as node:
        click.echo(f"{gpus} GPUs in {folder}; {node.gpus.library}")


@virtual_node.command()
@_FOLDER
def env(folder: Path) -> None:
    """Print what a process needs to see the node: `eval "$(wattline virtual-node env FOLDER)"`."""
    with _node(folder) as node:
        for key, value in node.env.items():
            click.echo(f"export {key}={shlex.quote(value)}")


@virtual_node.command()
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(folder: Path, as_json: bool) -> None:
    """Show the registers of all GPUs, and the pods."""
    with _node(folder) as node:
        states = [node.gpus.state(uuid) for uuid in node.gpus.uuids()]
        pods = node.pods.resources()
        clients = node.gpus.clients()
    if as_json:
        document = {
            "gpus": [asdict(state) for state in states],
            "pods": [asdict(pod) for pod in pods],
            "clients": clients,
        }
        click.echo(json.dumps(document, indent=1))
        return
    owners: dict[str, list[str]] = {}
    for pod in pods:
        for device in pod.devices:
            owners.setdefault(device.id.split("::")[0], []).append(pod.name)
    click.echo(
        f"{'GPU':>3} {'UUID':<12} {'product':<22} {'enforced':>8} {'asked':>6} {'load':>6} "
        f"{'draw':>6} {'MHz':>5}  notes"
    )
    for state in states:
        notes = [
            *(["capped"] if state.capped else []),
            *([f"lost (Xid {state.lost_xid})"] if state.lost_xid else []),
            *(["MIG"] if state.mig else []),
            *([] if state.persistence else ["no persistence"]),
            *owners.get(state.uuid, []),
        ]
        line = (
            f"{state.index!s:>3} {state.uuid[:12]:<12} {state.product[:22]:<22} "
            f"{state.enforced_w:>6.0f} W {state.requested_w:>6.0f} {state.load_w:>6.0f} "
            f"{state.draw_w:>6.0f} {state.clock_mhz:>5}  {', '.join(notes)}"
        )
        click.echo(line.rstrip())
    click.echo(f"NVML clients: {', '.join(map(str, clients)) or 'none'}")


@virtual_node.command()
@_FOLDER
@_GPU
@click.argument("watts", type=click.FloatRange(0, 5000))
def load(folder: Path, gpu: str, watts: float) -> None:
    """Let the work on GPU want to draw WATTS at full clocks."""
    with _node(folder) as node:
        for uuid in _named(node.gpus, gpu):
            node.gpus.set_load(uuid, watts)


@virtual_node.command()
@_FOLDER
@_GPU
@click.option(
    "--calls",
    type=click.Choice(_GROUPS),
    metavar="GROUP",
    default="all",
    show_default=True,
    help=f"Which: {', '.join(_GROUPS)}.",
)
@click.option(
    "--code",
    type=click.Choice(_CODES),
    metavar="CODE",
    default="unknown",
    show_default=True,
    help=f"What they return: {', '.join(_CODES)}.",
)
@click.option("--done", is_flag=True, help="A limit is written all the same.")
@click.option("--count", type=click.IntRange(1), help="Calls that meet it; else until cleared.")
@click.option(
    "--delay-ms", type=click.FloatRange(0, 600_000), default=0, help="Answer so much later."
)
def fault(
    folder: Path, gpu: str, calls: str, code: str, done: bool, count: int | None, delay_ms: float
) -> None:
    """Make NVML calls on GPU fail, or slow with `--code success`. GPU `node`: calls on none."""
    group = Group[calls.upper().replace("-", "_")]
    number = NvmlCode[code.upper().replace("-", "_")]
    with _node(folder) as node:
        names = (None,) if gpu == "node" else _named(node.gpus, gpu)
        for name in names:
            node.gpus.fail(
                name, group, -number if done else number, count=count, delay_s=delay_ms / 1000
            )


@virtual_node.command()
@_FOLDER
@_GPU
@click.option("--xid", default=79, show_default=True, help="79: fallen off the bus.")
def lose(folder: Path, gpu: str, xid: int) -> None:
    """Let GPU fall off the bus, until `clear`."""
    with _node(folder) as node:
        for uuid in _named(node.gpus, gpu):
            node.gpus.lose(uuid, xid)


@virtual_node.command()
@_FOLDER
@_GPU
@click.option("--ceiling", type=click.FloatRange(min=1), help="Enforced at most so many watts.")
@click.option("--floor", type=click.FloatRange(min=1), help="Enforced at least so many watts.")
def clamp(folder: Path, gpu: str, ceiling: float | None, floor: float | None) -> None:
    """Hold the enforced limit out of band, as a baseboard controller does, until `clear`."""
    if ceiling is None and floor is None:
        raise InputError("clamp", None, "give --ceiling, --floor or both")
    with _node(folder) as node:
        for uuid in _named(node.gpus, gpu):
            node.gpus.hold_below(uuid, ceiling)
            node.gpus.hold_above(uuid, floor)


@virtual_node.command("hide-fields")
@_FOLDER
@_GPU
@click.argument("ids", type=click.IntRange(1), nargs=-1)
def hide_fields(folder: Path, gpu: str, ids: tuple[int, ...]) -> None:
    """Make GPU not support the NVML fields IDS; none: all are supported again."""
    with _node(folder) as node:
        for uuid in _named(node.gpus, gpu):
            node.gpus.hide_fields(uuid, ids)


@virtual_node.command()
@_FOLDER
@click.argument("gpu", metavar="[GPU]", default="all")
def clear(folder: Path, gpu: str) -> None:
    """End all faults of GPU, or of the whole node. Limits stay as they are."""
    with _node(folder) as node:
        if gpu == "all":
            node.gpus.clear()
        else:
            for uuid in _named(node.gpus, gpu):
                node.gpus.clear(uuid)


@virtual_node.command()
@_FOLDER
@_GPU
@click.argument("watts", type=click.FloatRange(1, 5000))
@click.option("--every", "period_s", type=click.FloatRange(min=0.001), help="Seconds; else once.")
@click.option("--count", type=click.IntRange(1), help="Writes; else until cleared.")
def rival(folder: Path, gpu: str, watts: float, period_s: float | None, count: int | None) -> None:
    """Let another writer set GPU to WATTS."""
    with _node(folder) as node:
        for uuid in _named(node.gpus, gpu):
            node.gpus.rival(uuid, watts, period_s=period_s or 0.0, count=count)


@virtual_node.command()
@_FOLDER
@click.option("--absent", "absent_s", default=0.0, help="Seconds without a driver.")
def reload(folder: Path, absent_s: float) -> None:
    """Unload the driver and load it again: default limits, stale handles, dead sessions."""
    with _node(folder) as node:
        node.gpus.reload(absent_s=absent_s)


@virtual_node.command()
@_FOLDER
@click.argument("order", type=int, nargs=-1, required=True)
def renumber(folder: Path, order: tuple[int, ...]) -> None:
    """Give the GPUs new indices: ORDER lists the present ones. Handles go stale."""
    with _node(folder) as node:
        uuids = node.gpus.uuids()
        if sorted(order) != list(range(len(uuids))):
            raise InputError("order", order, f"name each of 0 to {len(uuids) - 1} once")
        node.gpus.renumber([uuids[i] for i in order])


@virtual_node.command()
@_FOLDER
@_GPU
@click.argument("instances", type=click.IntRange(0, 7))
def split(folder: Path, gpu: str, instances: int) -> None:
    """Turn MIG on with so many INSTANCES and print their UUIDs; 0 turns it off."""
    with _node(folder) as node:
        for uuid in _named(node.gpus, gpu):
            for instance in node.gpus.split(uuid, instances):
                click.echo(instance)


@virtual_node.command()
@_FOLDER
@click.argument("product", type=click.Choice([*PRODUCTS]))
def add(folder: Path, product: str) -> None:
    """Add a GPU, last in the order, and print its UUID."""
    with _node(folder) as node:
        click.echo(node.gpus.add(product))


@virtual_node.command()
@_FOLDER
@_GPU
@click.option("--back", is_flag=True, help="It is there again, at its default limit.")
def remove(folder: Path, gpu: str, back: bool) -> None:
    """Take GPU away; `--back` with its UUID returns it."""
    with _node(folder) as node:
        for uuid in _named(node.gpus, gpu):
            if back:
                node.gpus.bring_back(uuid)
            else:
                node.gpus.remove(uuid)


@virtual_node.command()
@_FOLDER
@_GPU
@click.argument("pid", type=click.IntRange(1))
@click.option("--pod", "uid", help="UID of the pod that the new process runs in.")
@click.option("--end", is_flag=True, help="The process ends.")
def process(folder: Path, gpu: str, pid: int, uid: str | None, end: bool) -> None:
    """Let process PID compute on GPU: NVML lists it, and FOLDER/proc has its cgroup."""
    if end == (uid is not None):
        raise InputError("process", pid, "give either --pod UID or --end")
    with _node(folder) as node:
        for uuid in _named(node.gpus, gpu):
            if uid is None:
                node.remove_process(uuid, pid)
            else:
                node.add_process(uuid, pid, uid)


@virtual_node.group()
def pod() -> None:
    """Let pods come and go."""


@pod.command("add")
@_FOLDER
@click.argument("name")
@click.option("--gpu", "gpus", multiple=True, help="GPU that it holds; may be repeated.")
@click.option("--device", "devices", multiple=True, help="Device id: MIG UUID, `GPU-...::2`.")
@click.option("--claim", "claims", multiple=True, help="Device of a DRA claim: POOL/DEVICE.")
@click.option("--limit", help="Text of its power limit's annotation; else it has not opted in.")
@click.option("--namespace", default="default", show_default=True)
def add_pod(
    folder: Path,
    name: str,
    gpus: tuple[str, ...],
    devices: tuple[str, ...],
    claims: tuple[str, ...],
    limit: str | None,
    namespace: str,
) -> None:
    """Bind pod NAME, with GPUs; the kubelet lists it. Prints its UID."""
    with _node(folder) as node:
        held = [uuid for gpu in gpus for uuid in _named(node.gpus, gpu)]
        made = node.add_pod(
            name,
            held,
            limit=limit,
            namespace=namespace,
            device_ids=devices,
            claims=[_claim(name, text) for text in claims],
        )
        click.echo(made.uid)


def _claim(pod_name: str, text: str) -> Claim:
    pool, slash, device = text.partition("/")
    if not (pool and slash and device):
        raise InputError("claim", text, "name it as POOL/DEVICE")
    return Claim(f"{pod_name}-gpu", device, pool)


@pod.command("remove")
@_FOLDER
@click.argument("name")
@click.option("--namespace", default="default", show_default=True)
def remove_pod(folder: Path, name: str, namespace: str) -> None:
    """Let pod NAME end."""
    with _node(folder) as node:
        if (namespace, name) not in node.pods.names():
            raise InputError("pod", f"{namespace}/{name}", "the node has no such pod")
        node.remove_pod(name, namespace)


@virtual_node.command()
@_FOLDER
@click.option("--fault", "text", help="none, gone, error[:CODE], garbage, empty, slow:SECONDS.")
def kubelet(folder: Path, text: str | None) -> None:
    """Serve PodResources on FOLDER/kubelet.sock until interrupted, or set what is wrong with it."""
    with _node(folder) as node:
        if text is not None:
            node.pods.set_fault(fault_of(text))
            return
        over = threading.Event()
        on_signals((signal.SIGTERM, signal.SIGINT), over.set)
        node.start_kubelet()
        click.echo(f"PodResources v1 on {node.kubelet_socket}")
        over.wait()


@virtual_node.command()
@_FOLDER
@click.option("--follow", is_flag=True, help="Go on until interrupted.")
def log(folder: Path, follow: bool) -> None:
    """Print every change of a limit, with its time, its cause and the process that made it."""
    with _node(folder) as node:
        seen = dict.fromkeys(node.gpus.uuids(), 0)
        while True:
            found = []
            for uuid in {**seen, **dict.fromkeys(node.gpus.uuids(), 0)}:
                changes, lost = node.gpus.changes(uuid, seen.get(uuid, 0))
                if lost:
                    click.echo(f"{uuid}: {lost} entries are no longer there", err=True)
                seen[uuid] = changes[-1].sequence if changes else seen.get(uuid, 0)
                found += [c for c in changes if c.before_mw != c.enforced_mw or c.sequence == 1]
            for change in sorted(found, key=lambda change: change.time_ns):
                click.echo(
                    f"{change.time_ns / 1e9:.3f} {change.uuid[:12]} "
                    f"{change.before_mw / 1000:.0f} -> {change.enforced_mw / 1000:.0f} W "
                    f"{change.cause.name.lower()} pid {change.pid or '-'}"
                )
            if not follow:
                return
            time.sleep(0.1)
