"""Pages on disk, and a server that answers as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGES = Path(__file__).resolve().parents[2] / "vectors" / "dynamo_pages"


def page_bytes(name: str) -> bytes:
    return (PAGES / f"{name}.txt").read_bytes()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """drip_s: pause after each byte. silent: take the request and never answer."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drip_s: float = 0.0
    silent: bool = False


class Scripted(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Callable[[Asked], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.asked: list[Asked] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    server: Scripted
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        asked = Asked(self.command, self.path, dict(self.headers), self.rfile.read(length))
        self.server.asked.append(asked)
        reply = self.server.reply(asked)
        if reply.silent:
            self.server.over.wait(20.0)
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if reply.drip_s:
            for place in range(len(reply.body)):
                self.wfile.write(reply.body[place : place + 1])
                if self.server.over.wait(reply.drip_s):
                    return
        else:
            self.wfile.write(reply.body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(reply: Callable[[Asked], Reply]) -> Iterator[Scripted]:
    server = Scripted(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def dead_url() -> str:
    """An address of loopback where nothing listens."""
    with serving(lambda asked: Reply()) as server:
        return server.url
