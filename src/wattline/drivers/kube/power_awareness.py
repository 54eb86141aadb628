"""Whether Dynamo itself decides on the power annotation of a deployment's pods.

Where its power awareness is on, its planner waits until every worker pod's annotation equals the
cap of the deployment, and its webhook refuses changes of that cap (NVIDIA Dynamo 1.6.1). Another
writer of the annotation would stop the one and fight the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from wattline.drivers.kube.api import KubeApi, KubeError, KubeFault
from wattline.drivers.pods import LIMIT_ANNOTATION

_GROUP = "/apis/nvidia.com"
_VERSIONS = ("v1beta1", "v1alpha1")
_ENABLED = re.compile(
    r"""enable_power_awareness[\\"']*\s*[:=]\s*[\\"']*(true|yes|on|1)\b""", re.IGNORECASE
)
_MOST_DEPTH = 30


def objections(api: KubeApi, namespace: str, deployment: str) -> list[str]:
    """What of a DynamoGraphDeployment speaks against another writer; one line per object and field.

    None of a deployment that is not there. Raises KubeError for what cannot be read.
    """
    found = _graph_deployment(api, namespace, deployment)
    if found is None:
        return []
    where = f"dynamographdeployment {namespace}/{deployment}"
    lines = [
        *_declared(found, where),
        *(f"{where}: {path} carries {LIMIT_ANNOTATION}" for path in _annotated(found, "spec")),
    ]
    if any(_ENABLED.search(text) for text in _texts(found.get("spec"))):
        lines.append(f"{where}: its planner runs with enable_power_awareness")
    for name in sorted(_config_maps(found.get("spec"))):
        try:
            # The name is a text that a user wrote: it must not become another path.
            path = f"/api/v1/namespaces/{namespace}/configmaps/{quote(name, safe='')}"
            content = api.get(path, {})
        except KubeError as error:
            if error.fault is KubeFault.ABSENT:
                continue
            raise
        if any(_ENABLED.search(text) for text in _texts(content.get("data"))):
            lines.append(f"configmap {namespace}/{name} of {where} sets enable_power_awareness")
    return lines


def _graph_deployment(api: KubeApi, namespace: str, name: str) -> Mapping[str, Any] | None:
    for version in _VERSIONS:
        path = f"{_GROUP}/{version}/namespaces/{namespace}/dynamographdeployments/{name}"
        try:
            return api.get(path, {})
        except KubeError as error:
            if error.fault is not KubeFault.ABSENT:
                raise
    return None


def _declared(found: Mapping[str, Any], where: str) -> Iterator[str]:
    """`gpuPowerLimitWatts`: the operator's own reading of the annotation."""
    status = found.get("status")
    components = status.get("components") if isinstance(status, dict) else None
    for name, component in components.items() if isinstance(components, dict) else ():
        watts = component.get("gpuPowerLimitWatts") if isinstance(component, dict) else None
        if watts is not None:
            yield f"{where}: component {name} declares gpuPowerLimitWatts {watts}"


def _annotated(found: Mapping[str, Any], where: str) -> Iterator[str]:
    """Paths in the specification of annotations with the key."""
    for path, value in _walk(found.get("spec"), where):
        if path.endswith("annotations") and isinstance(value, dict) and LIMIT_ANNOTATION in value:
            yield path


def _config_maps(spec: object) -> set[str]:
    """Names of the config maps that the containers mount or take variables from."""
    names = set()
    for path, value in _walk(spec, "spec"):
        last = path.rpartition(".")[2]
        if last in ("configMap", "configMapRef", "configMapKeyRef") and isinstance(value, dict):
            name = value.get("name")
            if isinstance(name, str) and name:
                names.add(name)
    return names


def _texts(value: object) -> Iterator[str]:
    """All texts, and `name=value` of variables and `key: value` of mappings."""
    for path, inner in _walk(value, ""):
        if isinstance(inner, str):
            yield inner
        if isinstance(inner, dict) and isinstance(inner.get("name"), str) and "value" in inner:
            yield f"{inner['name']}={inner['value']}"
        if isinstance(inner, bool):
            yield f"{path.rpartition('.')[2]}: {str(inner).lower()}"


def _walk(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, object]]:
    yield path, value
    if depth >= _MOST_DEPTH:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, f"{path}.{key}", depth + 1)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{place}]", depth + 1)
