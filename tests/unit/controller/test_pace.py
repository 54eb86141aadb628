"""When the controller looks again before its time: a raise waits for lowered draws to settle."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest
from controller_world import UUIDS, World

from wattline.controller.pace import HEAR_S, early_s


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.start()
    yield made
    made.stop()


def early(world: World) -> float:
    return early_s(world.assembly.controller.view, world.clock.now_s)


def pin(world: World, watts: float) -> None:
    body = f'{{"by": "ann", "why": "a test", "pool": "prefill", "cap_w": {watts}}}'
    world.assembly.desk("pin", body.encode())


def tick(world: World, seconds: float) -> None:
    """Time goes on, and the controller looks; the agent says nothing new by itself."""
    world.clock.now_s += seconds
    world.assembly.controller.tick()


def test_nothing_is_early_while_no_raise_waits(world: World) -> None:
    assert early(world) == inf, "before the first tick"
    world.run(40)
    assert early(world) == inf


def test_a_raise_follows_as_soon_as_its_watts_have_settled(world: World) -> None:
    world.demand.rps = 400
    world.run(40)
    before = dict(world.agent.enforced_w)
    pin(world, 690.0)
    tick(world, 1.0)
    assert world.enforced_w == sum(before.values()), "the agent has not been asked yet"
    assert 0.0 < early(world) <= HEAR_S, "the report of the lowering is asked for"
    world.agent.step(world.clock.now_s)
    assert all(world.agent.enforced_w[uuid] < before[uuid] for uuid in UUIDS[2:])
    world.clock.now_s += 0.2
    world.agent.step(world.clock.now_s)
    tick(world, 0.1)
    settles_s = early(world)
    assert 1.0 < settles_s < 2.0, "what has stood before it was heard counts"
    tick(world, settles_s - 0.1)
    assert all(world.agent.enforced_w[uuid] == before[uuid] for uuid in UUIDS[:2])
    tick(world, 0.1)
    world.agent.step(world.clock.now_s)
    assert [world.agent.enforced_w[uuid] for uuid in UUIDS[:2]] == [690.0, 690.0]
    assert world.enforced_w <= 2000 * 0.98


def test_an_advisory_controller_is_never_early(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start(advisory=True)
    world.demand.rps = 400
    world.run(3)
    assert early(world) == inf
    world.stop()
