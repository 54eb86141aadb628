"""The fault campaign, small: real agents and coordinators, and an observer that can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CAMPAIGN = Path(__file__).parents[3] / "bench" / "faults.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        shutil.which("cc") is None, reason="needs a C compiler for the virtual NVML library"
    ),
]


def campaign(tmp_path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    figures = tmp_path / "figures.json"
    # No test fails for time: how fast repairs are is for the campaign itself to say.
    fixed = ("--disk", "limit", "--patience", "10", "--json", str(figures))
    command = [sys.executable, str(CAMPAIGN), *fixed, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert figures.exists(), done.stderr
    found: dict[str, Any] = json.loads(figures.read_text())
    return done.returncode, found


def test_no_fault_takes_the_fleet_above_its_budget_by_our_doing(tmp_path: Path) -> None:
    code, figures = campaign(
        tmp_path, "--faults", "36", "--jobs", "2", "--pause", "0.3", "--seed", "5"
    )
    assert figures["failures"] == []
    assert figures["faults_total"] == 36
    assert figures["ours_watt_seconds"] == 0.0
    assert figures["originals_given_back"] + figures["given_back_as_found"] == figures["gpus"]
    assert figures["limit_changes"] > 50, "watts moved"
    assert figures["agent_starts"] > 4, "agents were killed"
    assert (code, figures["passed"]) == (0, True)


@pytest.mark.parametrize("sabotage", ["secret", "trusting"])
def test_the_observer_finds_a_budget_that_is_broken(tmp_path: Path, sabotage: str) -> None:
    code, figures = campaign(
        tmp_path,
        *("--faults", "8", "--jobs", "1", "--pause", "0.6", "--seed", "2"),
        *("--sabotage", sabotage),
    )
    assert figures["ours_watt_seconds"] > 0.0
    assert (code, figures["passed"]) == (1, False)
