"""The agent's two servers: a read-only one over TCP, and one for commands on a unix socket.

Both read the immutable snapshot only; a command goes through `submit`, which waits for a bounded
time. Requests are bounded in size, time and number, and none can take the process down.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import selectors
import socket
import socketserver
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from wattline.agent.commands import Answer, Command
from wattline.agent.control import MAX_COMMAND_BYTES, decode_command, socket_name
from wattline.agent.settings import address_of, is_loopback
from wattline.agent.snapshot import AgentSnapshot
from wattline.agent.status import encode_status
from wattline.core.errors import InputError, WattlineError

log = logging.getLogger(__name__)

MOST_REQUESTS = 32
"""At a time, per server; more are closed unanswered."""
MOST_FROM_ONE = 4
"""The same from one address, so that nobody can keep the kubelet's probes out."""
REQUEST_S = 10.0
"""From connection to answer; slower clients are cut off."""
READ_S = 5.0
_LOOK_S = 0.5
_PAUSE_S = 0.1
MIN_TOKEN = 16
_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Face:
    """What the servers show and whom they ask.

    stale_s: age of a snapshot above which the loop counts as dead. now: the clock of `made_s`.
    """

    snapshot: Callable[[], AgentSnapshot | None]
    metrics: Callable[[], bytes]
    submit: Callable[[Command], Answer]
    stale_s: float
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    content: bytes
    kind: str = _TEXT


def _text(status: int, text: str) -> _Reply:
    return _Reply(status, text.encode() + b"\n")


def _read(face: Face, path: str) -> _Reply:
    """The answer to a GET."""
    if path == "/metrics":
        return _Reply(200, face.metrics(), _METRICS)
    if path == "/":
        return _text(200, "wattline agent: /metrics /healthz /readyz /report /status")
    if path not in ("/healthz", "/readyz", "/report", "/status"):
        return _text(404, "no such path: / lists them")
    snapshot = face.snapshot()
    if snapshot is None:
        return _text(503, "the loop has not looked at the node yet")
    if path == "/healthz":
        age_s = face.now() - snapshot.made_s
        return _text(200 if age_s <= face.stale_s else 503, f"the loop looked {age_s:.1f} s ago")
    if path == "/readyz":
        reasons = snapshot.not_ready
        return _text(503, "\n".join(reasons)) if reasons else _text(200, "ready")
    if path == "/report":
        return _Reply(200, snapshot.report, _JSON)
    return _Reply(200, encode_status(snapshot, face.now()), _JSON)


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request, one answer."""

    server: _Bounded
    server_version = "wattline-agent"
    sys_version = ""
    timeout = READ_S

    def do_GET(self) -> None:
        """Answer from the snapshot."""
        path = self.path.partition("?")[0]
        refusal = None if path in ("/healthz", "/readyz") else self.server.refuse(self)
        self._answer(refusal or _read(self.server.face, path))

    def do_HEAD(self) -> None:
        """As GET, without the content."""
        self.do_GET()

    def do_POST(self) -> None:
        """Carry out a command, where commands are taken at all."""
        if not self.server.takes_commands:
            self._answer(_text(405, "read only: commands go to control.sock"))
            return
        self._answer(self.server.refuse(self) or self._command())

    def _command(self) -> _Reply:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 9:
            return _text(411, "give a Content-Length")
        if int(length) > MAX_COMMAND_BYTES:
            return _text(413, f"a command has at most {MAX_COMMAND_BYTES} bytes")
        try:
            command = decode_command(self.path.lstrip("/"), self.rfile.read(int(length)))
        except InputError as error:
            return _text(400, str(error))
        command = replace(command, by=f"{command.by} (uid {self.server.peer_uid(self)})")
        answer = self.server.face.submit(command)
        document = {"done": answer.done, "text": answer.text}
        return _Reply(200 if answer.done else 409, json.dumps(document).encode() + b"\n", _JSON)

    def _answer(self, reply: _Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if reply.status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what the standard library found wrong, in plain text."""
        self.command = self.command or ""
        self._answer(_text(code, "request cannot be used"))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news: only refusals and failures are logged, elsewhere."""


class _Bounded(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server with a bounded number of threads, each for a bounded time."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64
    timeout = 0  # of handle_request, which is called once somebody asks
    takes_commands = False

    def __init__(self, address: Any, face: Face) -> None:
        self.face = face
        self._open: dict[Any, tuple[float, str]] = {}
        self._open_lock = threading.Lock()
        self._wake = socket.socketpair()
        try:
            super().__init__(address, _Handler)
        except BaseException:
            for end in self._wake:
                end.close()
            raise

    def refuse(self, handler: _Handler) -> _Reply | None:
        """The refusal of a request that may not be answered; None: it may."""
        raise NotImplementedError

    def peer_uid(self, handler: _Handler) -> int:
        """User at the other end; only a unix socket knows."""
        raise NotImplementedError

    def get_request(self) -> tuple[Any, Any]:
        """Take a connection in; without a free file descriptor, not as fast as we can loop."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request, if there is room."""
        peer = str(client_address[0]) if client_address else ""
        with self._open_lock:
            same = sum(peer == other for _, other in self._open.values())
            room = len(self._open) < MOST_REQUESTS and same < MOST_FROM_ONE
            if room:
                self._open[request] = (time.monotonic(), peer)
        if room:
            super().process_request(request, client_address)
        else:
            log.warning("too many requests at a time", extra={"client": peer})
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Forget the request and close it."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def serve(self) -> None:
        """Answer until `stop`. Nothing wakes up while nobody asks."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            selector.register(self._wake[1], selectors.EVENT_READ)
            while True:
                ready = selector.select(_LOOK_S if self._open else None)
                asking = {key.fileobj for key, _ in ready}
                if self._wake[1] in asking:
                    return
                if asking:
                    self.handle_request()
                self._cut_slow()

    def stop(self) -> None:
        """End `serve`."""
        self._wake[0].close()

    def server_close(self) -> None:
        """Listen no more."""
        super().server_close()
        for end in self._wake:
            end.close()

    def _cut_slow(self) -> None:
        """Cut off clients that take too long."""
        late_s = time.monotonic() - REQUEST_S
        with self._open_lock:
            for request, (began_s, peer) in self._open.items():
                if began_s < late_s:
                    self._open[request] = (float("inf"), peer)
                    _cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a request ran into; a client that went away is none of our concern."""
        gone = isinstance(sys.exc_info()[1], ConnectionError | TimeoutError)
        log.log(logging.DEBUG if gone else logging.ERROR, "a request failed", exc_info=True)


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        log.debug("a slow client was already gone", extra={"why": str(error)})


class _TcpServer(_Bounded):
    """Read only; with a token, everything but the probes asks for it."""

    def __init__(self, listen: str, token_file: Path | None, face: Face) -> None:
        host, port = address_of(listen)
        if token_file is None and not is_loopback(host):
            raise InputError("listen", listen, "other than loopback needs a token file")
        self._token_file = token_file
        if token_file is not None:
            read_token(token_file)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), face)
        except OSError as error:
            raise InputError(
                "listen", listen, f"{error.strerror or error}: give another --listen"
            ) from None

    def refuse(self, handler: _Handler) -> _Reply | None:
        """401 without the token; read anew each time, so that it can be changed."""
        if self._token_file is None:
            return None
        try:
            token = read_token(self._token_file)
        except InputError as error:
            log.warning("the token cannot be read", extra={"why": str(error)})
            return _text(503, "the agent cannot read its token")
        scheme, _, given = handler.headers.get("Authorization", "").partition(" ")
        given_bytes = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "bearer" and hmac.compare_digest(given_bytes, token):
            return None
        return _text(401, "give the bearer token")


def read_token(path: Path) -> bytes:
    """The token in a file, without white space around it; InputError for one that is no token."""
    try:
        with path.open("rb") as stream:
            token = stream.read(4097).strip()
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "give a readable file") from None
    if not MIN_TOKEN <= len(token) <= 4096:
        remedy = f"a token has {MIN_TOKEN} to 4096 bytes: `openssl rand -hex 32`"
        raise InputError(str(path), f"{len(token)} bytes", remedy)
    return token


class _ControlServer(_Bounded):
    """Commands and reading, for root and the agent's own user."""

    address_family = socket.AF_UNIX
    takes_commands = True

    def __init__(self, path: Path, face: Face) -> None:
        self._path = path
        self._inode: int | None = None
        super().__init__(str(path), face)

    def server_bind(self) -> None:
        """Bind out of others' reach and move into place, so that it is never open to others."""
        if _somebody_listens(self._path):
            raise WattlineError(f"{self._path}: another agent listens here: end it first")
        with tempfile.TemporaryDirectory(prefix=".c", dir=self._path.parent) as private:
            bound = os.path.join(private, "s")
            with socket_name(Path(bound)) as name:
                self.socket.bind(name)
            os.chmod(bound, 0o600)
            self._inode = os.stat(bound).st_ino
            os.replace(bound, self._path)

    def refuse(self, handler: _Handler) -> _Reply | None:
        """403 for another user than root and our own."""
        if self.peer_uid(handler) in (0, os.geteuid()):
            return None
        return _text(403, "commands are for root and the agent's user")

    def peer_uid(self, handler: _Handler) -> int:
        """The connecting process' user, as the kernel says (SO_PEERCRED: pid, uid, gid)."""
        size = struct.calcsize("3i")
        raw = handler.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        uid: int = struct.unpack("3i", raw)[1]
        return uid

    def server_close(self) -> None:
        """Close, and take the socket's name away unless a successor has it by now."""
        super().server_close()
        try:
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except FileNotFoundError:
            log.debug("the control socket was already gone")


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            with socket_name(path) as name:
                probe.connect(name)
        except TimeoutError:
            return True
        except OSError:
            return False
    return True


class Servers:
    """Both servers of one agent, each in a thread."""

    def __init__(
        self, face: Face, *, listen: str, token_file: Path | None, control_socket: Path
    ) -> None:
        """Raises InputError when an address cannot be used."""
        tcp = _TcpServer(listen, token_file, face)
        try:
            control = _ControlServer(control_socket, face)
        except OSError as error:
            tcp.server_close()
            raise WattlineError(f"{control_socket}: {error.strerror or error}") from None
        except WattlineError:
            tcp.server_close()
            raise
        self._servers: tuple[_Bounded, ...] = (tcp, control)
        self._threads = [
            threading.Thread(target=server.serve, name=f"http-{name}", daemon=True)
            for server, name in zip(self._servers, ("read", "control"), strict=True)
        ]
        host, port = tcp.socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        """Where the read-only server listens."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop to listen; requests under way are cut by the end of the process."""
        for server in self._servers:
            server.stop()
        for thread in self._threads:
            thread.join()
        for server in self._servers:
            server.server_close()
