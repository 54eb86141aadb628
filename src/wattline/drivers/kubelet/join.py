"""Owners joined with pods: who holds each GPU, by UID as far as that is sure. Pure.

PodResources names pods without a UID. The kubelet knows one pod of a name at a time, but it may
learn later than we do that a new pod has taken the name, and the old pod's GPU must not get the new
one's limit. So after a name has changed its UID, the GPUs that it held until then count as held by
an unknown pod, until a listing shows the name without the GPU, the kubelet has acknowledged the new
pod, or `REUSE_GRACE_S` have passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wattline.drivers.pods import Ownership, Pod, PodName

REUSE_GRACE_S = 5.0
"""By then the kubelet has heard of the new pod, even where the source does not say so. A choice:
its watch lags by milliseconds in health."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What holds each GPU: the UID of a known pod, and what is not known as it was named.

    unresolved: devices of a GPU that cannot be told, one line each. waiting: why another listing
    may say more; empty: this one and the pods agree. untold: GPUs whose holders are not known now,
    and why.
    """

    owners: Mapping[str, frozenset[PodName | str]]
    unresolved: tuple[str, ...]
    waiting: tuple[str, ...]
    untold: Mapping[str, str] = field(default_factory=dict)


class OwnerJoin:
    """Joins each new listing with the newest pods; remembers whose a name was before.

    `namespace`: the only one whose pods are listed, None: all are.
    """

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace
        self._uids: dict[PodName, str] = {}
        self._held: dict[PodName, frozenset[str]] = {}
        self._doubtful: dict[tuple[PodName, str], float] = {}

    def join(self, ownership: Ownership, pods: Sequence[Pod], now_s: float) -> Joined:
        """Owners as far as they are sure.

        `pods` as they were before `ownership` was asked for. `now_s`: monotonic clock.
        """
        by_key = _by_key(pods)
        self._watch_names(ownership, pods, now_s)
        owners: dict[str, frozenset[PodName | str]] = {}
        waiting: list[str] = []
        showing = set()
        for gpu, keys in ownership.pods.items():
            names: set[PodName | str] = set()
            members: Iterable[PodName | str] = keys
            for key in sorted(members, key=str):
                pod = by_key.get(key)
                if isinstance(key, PodName) and (key, gpu) in self._doubtful:
                    names.add(f"{key.namespace}/{key.name} (the pod that had this name before)")
                    waiting.append(f"{key.namespace}/{key.name} has a new UID")
                elif pod is not None:
                    names.add(pod.uid)
                    showing.add(pod.uid)
                else:
                    names.add(key)
                    if self._is_listed(key):
                        waiting.append(f"{_shown(key)} is not among the pods")
            owners[gpu] = frozenset(names)
        waiting += [
            f"{pod.namespace}/{pod.name} shows no GPU"
            for pod in pods
            if pod.asks_gpu is not False and not pod.finished and pod.uid not in showing
        ]
        waiting += [f"owners of {gpu} cannot be told" for gpu in ownership.untold]
        return Joined(
            owners, ownership.unresolved, tuple(dict.fromkeys(waiting)), dict(ownership.untold)
        )

    def _is_listed(self, key: PodName | str) -> bool:
        in_namespace = not isinstance(key, PodName) or key.namespace == self._namespace
        return self._namespace is None or in_namespace

    def _watch_names(self, ownership: Ownership, pods: Sequence[Pod], now_s: float) -> None:
        held = _gpus_by_name(ownership)
        new = {PodName(pod.namespace, pod.name): pod for pod in pods}
        for name, pod in new.items():
            if self._uids.get(name, pod.uid) != pod.uid:
                for gpu in self._held.get(name, ()):
                    self._doubtful[name, gpu] = now_s + REUSE_GRACE_S
        self._doubtful = {
            (name, gpu): until_s
            for (name, gpu), until_s in self._doubtful.items()
            if gpu in held.get(name, ())
            and now_s < until_s
            and not (name in new and new[name].acknowledged)
        }
        # A name's UID is kept for as long as a pod has the name or the listing shows it.
        kept = {name: uid for name, uid in self._uids.items() if name in held}
        self._uids = kept | {name: pod.uid for name, pod in new.items()}
        self._held = held


def _by_key(pods: Iterable[Pod]) -> dict[PodName | str, Pod]:
    """Pods by UID, by the UID that cgroups have for a static pod, and by name."""
    by_key: dict[PodName | str, Pod] = {}
    for pod in pods:
        by_key[pod.uid] = pod
        by_key[PodName(pod.namespace, pod.name)] = pod
        if pod.static_uid is not None:
            by_key[pod.static_uid] = pod
    return by_key


def _gpus_by_name(ownership: Ownership) -> dict[PodName, frozenset[str]]:
    gpus: dict[PodName, set[str]] = {}
    for gpu, keys in ownership.pods.items():
        for key in keys:
            if isinstance(key, PodName):
                gpus.setdefault(key, set()).add(gpu)
    return {name: frozenset(held) for name, held in gpus.items()}


def _shown(key: PodName | str) -> str:
    return key if isinstance(key, str) else f"{key.namespace}/{key.name}"
