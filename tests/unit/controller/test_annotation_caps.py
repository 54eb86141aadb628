"""Caps through annotations: what is booked while nothing proves a limit, and who may raise."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from controller_world import MAX_W, UUIDS, World

from wattline.controller.annotations import REPORT_LAG_S, AnnotationCaps
from wattline.controller.caps import CapsView
from wattline.controller.history import MeterReading
from wattline.controller.nodes import NodeWatch
from wattline.controller.outside_settings import AnnotationsSpec, PodsSpec
from wattline.controller.site import Site, build_site
from wattline.core.decision import CapSteps
from wattline.core.errors import InputError
from wattline.core.snapshot import Budget
from wattline.drivers.kube.annotations import AnnotatedPod, Look, Synced
from wattline.drivers.kube.api import KubeError, KubeFault

START_S = 1_800_000_000.0


class FakePods:
    """One pod of two GPUs per pool. refuses: writes fail; objections: as the cluster has them."""

    def __init__(self) -> None:
        self.watts: dict[str, int | None] = {"prefill": None, "decode": None}
        self.objections: tuple[str, ...] = ()
        self.error: KubeError | None = None
        self.refuses = False
        self.writes: list[tuple[str, int]] = []
        self.rounds = 0
        self.closed = False

    def look(self) -> Look:
        if self.error is not None:
            raise self.error
        pods = {
            pool: (
                AnnotatedPod(
                    pool=pool,
                    name=f"{pool}-0",
                    uid="u",
                    text=None if watts is None else str(watts),
                    watts=watts,
                    gpus=2,
                    foreign=None,
                ),
            )
            for pool, watts in self.watts.items()
        }
        return Look(pods=pods, objections=self.objections)

    def sync(self, watts: Mapping[str, int]) -> Synced:
        self.rounds += 1
        look = self.look()
        if look.objections:
            return Synced(look=look, written=0, failures=())
        failures = []
        for pool, aim in watts.items():
            if self.refuses:
                failures.append(f"pod {pool}-0: refused")
            elif self.watts[pool] != aim:
                self.watts[pool] = aim
                self.writes.append((pool, aim))
        return Synced(look=self.look(), written=len(watts), failures=tuple(failures))

    def close(self) -> None:
        self.closed = True


class Rig:
    """The caps, a clock, and what Prometheus would tell."""

    def __init__(self, site: Site, trust_s: float | None, budget_w: float = 2000.0) -> None:
        self.site = site
        self.pods = FakePods()
        self.now_s = START_S
        self.told: dict[str, float] = {}
        self.trust_s = trust_s
        self.budget = Budget(total_w=budget_w, guard_w=0.0, version=1)
        self.nodes = [NodeWatch("n1", 5.0)]
        self.caps: AnnotationCaps

    def start(self) -> None:
        pods = {
            name: PodsSpec(graph_deployment="chat", component=name)
            for name in ("prefill", "decode")
        }
        self.caps = AnnotationCaps(
            self.site,
            spec=AnnotationsSpec(namespace="ml", pods=pods, trust_s=self.trust_s),
            writer=self.pods,
            budget=self.budget,
            now_s=self.now_s,
            limits=self._limits,
        )

    def _limits(self, now_s: float) -> dict[str, MeterReading]:
        return {
            uuid: MeterReading(watts=watts, age_s=1.0, host=None, pods=())
            for uuid, watts in self.told.items()
        }

    def view(self) -> CapsView:
        return self.caps.view(self.nodes, self.now_s)

    def act(self, *watts: float) -> Mapping[str, int]:
        gpus = tuple(range(len(watts)))
        steps = CapSteps(gpu=gpus, cap_w=watts, clock=(1.0,) * len(watts))
        return self.caps.act(steps, self.now_s)

    def later(self, seconds: float) -> CapsView:
        """Let rounds that are under way end, and look after so long."""
        for _ in range(500):
            if self.caps.idle:
                break
            time.sleep(0.01)
        self.view()
        self.now_s += seconds
        return self.view()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    world = World(tmp_path)
    return build_site(world.settings, world.config)


@pytest.fixture
def rig(site: Site) -> Iterator[Rig]:
    rig = Rig(site, None)
    yield rig
    rig.caps.close()
    assert rig.pods.closed


@pytest.fixture
def trusting(site: Site) -> Iterator[Rig]:
    rig = Rig(site, 60.0)
    yield rig
    rig.caps.close()


def test_what_was_asked_is_not_what_is_booked(rig: Rig) -> None:
    rig.start()
    assert not rig.act(300.0, 300.0, 250.0, 250.0)
    view = rig.later(1000.0)
    assert rig.pods.watts == {"prefill": 300, "decode": 250}
    assert view.booked_w == (MAX_W,) * 4
    assert view.enforced_w == (None,) * 4
    assert view.exposure_w == 4 * MAX_W - 2000.0
    assert view.exposures == ("limit not known: 4 GPUs at their largest",)


def test_without_knowledge_nothing_is_raised(rig: Rig) -> None:
    rig.start()
    rig.act(300.0, 300.0, 250.0, 250.0)
    rig.later(1000.0)
    assert rig.act(400.0, 400.0, 240.0, 240.0) == {"no_free_watts": 2}
    rig.later(10.0)
    assert rig.pods.watts == {"prefill": 300, "decode": 240}, "lowering is always allowed"


def test_a_limit_that_dcgm_tells_is_booked_once_it_is_newer(rig: Rig) -> None:
    rig.start()
    rig.act(300.0, 300.0, 250.0, 250.0)
    rig.told = dict(zip(UUIDS, (300.0, 300.0, 250.0, 250.0), strict=True))
    # What DCGM shows may be from before; and a pod without a limit was there until now.
    assert rig.later(1.0).booked_w == (MAX_W,) * 4
    view = rig.later(REPORT_LAG_S)
    assert view.booked_w == (300.0, 300.0, 250.0, 250.0)
    assert view.enforced_w == view.booked_w
    assert not view.notes
    # A lowering keeps its booking as long.
    rig.act(200.0, 200.0, 250.0, 250.0)
    rig.told |= {UUIDS[0]: 200.0, UUIDS[1]: 200.0}
    assert rig.later(1.0).booked_w == (300.0, 300.0, 250.0, 250.0)
    assert rig.later(REPORT_LAG_S).booked_w == (200.0, 200.0, 250.0, 250.0)
    # 2000 W are there, 900 W booked.
    assert not rig.act(600.0, 600.0, 250.0, 250.0)
    rig.later(1.0)
    assert rig.pods.watts["prefill"] == 600
    assert rig.view().booked_w[:2] == (600.0, 600.0), "a raise is booked before it is written"
    assert rig.act(600.0, 600.0, 500.0, 500.0) == {"no_free_watts": 2}


def test_a_limit_above_what_was_asked_is_booked_as_found(rig: Rig) -> None:
    rig.start()
    rig.act(300.0, 300.0, 250.0, 250.0)
    rig.later(1.0)
    rig.told = dict(zip(UUIDS, (500.0, 300.0, 250.0, 250.0), strict=True))
    assert rig.later(2 * REPORT_LAG_S).booked_w[0] == 500.0


def test_the_least_that_is_wanted_of_a_pools_gpus_is_asked(rig: Rig) -> None:
    rig.start()
    rig.act(300.9, 320.0, 250.0, 250.0)
    rig.later(1.0)
    assert rig.pods.watts == {"prefill": 300, "decode": 250}


def test_trust_books_an_annotation_and_says_so(trusting: Rig) -> None:
    trusting.start()
    trusting.act(300.0, 300.0, 250.0, 250.0)
    trusting.later(1.0)
    assert trusting.later(50.0).booked_w == (MAX_W,) * 4
    view = trusting.later(20.0)
    assert view.booked_w == (300.0, 300.0, 250.0, 250.0)
    assert view.enforced_w == view.booked_w
    assert view.notes == ("limits of 4 GPUs are assumed from annotations: nothing proves them",)
    assert view.exposure_w == 0.0


def test_a_booking_outlasts_trust_and_report(trusting: Rig) -> None:
    trusting.trust_s = 15.0
    trusting.start()
    trusting.act(300.0, 300.0, 250.0, 250.0)
    for _ in range(100):
        view = trusting.later(1.0)
    assert view.booked_w == (300.0, 300.0, 250.0, 250.0)
    assert not trusting.act(400.0, 400.0, 250.0, 250.0)
    seen = {trusting.later(1.0).booked_w for _ in range(100)}
    assert seen == {(400.0, 400.0, 250.0, 250.0)}, "from the first moment on, and never more"


def test_trust_ends_with_a_pod_that_has_no_limit(trusting: Rig) -> None:
    trusting.start()
    trusting.act(300.0, 300.0, 250.0, 250.0)
    trusting.later(100.0)
    assert trusting.view().booked_w[0] == 300.0
    trusting.pods.refuses = True
    trusting.pods.watts["prefill"] = None
    trusting.later(6.0)
    view = trusting.later(6.0)
    assert view.booked_w == (MAX_W, MAX_W, 250.0, 250.0)
    assert view.problems == (
        "annotations: pod prefill-0: refused",
        "annotations: pod decode-0: refused",
    )


@pytest.mark.parametrize("what", ["objection", "permission"])
def test_it_refuses_to_start(site: Site, what: str) -> None:
    rig = Rig(site, None)
    if what == "objection":
        rig.pods.objections = ("dynamographdeployment ml/chat: declares gpuPowerLimitWatts 300",)
    else:
        rig.pods.error = KubeError(KubeFault.REFUSED, "a permission is missing: bind the roles")
    with pytest.raises(InputError, match=r"gpuPowerLimitWatts|permission"):
        rig.start()
    assert rig.pods.closed
    assert not rig.pods.writes


def test_a_server_that_is_away_is_waited_for(rig: Rig) -> None:
    rig.pods.error = KubeError(KubeFault.UNAVAILABLE, "no route")
    rig.start()
    rig.act(300.0, 300.0, 250.0, 250.0)
    view = rig.later(1.0)
    assert view.problems == ("annotations: no route",)
    assert view.booked_w == (MAX_W,) * 4
    rig.pods.error = None
    rig.later(6.0)
    rig.later(6.0)
    assert rig.pods.watts == {"prefill": 300, "decode": 250}
    assert not rig.view().problems


def test_an_objection_that_appears_later_ends_all_writing(rig: Rig) -> None:
    rig.start()
    rig.pods.objections = ("dynamographdeployment ml/chat: its planner runs with it",)
    rig.act(300.0, 300.0, 250.0, 250.0)
    rig.later(6.0)
    view = rig.later(6.0)
    assert not rig.pods.writes
    assert view.problems == (
        "annotations: dynamographdeployment ml/chat: its planner runs with it",
    )


def test_a_node_that_is_attested_off_is_not_booked(rig: Rig) -> None:
    rig.start()
    rig.caps.release("n1", "me", "seen", rig.now_s)
    assert rig.view().booked_w == (0.0,) * 4


def test_what_is_refused_is_tried_again_after_longer_and_longer_pauses(rig: Rig) -> None:
    rig.start()
    rig.pods.refuses = True
    rig.act(300.0, 300.0, 250.0, 250.0)
    rounds = []
    for _ in range(60):
        rig.later(5.0)
        rounds.append(rig.pods.rounds)
    tries = len(set(rounds))
    assert 3 <= tries <= 8, "not at each of 60 looks"
    # A new plan is written at once all the same.
    before = rig.pods.rounds
    rig.act(280.0, 280.0, 250.0, 250.0)
    rig.later(0.0)
    assert rig.pods.rounds == before + 1


def test_a_controller_without_any_agent_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = FakePods()
    monkeypatch.setattr("wattline.controller.assemble.open_writer", lambda spec, site: pods)
    world = World(tmp_path)
    nodes = [{"name": "n1", "gpus": {"prefill": list(UUIDS[:2]), "decode": list(UUIDS[2:])}}]
    members = {
        name: {"graph_deployment": "chat", "component": name} for name in ("prefill", "decode")
    }
    world.write_config(
        nodes=nodes,
        actuation={
            "caps": "annotations",
            "annotations": {"namespace": "ml", "pods": members, "trust_s": 15.0},
        },
    )
    world.start()
    for _ in range(120):
        world.clock.now_s += 1.0
        world.assembly.controller.tick()
        time.sleep(0.005)
    view = world.assembly.controller.view
    assert view is not None
    assert view.decision is not None
    assert set(pods.watts.values()) != {None}
    assert view.snapshot.gpus.enforced_w == tuple(
        float(pods.watts[pool] or 0) for pool in ("prefill", "prefill", "decode", "decode")
    )
    assert sum(view.caps.booked_w) <= 2000.0
    assert any("assumed from annotations" in why for why in view.snapshot.missing)
    assert not view.problems, "a foreign agent's silence is no problem"
    world.stop()
    assert pods.closed
