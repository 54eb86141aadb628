"""Writing the power annotation of pods: the outlet for clusters with a foreign agent.

`dynamo.nvidia.com/gpu-power-limit` is a decimal integer of watts per GPU; Dynamo's agent reads it
every 15 s (NVIDIA Dynamo 1.6.1). What is written is read back from the API server's answer. That
any GPU obeys is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.kube.api import KubeApi, KubeError
from wattline.drivers.kube.power_awareness import objections
from wattline.drivers.pods import LIMIT_ANNOTATION, SourceError

MANAGER = "wattline-controller"
ROLES = "deploy/controller/annotations-rbac.yaml"
_GRAPH_DEPLOYMENT = "nvidia.com/dynamo-graph-deployment-name"
_COMPONENT = "nvidia.com/dynamo-component"
_FINISHED = frozenset({"Succeeded", "Failed"})
_GPU = "nvidia.com/gpu"
_AGENT_ROLES = "deploy/agent/rbac.yaml"


@dataclass(frozen=True, slots=True)
class Members:
    """The pods of one pool, by the labels that Dynamo's operator puts on them."""

    graph_deployment: str
    component: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedPod:
    """A pod that has not ended. text: its annotation; watts: that as a number, None if it is none.

    gpus: that it asks for, 0 if that cannot be told. foreign: who wrote the annotation, if not we.
    """

    pool: str
    name: str
    uid: str
    text: str | None
    watts: int | None
    gpus: int
    foreign: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there is. pods: per pool. objections: why nothing may be written."""

    pods: Mapping[str, tuple[AnnotatedPod, ...]]
    objections: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What there is after a round of writes. failures: one line per pod that was not written."""

    look: Look
    written: int
    failures: tuple[str, ...]


class PodAnnotations:
    """The annotations of the pools' pods in one namespace; for one thread at a time."""

    def __init__(self, api: KubeApi, namespace: str, members: Mapping[str, Members]) -> None:
        self._api = api
        self._namespace = namespace
        self._members = dict(members)
        self._path = f"/api/v1/namespaces/{namespace}/pods"

    def look(self) -> Look:
        """Pods, and whether somebody else decides on their annotation. Raises KubeError."""
        try:
            pods = {pool: tuple(self._list(pool)) for pool in self._members}
            against = [
                line
                for name in sorted({each.graph_deployment for each in self._members.values()})
                for line in objections(self._api, self._namespace, name)
            ]
        except KubeError as error:
            raise _ours(error) from None
        for pool in pods.values():
            against.extend(
                f"pod {self._namespace}/{pod.name}: {LIMIT_ANNOTATION} was written by {pod.foreign}"
                for pod in pool
                if pod.foreign is not None
            )
        return Look(pods=pods, objections=tuple(against))

    def sync(self, watts: Mapping[str, int]) -> Synced:
        """Bring the pods of the pools in `watts` there, lowerings first.

        While a lowering fails nothing is raised. Raises KubeError when it cannot even look.
        """
        look = self.look()
        if look.objections:
            return Synced(look=look, written=0, failures=())
        pods = {pool: list(found) for pool, found in look.pods.items()}
        failures: list[str] = []
        written = 0
        for lowering in (True, False):
            if not lowering and failures:
                break
            for pool, aim in watts.items():
                for place, pod in enumerate(pods.get(pool, ())):
                    lowers = pod.watts is None or pod.watts > aim
                    if pod.text == str(aim) or lowers is not lowering:
                        continue
                    try:
                        pods[pool][place] = self.write(pod, aim)
                        written += 1
                    except KubeError as error:
                        failures.append(str(_ours(error)))
        after = Look(pods={pool: tuple(each) for pool, each in pods.items()}, objections=())
        return Synced(look=after, written=written, failures=tuple(failures))

    def write(self, pod: AnnotatedPod, watts: int) -> AnnotatedPod:
        """Write, and return what the server then has. Raises KubeError.

        The UID keeps it off another pod of that name.
        """
        document = {
            "metadata": {"uid": pod.uid, "annotations": {LIMIT_ANNOTATION: str(watts)}},
        }
        answer = self._api.patch(f"{self._path}/{pod.name}", document, manager=MANAGER)
        return _pod(answer, pod.pool) or pod

    def close(self) -> None:
        """Close all connections."""
        self._api.close()

    def _list(self, pool: str) -> Iterator[AnnotatedPod]:
        members = self._members[pool]
        selector = (
            f"{_GRAPH_DEPLOYMENT}={members.graph_deployment},{_COMPONENT}={members.component}"
        )
        answer = self._api.get(self._path, {"labelSelector": selector})
        items = answer.get("items") or []
        if not isinstance(items, list):
            raise SourceError(f"{self._path}: items are {type(items).__name__}: not a list")
        for item in items:
            pod = _pod(item, pool)
            if pod is not None:
                yield pod


def _pod(item: object, pool: str) -> AnnotatedPod | None:
    """The pod of a decoded object; None for one that has ended. Raises SourceError."""
    if not isinstance(item, dict) or not isinstance(item.get("metadata"), dict):
        raise SourceError("pods: an item without metadata")
    metadata: dict[str, Any] = item["metadata"]
    status = item.get("status")
    if isinstance(status, dict) and status.get("phase") in _FINISHED:
        return None
    name, uid = metadata.get("name"), metadata.get("uid")
    if not isinstance(name, str) or not isinstance(uid, str):
        raise SourceError("pods: an item without name or uid")
    annotations = metadata.get("annotations")
    text = annotations.get(LIMIT_ANNOTATION) if isinstance(annotations, dict) else None
    return AnnotatedPod(
        pool=pool,
        name=name,
        uid=uid,
        text=text,
        watts=_watts(text),
        gpus=_gpus(item.get("spec")),
        foreign=None if text is None else _foreign(metadata.get("managedFields")),
    )


def _watts(text: object) -> int | None:
    if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 6:
        return int(text)
    return None


def _gpus(spec: object) -> int:
    containers = spec.get("containers") if isinstance(spec, dict) else None
    count = 0
    for container in containers if isinstance(containers, list) else ():
        resources = container.get("resources") if isinstance(container, dict) else None
        limits = resources.get("limits") if isinstance(resources, dict) else None
        asked = limits.get(_GPU) if isinstance(limits, dict) else None
        if isinstance(asked, str | int) and str(asked).isdecimal():
            count += int(asked)
    return count


def _foreign(managed: object) -> str | None:
    """Who else owns the annotation; None: nobody but we. Without that list: somebody else."""
    owners = []
    for entry in managed if isinstance(managed, list) else ():
        fields = entry.get("fieldsV1") if isinstance(entry, dict) else None
        for key in ("f:metadata", "f:annotations"):
            fields = fields.get(key) if isinstance(fields, dict) else None
        if isinstance(fields, dict) and f"f:{LIMIT_ANNOTATION}" in fields:
            owners.append(str(entry.get("manager")))
    if not owners:
        return "somebody (it has no owner)"
    others = [owner for owner in owners if owner != MANAGER]
    return None if not others else ", ".join(others)


def _ours(error: KubeError) -> KubeError:
    """The error with the permissions that this writer needs, instead of the agent's."""
    return KubeError(error.fault, str(error).replace(_AGENT_ROLES, ROLES), error.retry_after_s)


def members_of(pods: Mapping[str, tuple[str, str]], pools: Sequence[str]) -> dict[str, Members]:
    """Labels per pool; InputError for two pools with the same pods."""
    found = {pool: Members(*pods[pool]) for pool in pools}
    if len(set(found.values())) != len(found):
        raise InputError(
            "actuation.annotations.pods", "the same component twice", "give each pool its own"
        )
    return found
