"""From a pod on the API server and its devices on the kubelet's socket to the owner of a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from control_plane import ControlPlane, NodePods, TcpProxy, wait_until

from wattline.agent.owner_watch import OwnersSeen, OwnerWatch
from wattline.drivers.kube.api import connect
from wattline.drivers.kube.pods import KubePods
from wattline.drivers.kubelet.devices import GpuResolver
from wattline.drivers.kubelet.pod_resources import PodResources
from wattline.drivers.kubelet.schedule import BURST_S
from wattline.drivers.pods import LIMIT_ANNOTATION
from wattline.virtual.kubelet import KubeletServer
from wattline.virtual.podresources import Device
from wattline.virtual.pods import NodePods as KubeletPods
from wattline.virtual.pods import VirtualPod

GPU = "GPU-8f0a4f3c-0000-4000-8000-000000000000"


class Rig:
    """Watches one node; the test plays the user, the scheduler and the kubelet."""

    def __init__(self, plane: ControlPlane, proxy: TcpProxy, node: NodePods, folder: Path) -> None:
        self.api = node
        self.kubelet = KubeletPods(folder / "pods.json", folder / "kubelet.json")
        self.kubelet.create()
        self.server = KubeletServer(folder / "kubelet.sock", self.kubelet)
        self.pods = KubePods(connect(plane.kubeconfig(proxy.port)), node.node, self._changed)
        self.client = PodResources(GpuResolver(), folder / "kubelet.sock")
        self.seen: list[OwnersSeen] = []
        self.watch = OwnerWatch(
            self.pods, self.client, namespace=None, reconcile_s=3600.0, now=time.monotonic
        )

    def __enter__(self) -> Rig:
        self.server.start()
        self.watch.start(self.seen.append)
        self.pods.start()
        wait_until(lambda: self.pods.age_s() is not None, "the first list")
        self.until_quiet()
        return self

    def __exit__(self, *_: object) -> None:
        self.pods.stop()
        self.watch.stop()
        self.client.close()
        self.server.stop()

    def _changed(self) -> None:
        self.watch.event()

    def owners(self) -> frozenset[object]:
        joined = self.seen[-1].joined if self.seen else None
        return frozenset() if joined is None else frozenset(joined.owners.get(GPU, ()))

    def until_quiet(self) -> None:
        """Wait until no listing has come for longer than the longest gap in a burst."""
        calls, since_s = -1, time.monotonic()

        def quiet() -> bool:
            nonlocal calls, since_s
            if self.server.calls != calls:
                calls, since_s = self.server.calls, time.monotonic()
            return time.monotonic() - since_s > 1.5

        wait_until(quiet, "the end of the burst")

    def admit(self, name: str, uid: str) -> None:
        pod = VirtualPod(name=name, uid=uid, devices=(Device(GPU),))
        self.kubelet.allocate(pod)


@pytest.fixture
def rig(plane: ControlPlane, proxy: TcpProxy, node: NodePods, tmp_path: Path) -> Iterator[Rig]:
    with Rig(plane, proxy, node, tmp_path) as rig:
        yield rig


def holds(rig: Rig, uid: str) -> Callable[[], bool]:
    return lambda: rig.owners() == frozenset({uid})


def test_a_new_pod_is_found_in_a_bounded_burst(rig: Rig) -> None:
    before = rig.server.calls
    created = rig.api.create(f"w-{rig.api.node}", {LIMIT_ANNOTATION: "300"}, gpus=1)
    uid = created["metadata"]["uid"]
    time.sleep(0.15)  # the kubelet takes its time
    rig.admit(f"w-{rig.api.node}", uid)
    wait_until(holds(rig, uid), "the owner")
    rig.until_quiet()
    assert 2 <= rig.server.calls - before <= len(BURST_S)


def test_a_pod_that_never_gets_its_gpu_is_not_asked_for_without_end(rig: Rig) -> None:
    before = rig.server.calls
    rig.api.create(f"w-{rig.api.node}", gpus=1)
    rig.until_quiet()
    assert 2 <= rig.server.calls - before <= len(BURST_S)


def test_a_pod_without_a_gpu_costs_one_listing(rig: Rig) -> None:
    before = rig.server.calls
    rig.api.create(f"w-{rig.api.node}")
    rig.until_quiet()
    assert rig.server.calls - before == 1


def test_a_name_that_is_used_again_is_told_apart(rig: Rig) -> None:
    name = f"w-{rig.api.node}"
    old = rig.api.create(name, gpus=1)["metadata"]["uid"]
    rig.admit(name, old)
    wait_until(holds(rig, old), "the first owner")
    rig.api.delete(name)
    new = rig.api.create(name, gpus=1)["metadata"]["uid"]
    # The kubelet still lists the old pod under the name, and has not acknowledged the new one.
    wait_until(lambda: [pod.uid for pod in rig.pods.pods()] == [new], "the new pod")
    wait_until(lambda: bool(rig.seen[-1].pods) and bool(rig.owners()), "a listing after it")
    assert new not in rig.owners()
    rig.api.set_status(name, startTime="2026-01-01T00:00:00Z")
    wait_until(holds(rig, new), "the new owner")
