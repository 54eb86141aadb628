"""The HTTP interface: metrics, probes and state for reading, operators' commands with a token.

Answers come from the newest tick; nothing is computed for a request. The server is shaped like the
node agent's, which this package must not know: threads are bounded, and so is each one's time.
"""

from __future__ import annotations

import hmac
import json
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from wattline.controller.settings import address_of, is_loopback
from wattline.controller.state_page import state_page
from wattline.controller.view import TickView
from wattline.core.errors import InputError, WattlineError
from wattline.core.fleet import Fleet

log = logging.getLogger(__name__)

MOST_REQUESTS = 32
READ_S = 5.0
MOST_BODY_BYTES = 1 << 16
MIN_TOKEN = 16
COMMANDS = ("budget", "hold", "pin", "cordon", "restore", "resume", "attest-off", "models")
_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Face:
    """What the server shows and whom it asks.

    command: name and body of a command; returns a line, raises InputError for what cannot be done.
    stale_s: age of a tick above which the loop counts as dead.
    """

    view: Callable[[], TickView | None]
    metrics: Callable[[], bytes]
    command: Callable[[str, bytes], str]
    fleet: Fleet
    stale_s: float


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    content: bytes
    kind: str = _TEXT


def _text(status: int, text: str) -> _Reply:
    return _Reply(status, text.encode() + b"\n")


def _read(face: Face, path: str) -> _Reply:
    if path == "/":
        return _text(200, "wattline controller: /metrics /healthz /readyz /state")
    if path == "/metrics":
        return _Reply(200, face.metrics(), _METRICS)
    if path not in ("/healthz", "/readyz", "/state"):
        return _text(404, "no such path: / lists them")
    view = face.view()
    if view is None:
        return _text(503, "no tick yet")
    now_s = time.monotonic()
    age_s = now_s - view.made_s
    alive = age_s <= face.stale_s
    if path == "/healthz":
        return _text(200 if alive else 503, f"the last tick was {age_s:.1f} s ago")
    if path == "/readyz":
        problems = list(view.problems)
        if not alive:
            problems.append(f"the last tick was {age_s:.1f} s ago")
        return _text(503, "\n".join(problems)) if problems else _text(200, "ready")
    return _Reply(200, state_page(view, face.fleet, now_s), _JSON)


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request, one answer."""

    server: _Server
    server_version = "wattline-controller"
    sys_version = ""
    timeout = READ_S

    def do_GET(self) -> None:
        """Answer from the newest tick."""
        path = self.path.partition("?")[0]
        probe = path in ("/healthz", "/readyz")
        refusal = None if probe or not self.server.token_to_read else self._refusal()
        self._answer(refusal or _read(self.server.face, path))

    def do_HEAD(self) -> None:
        """As GET, without the content."""
        self.do_GET()

    def do_POST(self) -> None:
        """Carry out a command for somebody with the token."""
        self._answer(self._refusal() or self._command())

    def _command(self) -> _Reply:
        name = self.path.strip("/")
        if name not in COMMANDS:
            return _text(404, f"no such command: {', '.join(COMMANDS)}")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 9:
            return _text(411, "give a Content-Length")
        if int(length) > MOST_BODY_BYTES:
            return _text(413, f"a command has at most {MOST_BODY_BYTES} bytes")
        try:
            line = self.server.face.command(name, self.rfile.read(int(length)))
        except InputError as error:
            return _text(400, str(error))
        except WattlineError as error:
            return _text(507, str(error))
        return _Reply(200, json.dumps({"done": line}).encode() + b"\n", _JSON)

    def _refusal(self) -> _Reply | None:
        """403 where no token is configured, 401 without the right one."""
        path = self.server.token_file
        if path is None:
            return _text(403, "read only: configure a token_file to take commands")
        try:
            token = read_token(path)
        except InputError as error:
            log.warning("the token cannot be read", extra={"why": str(error)})
            return _text(503, "the controller cannot read its token")
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        given_bytes = given.strip().encode("utf-8", "surrogateescape")
        if scheme.lower() == "bearer" and hmac.compare_digest(given_bytes, token):
            return None
        return _text(401, "give the bearer token")

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
        """Requests are no news."""


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], face: Face, token_file: Path | None) -> None:
        self.face = face
        self.token_file = token_file
        self.token_to_read = not is_loopback(address[0])
        self._room = threading.Semaphore(MOST_REQUESTS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request, if there is room."""
        if not self._room.acquire(blocking=False):
            log.warning("too many requests at a time")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a request ran into; a client that went away is none of our concern."""
        gone = isinstance(sys.exc_info()[1], ConnectionError | TimeoutError)
        log.log(logging.DEBUG if gone else logging.ERROR, "a request failed", exc_info=True)


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


class HttpServer:
    """The server in a thread of its own. InputError when the address cannot be used."""

    def __init__(self, face: Face, *, listen: str, token_file: Path | None) -> None:
        if token_file is not None:
            read_token(token_file)
        try:
            self._server = _Server(address_of(listen), face, token_file)
        except OSError as error:
            remedy = f"{error.strerror or error}: give another address"
            raise InputError("listen", listen, remedy) from None
        host, port = self._server.socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
