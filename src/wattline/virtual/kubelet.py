"""A stand-in for the kubelet's PodResources v1 service on a unix socket.

It answers List, Get and GetAllocatableResources from the node's files, with the kubelet's rate
limit, and misbehaves on demand. It is a real gRPC server; it starts no pods.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError, WattlineError
from wattline.virtual.podresources import (
    Device,
    allocatable_response,
    get_response,
    list_response,
    requested_pod,
)
from wattline.virtual.pods import KubeletFault, NodePods

CALLS_PER_S = 100.0
BURST = 10
"""The kubelet's limits over all its clients: pkg/kubelet/apis/podresources/constants.go."""

_SERVICE = "v1.PodResourcesLister"
_GARBAGE = b"\x0a\xff\xff\xff\xff\x0fnot protobuf"
_CPUS = 8
_LOOK_S = 0.02


class KubeletServer:
    """Serves until it is stopped; a context manager. `devices` are what GetAllocatable tells."""

    def __init__(
        self,
        socket: Path,
        pods: NodePods,
        devices: Callable[[], list[Device]] = list,
        *,
        calls_per_s: float = CALLS_PER_S,
        burst: int = BURST,
    ) -> None:
        self._socket = socket
        self._pods = pods
        self._devices = devices
        self._limiter = _Limiter(calls_per_s, burst)
        self._server: Any = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.calls = 0
        """Requests since the start, whatever came of them."""

    def start(self) -> None:
        """Listen, and watch for the fault `gone` in the background."""
        if self._thread is not None:
            return
        self._over.clear()
        self.step()
        self._thread = threading.Thread(target=self._watch, name="virtual-kubelet", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and take it away."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._close()

    def step(self) -> None:
        """Close or open the socket as the fault `gone` asks."""
        gone = self._pods.fault().kind == "gone"
        if gone and self._server is not None:
            self._close()
        elif not gone and self._server is None:
            self._open()

    def __enter__(self) -> KubeletServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.step()

    def _open(self) -> None:
        grpc, futures = _import_grpc()
        self._socket.unlink(missing_ok=True)
        server = grpc.server(futures.ThreadPoolExecutor(4), maximum_concurrent_rpcs=64)
        calls = {
            "List": self._list,
            "Get": self._get,
            "GetAllocatableResources": self._allocatable,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._answering(call, grpc))
            for name, call in calls.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        # The port is not what add_insecure_port returns for a socket, but 0 still means failure.
        if server.add_insecure_port(f"unix:{self._socket.absolute()}") == 0:
            raise WattlineError(f"cannot listen on {self._socket}: is the path too long?")
        server.start()
        self._server = server

    def _close(self) -> None:
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None
        self._socket.unlink(missing_ok=True)

    def _answering(self, call: Callable[[bytes], bytes | None], grpc: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            self.calls += 1
            if not self._limiter.allows():
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
            fault = self._pods.take_fault()
            if fault.delay_s:
                time.sleep(fault.delay_s)
            if fault.kind == "error":
                context.abort(grpc.StatusCode[fault.code], "as the fault of the stand-in asks")
            if fault.kind == "garbage":
                return _GARBAGE
            if fault.kind == "empty":
                return b""
            try:
                found = call(request)
            except ValueError as error:
                context.abort(grpc.StatusCode.INTERNAL, str(error))
            if found is None:
                # The kubelet returns a plain Go error here, which gRPC tells as UNKNOWN.
                context.abort(grpc.StatusCode.UNKNOWN, "pod not found")
            return bytes(found or b"")

        return answer

    def _list(self, request: bytes) -> bytes:
        return list_response(self._pods.resources())

    def _get(self, request: bytes) -> bytes | None:
        wanted = requested_pod(request)
        for pod in self._pods.resources():
            if (pod.namespace, pod.name) == wanted:
                return get_response(pod)
        return None

    def _allocatable(self, request: bytes) -> bytes:
        return allocatable_response(self._devices(), _CPUS)


class _Limiter:
    """A token bucket, as golang.org/x/time/rate has it: a call without a token is refused."""

    def __init__(self, calls_per_s: float, burst: int) -> None:
        self._calls_per_s = calls_per_s
        self._burst = float(burst)
        self._tokens = self._burst
        self._filled_s = time.monotonic()
        self._lock = threading.Lock()

    def allows(self) -> bool:
        with self._lock:
            now_s = time.monotonic()
            earned = (now_s - self._filled_s) * self._calls_per_s
            self._tokens = min(self._burst, self._tokens + earned)
            self._filled_s = now_s
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


def fault_of(text: str) -> KubeletFault:
    """A fault as a command names it: `gone`, `error[:CODE]`, `garbage`, `empty`, `slow:SECONDS`."""
    remedy = "use none, gone, error[:CODE], garbage, empty or slow:SECONDS"
    refusal = InputError("fault", text, remedy)
    kind, _, detail = text.partition(":")
    if kind in ("none", "gone", "garbage", "empty") and not detail:
        return KubeletFault(kind=kind)
    if kind == "error":
        grpc, _ = _import_grpc()
        code = detail or "UNAVAILABLE"
        if code in grpc.StatusCode.__members__ and code != "OK":
            return KubeletFault(kind=kind, code=code)
    if kind == "slow":
        try:
            return KubeletFault(delay_s=float(detail))
        except ValueError:
            raise refusal from None
    raise refusal


def _import_grpc() -> tuple[Any, Any]:
    try:
        from concurrent import futures

        import grpc
    except ImportError:
        raise InputError(
            "virtual kubelet", "no module grpc", "install the extra `wattline[agent]`"
        ) from None
    return grpc, futures
