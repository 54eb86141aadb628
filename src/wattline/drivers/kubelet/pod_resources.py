"""Owners of GPUs as the kubelet tells them: PodResources v1 `List` over its unix socket.

It knows a pod's devices before the first container starts, needs neither `hostPID` nor a look at
processes, and is a local call of about 2 ms. It has no watch: `schedule.py` says when to ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.kubelet.devices import GpuResolver
from wattline.drivers.kubelet.wire import MAX_ANSWER_BYTES, decode_list
from wattline.drivers.pods import Ownership, SourceError

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
CALLS_PER_S = 20.0
"""Ours of the 100/s that the kubelet allows to all its clients together."""
CALLS_AT_ONCE = 10
"""As many as the kubelet's own limit lets through at once."""
TIMEOUT_S = 2.0

_METHOD = "/v1.PodResourcesLister/List"


class TokenBucket:
    """Limits calls to `rate_per_s` with bursts of `burst`; `take` sleeps until one is allowed."""

    def __init__(
        self,
        rate_per_s: float = CALLS_PER_S,
        burst: int = CALLS_AT_ONCE,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._clock = clock
        self._sleep = sleep
        self._tokens = self._burst
        self._filled_s = clock()

    def take(self) -> None:
        """Take one token; a single caller waits for 1 / rate seconds at most."""
        now_s = self._clock()
        earned = max(0.0, now_s - self._filled_s) * self._rate_per_s
        self._tokens = min(self._burst, self._tokens + earned) - 1.0
        self._filled_s = now_s
        if self._tokens < 0.0:
            self._sleep(-self._tokens / self._rate_per_s)


class PodResources:
    """The kubelet's socket as an `OwnerSource`. For one thread at a time.

    gRPC (10 MiB) is loaded by `load` or the first call: nodes without a kubelet go without.
    """

    def __init__(
        self,
        resolver: GpuResolver,
        socket: Path = SOCKET,
        *,
        timeout_s: float = TIMEOUT_S,
        bucket: TokenBucket | None = None,
    ) -> None:
        self._resolver = resolver
        self._socket = socket
        self._timeout_s = timeout_s
        self._bucket = bucket or TokenBucket()
        self._grpc: ModuleType | None = None
        self._channel: Any = None

    def load(self) -> None:
        """Load gRPC now, so that a node that lacks it is told at the start. InputError."""
        self._grpc = self._grpc or _import_grpc()

    def owners(self) -> Ownership:
        """Ask the kubelet now. SourceError: no answer in time, or none that can be decoded."""
        self._bucket.take()
        return self._resolver.ownership(decode_list(self._list()))

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _list(self) -> bytes:
        try:
            grpc = self._grpc = self._grpc or _import_grpc()
        except InputError as error:
            raise SourceError(str(error)) from error
        if self._channel is None:
            self._channel = grpc.insecure_channel(
                f"unix:{self._socket.absolute()}",
                options=[
                    # grpc would send the escaped path as the authority, which Go's server refuses.
                    ("grpc.default_authority", "localhost"),
                    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
                    ("grpc.enable_http_proxy", 0),
                    # A kubelet restarts within seconds: look for its new socket often.
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.min_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                ],
            )
        call = self._channel.unary_unary(_METHOD)
        try:
            return bytes(call(b"", timeout=self._timeout_s))
        except grpc.RpcError as error:
            raise SourceError(
                f"kubelet PodResources at {self._socket}: {error.code().name}: "
                f"{' '.join(str(error.details()).split())[:200]}"
            ) from None


def _import_grpc() -> ModuleType:
    try:
        import grpc
    except ImportError:
        raise InputError(
            "kubelet PodResources", "no module grpc", "install the extra `wattline[agent]`"
        ) from None
    module: ModuleType = grpc
    return module
