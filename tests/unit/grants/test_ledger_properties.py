"""The two promises of the ledger, over random histories on a simulated register.

The network loses, repeats and reorders messages in both directions; nodes obey only newer grants;
the draw follows the register within the settle time.
"""

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wattline.grants.ledger import GpuLimits, Grant, Ledger, Report

GPUS = 3
SETTLE_S = 2.0
LIMITS = GpuLimits(min_w=200.0, max_w=700.0, settle_s=SETTLE_S)
START_W = 400.0
GUARD_W = 50.0
BUDGET_W = 1400.0

gpus = st.integers(0, GPUS - 1)
watts = st.integers(200, 700).map(float)


@dataclass
class Node:
    """One GPU's register, what its node obeyed last, and the limits its draw may still follow."""

    register_w: float = START_W
    obeyed: int = 0
    reports: int = 0
    past: list[tuple[float, float]] = field(default_factory=list)

    def write(self, limit_w: float, now_s: float) -> None:
        self.past.append((now_s, self.register_w))
        self.register_w = limit_w

    def most_draw_w(self, now_s: float) -> float:
        recent = [limit for until, limit in self.past if until > now_s - SETTLE_S]
        return max([self.register_w, *recent])


class Fleet(RuleBasedStateMachine):
    """Random grants, deliveries and reports; only what every history may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.ledger = Ledger([LIMITS] * GPUS, BUDGET_W, GUARD_W)
        self.nodes = [Node() for _ in range(GPUS)]
        self.grants: list[Grant] = []
        self.reports: list[Report] = []
        for gpu in range(GPUS):
            self.ledger.on_report(Report(gpu, 1, 0, 0, START_W, standing_s=60.0), 0.0)

    @rule(gpu=gpus, limit_w=watts)
    def grant(self, gpu: int, limit_w: float) -> None:
        before_w = self.ledger.total_booked_w
        answer = self.ledger.grant(gpu, limit_w, self.now_s)
        assert self.ledger.total_booked_w <= max(before_w, self.ledger.usable_w)
        if isinstance(answer, Grant):
            assert self.ledger.booked_w(gpu) >= limit_w
            self.grants.append(answer)

    @rule(data=st.data())
    def deliver_any_grant_ever_sent(self, data: st.DataObject) -> None:
        if not self.grants:
            return
        grant = data.draw(st.sampled_from(self.grants))
        node = self.nodes[grant.gpu]
        if grant.sequence > node.obeyed:
            node.obeyed = grant.sequence
            node.write(grant.watts, self.now_s)

    @rule(gpu=gpus)
    def make_report(self, gpu: int) -> None:
        node = self.nodes[gpu]
        node.reports += 1
        self.reports.append(Report(gpu, 1, node.obeyed, node.reports, node.register_w))

    @rule(data=st.data())
    def deliver_any_report_ever_made(self, data: st.DataObject) -> None:
        if self.reports:
            self.ledger.on_report(data.draw(st.sampled_from(self.reports)), self.now_s)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now_s = round(self.now_s + seconds, 3)
        self.ledger.advance(self.now_s)

    @invariant()
    def sums_agree(self) -> None:
        self.ledger.check()


class PeacefulFleet(Fleet):
    """Nobody else touches budget or registers: both promises hold without exception."""

    @invariant()
    def no_action_books_above_the_budget(self) -> None:
        assert self.ledger.total_booked_w + GUARD_W <= BUDGET_W
        assert self.ledger.exposure_w == 0.0

    @invariant()
    def no_gpu_can_draw_more_than_its_booking(self) -> None:
        for gpu, node in enumerate(self.nodes):
            assert self.ledger.booked_w(gpu) >= node.most_draw_w(self.now_s)


class HostileFleet(Fleet):
    """Budgets change, rivals write, nodes forget: `grant` still never adds to what is too much."""

    @rule(budget_w=st.integers(300, 2500).map(float))
    def change_budget(self, budget_w: float) -> None:
        self.ledger.set_budget(budget_w, GUARD_W, self.now_s)

    @rule(gpu=gpus, limit_w=watts)
    def rival_writes(self, gpu: int, limit_w: float) -> None:
        self.nodes[gpu].write(limit_w, self.now_s)

    @rule(gpu=gpus)
    def node_forgets(self, gpu: int) -> None:
        self.nodes[gpu].obeyed = 0
        self.nodes[gpu].write(700.0, self.now_s)

    @rule(gpu=gpus)
    def a_fresh_report_books_what_it_shows(self, gpu: int) -> None:
        node = self.nodes[gpu]
        node.reports += 1
        self.ledger.on_report(
            Report(gpu, 1, node.obeyed, node.reports, node.register_w), self.now_s
        )
        assert self.ledger.booked_w(gpu) >= node.register_w

    @invariant()
    def exposure_is_the_excess(self) -> None:
        excess_w = self.ledger.total_booked_w - self.ledger.usable_w
        assert abs(self.ledger.exposure_w - max(0.0, excess_w)) < 1e-6


QUICK = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestPeacefulFleet = PeacefulFleet.TestCase
TestPeacefulFleet.settings = QUICK
TestHostileFleet = HostileFleet.TestCase
TestHostileFleet.settings = QUICK
