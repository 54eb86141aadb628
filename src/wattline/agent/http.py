"""The agent's two servers: a read-only one over TCP, and one for commands on a unix socket.

Both read the immutable snapshot only; a command goes through `submit`, which waits for a bounded
time. Bounds on requests are those of `drivers/http_server.py`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from wattline.agent.commands import Answer, Command
from wattline.agent.control import MAX_COMMAND_BYTES, decode_command, socket_name
from wattline.agent.settings import address_of, is_loopback
from wattline.agent.snapshot import AgentSnapshot
from wattline.agent.status import encode_status
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.http_server import (
    JSON,
    METRICS,
    BoundedServer,
    Handler,
    Reply,
    TcpServer,
    read_token,
    text,
)

log = logging.getLogger(__name__)

MOST_FROM_ONE = 4
"""Requests at a time from one address, so that nobody can keep the kubelet's probes out."""


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


def _read(face: Face, path: str) -> Reply:
    """The answer to a GET."""
    if path == "/metrics":
        return Reply(200, face.metrics(), METRICS)
    if path == "/":
        return text(200, "wattline agent: /metrics /healthz /readyz /report /status")
    if path not in ("/healthz", "/readyz", "/report", "/status"):
        return text(404, "no such path: / lists them")
    snapshot = face.snapshot()
    if snapshot is None:
        return text(503, "the loop has not looked at the node yet")
    if path == "/healthz":
        age_s = face.now() - snapshot.made_s
        return text(200 if age_s <= face.stale_s else 503, f"the loop looked {age_s:.1f} s ago")
    if path == "/readyz":
        reasons = snapshot.not_ready
        return text(503, "\n".join(reasons)) if reasons else text(200, "ready")
    if path == "/report":
        return Reply(200, snapshot.report, JSON)
    return Reply(200, encode_status(snapshot, face.now()), JSON)


class _ReadHandler(Handler):
    """Read only; with a token, everything but the probes asks for it."""

    server: _ReadServer
    server_version = "wattline-agent"

    def get(self, path: str) -> Reply:
        """Answer from the snapshot."""
        token_file = self.server.token_file
        refusal = None
        if token_file is not None and path not in ("/healthz", "/readyz"):
            refusal = self.token_refusal(token_file, "agent")
        return refusal or _read(self.server.face, path)

    def post(self, path: str) -> Reply:
        """Refuse: what may change limits does not come over the network."""
        return text(405, "read only: commands go to control.sock")


class _ReadServer(TcpServer):
    """Metrics, health and reports over TCP; InputError when the address cannot be used."""

    most_from_one = MOST_FROM_ONE

    def __init__(self, listen: str, token_file: Path | None, face: Face) -> None:
        self.face = face
        self.token_file = token_file
        host, port = address_of(listen)
        if token_file is None and not is_loopback(host):
            raise InputError("listen", listen, "other than loopback needs a token file")
        if token_file is not None:
            read_token(token_file)
        try:
            super().__init__(host, port, _ReadHandler)
        except OSError as error:
            raise InputError(
                "listen", listen, f"{error.strerror or error}: give another --listen"
            ) from None


class _ControlHandler(Handler):
    """Commands and reading, for root and the agent's own user."""

    server: _ControlServer
    server_version = "wattline-agent"

    def get(self, path: str) -> Reply:
        """Answer from the snapshot; probes are for everybody who reaches the socket."""
        refusal = None if path in ("/healthz", "/readyz") else self._refusal()
        return refusal or _read(self.server.face, path)

    def post(self, path: str) -> Reply:
        """Carry out a command."""
        return self._refusal() or self._command(path)

    def _command(self, path: str) -> Reply:
        body = self.body(MAX_COMMAND_BYTES)
        if isinstance(body, Reply):
            return body
        try:
            command = decode_command(path.lstrip("/"), body)
        except InputError as error:
            return text(400, str(error))
        command = replace(command, by=f"{command.by} (uid {self._peer_uid()})")
        answer = self.server.face.submit(command)
        document = {"done": answer.done, "text": answer.text}
        return Reply(200 if answer.done else 409, json.dumps(document).encode() + b"\n", JSON)

    def _refusal(self) -> Reply | None:
        """403 for another user than root and our own."""
        if self._peer_uid() in (0, os.geteuid()):
            return None
        return text(403, "commands are for root and the agent's user")

    def _peer_uid(self) -> int:
        """The connecting process' user, as the kernel says (SO_PEERCRED: pid, uid, gid)."""
        size = struct.calcsize("3i")
        raw = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        uid: int = struct.unpack("3i", raw)[1]
        return uid


class _ControlServer(BoundedServer):
    """On a unix socket that is never open to others."""

    address_family = socket.AF_UNIX
    most_from_one = MOST_FROM_ONE

    def __init__(self, path: Path, face: Face) -> None:
        self.face = face
        self._path = path
        self._inode: int | None = None
        super().__init__(str(path), _ControlHandler)

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
        tcp = _ReadServer(listen, token_file, face)
        try:
            control = _ControlServer(control_socket, face)
        except OSError as error:
            tcp.server_close()
            raise WattlineError(f"{control_socket}: {error.strerror or error}") from None
        except WattlineError:
            tcp.server_close()
            raise
        self._servers: tuple[BoundedServer, ...] = (tcp, control)
        self._threads = [
            threading.Thread(target=server.serve, name=f"http-{name}", daemon=True)
            for server, name in zip(self._servers, ("read", "control"), strict=True)
        ]
        self.address = tcp.address
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
