"""Named processes with a log each, and signals to them: what a live stack is made of.

Every process carries a mark in its environment, and so do those that it starts. So even a worker
that a controller started a moment before it was killed is found, and ended by its id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from wattline.core.errors import InputError, WattlineError
from wattline.live.processes import Adopted, boot_ticks

MARK_VARIABLE = "WATTLINE_STACK"
_LOOK_S = 0.05
_KILL_S = 5.0
_SAID_LINES = 3


class Managed:
    """One process by name. It can be started again with the command that it had."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """`env` is the whole environment; `log` takes its output, of later starts as well."""
        self.name = name
        self.argv = tuple(argv)
        self.log = log
        self.pids: list[int] = []
        """Of all its starts."""
        self._env = dict(env)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return None if self._child is None or not self.alive else self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, stopped or not."""
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the last start; None while it runs. Negative: the signal that ended it."""
        return None if self._child is None else self._child.poll()

    def start(self) -> None:
        """Start it. InputError while it runs; WattlineError when that is not possible."""
        if self.alive:
            raise InputError("process", self.name, "runs already")
        try:
            with self.log.open("ab") as output:
                self._child = subprocess.Popen(
                    self.argv,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us, and we end them in order
                )
        except OSError as error:
            raise WattlineError(f"{self.name}: {self.argv[0]}: {error.strerror}") from None
        self.pids.append(self._child.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)

    def wait(self, limit_s: float) -> bool:
        """Whether it ended, and was reaped, within the time."""
        if self._child is None:
            return True
        try:
            self._child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it at once and reap it; a stopped one as well."""
        self.send(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def end(self, limit_s: float) -> bool:
        """Ask it to end, and kill it after the time; whether it ended by itself."""
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)
        if self.wait(limit_s):
            return True
        self.kill()
        return False

    def said(self) -> str:
        """Its last lines, on one."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return " | ".join(lines[-_SAID_LINES:]) or "(it said nothing)"


class Processes:
    """The processes of one stack by name. `folder` holds the logs.

    Temporary files go there too: Dynamo's frontend leaves some behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: dict[str, Managed] = {}
        self.mark = secrets.token_hex(8)

    def __getitem__(self, name: str) -> Managed:
        if name not in self._all:
            raise InputError("process", name, f"use one of {', '.join(self._all)}")
        return self._all[name]

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[Managed]:
        return iter(tuple(self._all.values()))

    def add(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> Managed:
        """Start a process; `env` adds to our own environment."""
        temporary = self._folder / "tmp"
        temporary.mkdir(exist_ok=True)
        whole = {**os.environ, **env, "TMPDIR": str(temporary), MARK_VARIABLE: self.mark}
        made = Managed(name, argv, whole, self._folder / f"{name}.log")
        self._all[name] = made
        made.start()
        return made

    def end(self, names: Sequence[str], limit_s: float) -> None:
        """Ask these to end together, in the order given; kill what is left after the time."""
        chosen = [self[name] for name in names]
        for process in chosen:
            process.send(signal.SIGTERM)
            process.send(signal.SIGCONT)
        end_s = time.monotonic() + limit_s
        for process in chosen:
            if not process.wait(max(0.0, end_s - time.monotonic())):
                process.kill()

    def kill_strays(self) -> list[int]:
        """Kill what carries our mark and is none of ours, and wait; returns the process ids."""
        own = {process.pid for process in self._all.values()}
        found = {pid: boot_ticks(pid) for pid in marked(self.mark) if pid not in own}
        strays = [Adopted(pid, ticks) for pid, ticks in found.items() if ticks is not None]
        for stray in strays:
            stray.send(signal.SIGKILL)
        end_s = time.monotonic() + _KILL_S
        while any(stray.alive() for stray in strays) and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
        return [stray.pid for stray in strays]


def marked(mark: str) -> list[int]:
    """Ids of processes that run and have this mark in their environment, our own one excepted."""
    word = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue  # ended meanwhile, or another user's
        if pid != os.getpid() and word in environment.split(b"\0") and boot_ticks(pid) is not None:
            found.append(pid)
    return found


def cpu_s(pid: int | None) -> float | None:
    """Processor seconds, of user and system, that a process has used; None when it has ended.

    From /proc/PID/stat (proc(5)), fields 14 and 15.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def end_adopted(pids: Mapping[int, int], limit_s: float) -> None:
    """End processes that others started, given as id and start in ticks since the boot.

    They are asked first, and killed after the time.
    """
    left = [Adopted(pid, ticks) for pid, ticks in pids.items()]
    for process in left:
        process.send(signal.SIGTERM)
        process.send(signal.SIGCONT)
    end_s = time.monotonic() + limit_s
    while left and time.monotonic() < end_s:
        left = [process for process in left if process.alive()]
        time.sleep(_LOOK_S)
    for process in left:
        process.send(signal.SIGKILL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that would end us wait until the body is through: cleaning up is done once, whole."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    held = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
