"""After the faults have stopped, and every node has reported, a plan that fits is reached in time.

An exchange is a report of every GPU, the coordinator's messages, and the writes that follow. Four
of them and one settle time are enough, whatever happened before: one to be met, one to answer and
be told to lower, one to have lowered, and, settled, one to be raised.
"""

from __future__ import annotations

from random import Random

import pytest
from grants_world import MAX_W, MIN_W, SETTLE_S, Gpu, World
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.grants.answers import Terms

EXCHANGES = 4
EXCHANGE_S = 1.0


def calm_exchanges(world: World, plan: dict[Gpu, float]) -> None:
    """As many exchanges as are promised, the settle time taken out of none of them."""
    for exchange in range(EXCHANGES):
        world.exchange(plan, wait_s=EXCHANGE_S)
        if exchange == EXCHANGES - 2:
            world.now_s += SETTLE_S


def assert_reached(world: World, plan: dict[Gpu, float]) -> None:
    enforced = {gpu: register.enforced_w for gpu, register in world.registers.items()}
    assert enforced == plan


def trouble(world: World, random: Random) -> None:
    """One fault of any kind, or one step of ordinary work."""
    site = random.choice(world.sites)
    gpu = random.choice(list(site.registers))
    coordinator = random.choice(world.coordinators)
    kind = random.randrange(11)
    if kind == 0:
        site.crash(loses_disk=random.random() < 0.5)
    elif kind == 1 and site.node is None:
        site.start(world.now_s)
    elif kind == 2 and site.node is not None:
        site.node.brake()
    elif kind == 3:
        site.registers[gpu].set(random.choice([MIN_W, 450.0, MAX_W]), world.now_s)
    elif kind == 4:
        world.open_coordinator(with_log=random.random() < 0.5, alone=random.random() < 0.5)
    elif kind == 5:
        coordinator.grant(gpu, random.choice([MIN_W, 400.0, MAX_W]), world.now_s)
        world.flush(coordinator, dies_after_log=random.random() < 0.2)
    elif kind == 6 and world.to_nodes:
        world.deliver(random.choice(world.to_nodes))
    elif kind == 7:
        world.report(site, gpu)
    elif kind == 8 and world.reports:
        coordinator.on_report(random.choice(world.reports), world.now_s)
        world.flush(coordinator)
    elif kind == 9:
        world.write(site, gpu)
    else:
        world.now_s += random.choice([0.1, 2.0, 10.0])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**9), plan_seed=st.integers(0, 10**9))
def test_a_plan_is_reached_after_any_trouble(seed: int, plan_seed: int) -> None:
    random = Random(seed)
    world = World(terms=Terms(lease_s=20.0, expiry_w=250.0, brake_w=220.0))
    world.open_coordinator()
    for _ in range(random.randrange(60)):
        trouble(world, random)
    # The faults stop: agents run, one coordinator is in charge, old messages have died out.
    world.now_s += 200.0
    for site in world.sites:
        site.under_way.clear()
        site.crash()
        site.start(world.now_s)
    world.open_coordinator(with_log=random.random() < 0.5)
    plan = {
        gpu: Random(plan_seed + n).choice([200.0, 300.0, 450.0])
        for n, gpu in enumerate(world.limits)
    }
    calm_exchanges(world, plan)
    assert_reached(world, plan)
    assert world.newest.ledger.exposure_w == 0.0
    assert world.newest.ledger.total_booked_w == sum(plan.values())


@pytest.mark.parametrize("with_log", [True, False], ids=["log", "no log"])
def test_a_fleet_back_at_its_default_limits_is_brought_to_its_plan(with_log: bool) -> None:
    world = World()
    world.open_coordinator()
    plan = dict.fromkeys(world.limits, 450.0)
    for register in world.registers.values():
        register.set(MAX_W, 0.0)
    for site in world.sites:
        site.crash(loses_disk=True)
        site.start(0.0)
    world.open_coordinator(with_log=with_log)
    calm_exchanges(world, plan)
    assert_reached(world, plan)


def test_a_brake_is_climbed_back_from() -> None:
    world = World()
    world.open_coordinator()
    plan = {gpu: 700.0 if gpu[1] else 200.0 for gpu in world.limits}
    calm_exchanges(world, plan)
    assert_reached(world, plan)
    for site in world.sites:
        assert site.node is not None
        site.node.brake()
        for gpu in site.registers:
            world.write(site, gpu)
    assert_reached(world, dict.fromkeys(world.limits, MIN_W))
    calm_exchanges(world, plan)
    assert_reached(world, plan)


def test_nothing_stays_booked_for_ever() -> None:
    """A node that never reports again holds its watts until somebody attests that it is off."""
    world = World(budget_w=1600.0)
    world.open_coordinator()
    calm_exchanges(world, dict.fromkeys(world.limits, 400.0))
    world.sites[0].crash()
    plan: dict[Gpu, float] = {(1, 0): 700.0, (1, 1): 700.0}
    for _ in range(10):
        world.exchange(plan)
    assert world.registers[1, 0].enforced_w == 400.0
    for gpu in world.sites[0].registers:
        world.newest.release(gpu, "ann", "pulled from the rack", world.now_s)
    calm_exchanges(world, plan)
    assert [world.registers[gpu].enforced_w for gpu in plan] == [700.0, 700.0]
