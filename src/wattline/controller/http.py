"""The HTTP interface: metrics, probes and state for reading, operators' commands with a token.

Answers come from the newest tick; nothing is computed for a request. Bounds on requests are those
of `drivers/http_server.py`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wattline.controller.settings import address_of, is_loopback
from wattline.controller.state_page import state_page
from wattline.controller.view import TickView
from wattline.core.errors import InputError, WattlineError
from wattline.core.fleet import Fleet
from wattline.drivers.http_server import (
    JSON,
    METRICS,
    Handler,
    Reply,
    TcpServer,
    read_token,
    text,
)

MOST_BODY_BYTES = 1 << 16
COMMANDS = ("budget", "hold", "pin", "cordon", "restore", "resume", "attest-off", "models")


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


def _read(face: Face, path: str) -> Reply:
    if path == "/":
        return text(200, "wattline controller: /metrics /healthz /readyz /state")
    if path == "/metrics":
        return Reply(200, face.metrics(), METRICS)
    if path not in ("/healthz", "/readyz", "/state"):
        return text(404, "no such path: / lists them")
    view = face.view()
    if view is None:
        return text(503, "no tick yet")
    now_s = time.monotonic()
    age_s = now_s - view.made_s
    alive = age_s <= face.stale_s
    if path == "/healthz":
        return text(200 if alive else 503, f"the last tick was {age_s:.1f} s ago")
    if path == "/readyz":
        problems = list(view.problems)
        if not alive:
            problems.append(f"the last tick was {age_s:.1f} s ago")
        return text(503, "\n".join(problems)) if problems else text(200, "ready")
    return Reply(200, state_page(view, face.fleet, now_s), JSON)


class _Handler(Handler):
    """One connection, one request, one answer."""

    server: _Server
    server_version = "wattline-controller"

    def get(self, path: str) -> Reply:
        """Answer from the newest tick."""
        probe = path in ("/healthz", "/readyz")
        refusal = None if probe or not self.server.token_to_read else self._refusal()
        return refusal or _read(self.server.face, path)

    def post(self, path: str) -> Reply:
        """Carry out a command for somebody with the token."""
        return self._refusal() or self._command(path)

    def _command(self, path: str) -> Reply:
        name = path.strip("/")
        if name not in COMMANDS:
            return text(404, f"no such command: {', '.join(COMMANDS)}")
        body = self.body(MOST_BODY_BYTES)
        if isinstance(body, Reply):
            return body
        try:
            line = self.server.face.command(name, body)
        except InputError as error:
            return text(400, str(error))
        except WattlineError as error:
            return text(507, str(error))
        return Reply(200, json.dumps({"done": line}).encode() + b"\n", JSON)

    def _refusal(self) -> Reply | None:
        """403 where no token is configured, 401 without the right one."""
        token_file = self.server.token_file
        if token_file is None:
            return text(403, "read only: configure a token_file to take commands")
        return self.token_refusal(token_file, "controller")


class _Server(TcpServer):
    request_s = 30.0  # a command waits for the disk

    def __init__(self, address: tuple[str, int], face: Face, token_file: Path | None) -> None:
        self.face = face
        self.token_file = token_file
        self.token_to_read = not is_loopback(address[0])
        super().__init__(*address, _Handler)


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
        self.address = self._server.address
        self._thread = threading.Thread(target=self._server.serve, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._server.stop()
        self._thread.join()
        self._server.server_close()
