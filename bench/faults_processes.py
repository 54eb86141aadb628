"""The processes of a fault campaign: real agents and coordinators, started, stopped and killed."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wattline.virtual.judge import Known
from wattline.virtual.node import VirtualNode

AGENT = (sys.executable, "-c", "from wattline.cli.main import main; main()", "agent", "run")
COORDINATOR = (sys.executable, "-m", "wattline.virtual.coordinator")
TRUSTING = (sys.executable, str(Path(__file__).with_name("faults_trusting.py")))
UNLIMITED = resource.RLIM_INFINITY


class Hindrances:
    """Spans in which nothing could be repaired at one place, and why."""

    def __init__(self, known: Known, place: str | None) -> None:
        self._spans = known.hindered.setdefault(place, [])
        self._open: dict[str, float] = {}

    def begin(self, why: str) -> None:
        """From now on; a second beginning of the same is the same one."""
        self._open.setdefault(why, time.monotonic())

    def end(self, why: str) -> None:
        """Until now."""
        if why in self._open:
            self._spans.append((why, (self._open.pop(why), time.monotonic())))

    def end_all(self) -> None:
        """Until now, all of them."""
        for why in list(self._open):
            self.end(why)

    @property
    def present(self) -> tuple[str, ...]:
        """What hinders now."""
        return tuple(self._open)


class Supervised:
    """One program that is started again and again: signals, limits, and what it has said."""

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self.command = list(command)
        self.env = {**os.environ, **env}
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.unexpected: list[str] = []

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self._process is None else self._process.pid

    def start(self) -> int:
        """Start it; its process id."""
        assert self._process is None
        self.starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self._process.pid

    def signal(self, number: int) -> bool:
        """Send a signal; False when nothing runs."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(number)
        return True

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def end(self, timeout_s: float = 20.0) -> int | None:
        """SIGTERM, and SIGKILL if that is not obeyed; its exit code, None if it was killed."""
        if self._process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.unexpected.append(f"{self.name} did not end in {timeout_s:g} s")
            self.kill()
            return None
        self._process = None
        return code

    def exited(self) -> int | None:
        """Exit code of a process that has ended by itself; None while it runs or none is there."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is not None:
            self._process = None
        return code

    def limit_files(self, size: int) -> bool:
        """Let no file grow beyond `size` bytes (writes then fail with EFBIG); -1: no limit."""
        if self._process is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))
            return True
        return False


class AgentProcess(Supervised):
    """The agent of one virtual node, as a person would start it."""

    def __init__(
        self,
        name: str,
        node: VirtualNode,
        settings: Mapping[str, str],
        folder: Path,
        known: Known,
        extra_env: Mapping[str, str] | None = None,
    ) -> None:
        self.state_dir = folder / name
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        env = {f"WATTLINE_AGENT_{key.upper()}": value for key, value in settings.items()}
        env |= {
            "WATTLINE_AGENT_NODE": name,
            "WATTLINE_AGENT_STATE_DIR": str(self.state_dir),
            "WATTLINE_AGENT_LISTEN": "127.0.0.1:0",
        }
        super().__init__(name, AGENT, {**node.env, **env, **(extra_env or {})}, folder)
        self.report = self.state_dir / "report.json"
        self.journal = self.state_dir / "journal.json"
        self.hindered = Hindrances(known, name)
        self._known = known
        self._reported: tuple[int, int] | None = None
        self.up = False

    def start(self) -> int:
        """Start it; it counts as up from its first report on."""
        self.hindered.begin("agent starting")
        self._reported = self._signature()
        pid = super().start()
        self._known.agents.add(pid)
        self.up = False
        return pid

    def kill(self) -> None:
        """SIGKILL."""
        self.hindered.begin("agent down")
        self.up = False
        super().kill()

    def end(self, timeout_s: float = 20.0) -> int | None:
        """SIGTERM."""
        self.hindered.begin("agent down")
        self.up = False
        return super().end(timeout_s)

    def look(self) -> None:
        """Note that it is up once it has reported."""
        if not self.up and self.pid is not None and self._signature() != self._reported:
            self.up = True
            self.hindered.end("agent down")
            self.hindered.end("agent starting")

    def _signature(self) -> tuple[int, int] | None:
        try:
            found = self.report.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def said(self) -> dict[str, Any] | None:
        """Its newest report, as plain JSON."""
        try:
            document = json.loads(self.report.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def facts(self) -> dict[str, dict[str, Any]]:
        """What its newest report says of each GPU, beside the protocol."""
        said = self.said() or {}
        return {gpu["gpu"]: gpu["facts"] for gpu in said.get("gpus", [])}


class Disk:
    """A disk that can be full: a small tmpfs if one could be mounted, else a file-size limit."""

    def __init__(self, folder: Path, mounted: bool) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        self.mounted = mounted

    def fill(self, agent: Supervised) -> str:
        """No more space from now on; how."""
        if not self.mounted:
            agent.limit_files(0)
            return "file-size limit"
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
        return "tmpfs"

    def free(self, agent: Supervised) -> None:
        """There is space again."""
        agent.limit_files(-1)
        self._ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Let go of the tmpfs."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=False)
            self.mounted = False


def mount_small(folder: Path) -> bool:
    """Mount a tmpfs of 256 KiB; False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "faults", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
