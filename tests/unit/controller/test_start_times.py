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


def test_replicas_that_cannot_be_read_keep_the_age_of_their_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.agent.enforced_w = dict.fromkeys(UUIDS, 200.0)
    world.replicas = FakeReplicas()
    world.start()
    for _ in range(60):
        world.run(1)
        if any(pool.starts for pool in _snapshot(world).pools):
            break
    first = [pool.starts for pool in _snapshot(world).pools]
    views, world.replicas.unreadable = world.replicas.views, True
    world.run(1)
    assert all(pool.starts == () for pool in _snapshot(world).pools)
    world.replicas.unreadable = False
    assert world.replicas.views == views
    world.run(1)
    for before, pool in zip(first, _snapshot(world).pools, strict=True):
        assert set(pool.starts) >= {(number, age_s + 2.0) for number, age_s in before}
    world.stop()
