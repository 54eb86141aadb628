"""Since when replicas load, as the controller sees it, and what its snapshot says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from controller_world import UUIDS, FakeReplicas, World

from wattline.controller.replicas import StartTimes
from wattline.controller.sources import ReplicaView
from wattline.core.snapshot import Phase, Snapshot

LOADING = ReplicaView(name="a", pool="decode", gpus=("GPU-1",), phase=Phase.STARTING)


def test_a_start_that_was_seen_has_an_age_until_it_serves() -> None:
    starts = StartTimes()
    assert starts.ages_s([], 10.0) == {}
    assert starts.ages_s([LOADING], 11.0) == {"a": 0.0}
    assert starts.ages_s([LOADING], 13.5) == {"a": 2.5}
    assert starts.ages_s([replace(LOADING, phase=Phase.READY)], 14.0) == {}
    assert starts.ages_s([LOADING], 20.0) == {"a": 0.0}


def test_what_loaded_at_the_first_look_has_no_age() -> None:
    starts = StartTimes()
    assert starts.ages_s([LOADING], 10.0) == {}
    assert starts.ages_s([LOADING], 12.0) == {}
    other = replace(LOADING, name="b")
    assert starts.ages_s([LOADING, other], 13.0) == {"b": 0.0}


def _snapshot(world: World) -> Snapshot:
    view = world.assembly.controller.view
    assert view is not None
    return view.snapshot


def test_a_replica_has_its_watts_when_it_turns_ready(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.agent.enforced_w = dict.fromkeys(UUIDS, 200.0)
    world.replicas = FakeReplicas()
    world.start()
    loading: list[float] = []
    for _ in range(60):
        world.run(1)
        snapshot = _snapshot(world)
        if any(pool.starting for pool in snapshot.pools):
            loading.append(sum(snapshot.gpus.booked_w))
        ages = [age_s for pool in snapshot.pools for _, age_s in pool.starts]
        if ages and min(ages) >= 20.0:
            break
    world.replicas.now_ready()
    before_w = world.enforced_w
    assert before_w > 4 * 200.0, "raised while they loaded"
    assert max(loading) <= 2000.0
    world.run(1)
    assert world.enforced_w == before_w, "nothing is left to move when they serve"
    world.stop()


def test_replicas_that_cannot_be_read_are_as_they_were_and_none_is_started(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.agent.enforced_w = dict.fromkeys(UUIDS, 200.0)
    world.replicas = FakeReplicas()
    world.start()
    for _ in range(60):
        world.run(1)
        if any(pool.starts for pool in _snapshot(world).pools):
            break
    first, phases = [pool.starts for pool in _snapshot(world).pools], _snapshot(world).gpus.phase
    assert any(first)
    started, world.replicas.unreadable = world.replicas.started, True
    world.run(5)
    snapshot = _snapshot(world)
    assert "replicas: no answer" in snapshot.missing
    assert set(snapshot.gpus.phase) == set(phases), "nothing is taken for parked"
    assert world.replicas.started == started
    for before, pool in zip(first, snapshot.pools, strict=True):
        assert set(pool.starts) >= {(number, age_s + 5.0) for number, age_s in before}
    world.stop()


def test_without_a_first_look_at_replicas_nothing_is_decided(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.replicas = FakeReplicas()
    world.replicas.unreadable = True
    world.start()
    before_w = world.enforced_w
    world.run(3)
    view = world.assembly.controller.view
    assert view is not None
    assert view.decision is None
    assert "no decision: replicas: no answer" in view.problems
    assert world.enforced_w == before_w
    world.replicas.unreadable = False
    world.run(1)
    view = world.assembly.controller.view
    assert view is not None
    assert view.decision is not None
    world.stop()
