"""ResourceSlices of a real API server, with the agent's permissions."""

from __future__ import annotations

import pytest
from control_plane import AGENT_TOKEN, STRANGER_TOKEN, ControlPlane, NodePods, TcpProxy

from wattline.drivers.kube.api import KubeError, connect
from wattline.drivers.kube.slices import ResourceSlices
from wattline.drivers.kubelet.devices import ClaimedGpus, GpuResolver
from wattline.drivers.kubelet.wire import ClaimedDevice, PodDevices
from wattline.drivers.pods import PodName

GPU = "GPU-8f0a4f3c-0000-4000-8000-000000000000"


def publish(plane: ControlPlane, node: str, uuids: dict[str, str], version: str = "v1") -> None:
    attributes = {name: {"uuid": {"string": uuid}} for name, uuid in uuids.items()}
    shape = version == "v1beta1"
    devices = [
        {"name": name, "basic": {"attributes": has}} if shape else {"name": name, "attributes": has}
        for name, has in attributes.items()
    ]
    body = {
        "apiVersion": f"resource.k8s.io/{version}",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-gpu"},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        },
    }
    answer = plane.request("POST", f"/apis/resource.k8s.io/{version}/resourceslices", body)
    assert answer.status_code == 201, answer.text


def slices(plane: ControlPlane, proxy: TcpProxy, node: str, token: str) -> ResourceSlices:
    return ResourceSlices(lambda: connect(plane.kubeconfig(proxy.port, token)), node)


def test_a_claim_is_resolved(plane: ControlPlane, proxy: TcpProxy, node: NodePods) -> None:
    publish(plane, node.node, {"gpu-0": GPU, "gpu-1": "GPU-other"})
    publish(plane, f"{node.node}-other", {"gpu-0": "GPU-elsewhere"})
    claim = ClaimedDevice("gpu.nvidia.com", node.node, "gpu-0")
    read = slices(plane, proxy, node.node, AGENT_TOKEN)
    assert read() == {claim: GPU, ClaimedDevice("gpu.nvidia.com", node.node, "gpu-1"): "GPU-other"}
    web = PodName("default", "web")
    listing = [PodDevices(web, (), (claim,))]
    resolver = GpuResolver(claims=ClaimedGpus(read))
    for _ in range(3):
        assert resolver.ownership(listing).pods == {GPU: frozenset({web})}
    asked = [uri for _, uri in plane.agent_requests() if "resourceslices" in uri]
    assert sum(node.node in uri for uri in asked) == 2


def test_a_missing_permission_is_named(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods
) -> None:
    with pytest.raises(KubeError, match='cannot list resource "resourceslices"'):
        slices(plane, proxy, node.node, STRANGER_TOKEN)()
