"""The annotation outlet against a real API server, with its own permissions and nothing more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_plane import NAMESPACED_TOKEN, ControlPlane, wait_until

from wattline.drivers.kube.annotations import MANAGER, Members, PodAnnotations
from wattline.drivers.kube.api import KubeError, connect
from wattline.drivers.pods import LIMIT_ANNOTATION

pytestmark = [pytest.mark.slow]

RBAC = Path(__file__).resolve().parents[3] / "deploy" / "controller" / "annotations-rbac.yaml"
NAMESPACE = "serving"
DGD = "chat"
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "dynamographdeployments.nvidia.com"},
    "spec": {
        "group": "nvidia.com",
        "scope": "Namespaced",
        "names": {
            "plural": "dynamographdeployments",
            "singular": "dynamographdeployment",
            "kind": "DynamoGraphDeployment",
        },
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
DGDS = f"/apis/nvidia.com/v1beta1/namespaces/{NAMESPACE}/dynamographdeployments"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
MERGE = "application/merge-patch+json"


class Cluster:
    """A user, an operator and a scheduler of one namespace."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        kind = {"Content-Type": MERGE} if method == "PATCH" else {}
        answer = self.plane.request(method, path, body, **kind)
        assert answer.status_code in (200, 201), answer.text
        document: dict[str, Any] = answer.json()
        return document

    def pod(self, name: str, component: str, limit: str | None = None) -> dict[str, Any]:
        labels = {
            "nvidia.com/dynamo-graph-deployment-name": DGD,
            "nvidia.com/dynamo-component": component,
        }
        annotations = {} if limit is None else {LIMIT_ANNOTATION: limit}
        return self.call(
            "POST",
            PODS,
            {
                "metadata": {"name": name, "labels": labels, "annotations": annotations},
                "spec": {
                    "nodeName": "n1",
                    "containers": [
                        {
                            "name": "main",
                            "image": "none",
                            "resources": {"limits": {"nvidia.com/gpu": 2}},
                        }
                    ],
                },
            },
        )

    def deployment(self, spec: dict[str, Any], status: dict[str, Any] | None = None) -> None:
        document = {
            "apiVersion": "nvidia.com/v1beta1",
            "kind": "DynamoGraphDeployment",
            "metadata": {"name": DGD},
            "spec": spec,
        }
        self.call("POST", DGDS, document)
        if status is not None:
            self.call("PATCH", f"{DGDS}/{DGD}/status", {"status": status})

    def limits(self) -> dict[str, str | None]:
        items = self.call("GET", PODS)["items"]
        return {
            item["metadata"]["name"]: item["metadata"].get("annotations", {}).get(LIMIT_ANNOTATION)
            for item in items
        }

    def clear(self) -> None:
        for item in self.call("GET", PODS)["items"]:
            name = item["metadata"]["name"]
            self.call("DELETE", f"{PODS}/{name}", {"gracePeriodSeconds": 0})
        for item in self.call("GET", DGDS)["items"]:
            self.call("DELETE", f"{DGDS}/{item['metadata']['name']}")


@pytest.fixture(scope="module")
def installed(plane: ControlPlane) -> ControlPlane:
    """The controller's permissions for another account, which has no others; and Dynamo's kind."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    plane.apply(json.dumps(namespace))
    manifest = RBAC.read_text().replace("namespace: dynamo", f"namespace: {NAMESPACE}")
    plane.apply(manifest.replace("name: wattline-controller", "name: namespaced-agent"))
    answer = plane.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", CRD)
    assert answer.status_code in (201, 409), answer.text
    wait_until(
        lambda: bool(plane.request("GET", DGDS).status_code == 200), "the kind is served", 60.0
    )
    return plane


@pytest.fixture
def cluster(installed: ControlPlane) -> Iterator[Cluster]:
    cluster = Cluster(installed)
    yield cluster
    cluster.clear()


@pytest.fixture
def writer(installed: ControlPlane) -> Iterator[PodAnnotations]:
    api = connect(installed.kubeconfig(installed.port, NAMESPACED_TOKEN))
    members = {"prefill": Members(DGD, "prefill"), "decode": Members(DGD, "decode")}
    writer = PodAnnotations(api, NAMESPACE, members)
    yield writer
    writer.close()


def test_pods_are_written_lowered_first_and_read_back(
    cluster: Cluster, writer: PodAnnotations
) -> None:
    cluster.pod("p-0", "prefill")
    cluster.pod("d-0", "decode")
    cluster.pod("d-1", "decode")
    cluster.pod("other", "frontend")
    look = writer.look()
    assert look.objections == ()
    assert [(pod.name, pod.watts, pod.gpus) for pod in look.pods["decode"]] == [
        ("d-0", None, 2),
        ("d-1", None, 2),
    ]
    done = writer.sync({"prefill": 400, "decode": 300})
    assert (done.written, done.failures) == (3, ())
    assert cluster.limits() == {"p-0": "400", "d-0": "300", "d-1": "300", "other": None}
    assert {pod.watts for pod in done.look.pods["decode"]} == {300}
    assert all(pod.foreign is None for pods in done.look.pods.values() for pod in pods)
    # Again: nothing is left to write; and what it wrote itself is no objection.
    assert writer.sync({"prefill": 400, "decode": 300}).written == 0
    again = writer.sync({"prefill": 250, "decode": 350})
    assert again.written == 3
    assert cluster.limits()["p-0"] == "250"


def test_a_pod_of_the_same_name_is_not_the_pod(cluster: Cluster, writer: PodAnnotations) -> None:
    cluster.pod("p-0", "prefill")
    (old,) = writer.look().pods["prefill"]
    cluster.clear()
    cluster.pod("p-0", "prefill")
    with pytest.raises(KubeError, match=r"409|[Cc]onflict|uid"):
        writer.write(old, 300)
    assert cluster.limits() == {"p-0": None}


def test_what_ended_holds_nothing(cluster: Cluster, writer: PodAnnotations) -> None:
    cluster.pod("p-0", "prefill")
    cluster.call("PATCH", f"{PODS}/p-0/status", {"status": {"phase": "Succeeded"}})
    assert writer.sync({"prefill": 300}).written == 0
    assert cluster.limits() == {"p-0": None}


def test_another_writers_annotation_is_left_alone(cluster: Cluster, writer: PodAnnotations) -> None:
    cluster.pod("p-0", "prefill", "500")
    cluster.pod("d-0", "decode")
    done = writer.sync({"prefill": 400, "decode": 300})
    assert done.written == 0
    assert len(done.look.objections) == 1
    assert f"pod {NAMESPACE}/p-0" in done.look.objections[0]
    assert MANAGER not in done.look.objections[0]
    assert cluster.limits() == {"p-0": "500", "d-0": None}


def planner(args: list[str], **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "args": args}
    template = {"spec": {"containers": [container], **spec}}
    return {"components": [{"name": "planner", "type": "planner", "podTemplate": template}]}


@pytest.mark.parametrize(
    ("spec", "status", "said"),
    [
        (
            {"components": [{"name": "decode", "type": "decode"}]},
            {"components": {"decode": {"gpuPowerLimitWatts": 300, "gpusPerReplica": 2}}},
            f"{NAMESPACE}/{DGD}: component decode declares gpuPowerLimitWatts 300",
        ),
        (
            {
                "components": [
                    {
                        "name": "decode",
                        "podTemplate": {"metadata": {"annotations": {LIMIT_ANNOTATION: "300"}}},
                    }
                ]
            },
            None,
            "spec.components[0].podTemplate.metadata.annotations carries",
        ),
        (
            planner(
                ["--config", '{"enable_power_awareness": true, "total_gpu_power_limit": 5000}']
            ),
            None,
            "its planner runs with enable_power_awareness",
        ),
        (
            planner(
                ["--config", "/c/planner.yaml"],
                volumes=[{"name": "c", "configMap": {"name": "planner-config-1"}}],
            ),
            None,
            f"configmap {NAMESPACE}/planner-config-1",
        ),
    ],
    ids=["declared", "annotated", "inline", "mounted"],
)
def test_dynamos_own_power_awareness_is_named(
    cluster: Cluster,
    writer: PodAnnotations,
    spec: dict[str, Any],
    status: dict[str, Any] | None,
    said: str,
) -> None:
    content = {"planner.yaml": "mode: disagg\nenable_power_awareness: true\n"}
    config = {"metadata": {"name": "planner-config-1"}, "data": content}
    maps = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    cluster.call("POST", maps, config)
    try:
        cluster.pod("d-0", "decode")
        cluster.deployment(spec, status)
        (line,) = writer.look().objections
        assert said in line
        assert writer.sync({"decode": 300}).written == 0
        assert cluster.limits() == {"d-0": None}
    finally:
        cluster.call("DELETE", f"{maps}/planner-config-1")


def test_a_deployment_without_it_is_no_objection(cluster: Cluster, writer: PodAnnotations) -> None:
    cluster.deployment(
        planner(["--config", '{"enable_power_awareness": false}']),
        {"components": {"decode": {"gpusPerReplica": 2}}},
    )
    assert writer.look().objections == ()


def test_a_cluster_that_refuses_the_change_is_quoted(
    cluster: Cluster, writer: PodAnnotations
) -> None:
    policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    unchanged = (
        "oldObject.metadata.?annotations[?'dynamo.nvidia.com/gpu-power-limit'] == "
        "object.metadata.?annotations[?'dynamo.nvidia.com/gpu-power-limit']"
    )
    policy = {
        "metadata": {"name": "fixed-power"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["UPDATE"],
                        "resources": ["pods"],
                    }
                ],
            },
            "validations": [{"expression": unchanged, "message": "the power limit is immutable"}],
        },
    }
    binding = {
        "metadata": {"name": "fixed-power"},
        "spec": {"policyName": "fixed-power", "validationActions": ["Deny"]},
    }
    cluster.pod("p-0", "prefill")
    cluster.call("POST", policies, policy)
    cluster.call("POST", bindings, binding)
    try:

        def refused() -> bool:
            # The server takes a moment to put a policy in force.
            cluster.call("DELETE", f"{PODS}/p-0", {"gracePeriodSeconds": 0})
            cluster.pod("p-0", "prefill")
            return bool(writer.sync({"prefill": 300}).failures)

        wait_until(refused, "the policy is in force", 60.0)
        done = writer.sync({"prefill": 300})
        (line,) = done.failures
        assert "the cluster refuses it" in line
        assert "the power limit is immutable" in line
        assert cluster.limits() == {"p-0": None}
    finally:
        cluster.call("DELETE", f"{bindings}/fixed-power")
        cluster.call("DELETE", f"{policies}/fixed-power")


def test_missing_permissions_name_their_manifest(installed: ControlPlane) -> None:
    api = connect(installed.kubeconfig(installed.port, NAMESPACED_TOKEN))
    writer = PodAnnotations(api, "kube-system", {"prefill": Members(DGD, "prefill")})
    try:
        with pytest.raises(KubeError, match=r"deploy/controller/annotations-rbac\.yaml"):
            writer.look()
    finally:
        writer.close()
