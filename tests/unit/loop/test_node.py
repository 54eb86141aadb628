from __future__ import annotations

import itertools

from wattline.grants.messages import Grant
from wattline.grants.node_state import Found
from wattline.sim.node import Node, Order


class Hardware:
    """Registers of two GPUs; writes below `floor_w` come back raised."""

    def __init__(self) -> None:
        self.enforced_w: dict[int, float | None] = {0: 500.0, 1: 500.0}
        self.floor_w = 0.0
        self.writes: list[tuple[int, float]] = []
        self.repaired: list[int] = []

    def write(self, gpu: int, watts: float, clock: float) -> float:
        enforced_w = max(watts, self.floor_w)
        self.enforced_w[gpu] = enforced_w
        self.writes.append((gpu, watts))
        return enforced_w

    def node(self) -> Node:
        return Node(
            {gpu: Found(500.0, 100.0, 700.0) for gpu in (0, 1)},
            write=self.write,
            read=lambda gpu: self.enforced_w[gpu],
            on_repair=self.repaired.append,
            initial_clock={0: 1.0, 1: 1.0},
        )


def order(gpu: int, sequence: int, watts: float, epoch: int = 1) -> Order:
    grant = Grant(
        gpu=gpu,
        incarnation=1,
        epoch=epoch,
        sequence=sequence,
        watts=watts,
        brake_w=100.0,
        lease_s=float("inf"),
    )
    return Order(grant, 1.0)


def test_obeys_only_what_is_newer() -> None:
    hardware = Hardware()
    node = hardware.node()
    node.deliver(order(0, 2, 400.0), 1.0)
    node.deliver(order(0, 1, 700.0), 2.0)
    node.deliver(order(0, 2, 600.0), 3.0)
    assert hardware.writes == [(0, 400.0)]
    node.deliver(order(0, 1, 450.0, epoch=2), 4.0)
    assert hardware.enforced_w[0] == 450.0


def test_reports_what_is_enforced_and_how_long_it_has_stood() -> None:
    hardware = Hardware()
    node = hardware.node()
    node.deliver(order(0, 1, 400.0), 10.0)
    first, second = node.report_and_repair(12.5)
    assert (first.sequence, first.enforced_w, first.standing_s) == (1, 400.0, 2.5)
    assert (second.sequence, second.enforced_w) == (0, 500.0)
    assert node.report_and_repair(13.0)[0].report_sequence > first.report_sequence


def test_a_clamped_write_is_reported_as_found() -> None:
    hardware = Hardware()
    hardware.floor_w = 450.0
    node = hardware.node()
    node.deliver(order(0, 1, 300.0), 1.0)
    assert node.report_and_repair(1.0)[0].enforced_w == 450.0


def test_silent_neither_hears_nor_speaks_nor_repairs() -> None:
    hardware = Hardware()
    node = hardware.node()
    node.silent = True
    node.deliver(order(0, 1, 300.0), 1.0)
    hardware.enforced_w[1] = 700.0
    assert node.report_and_repair(2.0) == []
    assert hardware.writes == []


def test_a_rival_is_reported_as_found_before_it_is_repaired() -> None:
    hardware = Hardware()
    node = hardware.node()
    hardware.enforced_w[0] = 700.0
    assert node.report_and_repair(1.0)[0].enforced_w == 700.0
    assert hardware.enforced_w[0] == 500.0
    found = node.report_and_repair(2.0)[0]
    assert (found.enforced_w, found.standing_s) == (500.0, 1.0)


def test_a_rival_is_repaired_at_once_and_then_with_growing_pauses() -> None:
    hardware = Hardware()
    node = hardware.node()
    repairs = []
    for second in range(200):
        hardware.enforced_w[0] = 700.0  # the rival writes every second
        before = len(hardware.repaired)
        node.report_and_repair(float(second))
        if len(hardware.repaired) > before:
            repairs.append(second)
    assert repairs[0] == 0
    pauses = [later - earlier for earlier, later in itertools.pairwise(repairs)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 60
    assert set(hardware.repaired) == {0}


def test_the_pause_is_forgotten_after_peace() -> None:
    hardware = Hardware()
    node = hardware.node()
    for second in (0, 1, 3):
        hardware.enforced_w[0] = 700.0
        node.report_and_repair(float(second))
    for second in range(4, 60):
        node.report_and_repair(float(second))
    hardware.enforced_w[0] = 700.0
    node.report_and_repair(60.0)
    assert hardware.enforced_w[0] == 500.0


def test_a_lost_gpu_is_not_reported() -> None:
    hardware = Hardware()
    node = hardware.node()
    hardware.enforced_w[1] = None
    assert [report.gpu for report in node.report_and_repair(1.0)] == [0]
