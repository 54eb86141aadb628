"""What an API server may say of pods and of Dynamo's objects, broken and hostile included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.errors import InputError
from wattline.drivers.kube.annotations import Members, PodAnnotations, members_of
from wattline.drivers.kube.api import KubeApi, KubeError, KubeFault
from wattline.drivers.pods import LIMIT_ANNOTATION, SourceError


class FakeApi:
    """Answers by the end of the path, and 404 for what it does not have."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.patches: list[tuple[str, Mapping[str, Any]]] = []
        self.refused: set[str] = set()

    def get(self, path: str, params: Mapping[str, str]) -> Any:
        for end, answer in self.answers.items():
            if path.endswith(end):
                return answer
        raise KubeError(KubeFault.ABSENT, f"{path}: 404")

    def patch(self, path: str, document: Mapping[str, Any], *, manager: str) -> Any:
        name = path.rpartition("/")[2]
        if name in self.refused:
            raise KubeError(KubeFault.REFUSED, f"{path}: the cluster refuses it")
        self.patches.append((name, document))
        limit = document["metadata"]["annotations"][LIMIT_ANNOTATION]
        return pod(name, limit)


def pod(name: str, limit: str | None = None, manager: str = "wattline-controller") -> Any:
    metadata: dict[str, Any] = {"name": name, "uid": f"uid-{name}"}
    if limit is not None:
        owned: dict[str, Any] = {"f:metadata": {"f:annotations": {f"f:{LIMIT_ANNOTATION}": {}}}}
        metadata |= {
            "annotations": {LIMIT_ANNOTATION: limit},
            "managedFields": [{"manager": manager, "fieldsV1": owned}],
        }
    limits = {"nvidia.com/gpu": "2"}
    return {"metadata": metadata, "spec": {"containers": [{"resources": {"limits": limits}}]}}


def writer(api: FakeApi) -> PodAnnotations:
    return PodAnnotations(cast(KubeApi, api), "ml", {"decode": Members("chat", "decode")})


KEYS = (
    *("metadata", "name", "uid", "annotations", "managedFields", "fieldsV1", "f:metadata"),
    *("spec", "containers", "resources", "limits", "nvidia.com/gpu", "configMap", "podTemplate"),
    *("status", "components", "gpuPowerLimitWatts", LIMIT_ANNOTATION),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON, JSON, JSON)
def test_anything_is_read_or_a_reason(items: Any, deployment: Any, config: Any) -> None:
    kind = deployment if isinstance(deployment, dict) else {}
    answers = {"/pods": {"items": items}, "/chat": kind, "/configmaps/c": {"data": config}}
    try:
        look = writer(FakeApi(answers)).look()
    except SourceError:
        return
    for found in look.pods["decode"]:
        assert found.watts is None or found.watts >= 0
        assert found.gpus >= 0
    assert all(isinstance(line, str) for line in look.objections)


@pytest.mark.parametrize("text", ["", "-5", "4e2", "300.0", "300W", "٣٠٠", "9999999", " 300"])
def test_only_a_plain_number_is_a_limit(text: str) -> None:
    (found,) = writer(FakeApi({"/pods": {"items": [pod("d-0", text)]}})).look().pods["decode"]
    assert found.watts is None
    assert found.text == text


def test_lowerings_come_first_and_a_failed_one_stops_raises() -> None:
    pods = [pod("d-0", "200"), pod("d-1", "400"), pod("d-2")]
    api = FakeApi({"/pods": {"items": pods}})
    writer(api).sync({"decode": 300})
    assert [name for name, _ in api.patches] == ["d-1", "d-2", "d-0"]
    assert api.patches[0][1]["metadata"]["uid"] == "uid-d-1"
    api = FakeApi({"/pods": {"items": pods}})
    api.refused = {"d-1"}
    done = writer(api).sync({"decode": 300})
    assert [name for name, _ in api.patches] == ["d-2"]
    assert len(done.failures) == 1


def test_an_annotation_without_an_owner_is_somebodys() -> None:
    item = pod("d-0", "300")
    del item["metadata"]["managedFields"]
    (line,) = writer(FakeApi({"/pods": {"items": [item]}})).look().objections
    assert "d-0" in line
    shared = pod("d-0", "300")
    other = shared["metadata"]["managedFields"][0] | {"manager": "kubectl-annotate"}
    shared["metadata"]["managedFields"].append(other)
    (line,) = writer(FakeApi({"/pods": {"items": [shared]}})).look().objections
    assert line.endswith("kubectl-annotate")


ENABLED = {"enable_power_awareness": True}


@pytest.mark.parametrize(
    "container",
    [
        {"args": ["--config", json.dumps(ENABLED)]},
        {"command": ["sh", "-c", f"planner --config {json.dumps(json.dumps(ENABLED))}"]},
        {"args": ["enable_power_awareness: yes"]},
        {"env": [{"name": "enable_power_awareness", "value": "1"}]},
    ],
)
def test_power_awareness_is_found_however_it_is_written(container: dict[str, Any]) -> None:
    spec = {"components": [{"podTemplate": {"spec": {"containers": [container]}}}]}
    api = FakeApi({"/pods": {"items": []}, "/chat": {"spec": spec}})
    (line,) = writer(api).look().objections
    assert "enable_power_awareness" in line


@pytest.mark.parametrize(
    "container",
    [
        {"args": ["--config", json.dumps({"enable_power_awareness": False})]},
        {"args": ["--total-gpu-power-limit", "5000"]},
        {"env": [{"name": "NOTE", "value": "no enable_power_awareness here"}]},
    ],
)
def test_what_is_not_on_is_no_objection(container: dict[str, Any]) -> None:
    spec = {"components": [{"podTemplate": {"spec": {"containers": [container]}}}]}
    api = FakeApi({"/pods": {"items": []}, "/chat": {"spec": spec}})
    assert writer(api).look().objections == ()


def test_two_pools_have_two_components() -> None:
    with pytest.raises(InputError, match="same component twice"):
        members_of({"a": ("chat", "decode"), "b": ("chat", "decode")}, ["a", "b"])
