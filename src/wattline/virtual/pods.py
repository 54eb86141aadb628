"""The pods of a virtual node: what the API server says of them, and what the kubelet gave them.

Both are JSON files that are replaced atomically, so several processes may change and read them:
`pods.json` has the pods as an agent without a cluster reads them, `kubelet.json` what the kubelet
stand-in answers from. A pod may be in one and not yet, or no more, in the other. What is wrong with
the stand-in is in a small file of its own, which it looks at often.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.pods import LIMIT_ANNOTATION
from wattline.drivers.trusted_files import replace_file
from wattline.virtual.podresources import Claim, Device, PodResources


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualPod:
    """A pod with its devices. `limit`: text of the power limit's annotation; None: not opted in."""

    name: str
    namespace: str = "default"
    uid: str
    limit: str | None = None
    phase: str = "Running"
    devices: tuple[Device, ...] = ()
    claims: tuple[Claim, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletFault:
    """What is wrong with the kubelet: `kind` none, gone, error, garbage or empty; and slowness.

    gone: no socket. error: `code`, a name of a gRPC status. garbage: bytes that are no protobuf.
    empty: an answer without pods. `count`: answers that still meet it; None: until it is cleared.
    """

    kind: str = "none"
    code: str = "UNAVAILABLE"
    delay_s: float = 0.0
    count: int | None = None


class NodePods:
    """The files of a virtual node's pods."""

    def __init__(self, pods_file: Path, kubelet_file: Path) -> None:
        self.pods_file = pods_file
        self.kubelet_file = kubelet_file
        self._fault_file = kubelet_file.with_suffix(".fault.json")

    def create(self) -> None:
        """Make the files, without pods, where they are missing."""
        if not self.pods_file.exists():
            _replace(self.pods_file, {"pods": []})
        if not self.kubelet_file.exists():
            _replace(self.kubelet_file, {"pods": []})
        if not self._fault_file.exists():
            _replace(self._fault_file, asdict(KubeletFault()))

    def add(self, pod: VirtualPod) -> None:
        """The pod is bound to the node, then the kubelet gives it its devices."""
        self.bind(pod)
        self.allocate(pod)

    def remove(self, namespace: str, name: str) -> None:
        """The pod is gone from the API server and from the kubelet."""
        self.unbind(namespace, name)
        self.release(namespace, name)

    def bind(self, pod: VirtualPod) -> None:
        """Only the API server knows the pod from now on, or knows it as it is now."""
        annotations = {} if pod.limit is None else {LIMIT_ANNOTATION: pod.limit}
        entry = {
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
            "annotations": annotations,
            "labels": dict(pod.labels),
            "phase": pod.phase,
        }
        with self._changing(self.pods_file) as document:
            document["pods"] = [*_others(document, pod.namespace, pod.name), entry]

    def unbind(self, namespace: str, name: str) -> None:
        """The API server no longer has the pod."""
        with self._changing(self.pods_file) as document:
            document["pods"] = _others(document, namespace, name)

    def allocate(self, pod: VirtualPod) -> None:
        """Only the kubelet gives the pod its devices."""
        entry = {
            "namespace": pod.namespace,
            "name": pod.name,
            "devices": [asdict(device) for device in pod.devices],
            "claims": [asdict(claim) for claim in pod.claims],
        }
        with self._changing(self.kubelet_file) as document:
            document["pods"] = [*_others(document, pod.namespace, pod.name), entry]

    def release(self, namespace: str, name: str) -> None:
        """The kubelet no longer lists the pod."""
        with self._changing(self.kubelet_file) as document:
            document["pods"] = _others(document, namespace, name)

    def names(self) -> list[tuple[str, str]]:
        """Namespace and name of the pods that the API server has."""
        return [(pod["namespace"], pod["name"]) for pod in _read(self.pods_file)["pods"]]

    def resources(self) -> list[PodResources]:
        """What the kubelet lists."""
        return [
            PodResources(
                namespace=pod["namespace"],
                name=pod["name"],
                devices=tuple(Device(**device) for device in pod["devices"]),
                claims=tuple(Claim(**claim) for claim in pod["claims"]),
            )
            for pod in _read(self.kubelet_file)["pods"]
        ]

    def fault(self) -> KubeletFault:
        """What is wrong with the kubelet now."""
        return KubeletFault(**_read(self._fault_file))

    def take_fault(self) -> KubeletFault:
        """What is wrong with this answer of the kubelet; counts it."""
        fault = self.fault()
        if fault.count is None:
            return fault
        with self._changing(self._fault_file) as document:
            fault = KubeletFault(**document)
            if fault.count is not None:
                left = fault.count - 1
                after = replace(fault, count=left) if left > 0 else KubeletFault()
                document.update(asdict(after))
        return fault

    def set_fault(self, fault: KubeletFault) -> None:
        """Make something wrong with the kubelet; `KubeletFault()` mends it."""
        with self._changing(self._fault_file) as document:
            document.update(asdict(fault))

    @staticmethod
    @contextmanager
    def _changing(path: Path) -> Iterator[dict[str, Any]]:
        with (path.parent / f".{path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document = _read(path)
            yield document
            _replace(path, document)


def _others(document: Mapping[str, Any], namespace: str, name: str) -> list[dict[str, Any]]:
    pods: Sequence[dict[str, Any]] = document["pods"]
    return [pod for pod in pods if (pod["namespace"], pod["name"]) != (namespace, name)]


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError("virtual node", str(path), "is not there: create the node first") from None
    except ValueError:
        raise InputError("virtual node", str(path), "is not JSON: create the node anew") from None
    return document


def _replace(path: Path, document: object) -> None:
    content = json.dumps(document, indent=1) + "\n"
    replace_file(path, content.encode(), durable=False, mode=0o644)
