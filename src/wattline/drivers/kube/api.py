"""The Kubernetes API server: one object or list at a time, a watch, or a patch of one object.

Connection and credentials (service account, kubeconfig, rotated tokens) are lightkube's. Its own
watch is not used, for five reasons seen in version 1.0.1: it asks for no bookmarks; it has no read
timeout, so that a partition hangs it for good; a connection that is refused ends it; after 410 it
goes on from "now", so that deletions in between are lost; and it splits lines at characters that
JSON texts may contain (U+0085), so that one annotation could break it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattline.core.errors import InputError
from wattline.drivers.pods import SourceError

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S = 5.0
LIST_TIMEOUT_S = 20
"""The server's limit on a list; ours is a quarter more, as in Dynamo's agent."""
MAX_RETRY_AFTER_S = 60.0
_MAX_LIST_BYTES = 64 * 1024 * 1024
_MAX_EVENT_BYTES = 4 * 1024 * 1024
"""etcd holds no object of more than 1.5 MiB."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
"""A silent peer is given up after 30 s, by the kernel, without a request."""


class KubeFault(StrEnum):
    """What a failed call means for the caller."""

    EXPIRED = "expired"
    """The resource version is too old (410) or from a future that this server does not know."""
    REFUSED = "refused"
    """A permission is missing or the credentials are not accepted.

    A server says so, too, in its first second, before it has read its roles: worth a retry.
    """
    ABSENT = "absent"
    """404: the server does not have this kind."""
    UNAVAILABLE = "unavailable"
    """Anything that may pass: no connection, silence, 429, 5xx."""


class KubeError(SourceError):
    """A call to the API server that failed. `retry_after_s`: as the server asked, if it did."""

    def __init__(self, fault: KubeFault, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.fault = fault
        self.retry_after_s = retry_after_s


class KubeApi:
    """A connection to the API server, for one thread at a time."""

    def __init__(self, client: httpx2.Client, server: str) -> None:
        self._client = client
        self.server = server

    def get(
        self, path: str, params: Mapping[str, str], *, timeout_s: int = LIST_TIMEOUT_S
    ) -> Mapping[str, Any]:
        """One answer as decoded JSON. Raises KubeError."""
        limited = {**params, "timeoutSeconds": str(timeout_s)}
        with self._open(path, limited, read_timeout_s=1.25 * timeout_s) as response:
            return _read(response, path)

    def patch(self, path: str, document: Mapping[str, Any], *, manager: str) -> Mapping[str, Any]:
        """Merge `document` into one object, in the name of `manager`; the object as it is then.

        Raises KubeError.
        """
        params = {"fieldManager": manager}
        body = json.dumps(document).encode()
        with self._open(path, params, 1.25 * LIST_TIMEOUT_S, "PATCH", body) as response:
            return _read(response, path)

    @contextmanager
    def watch(
        self, path: str, params: Mapping[str, str], *, read_timeout_s: float
    ) -> Iterator[Watch]:
        """An open watch. Raises KubeError, also when nothing comes for `read_timeout_s`."""
        with self._open(path, {**params, "watch": "true"}, read_timeout_s) as response:
            yield Watch(response, path)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    @contextmanager
    def _open(
        self,
        path: str,
        params: Mapping[str, str],
        read_timeout_s: float,
        method: str = "GET",
        body: bytes | None = None,
    ) -> Iterator[httpx2.Response]:
        import httpx2
        from lightkube.core.exceptions import ConfigError

        timeout = httpx2.Timeout(CONNECT_TIMEOUT_S, read=read_timeout_s)
        headers = {} if body is None else {"Content-Type": "application/merge-patch+json"}
        try:
            with self._client.stream(
                method, path, params=params, content=body, headers=headers, timeout=timeout
            ) as response:
                if response.status_code != 200:
                    raise _error_of(response, path)
                yield response
        except (httpx2.HTTPError, httpx2.StreamError, ConfigError, OSError) as error:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            raise KubeError(KubeFault.UNAVAILABLE, f"{self.server}{path}: {what}") from error


class Watch:
    """Events of one watch, until the server ends it."""

    def __init__(self, response: httpx2.Response, path: str) -> None:
        self._response = response
        self._path = path

    def events(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Type and object of each event. Raises KubeError for an ERROR event and broken lines."""
        for line in _lines(self._response.iter_bytes(), self._path):
            event = _decoded(line, self._path)
            kind, item = event.get("type"), event.get("object")
            if not isinstance(kind, str) or not isinstance(item, dict):
                raise KubeError(KubeFault.UNAVAILABLE, f"{self._path}: an event without an object")
            if kind == "ERROR":
                code = item.get("code")
                code = code if isinstance(code, int) else 500
                raise _error_of_status(code, item, self._path, None)
            yield kind, item

    def interrupt(self) -> None:
        """End it from another thread, which may be waiting for the next event."""
        stream = self._response.extensions.get("network_stream")
        raw = stream.get_extra_info("socket") if stream is not None else None
        if raw is not None:
            with suppress(OSError):  # it has ended by itself
                socket.socket.shutdown(
                    raw, socket.SHUT_RDWR
                )  # below TLS: its state is the reader's


def connect(kubeconfig: Path | None = None) -> KubeApi:
    """API server of the pod's service account, else of `kubeconfig`, `KUBECONFIG` or the default.

    With `kubeconfig` given, of that file only. Opens no connection yet. Raises InputError.
    """
    where = str(kubeconfig or "kubeconfig")
    try:
        import httpx2
        from lightkube.config.client_adapter import user_auth, verify_cluster
        from lightkube.config.kubeconfig import KubeConfig
    except ImportError:
        raise InputError(
            "kubernetes", "no module lightkube", "install the extra `wattline[agent]`"
        ) from None
    try:
        loaded = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        config = loaded.get()
        if config is None or config.user is None:
            raise ValueError("no current context with a user")
        tls = verify_cluster(config.cluster, config.user, config.abs_file)
        transport = httpx2.HTTPTransport(
            verify=tls,
            limits=httpx2.Limits(max_connections=4, max_keepalive_connections=1),
            socket_options=list(_KEEPALIVE),
        )
        # Not by lightkube's `Client`: that would load the certificates a second time, for nothing.
        client = httpx2.Client(
            base_url=config.cluster.server, auth=user_auth(config.user), transport=transport
        )
    except Exception as error:  # lightkube lets through what YAML, TLS and msgspec raise
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(where, found, "give a kubeconfig or run with a service account") from error
    return KubeApi(client, str(config.cluster.server))


def _lines(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        *whole, rest = pending.split(b"\n")
        yield from (bytes(line) for line in whole if line.strip())
        pending = rest
        if len(pending) > _MAX_EVENT_BYTES:
            raise KubeError(
                KubeFault.UNAVAILABLE, f"{path}: an event of over {_MAX_EVENT_BYTES} bytes"
            )


def _read(response: httpx2.Response, path: str) -> Mapping[str, Any]:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _MAX_LIST_BYTES:
            raise KubeError(
                KubeFault.UNAVAILABLE, f"{path}: more than {_MAX_LIST_BYTES} bytes: not read"
            )
    return _decoded(bytes(body), path)


def _decoded(body: bytes, path: str) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise KubeError(KubeFault.UNAVAILABLE, f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise KubeError(KubeFault.UNAVAILABLE, f"{path}: {type(document).__name__}: not an object")
    return document


def _error_of(response: httpx2.Response, path: str) -> KubeError:
    body = response.read()[:4096]
    try:
        status = json.loads(body)
    except ValueError:
        status = {"message": body.decode("utf-8", "replace")}
    if not isinstance(status, dict):
        status = {}
    asked = response.headers.get("Retry-After", "")
    retry_after_s = min(float(asked), MAX_RETRY_AFTER_S) if asked.isdecimal() else None
    return _error_of_status(response.status_code, status, path, retry_after_s)


def _error_of_status(
    code: int, status: Mapping[str, Any], path: str, retry_after_s: float | None
) -> KubeError:
    message = " ".join(str(status.get("message") or "").split())[:300]
    if code in (400, 403, 422) and "denied" in message:
        # An admission webhook or policy: no permission would help.
        return KubeError(KubeFault.REFUSED, f"{path}: the cluster refuses it: {message}")
    if code == 403:
        return KubeError(
            KubeFault.REFUSED,
            f"{path}: a permission is missing: {message}: bind the roles of deploy/agent/rbac.yaml",
        )
    if code == 401:
        return KubeError(KubeFault.REFUSED, f"{path}: 401: the credentials are not accepted")
    fault = KubeFault.UNAVAILABLE
    if code == 410 or "Too large resource version" in message:
        fault = KubeFault.EXPIRED
    elif code == 404:
        fault = KubeFault.ABSENT
    return KubeError(fault, f"{path}: {code}: {message}", retry_after_s)
