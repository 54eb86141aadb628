"""Bytes of clients at the controller's HTTP interface.

Whatever is sent, the connection gets an answer or its end within the server's time limit, and the
next client is served; only a command with the token changes anything.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit" / "controller"))

from controller_world import World

import fuzz_live_samples as samples
from fuzz import Result
from fuzz_mutations import Mutator
from wattline.controller.http import COMMANDS, Face, HttpServer
from wattline.controller.metrics import exposition

TOKEN = "0123456789abcdef0123"
_PATHS = ("/", "/metrics", "/healthz", "/readyz", "/state", *(f"/{name}" for name in COMMANDS))
_VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "", "\0")
_STATUSES = [str(code).encode() for code in (200, 400, 401, 403, 404, 405, 411, 413, 414, 431)]
_STATUSES += [b"501", b"503", b"505"]


def _request(mutator: Mutator) -> bytes:
    draw = mutator.draw
    body = mutator.some_json(samples.COMMANDS)
    length = draw.choice((len(body), len(body), len(body), 0, 10**9, -1, "x", 70_000, "9" * 5000))
    token = draw.choice((TOKEN, TOKEN, TOKEN, "", "x" * 5000, TOKEN[:-1], "\u00e9", "Bearer"))
    verb = draw.choice(("GET", "POST", "POST", draw.choice(_VERBS)))
    head = (
        f"{verb} {draw.choice(_PATHS)}{draw.choice(('', '', '?a=b', '//', '/..', '%00'))} "
        f"HTTP/1.{draw.choice((0, 1, 1, 9))}\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: {length}\r\n{'A: b' * draw.choice((0, 0, 1, 30_000))}\r\n\r\n"
    )
    whole = head.encode("utf-8", "surrogatepass") + body
    return mutator.some_bytes([whole]) if draw.random() < 0.3 else whole


def _ask(address: tuple[str, int], data: bytes) -> bytes:
    """The answer to `data` after which the client says no more."""
    parts = []
    with socket.create_connection(address, timeout=20.0) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                parts.append(chunk)
        except TimeoutError:
            return b"hang"
        except OSError:
            return b"".join(parts) or b"reset"
    return b"".join(parts)


def fuzz_http(cases: int, seed: int, folder: Path) -> Result:
    """So many requests to one server."""
    result = Result("HTTP request")
    mutator = Mutator(f"{seed}/{result.target}")
    world = World(folder)
    world.start()
    world.run(2)
    token = folder / "token"
    token.write_text(TOKEN)
    controller = world.assembly.controller
    fleet = controller.parts.site.fleet
    face = Face(
        view=lambda: controller.view,
        metrics=exposition(lambda: controller.view, fleet),
        command=world.assembly.desk,
        fleet=fleet,
        stale_s=600.0,
    )
    server = HttpServer(face, listen="127.0.0.1:0", token_file=token)
    host, _, port = server.address.rpartition(":")
    address = (host, int(port))
    try:
        for _ in range(cases):
            data = _request(mutator)
            before = controller.parts.orders.in_force(world.clock.now_s)
            answer = _ask(address, data)
            result.cases += 1
            wrong = _wrong_in(answer) if data.strip() else None
            after = controller.parts.orders.in_force(world.clock.now_s)
            if wrong is None and before != after and TOKEN.encode() not in data:
                wrong = "orders changed without the token"
            if wrong is not None:
                result.defect(data, wrong)
            elif b" 200 " in answer[:20]:
                result.taken += 1
            else:
                result.refused += 1
        alive = _ask(address, b"GET /healthz HTTP/1.0\r\n\r\n")
        if b" 200 " not in alive[:20]:
            result.defect(b"", f"not served any more: {alive[:100]!r}")
        world.run(2)
    finally:
        server.close()
        world.stop()
    return result


def _wrong_in(answer: bytes) -> str | None:
    if answer in (b"", b"reset"):
        return None if answer == b"reset" else "no answer"
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ")
    if answer.endswith(b"\n") and answer.count(b"\n") == 1:
        return None  # to one who speaks HTTP/0.9, which has no head
    if not head.startswith(b"HTTP/1.") or words[1] not in _STATUSES:
        return f"an answer of another kind: {answer[:100]!r}"
    if b"Traceback" in body:
        return "a trace in the answer"
    if words[1] == b"200" and b"application/json" in head and body:
        json.loads(body)
    return None
