"""Measurements with annotations: from a pod that is bound to a limit that is enforced."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from agent_node import MeasuredNode, spread
from wattline.drivers.pods import LIMIT_ANNOTATION
from wattline.virtual.podresources import Device
from wattline.virtual.pods import VirtualPod

KUBE_TESTS = Path(__file__).resolve().parents[1] / "tests" / "contract" / "kube"
NODE = "agent"


class PodWriter(Protocol):
    """Whoever tells the agent of pods, but for the kubelet."""

    @property
    def name(self) -> str:
        """What it is."""

    def bind(self, pod: VirtualPod) -> None:
        """The pod is bound to the node."""

    def unbind(self, pod: VirtualPod) -> None:
        """The pod is gone."""

    def requests(self) -> list[tuple[str, str]]:
        """Verb and URI of all requests that the agent has made so far."""


@dataclass
class FileWriter:
    """Pods in the virtual node's own file."""

    node: MeasuredNode
    name: str = "a file of pods"

    def bind(self, pod: VirtualPod) -> None:
        """Write it down."""
        self.node.virtual.pods.bind(pod)

    def unbind(self, pod: VirtualPod) -> None:
        """Strike it out."""
        self.node.virtual.pods.unbind(pod.namespace, pod.name)

    def requests(self) -> list[tuple[str, str]]:
        """None: there is no server."""
        return []


class ServerWriter:
    """Pods in a real kube-apiserver."""

    name = "kube-apiserver and etcd"

    def __init__(self, plane: Any, pods: Any) -> None:
        self._plane = plane
        self._pods = pods

    def bind(self, pod: VirtualPod) -> None:
        """Create it, bound."""
        annotations = {} if pod.limit is None else {LIMIT_ANNOTATION: pod.limit}
        self._pods.create(pod.name, annotations, gpus=1)

    def unbind(self, pod: VirtualPod) -> None:
        """Delete it."""
        self._pods.delete(pod.name)

    def requests(self) -> list[tuple[str, str]]:
        """From the server's audit log."""
        found: list[tuple[str, str]] = self._plane.agent_requests()
        return found


@contextlib.contextmanager
def running(folder: Path, source: str) -> Iterator[tuple[MeasuredNode, PodWriter]]:
    """A node with annotations, its pods from `kube`, `file`, or (`auto`) whichever there is."""
    folder.mkdir(mode=0o755)
    settings = {"mode": "annotations", "safe_default_w": "500", "proc_root": str(folder)}
    with contextlib.ExitStack() as stack:
        plane = None if source == "file" else _plane(stack, folder)
        if source == "kube" and plane is None:
            raise SystemExit("no kube-apiserver: python tests/contract/kube/build_control_plane.py")
        if plane is not None:
            kubeconfig = plane.kubeconfig(plane.port)
            settings |= {"pods": "kube", "kubeconfig": str(kubeconfig)}
        else:
            settings |= {"pods": f"file:{folder / 'n' / 'node' / 'pods.json'}"}
        settings |= {"kubelet_socket": str(folder / "n" / "node" / "kubelet.sock")}
        node = MeasuredNode(folder / "n", settings, kubelet=True)
        stack.callback(node.close)
        node.start()
        yield node, FileWriter(node) if plane is None else ServerWriter(plane, _pods(plane))


def _plane(stack: contextlib.ExitStack, folder: Path) -> Any:
    """The control plane of the contract tests; None where its programs are not built."""
    sys.path.insert(0, str(KUBE_TESTS))
    assets = import_module("build_control_plane").find_assets(os.environ)
    if assets is None:
        return None
    (folder / "plane").mkdir()
    control_plane = import_module("control_plane")
    plane = stack.enter_context(control_plane.running(assets, folder / "plane"))
    plane.apply((KUBE_TESTS.parents[2] / "deploy" / "agent" / "rbac.yaml").read_text())
    return plane


def _pods(plane: Any) -> Any:
    return import_module("control_plane").NodePods(plane, NODE)


def measure_pods(node: MeasuredNode, writer: PodWriter, pods: int) -> dict[str, Any]:
    """Bind `pods` pods, one after the other; the clock starts before the later of its two signs.

    Every other pod is known to the kubelet first and to the API after it, as when a watch is slow;
    the others first to the API and up to 0.3 s later to the kubelet, as when its admission is.
    """
    draw = random.Random(3)
    taken: dict[str, list[float]] = {"kubelet first": [], "event first": []}
    for number in range(pods):
        uuid = node.uuids[number % len(node.uuids)]
        before_w = node.enforced_w(uuid)
        watts = float(draw.choice([w for w in range(210, 690) if w != before_w]))
        pod = VirtualPod(
            name=f"pod-{number}",
            uid=f"00000000-0000-4000-8000-{number:012d}",
            limit=f"{watts:.0f}",
            devices=(Device(uuid),),
        )
        way = list(taken)[number % 2]
        node.view.drain()
        start_s = _bind(node, writer, pod, way, draw)
        changes = node.changes_until({uuid: watts}, 30.0)
        taken[way].append(max(change.at_s for change in changes if change.gpu == uuid) - start_s)
        node.virtual.pods.release(pod.namespace, pod.name)
        writer.unbind(pod)
        time.sleep(draw.uniform(0.0, 0.1))
    together = taken["kubelet first"] + taken["event first"]
    return {"all": spread(together), **{way: spread(values) for way, values in taken.items()}}


def _bind(
    node: MeasuredNode, writer: PodWriter, pod: VirtualPod, way: str, draw: random.Random
) -> float:
    if way == "kubelet first":
        node.virtual.pods.allocate(pod)
        start_s = time.monotonic()
        writer.bind(pod)
        return start_s
    writer.bind(pod)
    time.sleep(draw.uniform(0.0, 0.3))
    start_s = time.monotonic()
    node.virtual.pods.allocate(pod)
    return start_s
