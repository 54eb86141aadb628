"""The PodResources client against a server that misbehaves, goes and comes back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from wattline.core.errors import InputError
from wattline.drivers.kubelet.devices import GpuResolver
from wattline.drivers.kubelet.pod_resources import CALLS_AT_ONCE, PodResources, TokenBucket
from wattline.drivers.pods import PodName, SourceError
from wattline.virtual.podresources import Device, list_response
from wattline.virtual.podresources import PodResources as Listed

GPU = "GPU-8f0a4f3c-0000-4000-8000-000000000000"
Answer = Callable[[], bytes]


class Kubelet:
    """Answers `List` with whatever `answer` gives; raises what that raises as an RPC error."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answer: Answer = lambda: list_response([Listed("default", "web", (Device(GPU),))])
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(self._list)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler}),)
        )
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None
        self.socket.unlink(missing_ok=True)

    def _list(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        assert request == b""
        try:
            return self.answer()
        except PermissionError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            raise


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    kubelet = Kubelet(tmp_path / "kubelet.sock")
    kubelet.start()
    yield kubelet
    kubelet.stop()


@pytest.fixture
def client(kubelet: Kubelet) -> Iterator[PodResources]:
    client = PodResources(GpuResolver(), kubelet.socket, timeout_s=1.0)
    yield client
    client.close()


def eventually_listed(client: PodResources) -> None:
    """A client finds a kubelet that is back within its reconnect time of a second."""
    for _ in range(100):
        try:
            assert client.owners().pods == {GPU: frozenset({PodName("default", "web")})}
        except SourceError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the client did not find the kubelet again")


def test_owners_are_asked_for_with_every_call(kubelet: Kubelet, client: PodResources) -> None:
    assert client.owners().pods == {GPU: frozenset({PodName("default", "web")})}
    kubelet.answer = lambda: b""
    assert client.owners().pods == {}


def test_an_answer_that_cannot_be_decoded_is_an_error(
    kubelet: Kubelet, client: PodResources
) -> None:
    kubelet.answer = lambda: b"\x0a\xff\xff\xff\xff\x0fnot protobuf"
    with pytest.raises(SourceError, match="cannot be decoded"):
        client.owners()


def test_a_refusal_is_an_error_in_one_line(kubelet: Kubelet, client: PodResources) -> None:
    def refuse() -> bytes:
        raise PermissionError("not\nyou")

    kubelet.answer = refuse
    with pytest.raises(SourceError, match=r"kubelet\.sock: PERMISSION_DENIED: not you$"):
        client.owners()


def test_a_kubelet_that_hangs_is_given_up(kubelet: Kubelet, client: PodResources) -> None:
    def hang() -> bytes:
        time.sleep(1.5)
        return b""

    kubelet.answer = hang
    with pytest.raises(SourceError, match="DEADLINE_EXCEEDED"):
        client.owners()


def test_a_kubelet_that_restarts_is_found_again(kubelet: Kubelet, client: PodResources) -> None:
    eventually_listed(client)
    kubelet.stop()
    with pytest.raises(SourceError, match="UNAVAILABLE"):
        client.owners()
    kubelet.start()
    eventually_listed(client)


def test_a_client_without_a_kubelet_waits_for_one(tmp_path: Path) -> None:
    kubelet = Kubelet(tmp_path / "late.sock")
    client = PodResources(GpuResolver(), kubelet.socket, timeout_s=1.0)
    try:
        with pytest.raises(SourceError, match="UNAVAILABLE"):
            client.owners()
        kubelet.start()
        eventually_listed(client)
    finally:
        client.close()
        kubelet.stop()


def test_a_closed_client_opens_again(client: PodResources) -> None:
    client.owners()
    client.close()
    assert client.owners().pods


def test_calls_stay_below_the_kubelets_limit() -> None:
    now_s = 0.0
    taken = []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    bucket = TokenBucket(20.0, 10, clock=lambda: now_s, sleep=sleep)
    while now_s < 10.0:
        bucket.take()
        taken.append(now_s)
        now_s += 0.001
    in_any_second = max(sum(1 for at in taken if 0 <= at - first < 1.0) for first in taken)
    assert in_any_second <= 30
    assert len(taken) == pytest.approx(10 + 20.0 * 10.0, abs=2)
    assert sum(1 for at in taken if at < 0.02) == CALLS_AT_ONCE


def test_tokens_come_back_in_peace() -> None:
    now_s = 0.0
    slept: list[float] = []
    bucket = TokenBucket(20.0, 10, clock=lambda: now_s, sleep=slept.append)
    for _ in range(5):
        for _ in range(10):
            bucket.take()
        now_s += 60.0
    assert slept == []


def test_a_node_without_grpc_is_told_when_the_kubelet_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    client = PodResources(GpuResolver(), tmp_path / "kubelet.sock")
    client.close()
    with pytest.raises(InputError, match=r"wattline\[agent\]"):
        client.load()
    with pytest.raises(SourceError, match=r"wattline\[agent\]"):
        client.owners()
