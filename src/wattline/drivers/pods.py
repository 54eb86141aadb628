"""Pods and the GPUs that they hold, as every source of either tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from wattline.core.errors import WattlineError

LIMIT_ANNOTATION = "dynamo.nvidia.com/gpu-power-limit"
"""Watts per GPU as text; source: NVIDIA Dynamo's power agent. The key's presence opts a pod in."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of this node. `limit` is its annotation's text; None: the pod has never opted in.

    `finished`: it has ended (Succeeded, Failed), so it holds no GPU whatever a listing says.
    `asks_gpu`: its specification asks for a GPU or for a claimed device; None: the source does not
    say. `static_uid`: for a static pod the UID that the kubelet and cgroups know it by; `uid` is
    that of the API server's mirror of it. `acknowledged`: the kubelet knows of this UID, so what it
    lists under this name is this pod and not an earlier one; None: the source does not say.
    `host_pid`: it sees the node's processes, which ordinary tenants may not; None: not said.
    """

    namespace: str
    name: str
    uid: str
    limit: str | None
    finished: bool = False
    asks_gpu: bool | None = None
    static_uid: str | None = None
    acknowledged: bool | None = None
    host_pid: bool | None = None


@dataclass(frozen=True, slots=True)
class PodName:
    """How PodResources names a pod: no UID, so names that are used again must be guarded."""

    namespace: str
    name: str


class OwnerMethod(StrEnum):
    """How the owners of GPUs were found out."""

    POD_RESOURCES = "pod_resources"
    PROCESSES = "processes"
    FILES = "files"
    """Written down by hand or by a test, without a cluster."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who holds which GPU. `pods` has, per GPU UUID, what holds it: names or UIDs by `method`.

    A GPU that nobody holds is absent. MIG instances and time-sliced replicas count for the GPU
    that they are part of. `unresolved`: one line for each device that could not be told.
    `untold`: GPUs whose holders could not be told as a whole, and why: for them this is a failed
    listing, whatever `pods` has.
    """

    method: OwnerMethod
    pods: Mapping[str, frozenset[PodName] | frozenset[str]]
    unresolved: tuple[str, ...] = ()
    untold: Mapping[str, str] = field(default_factory=dict)


class SourceError(WattlineError):
    """A listing failed. The caller freezes what it knew: a failure is never an empty answer."""


class PodSource(Protocol):
    """This node's pods, kept up to date in the background."""

    def start(self) -> None:
        """Begin to watch; returns at once."""

    def stop(self) -> None:
        """End within a second or two."""

    def pods(self) -> Sequence[Pod]:
        """All pods as of the newest good listing or event; SourceError when there is none yet."""

    def age_s(self) -> float | None:
        """Seconds since the source was last known to be in step; None: never."""

    def failures(self) -> int:
        """Failed calls since the start."""

    def trouble(self) -> str | None:
        """Why `pods` is not in step now, in one line; None: it is."""


class OwnerSource(Protocol):
    """Who holds which GPU now, by a local call."""

    def owners(self) -> Ownership:
        """Ask now; SourceError when it cannot be told."""

    def close(self) -> None:
        """Let go of sockets."""
