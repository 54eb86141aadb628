"""Processes to watch: our own children, and those that an earlier process of ours started."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol

from wattline.core.errors import WattlineError

log = logging.getLogger(__name__)

_STARTED_FIELD = 22
_PROBE_S = 0.5
_MOST_TRIES = 500


class Process(Protocol):
    """One process, told from later ones with its id by the time of its start."""

    pid: int
    started_ticks: int
    exit_code: int | None

    def alive(self) -> bool:
        """False once it has ended; a child is reaped then."""
        ...

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        ...


class Child:
    """A process that we started."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid
        self.started_ticks = boot_ticks(child.pid) or 0
        self.exit_code: int | None = None

    def alive(self) -> bool:
        """As `Process`; a negative exit code is the signal that ended it."""
        self.exit_code = self._child.poll()
        return self.exit_code is None

    def send(self, number: signal.Signals) -> None:
        """As `Process`: `Popen` knows whether it has reaped the id."""
        self._child.send_signal(number)


class Adopted:
    """A process that somebody else started: its exit code stays unknown."""

    def __init__(self, pid: int, started_ticks: int) -> None:
        self.pid = pid
        self.started_ticks = started_ticks
        self.exit_code: int | None = None

    def alive(self) -> bool:
        """As `Process`; one that waits for its parent to reap it has ended."""
        return boot_ticks(self.pid) == self.started_ticks

    def send(self, number: signal.Signals) -> None:
        """As `Process`. The id is held while it is compared, so that no other process is hit."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            log.debug("a process ended on its own", extra={"pid": self.pid})
        finally:
            os.close(handle)


def boot_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None when it has ended.

    From /proc/PID/stat (proc(5)); its second field, the name, may hold spaces and brackets.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    state, started = fields[0], fields[_STARTED_FIELD - 3]
    return None if state in ("Z", "X") else int(started)


def probe(port: int) -> int | None:
    """Status of a worker's `/readyz`; None without an answer."""
    url = f"http://127.0.0.1:{port}/readyz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_PROBE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, ValueError):
        return None


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free now; another process may take one before it is used.

    From 20000 to 32767: Dynamo 1.6.1 reads `DYN_SYSTEM_PORT` as a signed 16-bit number, and Linux
    gives the ports above to outgoing connections.
    """
    sockets: list[socket.socket] = []
    draw = random.SystemRandom()
    try:
        for _ in range(_MOST_TRIES):
            if len(sockets) == count:
                return [each.getsockname()[1] for each in sockets]
            candidate = socket.socket()
            sockets.append(candidate)
            try:
                candidate.bind(("127.0.0.1", draw.randrange(20_000, 32_768)))
            except OSError:
                sockets.pop().close()
        raise WattlineError(f"no {count} ports of 127.0.0.1 from 20000 to 32767 are free")
    finally:
        for each in sockets:
            each.close()
