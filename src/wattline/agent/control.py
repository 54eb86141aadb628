"""Commands over the agent's unix socket: their JSON, and the client that sends them."""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wattline.agent.commands import Answer, Brake, Command, Hold, Pin, Restore, Resume
from wattline.core.errors import InputError, WattlineError

MAX_COMMAND_BYTES = 4096
MAX_ANSWER_BYTES = 16 << 20
COMMANDS: Mapping[str, type[Command]] = {
    "brake": Brake,
    "hold": Hold,
    "pin": Pin,
    "resume": Resume,
    "restore": Restore,
}
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "brake": ("by",),
    "hold": ("by", "why"),
    "pin": ("by", "why", "gpu", "watts"),
    "resume": ("by",),
    "restore": ("by",),
}
_OPTIONAL: Mapping[str, tuple[str, ...]] = {"resume": ("gpu",), "restore": ("gpu",)}
_LARGEST_W = 100_000.0
_LONGEST_NAME = 107
"""Bytes of a unix socket's name; source: sockaddr_un of linux/un.h, less the end."""


def decode_command(name: str, content: bytes) -> Command:
    """A command out of a JSON object; InputError for one that is not whole and plain."""
    if name not in COMMANDS:
        raise InputError("command", name, f"give one of {', '.join(COMMANDS)}")
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(name, found, "give a JSON object") from None
    needed, optional = _FIELDS[name], _OPTIONAL.get(name, ())
    if not isinstance(document, dict) or not set(needed) <= set(document) <= {*needed, *optional}:
        known = ", ".join((*needed, *(f"{field} (optional)" for field in optional)))
        raise InputError(name, document, f"give a JSON object with {known}")
    values: dict[str, Any] = {field: _value(name, field, document[field]) for field in document}
    return COMMANDS[name](**values)


def _value(name: str, field: str, found: object) -> object:
    where = f"{name}: {field}"
    if field == "watts":
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise InputError(where, found, "give a number of watts")
        if not 0 < found <= _LARGEST_W or not math.isfinite(found):
            raise InputError(where, found, f"give watts above 0, at most {_LARGEST_W:g}")
        return float(found)
    if found is None and field in _OPTIONAL.get(name, ()):
        return None
    if not isinstance(found, str) or not found.strip() or not found.isprintable():
        raise InputError(where, found, "give one line of text")
    if len(found) > 200:
        raise InputError(where, found, "give at most 200 characters")
    return found


def encode_command(command: Command) -> tuple[str, bytes]:
    """The command's name and its JSON object."""
    name = type(command).__name__.lower()
    return name, json.dumps(asdict(command)).encode()


def send(control_socket: Path, command: Command, *, timeout_s: float = 15.0) -> Answer:
    """Ask the agent that listens on `control_socket`; WattlineError when it cannot be asked."""
    name, body = encode_command(command)
    status, content = _exchange(control_socket, "POST", f"/{name}", body, timeout_s)
    try:
        answer = json.loads(content)
        return Answer(done=bool(answer["done"]), text=str(answer["text"]))
    except (ValueError, KeyError, TypeError):
        text = " ".join(content.decode("utf-8", "replace").split())
        raise WattlineError(f"{control_socket}: refused with {status}: {text[:200]}") from None


def fetch(control_socket: Path, path: str, *, timeout_s: float = 5.0) -> bytes:
    """What the agent answers to GET `path`; WattlineError when there is no answer to be had."""
    status, content = _exchange(control_socket, "GET", path, None, timeout_s)
    if status != 200:
        text = " ".join(content.decode("utf-8", "replace").split())
        raise WattlineError(f"{control_socket}: refused with {status}: {text[:200]}")
    return content


@contextmanager
def socket_name(path: Path) -> Iterator[str]:
    """A name of `path` for bind or connect: Linux takes 107 bytes, directories may be deeper."""
    if len(os.fsencode(path)) <= _LONGEST_NAME:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with socket_name(self._path) as name:
            self.sock.connect(name)


def _exchange(
    path: Path, method: str, target: str, body: bytes | None, timeout_s: float
) -> tuple[int, bytes]:
    connection = _UnixConnection(path, timeout_s)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES)
    except (FileNotFoundError, ConnectionRefusedError):
        raise WattlineError(
            f"{path}: no agent listens here: start it with `wattline agent run`, "
            "or name its --state-dir"
        ) from None
    except PermissionError:
        raise WattlineError(f"{path}: permission denied: use the agent's user, or root") from None
    except TimeoutError:
        raise WattlineError(f"{path}: no answer in {timeout_s:g} s: look at its logs") from None
    except (OSError, http.client.HTTPException) as error:
        found = " ".join(str(error).split())[:200] or type(error).__name__
        raise WattlineError(f"{path}: no answer ({found}): look at its logs") from None
    finally:
        connection.close()
