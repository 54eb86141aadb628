"""`wattline demo-node` from start to end, and cut short: it leaves nothing running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-c", "from wattline.cli.main import main; main()", "demo-node")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        shutil.which("cc") is None, reason="needs a C compiler for the virtual NVML library"
    ),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a unix socket's name may have 108 characters."""
    made = Path(tempfile.mkdtemp(prefix="demo-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def children(folder: Path) -> list[str]:
    """Command lines of processes whose environment names `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"TMPDIR={folder}".encode() in environment and command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_the_demonstration_holds_its_budget(folder: Path) -> None:
    done = subprocess.run(
        COMMAND,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    for said in ("CUT", "RIVAL", "BRAKE", "RELEASE", "exposure by rival writer"):
        assert said in done.stdout
    assert "by our doing: 0.0 W·s" in done.stdout
    assert "original limits given back: 8 of 8" in done.stdout
    assert done.stdout.endswith("OK: the budget held\n")
    assert children(folder) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupt_leaves_nothing_running(folder: Path, number: int) -> None:
    demo = subprocess.Popen(
        COMMAND,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 60.0
        while len(children(folder)) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert len(children(folder)) >= 3, "itself, the agent and the coordinator"
        time.sleep(1.0)
        demo.send_signal(number)
        assert demo.wait(60.0) == 128 + number
    finally:
        demo.kill()
        demo.wait()
    assert children(folder) == []
    assert list(folder.iterdir()) == []
