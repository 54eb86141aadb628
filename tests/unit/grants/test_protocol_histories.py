"""Many random histories of a tiny fleet, and that each broken rule is found out by them.

A few GPUs under a tight budget, so that faults meet often. What must hold after every step:
in peace, no GPU may draw, and no node may write, more than is booked; with rivals and reboots, what
our own nodes wrote stays within the budget, and what the coordinator was told stays booked.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from grants_world import MAX_W, Gpu, Site, World

from wattline.grants.answers import Terms
from wattline.grants.book import Book
from wattline.grants.ledger import Ledger
from wattline.grants.node import Node
from wattline.grants.node_state import Outcome

STEPS = 60
SHAPES = [(2, 1), (1, 2)]
"""Nodes, and GPUs of each."""


class History:
    """One random history: `run` returns what it broke, None if nothing."""

    def __init__(self, seed: int, shape: tuple[int, int], *, hostile: bool) -> None:
        self.random = Random(seed)
        self.hostile = hostile
        self.usable_w = 450.0 * shape[0] * shape[1]
        # With rivals about, a limit that we only let stand must not count as ours: no expiry.
        terms = Terms(lease_s=4.0, expiry_w=None if hostile else 250.0, brake_w=300.0)
        self.world = World(*shape, budget_w=self.usable_w, terms=terms)
        self.world.open_coordinator()
        steps = [*ORDINARY, *(HOSTILE if hostile else OPERATOR)]
        self.steps = [step for _, step in steps]
        self.weights = [weight for weight, _ in steps]

    def run(self) -> str | None:
        try:
            for _ in range(STEPS):
                (step,) = self.random.choices(self.steps, self.weights)
                step(self)
                self.check()
        except AssertionError as error:
            return str(error)
        return None

    def check(self) -> None:
        self.world.check_sums()
        self.world.check_what_was_told_is_booked()
        self.world.check_ours_within(self.usable_w)
        if not self.hostile:
            self.world.check_bookings_cover()

    # Choices

    @property
    def gpu(self) -> Gpu:
        return self.random.choice(list(self.world.limits))

    @property
    def site(self) -> Site:
        return self.random.choice(self.world.sites)

    @property
    def watts(self) -> float:
        return self.random.choice([200.0, 300.0, 400.0, 500.0, 600.0, 700.0])

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def recent(self, messages: list[Any]) -> Any:
        """Choose one of all ever sent: most often a recent one."""
        back = min(int(self.random.expovariate(0.4)), len(messages) - 1)
        return messages[-1 - back]

    def coordinator(self) -> Any:
        return self.world.coordinators[0] if self.chance(0.15) else self.world.newest

    # Steps

    def exchange(self) -> None:
        self.world.exchange({self.gpu: self.watts}, wait_s=self.random.choice([0.1, 3.0]))

    def grant(self) -> None:
        coordinator = self.coordinator()
        coordinator.grant(self.gpu, self.watts, self.world.now_s)
        self.world.flush(coordinator, dies_after_log=self.chance(0.1))

    def message(self) -> None:
        if self.world.to_nodes:
            self.world.deliver(self.recent(self.world.to_nodes))

    def begin_write(self) -> None:
        gpu = self.gpu
        self.world.begin_write(self.world.sites[gpu[0]], gpu)

    def land_write(self) -> None:
        gpu = self.gpu
        self.world.land_write(self.world.sites[gpu[0]], gpu, dies=self.chance(0.15))

    def report(self) -> None:
        gpu = self.gpu
        self.world.report(self.world.sites[gpu[0]], gpu)

    def tell(self) -> None:
        gpu = self.gpu
        self.world.tell(self.world.sites[gpu[0]], gpu)

    def hear(self) -> None:
        if self.world.reports:
            coordinator = self.coordinator()
            coordinator.on_report(self.recent(self.world.reports), self.world.now_s)
            self.world.flush(coordinator)

    def wait(self) -> None:
        self.world.now_s = round(self.world.now_s + self.random.choice([0.1, 1, 2, 5]), 3)
        for coordinator in self.world.coordinators:
            coordinator.due(self.world.now_s)
            self.world.flush(coordinator)

    def leases_end(self) -> None:
        node = self.site.node
        if node is not None:
            node.tick(self.world.now_s)

    def crash(self) -> None:
        site = self.site
        site.crash(loses_disk=self.chance(0.4))
        if self.chance(0.6):
            site.start(self.world.now_s)

    def start(self) -> None:
        site = self.site
        if site.node is None:
            site.start(self.world.now_s)

    def brake(self) -> None:
        self.world.brake(self.site)

    def take_over(self) -> None:
        self.world.open_coordinator(with_log=self.chance(0.7), alone=self.chance(0.5))

    def compact(self) -> None:
        self.world.compact()

    def operate(self) -> None:
        gpu = self.gpu
        node = self.world.sites[gpu[0]].node
        if node is None:
            return
        what = self.random.choice(["hold", "pin", "resume"])
        if what == "hold":
            node.hold()
        elif what == "pin":
            node.pin(gpu, self.watts)
        else:
            node.resume()

    def rival(self) -> None:
        self.world.registers[self.gpu].set(self.watts, self.world.now_s)

    def reboot(self) -> None:
        site = self.site
        site.crash(loses_disk=self.chance(0.3))
        for register in site.registers.values():
            register.set(MAX_W, self.world.now_s)

    def attest(self) -> None:
        gpu = self.gpu
        newest = self.world.newest
        if self.world.sites[gpu[0]].node is None and newest.fenced_by is None:
            self.world.registers[gpu].set(0.0, self.world.now_s)
            newest.release(gpu, "ann", "off", self.world.now_s)
            self.world.flush(newest)


Step = tuple[float, Callable[[History], None]]
ORDINARY: list[Step] = [
    (6, History.exchange),
    (4, History.grant),
    (6, History.message),
    (4, History.begin_write),
    (4, History.land_write),
    (4, History.report),
    (3, History.tell),
    (6, History.hear),
    (2, History.wait),
    (1, History.leases_end),
    (1.2, History.crash),
    (2, History.start),
    (0.7, History.brake),
    (0.4, History.take_over),
    (0.2, History.compact),
]
OPERATOR: list[Step] = [(1, History.operate)]
HOSTILE: list[Step] = [(1, History.rival), (0.5, History.reboot), (0.5, History.attest)]


@pytest.mark.parametrize("hostile", [False, True], ids=["peace", "hostile"])
@pytest.mark.parametrize("shape", SHAPES, ids=["2x1", "1x2"])
def test_no_history_breaks_a_promise(hostile: bool, shape: tuple[int, int]) -> None:
    for seed in range(150):
        broken = History(seed, shape, hostile=hostile).run()
        assert broken is None, f"seed {seed}: {broken}"


def _forgets_other_grants(book: Book[Gpu], sequence: int, mw: int) -> None:
    book.alive[:] = [(sequence, mw)]


def _without(refused: Outcome) -> Callable[..., Outcome | None]:
    """Return a node's refusal that lets one reason pass."""
    refusal = Node._refusal

    def lax(node: Any, state: Any, message: Any) -> Outcome | None:
        outcome = refusal(node, state, message)
        return None if outcome is refused else outcome

    return lax


def _within_a_booking(ledger: Any, gpu: Gpu, watts: float) -> bool:
    booked_w: float = ledger.booked_w(gpu)
    return watts <= booked_w or watts - booked_w <= ledger.free_w


def _ignores_rivals(ledger: Any, book: Book[Gpu], enforced_mw: int) -> int:
    return enforced_mw if book.ours_mw is None else min(enforced_mw, book.ours_mw)


BROKEN: dict[str, tuple[type, str, Callable[..., Any], bool]] = {
    "raise before verify": (Book, "add_alive", _forgets_other_grants, False),
    "release before settle": (Ledger, "_settle", lambda *_: None, False),
    "believe any report": (Ledger, "_answers", lambda *_: True, True),
    "ignore a rival": (Ledger, "_limit_mw", _ignores_rivals, True),
    "raise within a booking": (Ledger, "fits", _within_a_booking, False),
    "accept an old epoch": (Node, "_refusal", _without(Outcome.OLDER_EPOCH), False),
    "accept another incarnation": (
        Node,
        "_refusal",
        _without(Outcome.OTHER_INCARNATION),
        False,
    ),
    "brake within an incarnation": (Node, "_new_incarnation", lambda _: None, False),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, broken, hostile = BROKEN[name]
    monkeypatch.setattr(owner, method, broken)
    seeds = ((seed, shape) for seed in range(2000) for shape in SHAPES)
    found = (History(seed, shape, hostile=hostile).run() for seed, shape in seeds)
    assert next((each for each in found if each is not None), None)
