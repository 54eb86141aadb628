"""A few of the faults of `bench/live_faults.py` on real processes, and that it would notice.

Needs Dynamo's environment; skipped with a reason where it is not built.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

from live_faults_cases import CASES, recording_replays
from live_faults_run import FaultStack, Harness, Load, spec
from wattline.live import environment

LOAD_S = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Harness]:
    found = environment.find()
    if found is None:
        pytest.skip(
            f"Dynamo {environment.RELEASE} is not built in {environment.default_home()}: "
            "`python -m wattline.live.environment` builds it (0.7 GB, about a minute)"
        )
    with FaultStack(tmp_path / "stack", spec(), found) as stack:
        stack.ready()
        harness = Harness(stack, Load(stack, LOAD_S))
        try:
            yield harness
        finally:
            harness.close()


def test_a_live_deployment_keeps_its_budget_through_faults_and_recovers(run: Harness) -> None:
    names = ("frontend-refuses", "controller-killed", "cut")
    outcomes = [CASES[name](run) for name in names]
    run.finish()
    for name, outcome in zip(names, outcomes, strict=True):
        assert outcome.failures == []
        assert outcome.ours_ws == 0.0
        assert outcome.recover_s is not None
        assert outcome.sent > 0
        # Nobody listens while the second frontend is restarted, and what it holds then breaks off.
        restarted = {1} if name == "frontend-refuses" else set()
        assert set(outcome.lost_at) <= restarted
    # The same cut, and somebody raises limits in it and tells nobody.
    run.sabotage = "secret"
    caught = CASES["cut"](run)
    assert caught.ours_ws > 0.0
    assert any("over the budget by us" in failure for failure in caught.failures)
    assert recording_replays(run) == []
