"""One exploration from start to end: of the protocol as it is, or of a broken variant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wattline.verification.bounds import Bounds
from wattline.verification.liveness import Settler
from wattline.verification.search import Exploration, explore
from wattline.verification.variants import Variant
from wattline.verification.world import World


@dataclass(frozen=True, slots=True)
class Run:
    """An exploration and its bounds. longest_exchanges: to settle, from the worst state seen."""

    bounds: Bounds
    exploration: Exploration
    longest_exchanges: int


def run_configuration(bounds: Bounds, progress: Callable[[int, int], None] | None = None) -> Run:
    """Explore the protocol within `bounds`: what must never be, and that every state settles."""
    world = World(bounds)
    settler = Settler(world)
    world.start, world.also = settler.warm, settler.flaw
    found = explore(world, most_states=bounds.most_states, progress=progress)
    return Run(bounds, found, settler.longest)


def run_variant(variant: Variant, most_states: int = 200_000) -> Run:
    """Search a broken variant for what must never be."""
    world = variant.build(variant.bounds)
    world.start = Settler(world).warm
    return Run(variant.bounds, explore(world, most_states=most_states), 0)
