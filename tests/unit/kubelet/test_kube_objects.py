"""What is read from Pod and ResourceSlice objects, and which API versions are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.errors import InputError
from wattline.drivers.kube.api import KubeApi, KubeError, KubeFault, connect
from wattline.drivers.kube.pod_object import pod_of
from wattline.drivers.kube.slices import ResourceSlices, uuids_of
from wattline.drivers.kubelet.wire import ClaimedDevice
from wattline.drivers.pods import LIMIT_ANNOTATION, Pod, SourceError

METADATA = {"namespace": "default", "name": "web", "uid": "u1"}
GPU, MIG = "GPU-8f0a4f3c-0000-4000-8000-000000000000", "MIG-11111111-2222-3333-4444-555555555555"
SCOPE: list[Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "power_agent_scope.json").read_text()
)["cases"]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "spec",
                    "status",
                    "name",
                    "namespace",
                    "uid",
                    "annotations",
                    "phase",
                    "containers",
                    "resources",
                    "limits",
                    "driver",
                    "pool",
                    "generation",
                    "devices",
                    "basic",
                    "attributes",
                    "uuid",
                    "string",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


def test_a_pod_with_everything() -> None:
    item = {
        "metadata": {
            **METADATA,
            "annotations": {LIMIT_ANNOTATION: "480", "kubernetes.io/config.mirror": "0" * 32},
        },
        "spec": {
            "hostPID": True,
            "containers": [{"resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}],
        },
        "status": {"phase": "Failed", "startTime": "2026-01-01T00:00:00Z"},
    }
    assert pod_of(item) == Pod(
        "default",
        "web",
        "u1",
        "480",
        finished=True,
        asks_gpu=True,
        static_uid="0" * 32,
        acknowledged=True,
        host_pid=True,
    )


@pytest.mark.parametrize("case", SCOPE, ids=lambda case: case["name"])
def test_pods_that_have_opted_in(case: Any) -> None:
    pods = [
        pod_of({"metadata": {**METADATA, "annotations": annotations}})
        for annotations in case["pods"]
    ]
    assert [pod.limit for pod in pods if pod.limit is not None] == case["in_scope"]


def test_a_pod_with_next_to_nothing() -> None:
    expected = Pod("default", "web", "u1", None, asks_gpu=False, acknowledged=False, host_pid=False)
    assert pod_of({"metadata": METADATA}) == expected
    assert pod_of({"metadata": {**METADATA, "annotations": None}, "spec": None}) == expected


@pytest.mark.parametrize(
    ("spec", "asks"),
    [
        ({"containers": [{"resources": {"requests": {"cpu": "1"}}}]}, False),
        (
            {"containers": [{"resources": {}}, {"resources": {"limits": {"nvidia.com/gpu": 1}}}]},
            True,
        ),
        ({"initContainers": [{"resources": {"requests": {"nvidia.com/gpu.shared": "1"}}}]}, True),
        ({"containers": [{}], "resourceClaims": [{"name": "gpu"}]}, True),
        ({"containers": [{"resources": {"limits": {"amd.com/gpu": "1"}}}]}, False),
    ],
)
def test_pods_that_ask_for_a_gpu(spec: dict[str, Any], asks: bool) -> None:
    assert pod_of({"metadata": METADATA, "spec": spec}).asks_gpu is asks


@given(JSON)
def test_any_object_is_read_or_refused(item: Any) -> None:
    for read in (pod_of, uuids_of):
        said = ""
        try:
            read(item)
        except SourceError as error:
            said = str(error)
        assert "\n" not in said


def device(name: str, **attributes: str) -> dict[str, Any]:
    return {
        "name": name,
        "attributes": {key: {"string": value} for key, value in attributes.items()},
    }


def slice_of(*devices: Any, generation: int = 1, driver: str = "gpu.nvidia.com") -> dict[str, Any]:
    pool = {"name": "n1", "generation": generation, "resourceSliceCount": 1}
    return {"spec": {"driver": driver, "pool": pool, "nodeName": "n1", "devices": list(devices)}}


def claimed(name: str) -> ClaimedDevice:
    return ClaimedDevice("gpu.nvidia.com", "n1", name)


def test_uuids_of_devices_in_both_shapes() -> None:
    beta = {"name": "gpu-1", "basic": {"attributes": {"uuid": {"string": GPU}}}}
    domain = {"name": "gpu-2", "attributes": {"gpu.nvidia.com/uuid": {"string": GPU}}}
    nameless = {"name": "gpu-3", "attributes": {"index": {"int": 3}}}
    found = uuids_of([slice_of(device("gpu-0", uuid=GPU), beta, domain, nameless)])
    assert found == {claimed(f"gpu-{n}"): GPU for n in range(3)}


def test_a_mig_instance_is_its_gpus_part_if_the_slice_says_whose() -> None:
    found = uuids_of([slice_of(device("a", uuid=MIG, parentUUID=GPU), device("b", uuid=MIG))])
    assert found == {claimed("a"): GPU, claimed("b"): MIG}


def test_only_the_newest_generation_of_a_pool_counts() -> None:
    old = slice_of(device("gpu-0", uuid="GPU-old"), device("gpu-9", uuid="GPU-gone"), generation=1)
    new = slice_of(device("gpu-0", uuid=GPU), generation=2)
    assert uuids_of([old, new]) == uuids_of([new, old]) == {claimed("gpu-0"): GPU}


def test_other_drivers_have_no_gpus() -> None:
    assert uuids_of([slice_of(device("x", uuid=GPU), driver="net.example.com")]) == {}


class Server:
    def __init__(self, served: str | None, code: int = 404) -> None:
        self.served = served
        self.code = code
        self.paths: list[str] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.url.params["fieldSelector"] == "spec.nodeName=n1"
        version = request.url.path.split("/")[3]
        self.paths.append(version)
        if version == self.served:
            return httpx2.Response(200, json={"items": [slice_of(device("gpu-0", uuid=GPU))]})
        return httpx2.Response(self.code, json={"message": "no"})

    def connect(self) -> KubeApi:
        client = httpx2.Client(transport=httpx2.MockTransport(self), base_url="https://s")
        return KubeApi(client, "https://s")


def test_the_newest_served_version_is_found_once() -> None:
    server = Server("v1beta1")
    slices = ResourceSlices(server.connect, "n1")
    assert slices() == slices() == {claimed("gpu-0"): GPU}
    assert server.paths == ["v1", "v1beta2", "v1beta1", "v1beta1"]


def test_a_cluster_without_claims_says_so() -> None:
    with pytest.raises(KubeError) as caught:
        ResourceSlices(Server(None).connect, "n1")()
    assert caught.value.fault is KubeFault.ABSENT


def test_a_missing_permission_is_not_taken_for_an_old_cluster() -> None:
    server = Server(None, 403)
    with pytest.raises(KubeError) as caught:
        ResourceSlices(server.connect, "n1")()
    assert caught.value.fault is KubeFault.REFUSED
    assert server.paths == ["v1"]


def test_no_way_to_the_cluster_is_an_error_of_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="kubeconfig"):
        ResourceSlices(lambda: connect(tmp_path / "none"), "n1")()


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[",
        "a: b",
        "current-context: x\nclusters: []\ncontexts: []\n",
        "\x00",
        "clusters: 7",
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        connect(path)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
