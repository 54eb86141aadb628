"""What a fleet comes to when faults stop: the planned limits, within a stated number of exchanges.

A fair schedule: whoever is dead starts, everything under way arrives, an operator attests what is
gone and enters what is new. Then exchanges follow each other: the coordinator grants towards the
plan and sends again what was not answered, every node obeys, writes, reads back and reports, the
reports arrive, a tick passes.
"""

from __future__ import annotations

from wattline.verification.bounds import MIN_W
from wattline.verification.desks import DeskStep
from wattline.verification.fleet import NOBODY, SHARED, Fleet, at
from wattline.verification.hardware import Hardware
from wattline.verification.machines import GpuKey
from wattline.verification.site import DEAD, Letter
from wattline.verification.world import World

MOST_EXCHANGES = 12


class Settler:
    """Runs fleets of one world under the fair schedule and remembers how long each took."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._left: dict[Fleet, int | None] = {}
        self.longest = 0

    def flaw(self, fleet: Fleet) -> str | None:
        """I6: the planned limits are reached, and nothing stays booked beyond them."""
        fleet, exchanges = self.settle(fleet)
        if exchanges is None:
            return (
                f"I6: not settled after {MOST_EXCHANGES} exchanges without faults: "
                f"{self._world.describe(fleet)}"
            )
        self.longest = max(self.longest, exchanges)
        return None

    def warm(self, cold: Fleet) -> Fleet:
        """A fleet after some exchanges without faults, as a start for a search."""
        fleet = self._calm(cold)
        for _ in range(MOST_EXCHANGES):
            if self._enforced(fleet):
                break
            fleet = self._exchange(fleet)
        return fleet._replace(top_epoch=cold.top_epoch, replans=cold.replans)

    def settle(self, fleet: Fleet) -> tuple[Fleet, int | None]:
        """The fleet at its plan, and after how many exchanges; None: it did not get there."""
        fleet = self._calm(fleet)
        path: list[Fleet] = []
        for _ in range(MOST_EXCHANGES + 1):
            left = self._left.get(fleet, -1)
            if left == -1 and self._reached(fleet):
                left = 0
            if left != -1:
                return self._note(path, fleet, left)
            path.append(fleet)
            fleet = self._exchange(fleet)
        return self._note(path, fleet, None)

    def _note(self, path: list[Fleet], fleet: Fleet, left: int | None) -> tuple[Fleet, int | None]:
        self._left[fleet] = left
        for each in reversed(path):
            left = None if left is None else left + 1
            self._left[each] = left
        return fleet, left

    def _calm(self, fleet: Fleet) -> Fleet:
        """Everybody is up and has been told; what was under way has arrived."""
        world = self._world
        fleet = world.restarted(fleet)
        if fleet.second != NOBODY:  # who was overtaken is obeyed by nobody
            log = fleet.first_log if fleet.second_log == SHARED else fleet.second_log
            fleet = fleet._replace(first=fleet.second, first_log=log)
            fleet = fleet._replace(second=NOBODY, second_log=SHARED)
        fleet = fleet._replace(replans=0, top_epoch=0, used=tuple([0 for _ in fleet.used]))
        letters = [
            (node, letter)
            for node, number in enumerate(fleet.sites)
            for box in world.sites.get(number).outbox
            for letter in box
        ]
        for node, letter in letters:
            fleet = self._heard(fleet, node, letter)
        return world.canonical(self._registered(self._answered(fleet)[0]))

    def _registered(self, fleet: Fleet) -> Fleet:
        """The coordinator hears of a cut, of GPUs that are gone, and of new ones."""
        desks = self._world.desks
        if fleet.cut:
            fleet = self._did(fleet, desks.hear_cut(fleet.first, fleet.first_log))
        for node, number in enumerate(fleet.sites):
            for position, gpu in enumerate(self._world.sites.get(number).hardware):
                if gpu.gpu != position:
                    old, new = GpuKey(node, position), GpuKey(node, gpu.gpu)
                    fleet = self._did(fleet, desks.attest(fleet.first, fleet.first_log, old))
                    fleet = self._did(fleet, desks.remove(fleet.first, fleet.first_log, old))
                    fleet = self._did(fleet, desks.add(fleet.first, fleet.first_log, new))
        return fleet

    def _did(self, fleet: Fleet, step: DeskStep) -> Fleet:
        return next(self._world.outcomes(fleet, False, step))

    def _heard(self, fleet: Fleet, node: int, letter: Letter) -> Fleet:
        if fleet.first < 0:
            return fleet
        world = self._world
        step = world.desks.hear(fleet.first, fleet.first_log, node, letter.report)
        if step.taken:
            fleet = at(fleet, node, world.sites.told(fleet.sites[node], letter))
        return self._did(fleet, step)

    def _answered(self, fleet: Fleet) -> tuple[Fleet, list[tuple[int, Letter]]]:
        """Every node obeys all that has come, writes, reads back, and reports."""
        letters = []
        for node, number in enumerate(fleet.sites):
            after, reports = self._world.sites.answer(number, cut=fleet.cut)
            fleet = at(fleet, node, after)
            letters += [(node, letter) for letter in reports]
        return fleet, letters

    def _exchange(self, fleet: Fleet) -> Fleet:
        world = self._world
        if fleet.first == DEAD:
            fleet = world.restarted(fleet)
        plan = tuple(sorted(self._targets(fleet).items()))
        fleet = self._did(fleet, world.desks.pursue(fleet.first, fleet.first_log, plan))
        fleet, letters = self._answered(fleet)
        for node, letter in letters:
            fleet = self._heard(fleet, node, letter)
        return world.canonical(world.tick(fleet)._replace(top_epoch=0))

    def _targets(self, fleet: Fleet) -> dict[GpuKey, float]:
        """The plan, or the lowest limits where a cut or a clamp leaves no room for it."""
        hardware = [self._world.sites.get(number).hardware for number in fleet.sites]
        tight = fleet.cut or any(gpu.floor_w for gpus in hardware for gpu in gpus)
        targets = {}
        for node, gpus in enumerate(hardware):
            for gpu in gpus:
                key = GpuKey(node, gpu.gpu)
                targets[key] = MIN_W if tight else self._world.target_w(fleet.plan, key)
        return targets

    def _enforced(self, fleet: Fleet) -> bool:
        """True when each GPU is at its target, as far as clamps allow, and has settled there."""
        return all(
            gpu.enforced_w == gpu.clamped_w(target_w) and not gpu.lag
            for gpu, target_w in self._with_targets(fleet)
        )

    def _with_targets(self, fleet: Fleet) -> list[tuple[Hardware, float]]:
        targets = self._targets(fleet)
        return [
            (gpu, targets[GpuKey(node, gpu.gpu)])
            for node, number in enumerate(fleet.sites)
            for gpu in self._world.sites.get(number).hardware
        ]

    def _reached(self, fleet: Fleet) -> bool:
        """True when each GPU is at its target, and nothing is booked but that."""
        if fleet.first < 0 or not self._enforced(fleet):
            return False
        wanted_w = sum(max(target_w, gpu.enforced_w) for gpu, target_w in self._with_targets(fleet))
        return self._world.desks.machine(fleet.first).ledger.total_booked_w == wanted_w
