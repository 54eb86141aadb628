"""The skeleton of our HTTP servers: metrics and probes for reading, commands for those who may.

One connection carries one request and gets one answer. Requests are bounded in size, time and
number, so that no client can take the process down or keep the others out. What is answered is the
business of whoever derives a handler.
"""

from __future__ import annotations

import hmac
import logging
import selectors
import socket
import socketserver
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError

log = logging.getLogger(__name__)

MOST_REQUESTS = 32
"""At a time, per server; more are closed unanswered."""
REQUEST_S = 10.0
"""From connection to answer; slower clients are cut off."""
READ_S = 5.0
"""For one read from a client."""
MIN_TOKEN = 16
_LOOK_S = 0.5
_PAUSE_S = 0.1

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
METRICS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status, content and its media type."""

    status: int
    content: bytes
    kind: str = TEXT


def text(status: int, line: str) -> Reply:
    """A line, or several, for a person."""
    return Reply(status, line.encode() + b"\n")


class Handler(BaseHTTPRequestHandler):
    """One connection, one request, one answer: derive it and define `get` and `post`."""

    sys_version = ""
    timeout = READ_S

    def get(self, path: str) -> Reply:
        """The answer to a GET or HEAD of `path`, without what stands behind `?`."""
        raise NotImplementedError

    def post(self, path: str) -> Reply:
        """The answer to a POST."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer for reading."""
        self._answer(self.get(self.path.partition("?")[0]))

    def do_HEAD(self) -> None:
        """As GET, without the content."""
        self.do_GET()

    def do_POST(self) -> None:
        """Answer a command."""
        self._answer(self.post(self.path))

    def body(self, most_bytes: int) -> bytes | Reply:
        """What was sent with a POST, or the refusal of a body of unknown or too great length."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 9:
            return text(411, "give a Content-Length")
        if int(length) > most_bytes:
            return text(413, f"a command has at most {most_bytes} bytes")
        return self.rfile.read(int(length))

    def token_refusal(self, token_file: Path, whose: str) -> Reply | None:
        """401 without the token in the file, which is read anew so that it can be changed."""
        try:
            token = read_token(token_file)
        except InputError as error:
            log.warning("the token cannot be read", extra={"why": str(error)})
            return text(503, f"the {whose} cannot read its token")
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        given_bytes = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "bearer" and hmac.compare_digest(given_bytes, token):
            return None
        return text(401, "give the bearer token")

    def _answer(self, reply: Reply) -> None:
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
        self._answer(text(code, "request cannot be used"))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news: only refusals and failures are logged, elsewhere."""


class BoundedServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server with a bounded number of threads, each for a bounded time."""

    most_from_one = MOST_REQUESTS
    """Requests at a time from one address."""
    request_s = REQUEST_S

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64
    timeout = 0  # of handle_request, which is called once somebody asks

    def __init__(self, address: Any, handler: type[Handler]) -> None:
        self._open: dict[Any, tuple[float, str]] = {}
        self._open_lock = threading.Lock()
        self._wake = socket.socketpair()
        try:
            super().__init__(address, handler)
        except BaseException:
            for end in self._wake:
                end.close()
            raise

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
            room = len(self._open) < MOST_REQUESTS and same < self.most_from_one
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
        late_s = time.monotonic() - self.request_s
        with self._open_lock:
            for request, (began_s, peer) in self._open.items():
                if began_s < late_s:
                    self._open[request] = (float("inf"), peer)
                    _cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a request ran into; a client that went away is none of our concern."""
        gone = isinstance(sys.exc_info()[1], ConnectionError | TimeoutError)
        log.log(logging.DEBUG if gone else logging.ERROR, "a request failed", exc_info=True)


class TcpServer(BoundedServer):
    """On `host` and `port`; port 0 takes any free one. OSError: that cannot be had."""

    def __init__(self, host: str, port: int, handler: type[Handler]) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), handler)

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT or [HOST]:PORT."""
        host, port = self.socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        log.debug("a slow client was already gone", extra={"why": str(error)})
