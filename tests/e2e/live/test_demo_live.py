"""`wattline demo-live`, shortened, from start to end, and cut short: it leaves nothing running.

Needs Dynamo's environment; skipped with a reason where it is not built.
"""

from __future__ import annotations

import json
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

from wattline.live import environment
from wattline.recording.record import Recording
from wattline.sim.replay import replay

COMMAND = (sys.executable, "-m", "wattline", "demo-live", "--plain")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("dynamo"),
    pytest.mark.skipif(
        environment.find() is None,
        reason=f"Dynamo {environment.RELEASE} is not built in {environment.default_home()}: "
        "`python -m wattline.live.environment` builds it (0.7 GB, about a minute)",
    ),
    pytest.mark.skipif(
        shutil.which("cc") is None, reason="needs a C compiler for the virtual NVML library"
    ),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a unix socket's name may have 108 characters."""
    made = Path(tempfile.mkdtemp(prefix="live-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def running(folder: Path) -> list[str]:
    """Command lines of processes whose environment names `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"TMPDIR={folder}".encode() in variables and command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_a_live_deployment_holds_its_budget_and_leaves_a_report(folder: Path) -> None:
    temporary, out = folder / "t", folder / "out"
    temporary.mkdir()
    done = subprocess.run(
        [*COMMAND, "--seconds", "15", "--out", str(out)],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    for said in ("LOAD", "CUT", "BACK", "limits are under it", "Enforced watts against the budget"):
        assert said in done.stdout
    assert "BROKEN" not in done.stdout
    assert "by our doing: 0.0 W·s" in done.stdout
    assert running(temporary) == []
    assert list(temporary.iterdir()) == []

    live, simulated = json.loads((out / "results.json").read_text())["runs"]
    assert live["over_budget_enforced_ws"] == 0.0
    assert live["peak_enforced_w"] <= live["budget_w"]
    assert live["requests"] == simulated["requests"] == len(requests(out))
    assert live["completed"] > 0
    assert live["completed"] == sum(row["status"] == 200 for row in requests(out))
    assert live["energy_j"] > 0.0
    page = (out / "report.html").read_text()
    for title in ("Enforced watts against the budget", "Live beside simulated"):
        assert title in page
    outcome = replay(Recording(out / "recording"))
    assert outcome.difference is None
    assert outcome.decisions >= 15
    assert (out / "logs" / "controller.log").exists()


def requests(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]


def test_an_interrupt_in_the_middle_leaves_nothing_running(folder: Path) -> None:
    temporary = folder / "t"
    temporary.mkdir()
    demo = subprocess.Popen(
        [*COMMAND, "--out", str(folder / "out")],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + 120.0
        while not any("wattline.live.load" in line for line in running(temporary)):
            assert demo.poll() is None
            assert time.monotonic() < deadline_s, running(temporary)
            time.sleep(0.1)
        assert sum("wattline.live.worker" in line for line in running(temporary)) >= 2
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60.0) == 128 + signal.SIGINT
    finally:
        demo.kill()
        demo.wait()
    assert running(temporary) == []
    assert list(temporary.iterdir()) == []
    assert not (folder / "out").exists(), "a run that did not end leaves no report"
