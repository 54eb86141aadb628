"""What the agent takes from a Pod object of the Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wattline.drivers.pods import LIMIT_ANNOTATION, Pod, SourceError

_MIRROR = "kubernetes.io/config.mirror"
"""Set by the kubelet on its mirror of a static pod: the UID that it knows that pod by."""
_FINISHED = frozenset({"Succeeded", "Failed"})


def pod_of(item: object) -> Pod:
    """Pod of one decoded object. Raises SourceError when it is not one."""
    fields = _mapping(item, "pod")
    metadata = _mapping(fields.get("metadata"), "metadata")
    annotations = _mapping(metadata.get("annotations"), "metadata.annotations")
    status = _mapping(fields.get("status"), "status")
    limit = annotations.get(LIMIT_ANNOTATION)
    mirror = annotations.get(_MIRROR)
    spec = _mapping(fields.get("spec"), "spec")
    return Pod(
        namespace=_name(metadata, "namespace"),
        name=_name(metadata, "name"),
        uid=_name(metadata, "uid"),
        limit=None if limit is None else str(limit),
        finished=str(status.get("phase")) in _FINISHED,
        asks_gpu=_asks_gpu(spec),
        static_uid=None if mirror is None else str(mirror),
        acknowledged=status.get("startTime") is not None,
        host_pid=bool(spec.get("hostPID")),
    )


def _asks_gpu(spec: Mapping[str, object]) -> bool:
    """True when it asks for a device of `nvidia.com/` or has claims, which may be for GPUs."""
    if spec.get("resourceClaims"):
        return True
    return any(
        key.startswith("nvidia.com/")
        for container in _containers(spec)
        for kind in ("limits", "requests")
        for key in _mapping(_mapping(container.get("resources"), "resources").get(kind), kind)
    )


def _containers(spec: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    for kind in ("containers", "initContainers"):
        containers = spec.get(kind) or []
        if not isinstance(containers, list):
            raise SourceError(f"pods: spec.{kind} is {type(containers).__name__}: not a list")
        for container in containers:
            yield _mapping(container, f"spec.{kind}")


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SourceError(f"pods: {where} is {type(value).__name__}: not an object")
    return value


def _name(metadata: Mapping[str, object], key: str) -> str:
    value = metadata.get(key)
    if not isinstance(value, str) or not value:
        raise SourceError(f"pods: metadata.{key} is missing or no text: not a pod")
    return value
