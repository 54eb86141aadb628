"""Random plans every tick, over the real ledger and nodes behind a network that loses and delays.

Whatever is planned and whenever it changes, the sum of bookings stays within what is usable, no
GPU may draw more than its booking, and a plan that stands still is reached.
"""

from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.decision import PoolPlan
from wattline.core.fleet import Setting
from wattline.core.snapshot import GpuTable, Phase
from wattline.core.transition import Transition, cap_steps, gpu_arrays
from wattline.grants.book import GpuLimits
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Grant, Report

POOLS = 2
REPLICAS = 3
GPUS_PER_REPLICA = (2, 1)
MIN_W, MAX_W, SETTLE_S, START_W = 100.0, 400.0, 2.0, 150.0
GUARD_W = 40.0
PARKED = np.array([MIN_W] * POOLS)


@dataclass
class World:
    """GPUs, their nodes and the ledger; messages take 0 to 2 ticks or are lost."""

    random: Random
    usable_w: float
    loss: float
    rise_w: float | None = None
    now_s: float = 0.0
    pool: list[int] = field(default_factory=list)
    replica: list[int] = field(default_factory=list)
    grants: list[tuple[float, Grant[int]]] = field(default_factory=list)
    reports: list[tuple[float, Report[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for pool, size in enumerate(GPUS_PER_REPLICA):
            for replica in range(REPLICAS):
                self.pool += [pool] * size
                self.replica += [replica] * size
        count = len(self.pool)
        self.phase = [Phase.READY] * count
        self.register_w = [START_W] * count
        self.past: list[list[tuple[float, float]]] = [[] for _ in range(count)]
        self.obeyed = [0] * count
        self.number = [0] * count
        self.granted_w = [START_W] * count
        self.seen_w: list[float] = [START_W] * count
        limits = [GpuLimits(MIN_W, MAX_W, SETTLE_S)] * count
        self.ledger = Ledger(dict(enumerate(limits)), self.usable_w + GUARD_W, GUARD_W)
        for gpu in range(count):
            self.ledger.on_report(self.report(gpu), 0.0)
            adopt = self.ledger.adopt(gpu)
            assert adopt is not None
            self.obeyed[gpu] = adopt.sequence
            self.ledger.on_report(self.report(gpu), 0.0)

    def report(self, gpu: int) -> Report[int]:
        self.number[gpu] += 1
        return Report(
            gpu=gpu,
            incarnation=1,
            epoch=1,
            sequence=self.obeyed[gpu],
            report_sequence=self.number[gpu],
            enforced_w=self.register_w[gpu],
            held_w=self.register_w[gpu],
            standing_s=60.0 if self.now_s == 0.0 else 0.0,
        )

    def table(self) -> GpuTable:
        count = len(self.pool)
        return GpuTable(
            uuid=tuple(map(str, range(count))),
            pool=tuple(self.pool),
            replica=tuple(self.replica),
            phase=tuple(self.phase),
            enforced_w=tuple(self.seen_w),
            granted_w=tuple(self.granted_w),
            booked_w=self.ledger.booked_column_w(),
            draw_w=(None,) * count,
            clock=(1.0,) * count,
            derate=(1.0,) * count,
        )

    def send(self, steps: Transition) -> None:
        for gpu, cap_w in zip(steps.caps.gpu, steps.caps.cap_w, strict=True):
            answer = self.ledger.grant(gpu, cap_w, self.now_s)
            assert isinstance(answer, Grant), "a step that the transition allows is never refused"
            self.granted_w[gpu] = cap_w
            if self.random.random() >= self.loss:
                self.grants.append((self.now_s + self.random.choice([0.1, 0.5, 1.5]), answer))

    def tick(self) -> None:
        self.now_s += 1.0
        for due_s, grant in [entry for entry in self.grants if entry[0] <= self.now_s]:
            self.grants.remove((due_s, grant))
            if grant.sequence > self.obeyed[grant.gpu]:
                self.obeyed[grant.gpu] = grant.sequence
                self.past[grant.gpu].append((due_s, self.register_w[grant.gpu]))
                self.register_w[grant.gpu] = grant.watts
        for gpu in range(len(self.pool)):
            report = self.report(gpu)
            if self.random.random() >= self.loss:
                self.reports.append((self.now_s + self.random.choice([0.0, 0.0, 1.2]), report))
        for due_s, report in [entry for entry in self.reports if entry[0] <= self.now_s]:
            self.reports.remove((due_s, report))
            if self.ledger.on_report(report, self.now_s):
                self.seen_w[report.gpu] = report.enforced_w
        self.ledger.advance(self.now_s)

    def most_draw_w(self, gpu: int) -> float:
        recent = [limit for until, limit in self.past[gpu] if until > self.now_s - SETTLE_S]
        return max([self.register_w[gpu], *recent])

    def check(self) -> None:
        self.ledger.check()
        assert self.ledger.total_booked_w <= self.usable_w
        for gpu in range(len(self.pool)):
            assert self.ledger.booked_w(gpu) >= self.most_draw_w(gpu)


def fitting_plan(random: Random, usable_w: float) -> list[PoolPlan]:
    """Return caps at random, scaled so that the plan itself fits."""
    caps = [float(random.randrange(100, 401, 5)) for _ in range(POOLS)]
    gpus = [REPLICAS * size for size in GPUS_PER_REPLICA]
    while sum(n * cap for n, cap in zip(gpus, caps, strict=True)) > usable_w:
        caps = [max(MIN_W, cap - 5.0) for cap in caps]
    return [PoolPlan(REPLICAS, Setting(cap)) for cap in caps]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    usable_w=st.integers(1350, 3600).map(float),
    loss=st.sampled_from([0.0, 0.2, 0.6]),
    rise_w=st.sampled_from([None, 50.0]),
)
def test_no_path_of_any_transition_books_above_what_is_usable(
    seed: int, usable_w: float, loss: float, rise_w: float | None
) -> None:
    random = Random(seed)
    world = World(random, usable_w, loss, rise_w)
    plan = fitting_plan(random, usable_w)
    phases = [Phase.READY, Phase.READY, Phase.READY, Phase.PARKED, Phase.DRAINING, Phase.LOST]
    for _ in range(40):
        if random.random() < 0.5:
            plan = fitting_plan(random, usable_w)
        if random.random() < 0.2:
            world.phase[random.randrange(len(world.phase))] = random.choice(phases)
        arrays = gpu_arrays(world.table())
        before_w = world.ledger.total_booked_w
        world.send(cap_steps(arrays, plan, PARKED, usable_w=usable_w, rise_w=rise_w, repair=True))
        if rise_w is not None:
            assert world.ledger.total_booked_w <= before_w + rise_w + 1e-6
        world.check()
        world.tick()
        world.check()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    loss=st.sampled_from([0.0, 0.3]),
    rise_w=st.sampled_from([None, 120.0]),
)
def test_a_plan_that_stands_still_is_reached(seed: int, loss: float, rise_w: float | None) -> None:
    random = Random(seed)
    world = World(random, 2000.0, loss, rise_w)
    for count in (5, 60):
        plan = fitting_plan(random, 2000.0)
        for _ in range(count):
            arrays = gpu_arrays(world.table())
            world.send(cap_steps(arrays, plan, PARKED, usable_w=2000.0, rise_w=rise_w, repair=True))
            world.tick()
    wanted = [plan[pool].setting.cap_w for pool in world.pool]
    assert world.register_w == pytest.approx(wanted)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_a_budget_cut_lowers_at_once_and_never_raises_above_it(seed: int) -> None:
    random = Random(seed)
    world = World(random, 2400.0, 0.2)
    plan = fitting_plan(random, 2400.0)
    for tick in range(30):
        usable_w = 2400.0 if tick < 10 else 1400.0
        if tick == 10:
            world.ledger.set_budget(1400.0 + GUARD_W, GUARD_W, world.now_s)
            plan = fitting_plan(random, 1400.0)
        arrays = gpu_arrays(world.table())
        steps = cap_steps(arrays, plan, PARKED, usable_w=usable_w, rise_w=None, repair=True)
        before_w = world.ledger.total_booked_w
        world.send(steps)
        assert world.ledger.total_booked_w <= max(before_w, usable_w)
        if tick == 10:
            above = [
                gpu
                for gpu, pool in enumerate(world.pool)
                if arrays.granted_w[gpu] > plan[pool].setting.cap_w
            ]
            assert set(above) <= set(steps.caps.gpu)
        world.tick()
    assert world.ledger.exposure_w == 0.0
