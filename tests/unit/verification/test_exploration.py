"""The protocol within reduced bounds: every state visited, no rule broken, every state settles."""

from dataclasses import replace

import pytest

from wattline.verification.bounds import Bounds, Fault
from wattline.verification.configurations import CLOCKS, ONE_NODE, configurations
from wattline.verification.desks import Desks
from wattline.verification.liveness import Settler
from wattline.verification.runs import run_configuration
from wattline.verification.site import Letter
from wattline.verification.sites import Sites
from wattline.verification.world import World

MOST_EXCHANGES = 4


def small() -> list[Bounds]:
    alone = [
        Bounds(
            f"{fault.value}, one node",
            replans=0,
            in_flight=1,
            margin_ticks=1 if fault in CLOCKS else 0,
            faults={fault: 1},
            nodes=1,
            plans=((300.0,), (100.0,)),  # at its largest limit, so that clamps are felt
        )
        for fault in Fault
    ]
    return [Bounds("two nodes", in_flight=1), Bounds("one node", replans=2, **ONE_NODE), *alone]


@pytest.mark.parametrize("bounds", small(), ids=lambda bounds: bounds.name)
def test_every_state_within_small_bounds_keeps_every_rule_and_settles(bounds: Bounds) -> None:
    run = run_configuration(bounds)
    assert run.exploration.violation is None, str(run.exploration.violation)
    assert run.exploration.exhaustive
    assert run.exploration.states > run.exploration.depth > 0
    assert run.longest_exchanges <= MOST_EXCHANGES


def test_every_kind_of_fault_is_explored_on_two_nodes() -> None:
    kinds = {fault for bounds in configurations() if bounds.nodes == 2 for fault in bounds.faults}
    assert kinds == set(Fault)
    names = [bounds.name for bounds in configurations()]
    assert len(set(names)) == len(names)


def test_nodes_may_change_places() -> None:
    """One node's doings and the same of the other are one state, whatever the numbers in use."""
    world = World(Bounds("two nodes", replans=0, in_flight=1))
    after = {event: fleet for event, fleet, _ in world.steps(world.cold())}
    first, second = (
        next(fleet for event, fleet in after.items() if event.startswith(f"n{node} reports"))
        for node in (0, 1)
    )
    assert first != second
    plans = world.bounds.plans
    assert plans == (tuple(reversed(plans[1])), tuple(reversed(plans[0])))
    swapped = second._replace(plan=1 - second.plan)
    assert world.canonical(first) == world.canonical(swapped)


def test_numbers_do_not_tell_states_apart() -> None:
    """A node that has reported twice into the void is where it was after the first."""
    sites = Sites(Bounds("one node", in_flight=1, **ONE_NODE))
    world = World(sites_bounds := Bounds("one node", in_flight=1, **ONE_NODE), sites=sites)
    assert sites_bounds.in_flight == 1
    fleet = world.cold()
    seen = []
    for _ in range(3):
        fleet = next(after for event, after, _ in world.steps(fleet) if " reports " in event)
        seen.append(world.canonical(fleet))
    assert seen[0] == seen[1] == seen[2]
    letters = [letter for box in sites.get(fleet.sites[0]).outbox for letter in box]
    assert [type(letter) for letter in letters] == [Letter]


def test_a_state_that_does_not_settle_is_a_violation() -> None:
    bounds = Bounds("one node", replans=0, in_flight=1, **ONE_NODE)

    class Deaf(Desks):
        def pursue(self, desk: int, log: int, plan: object) -> object:  # type: ignore[override]
            return self.tick(desk, log)

    world = World(bounds, desks=Deaf(bounds))
    flaw = Settler(world).flaw(world.cold())
    assert flaw is not None
    assert flaw.startswith("I6: not settled after")


def test_a_bound_on_states_is_reported_as_not_exhaustive() -> None:
    run = run_configuration(replace(Bounds("two nodes", in_flight=1), most_states=100))
    assert not run.exploration.exhaustive
    assert run.exploration.violation is None
