"""This node's pods by list and watch: one list at the start, then one open watch.

While nothing changes the only request is the watch's renewal, every `RENEW_S` (a random time in
it, so that nodes do not come together). The server's bookmarks, about one a minute, show that the
watch is in step; between them nothing is sent or asked.

Whole Pod objects are asked for and not only their metadata: `status.phase` tells a pod that has
ended, which holds nothing, from one that was deleted by force and may still run.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wattline.drivers.kube.api import KubeApi, KubeError, KubeFault, Watch
from wattline.drivers.kube.pod_object import pod_of
from wattline.drivers.pods import Pod, PodName, SourceError

log = logging.getLogger(__name__)

RENEW_S = (300.0, 600.0)
SILENCE_S = 150.0
"""Without an event or bookmark for this long the connection is taken for dead."""
FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 30.0
_SHORT_WATCH_S = 1.0
"""A watch that ends sooner, and empty, is a failure: else we would ask without a pause."""


class Backoff:
    """Waits between retries: doubling from 0.2 s to 30 s, the upper half of each by chance."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.reset()

    def reset(self) -> None:
        """The server answers again."""
        self._longest_s = FIRST_BACKOFF_S

    def next_s(self, asked_s: float | None) -> float:
        """Seconds to wait now; at least what the server asked for."""
        wait_s = self._longest_s * self._chance.uniform(0.5, 1.0)
        self._longest_s = min(2.0 * self._longest_s, LAST_BACKOFF_S)
        return max(wait_s, asked_s or 0.0)


class KubePods:
    """Pods of one node as `PodSource`. A daemon thread owns `api` and closes it at its end.

    `on_change` is called from it after each change that may bear on GPUs. `seed` for the jitter of
    renewals and retries; None: from the system.
    """

    def __init__(
        self,
        api: KubeApi,
        node: str,
        on_change: Callable[[], None] = lambda: None,
        *,
        namespace: str | None = None,
        seed: int | None = None,
        renew_s: tuple[float, float] = RENEW_S,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._node = node
        self._path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        self._on_change = on_change
        self._random = random.Random(seed)
        self._renew_s = renew_s
        self._silence_s = silence_s
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._open_watch: Watch | None = None
        self._by_name: dict[PodName, Pod] = {}
        self._pods: tuple[Pod, ...] | None = None
        self._in_step_s: float | None = None
        self._failures = 0
        self._trouble: str | None = None
        self._version: str | None = None
        """Where the watch goes on from; None: list first."""
        self._list_from: str | None = "0"
        """Version that a list must at least have: any, this one, or (None) the very newest."""
        self._backoff = Backoff(self._random)

    def start(self) -> None:
        """Begin to list and watch in the background."""
        self._thread = threading.Thread(target=self._run, name="kube-pods", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch; a list that is under way ends by itself."""
        self._stopping.set()
        watch = self._open_watch
        if watch is not None:
            watch.interrupt()
        if self._thread not in (None, threading.current_thread()):
            self._thread.join(timeout=2.0)

    def pods(self) -> Sequence[Pod]:
        """Pods as last heard; SourceError when there was no good list yet."""
        if self._pods is None:
            raise SourceError(self._trouble or f"pods of {self._node}: not listed yet")
        return self._pods

    def age_s(self) -> float | None:
        """Seconds since the server last said something: in health about a minute at most."""
        return None if self._in_step_s is None else self._clock() - self._in_step_s

    def failures(self) -> int:
        """Lists and watches that failed since the start."""
        return self._failures

    def trouble(self) -> str | None:
        """Why it is not in step now, in one line; None: it is."""
        return self._trouble

    def _run(self) -> None:
        try:
            self._keep_in_step()
        finally:
            self._api.close()

    def _keep_in_step(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._version is None:
                    self._list()
                else:
                    self._watch(self._version)
            except SourceError as error:
                self._failed(error)
            except Exception as error:  # a bug must not end the watch for good: said and retried
                self._failed(SourceError(f"{self._path}: unexpected {error!r}"))

    def _failed(self, error: SourceError) -> None:
        if self._stopping.is_set():
            return  # it was stopped, which broke the connection
        retry_after_s = None
        if isinstance(error, KubeError):
            retry_after_s = error.retry_after_s
            if error.fault is KubeFault.EXPIRED:
                # A list that goes back in time would bring deleted pods to life again.
                self._list_from = self._version
                self._version = None
        if self._trouble is None:
            log.warning("pods are out of step", extra={"node": self._node, "why": str(error)})
        self._trouble = str(error)
        self._failures += 1
        self._stopping.wait(self._backoff.next_s(retry_after_s))

    def _params(self) -> dict[str, str]:
        return {"fieldSelector": f"spec.nodeName={self._node}"}

    def _list(self) -> None:
        params = self._params()
        if self._list_from is not None:
            params |= {"resourceVersion": self._list_from, "resourceVersionMatch": "NotOlderThan"}
        answer = self._api.get(self._path, params)
        version = _version_of(answer)
        items = answer.get("items") or []
        if not isinstance(items, list):
            raise SourceError(f"{self._path}: items are {type(items).__name__}: not a list")
        pods = [pod_of(item) for item in items]
        self._by_name = {PodName(pod.namespace, pod.name): pod for pod in pods}
        self._version = self._list_from = version
        self._publish()
        self._heard()

    def _watch(self, version: str) -> None:
        seconds = int(self._random.uniform(*self._renew_s))
        params = {
            **self._params(),
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        began_s = self._clock()
        heard = False
        with self._api.watch(self._path, params, read_timeout_s=self._silence_s) as watch:
            self._open_watch = watch
            try:
                if self._stopping.is_set():
                    return
                self._heard()
                for kind, item in watch.events():
                    self._event(kind, item)
                    heard = True
                    self._backoff.reset()
            finally:
                self._open_watch = None
        if self._stopping.is_set():
            return
        if not heard and self._clock() - began_s < _SHORT_WATCH_S:
            raise SourceError(f"{self._path}: the server ended the watch at once")
        self._backoff.reset()

    def _event(self, kind: str, item: Mapping[str, Any]) -> None:
        version = _version_of(item)
        if kind in ("ADDED", "MODIFIED", "DELETED"):
            pod = pod_of(item)
            name = PodName(pod.namespace, pod.name)
            before = self._by_name.get(name)
            if kind == "DELETED":
                self._by_name.pop(name, None)
            else:
                self._by_name[name] = pod
            # What a listing shows of a pod with a GPU may change with any of its states.
            if pod != before or kind == "DELETED" or pod.asks_gpu:
                self._publish()
        self._version = version
        self._heard()

    def _publish(self) -> None:
        self._pods = tuple(self._by_name.values())
        self._on_change()

    def _heard(self) -> None:
        self._in_step_s = self._clock()
        if self._trouble is not None:
            log.info("pods are in step again", extra={"node": self._node})
        self._trouble = None


def _version_of(item: Mapping[str, Any]) -> str:
    metadata = item.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not version:
        raise SourceError("pods: an answer without a resource version")
    return version
