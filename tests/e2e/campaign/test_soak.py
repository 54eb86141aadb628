"""The soak, short: pods come and go on a real agent, and nothing is kept of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[3] / "bench" / "soak.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("cc") is None, reason="needs a C compiler for the virtual NVML library"
    ),
]


def test_pods_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(SOAK), "--changes", "640", "--json", str(figures_file)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(figures_file.read_text())
    assert figures["changes"] == 640
    assert figures["grown"] == []
    assert figures["descriptors"][0] == figures["descriptors"][1] > 3
    assert figures["resident_mib"][1] < 80.0
