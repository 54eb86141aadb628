"""The promises of the whole protocol over random histories of nodes and coordinators.

Messages are lost, repeated, delayed and reordered in both directions without bound; nodes and
coordinators crash at every point, with and without their disks; coordinators take over from each
other while the older one goes on; leases end, nodes brake, operators hold.
"""

from __future__ import annotations

from grants_world import MAX_W, Gpu, World
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from wattline.grants.answers import Terms
from wattline.grants.coordinator import Coordinator
from wattline.grants.messages import Grant

BUDGET_W = 900.0
gpus = st.sampled_from([(0, 0), (1, 0)])
nodes = st.integers(0, 1)
watts = st.sampled_from([200.0, 300.0, 400.0, 500.0, 700.0])
ages = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5, 8])
"""How many messages ago: most arrive soon, some much later, some never or twice."""


class Fleet(RuleBasedStateMachine):
    """What may happen in any history."""

    terms = Terms(lease_s=4.0, expiry_w=250.0, brake_w=300.0)

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2, 1, budget_w=BUDGET_W, terms=self.terms)

    @initialize()
    def first_coordinator(self) -> None:
        self.world.open_coordinator()

    def grant_checked(self, coordinator: Coordinator[Gpu], gpu: Gpu, limit_w: float) -> None:
        ledger = coordinator.ledger
        before_w = ledger.total_booked_w
        answer = coordinator.grant(gpu, limit_w, self.world.now_s)
        assert ledger.total_booked_w <= max(before_w, ledger.usable_w)
        if isinstance(answer, Grant):
            assert ledger.booked_w(gpu) >= limit_w

    @rule(gpu=gpus, limit_w=watts, dies=st.booleans(), old=st.booleans())
    def grant(self, gpu: Gpu, limit_w: float, dies: bool, old: bool) -> None:
        coordinator = self.world.coordinators[0 if old else -1]
        self.grant_checked(coordinator, gpu, limit_w)
        self.world.flush(coordinator, dies_after_log=dies)

    @rule(age=ages)
    def deliver_a_message(self, age: int) -> None:
        if age < len(self.world.to_nodes):
            self.world.deliver(self.world.to_nodes[-1 - age])

    @rule(gpu=gpus)
    def begin_a_write(self, gpu: Gpu) -> None:
        self.world.begin_write(self.world.sites[gpu[0]], gpu)

    @rule(gpu=gpus, dies=st.sampled_from([False, False, True]))
    def a_write_lands(self, gpu: Gpu, dies: bool) -> None:
        self.world.land_write(self.world.sites[gpu[0]], gpu, dies=dies)

    @rule(gpu=gpus)
    def report(self, gpu: Gpu) -> None:
        self.world.report(self.world.sites[gpu[0]], gpu)

    @rule(age=ages, old=st.booleans())
    def deliver_a_report(self, age: int, old: bool) -> None:
        if age < len(self.world.reports):
            coordinator = self.world.coordinators[0 if old else -1]
            coordinator.on_report(self.world.reports[-1 - age], self.world.now_s)
            self.world.flush(coordinator)

    @rule(gpu=gpus)
    def tell(self, gpu: Gpu) -> None:
        self.world.tell(self.world.sites[gpu[0]], gpu)

    @rule(gpu=gpus, limit_w=watts)
    def a_whole_exchange(self, gpu: Gpu, limit_w: float) -> None:
        self.world.exchange({gpu: limit_w}, wait_s=0.1)

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.world.now_s = round(self.world.now_s + seconds, 3)
        for coordinator in self.world.coordinators:
            coordinator.due(self.world.now_s)
            self.world.flush(coordinator)

    @rule(node=nodes)
    def leases_end(self, node: int) -> None:
        agent = self.world.sites[node].node
        if agent is not None:
            agent.tick(self.world.now_s)

    @rule(node=nodes, loses_disk=st.booleans(), back=st.booleans())
    def agent_dies(self, node: int, loses_disk: bool, back: bool) -> None:
        site = self.world.sites[node]
        site.crash(loses_disk=loses_disk)
        if back:
            site.start(self.world.now_s)

    @rule(node=nodes)
    def agent_starts(self, node: int) -> None:
        if self.world.sites[node].node is None:
            self.world.sites[node].start(self.world.now_s)

    @rule(node=nodes)
    def brake(self, node: int) -> None:
        self.world.brake(self.world.sites[node])

    @rule(alone=st.booleans(), with_log=st.sampled_from([True, True, False]))
    def a_coordinator_takes_over(self, alone: bool, with_log: bool) -> None:
        self.world.open_coordinator(with_log=with_log, alone=alone)

    @rule()
    def compact_the_log(self) -> None:
        self.world.compact()

    @invariant()
    def sums_agree(self) -> None:
        self.world.check_sums()

    @invariant()
    def what_was_told_is_booked(self) -> None:
        self.world.check_what_was_told_is_booked()


class PeacefulFleet(Fleet):
    """Nobody else touches registers or the budget: every promise holds without exception."""

    @rule(node=nodes, gpu=gpus, limit_w=watts, what=st.sampled_from(["hold", "pin", "resume"]))
    def operator(self, node: int, gpu: Gpu, limit_w: float, what: str) -> None:
        agent = self.world.sites[gpu[0]].node
        if agent is None:
            return
        if what == "hold":
            agent.hold()
        elif what == "pin":
            agent.pin(gpu, limit_w)
        else:
            agent.resume()

    @invariant()
    def limits_stay_within_the_budget(self) -> None:
        total_w = sum(each.enforced_w for each in self.world.registers.values())
        assert total_w <= BUDGET_W

    @invariant()
    def nothing_may_draw_more_than_is_booked(self) -> None:
        self.world.check_bookings_cover()


class HostileFleet(Fleet):
    """Rivals write, drivers reload: what our nodes wrote still never adds up to too much."""

    terms = Terms(lease_s=4.0, brake_w=300.0)

    @rule(gpu=gpus, limit_w=watts)
    def a_rival_writes(self, gpu: Gpu, limit_w: float) -> None:
        self.world.registers[gpu].set(limit_w, self.world.now_s)

    @rule(node=nodes)
    def a_node_reboots(self, node: int) -> None:
        site = self.world.sites[node]
        site.crash()
        for register in site.registers.values():
            register.set(MAX_W, self.world.now_s)

    @rule(gpu=gpus)
    def attested_off(self, gpu: Gpu) -> None:
        site = self.world.sites[gpu[0]]
        if site.node is None and self.world.newest.fenced_by is None:
            self.world.registers[gpu].set(0.0, self.world.now_s)
            self.world.newest.release(gpu, "test", "off", self.world.now_s)
            self.world.flush(self.world.newest)

    @invariant()
    def our_limits_stay_within_the_budget(self) -> None:
        self.world.check_ours_within(BUDGET_W)

    @invariant()
    def exposure_is_shared_out_whole(self) -> None:
        for coordinator in self.world.coordinators:
            shares = sum(each.watts for each in coordinator.ledger.exposures)
            assert abs(shares - coordinator.ledger.exposure_w) < 1e-6


QUICK = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestPeacefulFleet = PeacefulFleet.TestCase
TestPeacefulFleet.settings = QUICK
TestHostileFleet = HostileFleet.TestCase
TestHostileFleet.settings = QUICK
