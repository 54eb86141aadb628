"""Operators' orders: what they do, that they are kept, and that replay recomputes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from controller_world import UUIDS, FakeReplicas, World

from wattline.controller.budget import Override
from wattline.controller.commands import Desk
from wattline.core.errors import InputError, WattlineError
from wattline.core.snapshot import Phase
from wattline.recording.record import Recording
from wattline.sim.explain import overview
from wattline.sim.replay import replay


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.start()
    yield made
    made.stop()


def give(world: World, name: str, **body: object) -> str:
    desk: Desk = world.assembly.desk
    return desk(name, json.dumps({"by": "ann", "why": "a test", **body}).encode())


def reasons(world: World) -> dict[str, str]:
    view = world.assembly.controller.view
    assert view is not None
    assert view.carried is not None
    names = [pool.name for pool in world.assembly.controller.parts.site.fleet.pools]
    return {names[reason.pool]: reason.sentence for reason in view.carried.reasons}


def test_a_hold_stops_raises_until_it_ends(world: World) -> None:
    world.run(2)
    assert "held until" in give(world, "hold", for_s=30)
    before = dict(world.agent.enforced_w)
    world.run(20)
    assert world.agent.enforced_w == before
    assert "held by ann until 2027-01-15" in reasons(world)["decode"]
    world.run(40)
    assert world.agent.enforced_w != before
    assert reasons(world) == {}
    audit = (world.folder / "state" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in audit] == ["hold", "hold ended"]


def test_a_hold_never_stops_a_lowering_that_a_cut_needs(world: World) -> None:
    world.run(10)
    give(world, "hold")
    give(world, "budget", total_w=1100)
    world.run(6)
    assert world.enforced_w <= 1100 * 0.98


def test_a_pinned_cap_is_kept_and_yields_to_a_cut(world: World) -> None:
    world.run(10)
    give(world, "pin", pool="decode", cap_w=300)
    world.run(5)
    assert [world.agent.enforced_w[uuid] for uuid in UUIDS[2:]] == [300.0, 300.0]
    assert (
        "pinned to 300 W per GPU by ann until it is taken back: a test"
        in (reasons(world)["decode"])
    )
    assert "prefill" not in reasons(world)
    give(world, "pin", pool="decode", cap_w=600)
    world.run(10)
    assert world.enforced_w <= 2000 * 0.98
    give(world, "budget", total_w=1000)
    world.run(8)
    assert world.enforced_w <= 1000 * 0.98


def plan_w(world: World) -> tuple[float, float]:
    """The planned caps of prefill and decode."""
    view = world.assembly.controller.view
    assert view is not None
    assert view.decision is not None
    prefill, decode = (pool.setting.cap_w for pool in view.decision.plan)
    return prefill, decode


def test_the_other_pools_are_planned_around_a_pinned_cap(world: World) -> None:
    world.demand.rps = 400  # so much that every watt is of use
    world.run(40)
    give(world, "pin", pool="decode", cap_w=253)  # not one of the caps that a plan chooses from
    world.run(40)
    assert plan_w(world)[1] == 253.0
    assert 2 * sum(plan_w(world)) <= 2000 * 0.98
    give(world, "pin", pool="decode", cap_w=700)
    world.run(40)
    assert plan_w(world) == (280.0, 700.0), "the other pool has to do with what is left"
    assert sorted(world.agent.enforced_w.values()) == [280.0, 280.0, 700.0, 700.0]
    assert world.enforced_w <= 2000 * 0.98
    give(world, "resume", what="decode")
    world.run(60)
    assert plan_w(world)[0] > 280.0
    assert plan_w(world)[1] < 700.0
    world.stop()
    outcome = replay(Recording(world.folder / "state" / "recording"))
    assert (outcome.decisions, outcome.difference) == (180, None)
    world.start()


def test_a_pinned_cap_that_does_not_fit_is_a_ceiling(world: World) -> None:
    world.run(5)
    give(world, "budget", total_w=1500)
    give(world, "pin", pool="decode", cap_w=600)
    world.run(20)
    prefill_w, decode_w = plan_w(world)
    assert 200.0 <= decode_w < 600.0
    assert 2 * (prefill_w + decode_w) <= 1500 * 0.98
    assert world.enforced_w <= 1500 * 0.98
    give(world, "budget", clear=True)
    world.run(20)
    assert plan_w(world)[1] == 600.0


def test_pins_are_kept_while_metrics_are_missing(world: World) -> None:
    world.run(5)
    world.demand.why = "refused"
    world.run(15)
    give(world, "pin", pool="prefill", cap_w=350)
    world.run(5)
    assert [world.agent.enforced_w[uuid] for uuid in UUIDS[:2]] == [350.0, 350.0]


def test_orders_outlive_a_restart_and_are_taken_back(world: World) -> None:
    give(world, "pin", pool="decode", cap_w=250)
    give(world, "budget", total_w=1500)
    world.stop()
    world.start()
    world.run(15)
    assert [world.agent.enforced_w[uuid] for uuid in UUIDS[2:]] == [250.0, 250.0]
    view = world.assembly.controller.view
    assert view is not None
    assert view.budget.budget.total_w == 1500.0
    assert view.budget.cause == "set by ann: a test"
    assert give(world, "resume", what="decode") == "1 orders are taken back"
    assert give(world, "budget", clear=True) == "back to configuration and schedule"
    world.run(2)
    assert reasons(world) == {}
    assert world.assembly.controller.view is not None
    assert world.assembly.controller.view.budget.cause == "configuration"
    with pytest.raises(InputError, match="none in force"):
        give(world, "resume", what="decode")


def test_replay_recomputes_what_was_carried_out(world: World) -> None:
    world.run(3)
    give(world, "pin", pool="decode", cap_w=300)
    world.run(3)
    give(world, "hold")
    world.run(3)
    give(world, "resume")
    world.run(3)
    world.stop()
    folder = world.folder / "state" / "recording"
    outcome = replay(Recording(folder))
    assert (outcome.decisions, outcome.difference, outcome.notes) == (12, None, ())
    ticks = list(Recording(folder).ticks())
    assert [len(tick.carried.orders) if tick.carried else 0 for tick in ticks] == (
        [0] * 3 + [1] * 3 + [2] * 3 + [0] * 3
    )
    seen = overview(Recording(folder))
    assert seen.codes["decode"]["operator_pin"] == 3
    assert seen.codes["decode"]["operator_hold"] == 3
    assert seen.codes["prefill"]["operator_hold"] == 3
    world.start()


def test_a_changed_order_line_is_noticed(world: World) -> None:
    import gzip

    give(world, "hold")
    world.run(3)
    world.stop()
    folder = world.folder / "state" / "recording"
    path = next(folder.iterdir())
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text.replace(b'"admission":false', b'"admission":true', 1)))
    assert replay(Recording(folder)).difference is not None
    world.start()


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("hold", {"for_s": -1}, "for_s"),
        ("hold", {"forever": True}, "unknown key"),
        ("hold", {"why": ""}, "why"),
        ("hold", {"why": "two\nlines"}, "why"),
        ("pin", {"pool": "decode"}, "exactly one"),
        ("pin", {"pool": "decode", "cap_w": 100}, "200 to 700"),
        ("pin", {"pool": "decode", "replicas": 9}, "0 to 2"),
        ("pin", {"pool": "none", "cap_w": 300}, "prefill, decode"),
        ("cordon", {"node": "n9"}, "use one of n1"),
        ("budget", {}, "exactly one"),
        ("budget", {"total_w": 1e3, "clear": True}, "exactly one"),
        ("budget", {"total_w": 500}, "lowest limits"),
        ("budget", {"total_w": "lots"}, "total_w"),
        ("brake", {}, "use one of"),
    ],
)
def test_orders_that_cannot_be_are_refused(
    world: World, name: str, body: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        give(world, name, **body)
    assert world.assembly.controller.parts.orders.in_force(world.clock.now_s) == ()


def test_an_order_that_cannot_be_kept_is_not_in_force(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wattline.controller.operator.replace_file", full)
    monkeypatch.setattr("wattline.controller.budget.replace_file", full)
    with pytest.raises(WattlineError, match="not in force"):
        give(world, "hold")
    with pytest.raises(WattlineError, match="not changed"):
        give(world, "budget", total_w=1500)
    assert world.assembly.controller.parts.orders.in_force(world.clock.now_s) == ()


def supervised(tmp_path: Path) -> World:
    world = World(
        tmp_path,
        enforced_w=200.0,
        actuation={
            "replicas": "supervisor",
            "workers": {"prefill": {"argv": ["true"]}, "decode": {"argv": ["true"]}},
        },
    )
    world.replicas = FakeReplicas()
    world.start()
    return world


def test_replicas_start_on_parked_gpus_and_get_watts_when_they_serve(tmp_path: Path) -> None:
    world = supervised(tmp_path)
    assert world.replicas is not None
    world.run(8)
    pools = {view.pool for view in world.replicas.views}
    assert pools == {"prefill", "decode"}
    assert world.enforced_w == 800.0, "starting replicas wait at the lowest limit"
    world.replicas.now_ready()
    world.run(10)
    assert 800.0 < world.enforced_w <= 2000 * 0.98
    world.stop()


def test_no_replica_starts_while_its_watts_are_not_free(tmp_path: Path) -> None:
    world = supervised(tmp_path)
    assert world.replicas is not None
    world.agent.enforced_w = dict.fromkeys(UUIDS, 700.0)
    world.agent.obeys = False
    world.agent.restart(world.clock.now_s)
    world.run(6)
    assert world.replicas.started == 0
    world.agent.obeys = True
    world.run(8)
    assert world.replicas.started > 0
    world.stop()


def test_a_start_that_fails_is_said_and_tried_again(tmp_path: Path) -> None:
    world = supervised(tmp_path)
    assert world.replicas is not None
    world.replicas.why = "no such program"
    world.run(8)
    view = world.assembly.controller.view
    assert view is not None
    assert any("no such program" in why for why in view.problems)
    world.replicas.why = None
    world.run(3)
    assert world.replicas.started > 0
    world.stop()


def test_a_cordon_drains_the_node_and_keeps_it_empty(tmp_path: Path) -> None:
    world = supervised(tmp_path)
    assert world.replicas is not None
    world.run(8)
    world.replicas.now_ready()
    world.run(3)
    present = {view.name for view in world.replicas.views}
    give(world, "cordon", node="n1")
    world.run(2)
    assert set(world.replicas.drained) == present
    world.replicas.now_gone()
    started = world.replicas.started
    world.run(10)
    assert world.replicas.started == started
    assert world.enforced_w == 800.0, "its GPUs are parked"
    assert "node n1 cordoned by ann" in reasons(world)["decode"]
    give(world, "resume", what="n1")
    world.run(40)
    assert world.replicas.started > started
    world.stop()


def test_pinned_replicas_are_reached_and_kept(tmp_path: Path) -> None:
    world = supervised(tmp_path)
    assert world.replicas is not None
    give(world, "pin", pool="decode", replicas=2)
    world.run(8)
    world.replicas.now_ready()
    assert sum(view.pool == "decode" for view in world.replicas.views) == 2
    give(world, "pin", pool="decode", replicas=1)
    world.run(3)
    states = [view.phase for view in world.replicas.views if view.pool == "decode"]
    assert sorted(states) == sorted([Phase.READY, Phase.DRAINING])
    world.stop()


def test_original_limits_are_given_back_where_they_fit(world: World) -> None:
    world.demand.rps = 400  # so much that every watt is of use
    world.run(40)
    gpu = UUIDS[2]
    done = give(world, "restore", what=gpu)
    assert (
        done == "order 1: 1 original limits, 600 W together, are given back until it is taken back"
    )
    world.run(20)
    assert world.agent.enforced_w[gpu] == 600.0
    assert world.agent.let_go == (gpu,)
    assert world.enforced_w <= 2000 * 0.98
    assert "1 of 1 original limits in force" in reasons(world)["decode"]
    view = world.assembly.controller.view
    assert view is not None
    assert view.snapshot.pools[1].ready == 1, "no plan counts on what is given back"
    with pytest.raises(InputError, match="does not fit"):
        give(world, "restore", what="n1")
    world.run(5)
    give(world, "resume", what=gpu)
    world.run(60)
    assert world.agent.enforced_w[gpu] < 600.0
    assert len(world.agent.let_go) == 0
    world.stop()
    outcome = replay(Recording(world.folder / "state" / "recording"))
    assert (outcome.decisions, outcome.difference) == (125, None)
    audit = (world.folder / "state" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in audit] == ["restore", "resume"]
    world.start()


def test_a_cut_takes_given_back_limits_down_again(world: World) -> None:
    world.run(10)
    give(world, "restore", what=UUIDS[2])
    world.run(20)
    assert world.agent.enforced_w[UUIDS[2]] == 600.0
    give(world, "budget", total_w=1100)
    world.run(10)
    assert world.enforced_w <= 1100 * 0.98
    assert world.agent.let_go == ()
    give(world, "budget", clear=True)
    world.run(20)
    assert world.agent.enforced_w[UUIDS[2]] == 600.0


def test_giving_back_rises_no_faster_than_allowed(tmp_path: Path) -> None:
    world = World(tmp_path, budget={"total_w": 2600, "rise_w_per_s": 20})
    world.start()
    world.run(3)
    give(world, "restore", what="n1")
    seen = []
    for _ in range(60):
        world.run(1)
        seen.append(world.enforced_w)
    assert max(b - a for a, b in pairwise(seen)) <= 20.0 + 1e-6
    assert seen[-1] == 4 * 600.0
    world.stop()


@pytest.mark.parametrize("what", ["n2", "GPU-none", ""])
def test_nothing_is_given_back_of_what_is_not_there(world: World, what: str) -> None:
    world.run(2)
    with pytest.raises(InputError):
        give(world, "restore", what=what)


def test_nothing_is_given_back_where_no_original_is_known(world: World) -> None:
    world.agent.original_w = None
    world.run(2)
    with pytest.raises(InputError, match="no original limit"):
        give(world, "restore", what="n1")


def test_an_advisory_controller_gives_nothing_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start(advisory=True)
    world.run(2)
    with pytest.raises(InputError, match="grants no limits"):
        give(world, "restore", what="n1")
    world.stop()


def test_replicas_cannot_be_pinned_where_nothing_starts_any(world: World) -> None:
    with pytest.raises(InputError, match="nothing here starts"):
        give(world, "pin", pool="decode", replicas=1)


def test_a_budget_set_for_a_time_ends(world: World) -> None:
    desk = world.assembly.controller.parts.budget
    now_s = world.clock.now_s
    desk.set(Override(total_w=1500.0, by="a", why="b", since_s=now_s, until_s=now_s + 5))
    first = desk.now(now_s)
    assert (first.budget.total_w, first.cause) == (1500.0, "set by a: b")
    later = desk.now(now_s + 5)
    assert later.budget.total_w == 2000.0
    assert later.budget.version == first.budget.version + 1


def test_watts_of_a_node_that_is_off_come_free_on_somebodys_word(world: World) -> None:
    world.run(5)
    with pytest.raises(InputError, match="still reports"):
        give(world, "attest-off", node="n1")
    with pytest.raises(InputError, match="use one of n1"):
        give(world, "attest-off", node="n2")
    controller = world.assembly.controller
    for _ in range(10):
        world.clock.now_s += 1.0
        controller.tick()
    assert controller.view is not None
    assert sum(controller.view.caps.booked_w) > 800.0
    give(world, "attest-off", node="n1")
    world.clock.now_s += 1.0
    controller.tick()
    assert sum(controller.view.caps.booked_w) == 0.0
    audit = (world.folder / "state" / "audit.jsonl").read_text()
    assert '"attested off"' in audit
    world.run(5)
    assert sum(controller.view.caps.booked_w) >= world.enforced_w
