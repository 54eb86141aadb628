"""A cell with annotations: pods come and go, and their GPUs get the limits that they ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from faults_base import Cell, CellNode, CellSettings
from wattline.drivers.trusted_files import replace_file
from wattline.virtual.node import VirtualNode
from wattline.virtual.podresources import Device
from wattline.virtual.pods import KubeletFault, VirtualPod

SAFE_DEFAULT_W = 450.0
CHANGE_S = 0.8


class AnnotatedCell(Cell):
    """Each node has a kubelet stand-in; its last GPU only ever holds a pod that never opted in."""

    def __init__(self, settings: CellSettings) -> None:
        super().__init__(settings)
        self._pods: dict[str, VirtualPod] = {}
        self._wanted_w: dict[str, float] = {}
        self._made = 0
        self._changing = False
        self.still = False
        """Pods do not change for the moment."""
        self.left_alone = {node.uuids[-1] for node in self.nodes}
        for node in self.nodes:
            node.virtual.start_kubelet()
            node.virtual.add_pod("quiet", [node.uuids[-1]])

    def agent_settings(self, virtual: VirtualNode, name: str) -> Mapping[str, str]:
        """Annotations, from the virtual node's pods and kubelet."""
        return {
            "mode": "annotations",
            "safe_default_w": str(SAFE_DEFAULT_W),
            "pods": f"file:{virtual.pods_file}",
            "kubelet_socket": str(virtual.kubelet_socket),
            "proc_root": str(virtual.proc_root),
        }

    def source_of(self, virtual: VirtualNode, name: str) -> Path:
        """The node's pods."""
        return virtual.pods_file

    def begin(self) -> None:
        """Agents up; pods begin to come and go."""
        for node in self.nodes:
            node.agent.start()
        if not self.pump_until(lambda: all(node.agent.up for node in self.nodes), 60.0):
            raise RuntimeError(f"{self.folder}: the agents did not come up")
        self.observe()
        self._changing = True
        self._change()

    def _change(self) -> None:
        """Put another pod on one GPU, or none."""
        if not self._changing:
            return
        if not self.still:
            node = self.rng.choice(self.nodes)
            uuid = self.rng.choice(node.uuids[:-1])
            self._remove(node, uuid)
            if self.rng.random() < 0.8:
                self._add(node, uuid)
        self.later(self.rng.expovariate(1.0 / CHANGE_S), self._change)

    def _add(self, node: CellNode, uuid: str) -> None:
        self._made += 1
        watts = float(self.rng.randrange(200, 700))
        bad = self.rng.random() < 0.15
        text = self.rng.choice(("", "lots", "-5", "300W", "1e9e9")) if bad else f"{watts:.0f}"
        pod = VirtualPod(
            name=f"worker-{self._made}",
            uid=f"00000000-0000-4000-8000-{self._made:012d}",
            limit=text,
            devices=(Device(uuid),),
        )
        node.virtual.pods.add(pod)
        self._pods[uuid] = pod
        self._wanted_w[uuid] = SAFE_DEFAULT_W if bad else watts

    def _remove(self, node: CellNode, uuid: str) -> None:
        pod = self._pods.pop(uuid, None)
        self._wanted_w.pop(uuid, None)
        if pod is not None:
            node.virtual.pods.remove(pod.namespace, pod.name)

    def heal(self) -> None:
        """Let the pods stand still, then end every fault."""
        self._changing = False
        for node in self.nodes:
            node.virtual.pods.set_fault(KubeletFault())
        super().heal()

    def wrong(self) -> dict[str, tuple[float, float]]:
        """GPUs with a pod whose limit is not enforced: what is, and what should be."""
        return {
            uuid: (enforced_w, self._wanted_w[uuid])
            for node in self.nodes
            for uuid in node.uuids
            if uuid in self._wanted_w
            and (enforced_w := node.virtual.gpus.enforced_mw(uuid) / 1000) != self._wanted_w[uuid]
        }

    def at_rest(self) -> bool:
        """Every agent is up, and every pod has its limit."""
        return all(node.agent.up for node in self.nodes) and not self.wrong()

    def remove_pods(self) -> None:
        """The work is over."""
        for node in self.nodes:
            for uuid in node.uuids:
                self._remove(node, uuid)
        self.pump(1.0)


def kubelet_fault(cell: AnnotatedCell, node: CellNode) -> str | None:
    """The kubelet's socket is gone, or answers with errors, noise, nothing, or late."""
    if "kubelet" in node.busy:
        return None
    node.busy.add("kubelet")
    kind = cell.rng.choice(("gone", "error", "garbage", "empty"))
    late_s = cell.rng.choice((0.0, 0.0, 1.0))
    seconds = cell.rng.uniform(0.3, 3.0)
    node.virtual.pods.set_fault(KubeletFault(kind=kind, delay_s=late_s))

    def end() -> None:
        node.virtual.pods.set_fault(KubeletFault())
        node.busy.discard("kubelet")

    cell.later(seconds, end)
    return f"{kind} for {seconds:.1f} s, {late_s:.0f} s late"


def torn_pods(cell: AnnotatedCell, node: CellNode) -> str | None:
    """The list of pods is torn, noise, gone, or not to be trusted, and comes back whole."""
    path = node.virtual.pods_file
    aside = path.with_name("pods.aside")
    cell.still = True  # their writer needs the file whole, as an API server would be
    whole = path.read_bytes()
    kinds: dict[str, Callable[[], object]] = {
        "torn": lambda: replace_file(path, whole[: len(whole) // 2], durable=False, mode=0o644),
        "noise": lambda: replace_file(path, cell.rng.randbytes(200), durable=False, mode=0o644),
        "writable by all": lambda: replace_file(path, b'{"pods": []}', durable=False, mode=0o666),
        "gone": lambda: os.rename(path, aside),
    }
    kind = cell.rng.choice(list(kinds))
    kinds[kind]()
    cell.pump(cell.rng.uniform(0.1, 0.6))
    replace_file(path, whole, durable=False, mode=0o644)
    aside.unlink(missing_ok=True)
    cell.still = False
    return kind


KINDS: dict[str, tuple[float, Callable[[AnnotatedCell, CellNode], str | None]]] = {
    "kubelet's socket gone or wrong": (12, kubelet_fault),
    "list of pods torn": (8, torn_pods),
}
