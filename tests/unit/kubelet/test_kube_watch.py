"""List and watch against a scripted API server: what each answer makes of the pods."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from wattline.drivers.kube.api import MAX_RETRY_AFTER_S, KubeApi, KubeError, KubeFault
from wattline.drivers.kube.pods import LAST_BACKOFF_S, Backoff, KubePods
from wattline.drivers.pods import SourceError

LIMIT = "dynamo.nvidia.com/gpu-power-limit"
Answer = Callable[[], httpx2.Response]


def pod(name: str, version: int, limit: str | None = None, **more: Any) -> dict[str, Any]:
    annotations = {} if limit is None else {LIMIT: limit}
    return {
        "metadata": {
            "namespace": "default",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "annotations": annotations,
        },
        "spec": {},
        "status": {"phase": "Running"},
        **more,
    }


def listed(version: int, *pods: dict[str, Any]) -> Answer:
    body = {"metadata": {"resourceVersion": str(version)}, "items": list(pods)}
    return lambda: httpx2.Response(200, json=body)


def status(code: int, message: str, **headers: str) -> Answer:
    body = {"kind": "Status", "code": code, "message": message}
    return lambda: httpx2.Response(code, json=body, headers=headers)


def event(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}, ensure_ascii=False).encode() + b"\n"


def bookmark(version: int) -> bytes:
    return event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})


class Server:
    """Answers lists and watches from two scripts; a watch without a script stays silent."""

    def __init__(self) -> None:
        self.lists: list[Answer] = []
        self.watches: list[list[bytes] | Answer] = []
        self.requests: list[httpx2.QueryParams] = []
        self.over = threading.Event()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request.url.params)
        if "watch" not in request.url.params:
            return self.lists.pop(0)() if self.lists else status(503, "no more lists")()
        if not self.watches:
            return httpx2.Response(200, content=self._stream([], open_end=True))
        script = self.watches.pop(0)
        if callable(script):
            return script()
        return httpx2.Response(200, content=self._stream(script, open_end=not self.watches))

    def _stream(self, script: list[bytes], *, open_end: bool) -> Iterator[bytes]:
        yield from script
        if open_end:
            self.over.wait(60.0)

    @property
    def watched(self) -> list[httpx2.QueryParams]:
        return [params for params in self.requests if "watch" in params]

    @property
    def listed(self) -> list[httpx2.QueryParams]:
        return [params for params in self.requests if "watch" not in params]


class Rig:
    def __init__(self) -> None:
        self.server = Server()
        self.changes = 0
        transport = httpx2.MockTransport(self.server)
        client = httpx2.Client(transport=transport, base_url="https://server")
        self.source = KubePods(KubeApi(client, "https://server"), "n1", self._changed, seed=1)

    def _changed(self) -> None:
        self.changes += 1

    def names(self) -> list[str]:
        try:
            return [pod.name for pod in self.source.pods()]
        except SourceError:
            return ["none yet"]

    def limits(self) -> list[str | None]:
        return [pod.limit for pod in self.source.pods()]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < deadline, (self.names(), self.source.trouble())
            time.sleep(0.002)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.server.over.set()
    rig.source.stop()


def test_one_list_and_one_watch_from_its_version(rig: Rig) -> None:
    rig.server.lists = [listed(7, pod("a", 5, "300"))]
    rig.source.start()
    rig.until(lambda: len(rig.server.watched) == 1)
    assert rig.names() == ["a"]
    assert rig.limits() == ["300"]
    [first], [watch] = rig.server.listed, rig.server.watched
    assert first["fieldSelector"] == watch["fieldSelector"] == "spec.nodeName=n1"
    assert first["resourceVersion"] == "0"
    assert first["timeoutSeconds"] == "20"
    assert watch["resourceVersion"] == "7"
    assert watch["allowWatchBookmarks"] == "true"
    assert 300 <= int(watch["timeoutSeconds"]) <= 600
    assert rig.source.age_s() is not None
    assert rig.source.failures() == 0


def test_events_change_the_pods_and_bookmarks_only_the_version(rig: Rig) -> None:
    rig.server.lists = [listed(7, pod("a", 5, "300"), pod("b", 6))]
    rig.server.watches = [
        [
            event("ADDED", pod("c", 8, "400")),
            event("MODIFIED", pod("a", 9, "350")),
            event("DELETED", pod("b", 10)),
            event("MODIFIED", pod("c", 11, "400", status={"phase": "Failed"})),
            bookmark(20),
        ],
        [],
    ]
    rig.source.start()
    rig.until(lambda: len(rig.server.watched) == 2)
    assert rig.names() == ["a", "c"]
    assert rig.limits() == ["350", "400"]
    assert [pod.finished for pod in rig.source.pods()] == [False, True]
    assert rig.server.watched[1]["resourceVersion"] == "20"
    assert len(rig.server.listed) == 1
    assert rig.changes == 5


def test_changes_that_do_not_bear_on_gpus_are_not_told(rig: Rig) -> None:
    rig.server.lists = [listed(7, pod("a", 5, "300"))]
    ready = {"phase": "Running", "conditions": [{"type": "Ready"}]}
    rig.server.watches = [[event("MODIFIED", pod("a", 8, "300", status=ready))], []]
    rig.source.start()
    rig.until(lambda: len(rig.server.watched) == 2)
    assert rig.changes == 1


def test_every_event_of_a_pod_with_a_gpu_is_told(rig: Rig) -> None:
    asks = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
    rig.server.lists = [listed(7, pod("a", 5, spec=asks))]
    rig.server.watches = [[event("MODIFIED", pod("a", 8, spec=asks))], []]
    rig.source.start()
    rig.until(lambda: len(rig.server.watched) == 2)
    assert rig.changes == 2


@pytest.mark.parametrize(
    "expired",
    [
        status(410, "too old resource version"),
        [event("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})],
    ],
    ids=["status", "event"],
)
def test_expiry_lists_again_and_not_from_the_past(rig: Rig, expired: Any) -> None:
    rig.server.lists = [listed(7, pod("a", 5), pod("b", 6)), listed(90, pod("b", 80))]
    rig.server.watches = [expired, []]
    rig.source.start()
    rig.until(lambda: rig.names() == ["b"])
    rig.until(lambda: len(rig.server.watched) == 2)
    again = rig.server.listed[1]
    assert again["resourceVersion"] == "7"
    assert again["resourceVersionMatch"] == "NotOlderThan"
    assert rig.server.watched[1]["resourceVersion"] == "90"
    assert rig.source.failures() == 1


def test_a_server_that_has_forgotten_our_version_is_asked_for_its_newest(rig: Rig) -> None:
    rig.server.lists = [
        listed(700, pod("a", 5)),
        status(504, "Timeout: Too large resource version: 700, current: 3"),
        listed(3, pod("b", 2)),
    ]
    rig.server.watches = [status(410, "expired"), []]
    rig.source.start()
    rig.until(lambda: rig.names() == ["b"])
    assert "resourceVersion" not in rig.server.listed[2]


def test_failures_are_no_empty_answer(rig: Rig) -> None:
    rig.server.lists = [listed(7, pod("a", 5))]
    rig.server.watches = [[b"{not json\n"], status(500, "boom"), status(429, "later"), []]
    rig.source.start()
    rig.until(lambda: rig.source.failures() == 3)
    assert rig.names() == ["a"]
    rig.until(lambda: len(rig.server.watched) == 4)
    rig.until(lambda: rig.source.trouble() is None)
    assert len(rig.server.listed) == 1


def test_before_the_first_good_list_there_is_no_answer(rig: Rig) -> None:
    rig.server.lists = [status(403, 'pods is forbidden: User "u" cannot list resource "pods"')] * 2
    rig.source.start()
    rig.until(lambda: rig.source.failures() >= 1)
    with pytest.raises(SourceError, match=r"permission is missing.*cannot list.*rbac\.yaml"):
        rig.source.pods()
    assert rig.source.age_s() is None


def test_an_empty_list_is_an_answer(rig: Rig) -> None:
    rig.server.lists = [listed(7)]
    rig.source.start()
    rig.until(lambda: rig.names() == [])
    assert rig.source.pods() == ()


def test_a_server_that_ends_watches_at_once_is_not_asked_without_pause(rig: Rig) -> None:
    rig.server.lists = [listed(7)]
    rig.server.watches = [[], [], []]
    rig.source.start()
    rig.until(lambda: len(rig.server.watched) == 3)
    assert rig.source.failures() == 2


@pytest.mark.parametrize(
    "bad",
    [
        b'["ADDED"]\n',
        b'{"type": "ADDED"}\n',
        event("ADDED", {"metadata": {}}),
        event("ADDED", {**pod("b", 9), "spec": 7}),
        event("ERROR", {"message": "no code"}),
        event("ERROR", {"code": "not a number"}),
        event("BOOKMARK", {"metadata": {"resourceVersion": 9}}),
    ],
)
def test_an_event_that_cannot_be_read_keeps_the_place(rig: Rig, bad: bytes) -> None:
    rig.server.lists = [listed(7, pod("a", 5))]
    rig.server.watches = [[event("ADDED", pod("c", 8)), bad, event("ADDED", pod("d", 10))], []]
    rig.source.start()
    rig.until(lambda: len(rig.server.watched) == 2)
    assert rig.names() == ["a", "c"]
    assert rig.server.watched[1]["resourceVersion"] == "8"
    assert rig.source.failures() == 1


def test_a_bug_in_the_listener_does_not_end_the_watch() -> None:
    server = Server()
    server.lists = [listed(7, pod("a", 5))]
    server.watches = [[event("ADDED", pod("b", 8))], []]
    calls: list[None] = []

    def change() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyError("a bug")

    client = httpx2.Client(transport=httpx2.MockTransport(server), base_url="https://server")
    source = KubePods(KubeApi(client, "https://server"), "n1", change, seed=1)
    source.start()
    try:
        deadline = time.monotonic() + 20.0
        while len(server.watched) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert source.failures() == 1
        assert [pod.name for pod in source.pods()] == ["a", "b"]
    finally:
        server.over.set()
        source.stop()


def test_the_listener_may_stop_the_source() -> None:
    server = Server()
    server.lists = [listed(7, pod("a", 5))]
    client = httpx2.Client(transport=httpx2.MockTransport(server), base_url="https://server")
    source = KubePods(KubeApi(client, "https://server"), "n1", lambda: source.stop())
    source.start()
    deadline = time.monotonic() + 20.0
    while not client.is_closed:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert source.failures() == 0
    assert server.watched == []


def test_lines_end_at_newlines_only(rig: Rig) -> None:
    """U+0085 and U+2028 end a line for Python's splitlines, and may stand in an annotation."""
    rig.server.lists = [listed(7)]
    whole = event("ADDED", pod("a", 8, "300\u0085\u2028"))
    rig.server.watches = [[whole[:50], whole[50:] + bookmark(9)[:5], bookmark(9)[5:]], []]
    rig.source.start()
    rig.until(lambda: len(rig.server.watched) == 2)
    assert rig.limits() == ["300\u0085\u2028"]
    assert rig.server.watched[1]["resourceVersion"] == "9"


def test_backoff_grows_within_bounds_and_differs_by_seed() -> None:
    backoff = Backoff(random.Random(1))
    waits = [backoff.next_s(None) for _ in range(20)]
    longest = [min(0.2 * 2**n, LAST_BACKOFF_S) for n in range(20)]
    assert all(0.5 * most <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert waits[0] != Backoff(random.Random(2)).next_s(None)
    assert backoff.next_s(45.0) == 45.0
    backoff.reset()
    assert backoff.next_s(None) <= 0.2


@pytest.mark.parametrize(
    ("header", "asked_s"),
    [
        ("3", 3.0),
        ("86400", MAX_RETRY_AFTER_S),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-1", None),
    ],
)
def test_the_server_may_say_when_to_come_again(header: str, asked_s: float | None) -> None:
    answer = status(429, "storage is (re)initializing", **{"Retry-After": header})
    client = httpx2.Client(transport=httpx2.MockTransport(lambda _: answer()), base_url="https://s")
    with pytest.raises(KubeError, match=r"429: storage is \(re\)initializing") as caught:
        KubeApi(client, "https://s").get("/api/v1/pods", {})
    assert caught.value.fault is KubeFault.UNAVAILABLE
    assert caught.value.retry_after_s == asked_s
