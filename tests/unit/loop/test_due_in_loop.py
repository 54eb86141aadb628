"""Replicas that come back after a fault have their watts when they serve, and a replay agrees."""

from __future__ import annotations

from pathlib import Path

import yaml
from loop_fixtures import SMALL, scenario

from wattline.core.snapshot import Phase, Snapshot
from wattline.recording.record import Recording
from wattline.sim.experiment import Traffic, prepare
from wattline.sim.replay import replay
from wattline.sim.runs import Job, run

FAULT = {"kind": "node_lost", "at_s": 5, "duration_s": 3, "target": {"pool": "decode", "node": 0}}
STARTUP_S = 30.0


def _on_the_way(snapshot: Snapshot) -> list[int]:
    return [gpu for gpu, phase in enumerate(snapshot.gpus.phase) if phase is Phase.STARTING]


def test_replicas_have_their_watts_when_they_serve(tmp_path: Path) -> None:
    deployments = yaml.safe_load(SMALL)["deployments"]
    for pool in deployments[0]["pools"]:
        pool["startup_s"] = STARTUP_S
    site = scenario(duration_s=60, deployments=deployments, faults=[FAULT])
    ready = prepare(site, Traffic())
    path = tmp_path / "recording.jsonl.gz"
    finished = run(ready, Job("wattline", ready.budget_w(None)), record=path)
    snapshots = [tick.snapshot for tick in Recording(path).ticks()]
    last = max(index for index, seen in enumerate(snapshots) if _on_the_way(seen))
    gpus = _on_the_way(snapshots[last])
    came = snapshots[last + 1].gpus
    assert all(came.phase[gpu] is Phase.READY for gpu in gpus)
    lowest_w = ready.fleet.products[0].min_limit_w
    for seen in snapshots[: last + 1]:
        ages = [age_s for pool in seen.pools for _, age_s in pool.starts]
        if ages and max(ages) < STARTUP_S - 10.0:
            assert all(seen.gpus.granted_w[gpu] == lowest_w for gpu in _on_the_way(seen))
    assert all(came.granted_w[gpu] > lowest_w for gpu in gpus)
    assert finished.result.over_budget_enforced_ws == 0.0
    assert replay(Recording(path)).difference is None
