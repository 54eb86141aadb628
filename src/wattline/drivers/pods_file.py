"""Pods and owners from JSON files: for nodes without a cluster, for tests and demonstrations.

pods:   {"pods": [{"namespace", "name", "uid", "annotations": {...}, "phase"}, ...]}
owners: {"gpus": {"GPU-...": [{"namespace", "name"}, ...], ...}}

Files are read when their identity, size or time has changed, and only if no one else could have
written them. A file that is torn, missing or wrong changes nothing: the newest good content stays.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from wattline.core.errors import InputError
from wattline.drivers.pods import (
    LIMIT_ANNOTATION,
    OwnerMethod,
    Ownership,
    Pod,
    PodName,
    SourceError,
)
from wattline.drivers.trusted_files import read_trusted

log = logging.getLogger(__name__)

POLL_S = 0.05
_MAX_BYTES = 16 * 1024 * 1024
_FINISHED = ("Succeeded", "Failed")

T = TypeVar("T")


class PodsFile:
    """A file as `PodSource`. A thread looks at it every `POLL_S` and calls `on_change`."""

    def __init__(
        self,
        path: Path,
        on_change: Callable[[], None] = lambda: None,
        *,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._file = _WatchedFile(path, _pods_of)
        self._pods: tuple[Pod, ...] | None = None
        self._on_change = on_change
        self._poll_s = poll_s
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen_s: float | None = None
        self._failures = 0
        self._trouble: str | None = None

    def start(self) -> None:
        """Read the file now and watch it in the background."""
        self._look()
        self._thread = threading.Thread(target=self._watch, name="pods-file", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread not in (None, threading.current_thread()):
            self._thread.join(timeout=2.0)

    def pods(self) -> Sequence[Pod]:
        """Pods of the newest good content; SourceError when there was none yet."""
        if self._pods is None:
            raise SourceError(self._trouble or f"{self._path}: not read yet")
        return self._pods

    def age_s(self) -> float | None:
        """Seconds since the file was last seen to be good."""
        return None if self._seen_s is None else self._clock() - self._seen_s

    def failures(self) -> int:
        """Looks at the file that failed."""
        return self._failures

    def trouble(self) -> str | None:
        """What is wrong with the file now; None: nothing."""
        return self._trouble

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            self._look()

    def _look(self) -> None:
        try:
            pods = self._file.read()
        except SourceError as error:
            if self._trouble != str(error):
                log.warning("pods file cannot be used", extra={"why": str(error)})
            self._trouble = str(error)
            self._failures += 1
            return
        self._seen_s = self._clock()
        self._trouble = None
        if pods is not self._pods:
            self._pods = pods
            self._on_change()


class OwnersFile:
    """A file as `OwnerSource`, looked at with each call."""

    def __init__(self, path: Path) -> None:
        self._file = _WatchedFile(path, _owners_of)

    def owners(self) -> Ownership:
        """Owners as the file has them now; SourceError while it cannot be read."""
        return self._file.read()

    def close(self) -> None:
        """Nothing is held open."""


class _WatchedFile(Generic[T]):
    """A file that is decoded once per change."""

    def __init__(self, path: Path, decode: Callable[[object], T]) -> None:
        self._path = path
        self._decode = decode
        self._good: tuple[tuple[int, ...], T] | None = None

    def read(self) -> T:
        """Its content: the same object until the file changes. SourceError: not usable now."""
        try:
            found = self._path.stat()
            signature = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if self._good is None or self._good[0] != signature:
                document = json.loads(read_trusted(self._path, max_bytes=_MAX_BYTES))
                self._good = (signature, self._decode(document))
            return self._good[1]
        except OSError as error:
            raise SourceError(f"{self._path}: {error.strerror or error}") from error
        except InputError as error:
            raise SourceError(str(error)) from error
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or too deep
            raise SourceError(f"{self._path}: not JSON, perhaps half written: {error}") from error


def _pods_of(document: object) -> tuple[Pod, ...]:
    items = _object(document, "the file").get("pods")
    if not isinstance(items, list):
        raise InputError("pods file", items, "needs a list `pods`")
    pods = tuple(_pod(item, f"pods[{index}]") for index, item in enumerate(items))
    for kind, keys in (
        ("uid", [pod.uid for pod in pods]),
        ("name", [f"{pod.namespace}/{pod.name}" for pod in pods]),
    ):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise InputError("pods file", twice[:3], f"each pod needs a {kind} of its own")
    return pods


def _pod(item: object, where: str) -> Pod:
    fields = _object(item, where)
    annotations = _object(fields.get("annotations") or {}, f"{where}.annotations")
    limit = annotations.get(LIMIT_ANNOTATION)
    if limit is not None and not isinstance(limit, str):
        raise InputError(f"{where}.annotations", limit, "annotations are texts: quote the number")
    return Pod(
        namespace=_text(fields, "namespace", where),
        name=_text(fields, "name", where),
        uid=_text(fields, "uid", where),
        limit=limit,
        finished=fields.get("phase") in _FINISHED,
    )


def _owners_of(document: object) -> Ownership:
    gpus = _object(_object(document, "the file").get("gpus"), "gpus")
    pods = {}
    for gpu, holders in gpus.items():
        if not isinstance(holders, list):
            raise InputError(f"gpus[{gpu!a}]", holders, "needs a list of pods")
        named = frozenset(_pod_name(holder, f"gpus[{gpu!a}]") for holder in holders)
        if named:
            pods[gpu] = named
    return Ownership(OwnerMethod.FILES, pods)


def _pod_name(item: object, where: str) -> PodName:
    fields = _object(item, where)
    return PodName(_text(fields, "namespace", where), _text(fields, "name", where))


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise InputError(where, value, "needs an object")
    return value


def _text(fields: Mapping[str, object], key: str, where: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}.{key}", value, "needs a text")
    return value
