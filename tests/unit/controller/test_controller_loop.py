"""The controller's loop with fake sources: caps, failures, restarts, budgets, advisory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from controller_world import MAX_W, UUIDS, World

from wattline.controller.budget import Override
from wattline.core.errors import InputError
from wattline.drivers.grant_log import FencedError
from wattline.grants.messages import Adopt
from wattline.recording.record import Recording
from wattline.sim.replay import replay


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.start()
    yield made
    made.stop()


def test_grants_follow_the_plan_within_the_budget(world: World) -> None:
    world.run(20)
    view = world.assembly.controller.view
    assert view is not None
    assert view.problems == ()
    assert view.decision is not None
    for index, pool in enumerate(view.decision.plan):
        for gpu, owner in enumerate(view.snapshot.gpus.pool):
            if owner == index:
                assert world.agent.enforced_w[UUIDS[gpu]] == pool.setting.cap_w
    assert sum(view.caps.booked_w) <= 2000.0 * 0.98
    assert world.enforced_w <= 2000.0 * 0.98


def test_a_cut_is_enforced_and_given_back(world: World) -> None:
    world.run(10)
    before_w = world.enforced_w
    assert before_w > 1300.0
    world.assembly.controller.parts.budget.set(
        Override(total_w=1200.0, by="ann", why="test", since_s=world.clock.now_s)
    )
    world.run(5)
    assert world.enforced_w <= 1200.0 * 0.98
    world.assembly.controller.parts.budget.clear()
    world.run(40)
    assert world.enforced_w > 1300.0


def test_never_more_enforced_than_the_budget_while_it_moves(world: World) -> None:
    world.run(5)
    desk = world.assembly.controller.parts.budget
    for step in range(6):
        total_w = 1200.0 if step % 2 else 1900.0
        desk.set(Override(total_w=total_w, by="ann", why="x", since_s=world.clock.now_s))
        world.run(6)
        view = world.assembly.controller.view
        assert view is not None
        assert world.enforced_w <= view.budget.budget.usable_w + 1e-6


def test_a_silent_node_is_not_known_and_keeps_its_booking(world: World) -> None:
    world.run(10)
    for _ in range(10):
        world.clock.now_s += 1.0
        world.assembly.controller.tick()
    view = world.assembly.controller.view
    assert view is not None
    assert set(view.snapshot.gpus.enforced_w) == {None}
    assert any("node n1" in why for why in view.problems)
    assert sum(view.caps.booked_w) > 0
    world.run(3)
    assert world.assembly.controller.view is not None
    assert world.assembly.controller.view.problems == ()


@pytest.mark.parametrize("what", ["demand", "load", "report", "decide"])
def test_a_single_failure_never_stops_the_loop(
    world: World, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(3)
    with monkeypatch.context() as patch:
        if what == "demand":
            world.demand.why = "frontend gone"
        elif what == "load":
            world.load.why = "worker gone"
        elif what == "report":
            (world.folder / "report.json").write_text('{"torn')
        else:

            def broken(*_: object) -> None:
                raise ValueError("numbers")

            patch.setattr("wattline.controller.loop.decide", broken)
        world.assembly.controller.tick()
        view = world.assembly.controller.view
        assert view is not None
        said = {
            "demand": any("frontend gone" in why for why in view.snapshot.missing),
            "load": any("worker gone" in why for why in view.snapshot.missing),
            "report": world.assembly.controller.parts.watches[0].why is not None,
            "decide": any("numbers" in why for why in view.problems),
        }
        assert said[what]
    world.demand.why = world.load.why = None
    world.run(2)
    assert world.assembly.controller.view is not None
    assert world.assembly.controller.view.decision is not None


def test_a_defect_of_a_source_is_a_missing_value(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(now_s: float) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(world.demand, "read", broken)
    world.run(1)
    assert world.assembly.controller.view is not None
    assert any("KeyError" in why for why in world.assembly.controller.view.snapshot.missing)


def test_a_restart_knows_before_it_raises(world: World) -> None:
    world.run(15)
    granted = dict(world.agent.enforced_w)
    world.stop()
    world.assembly.controller.parts.watches[0].report = None
    world.start()
    controller = world.assembly.controller
    world.clock.now_s += 1.0
    controller.tick()
    view = controller.view
    assert view is not None
    # From the log: what was granted, not the largest limit.
    assert sum(view.caps.booked_w) == pytest.approx(sum(granted.values()))
    assert view.snapshot.tick == 15
    assert view.snapshot.state is not None
    world.run(10)
    assert world.enforced_w <= 2000.0 * 0.98
    assert world.assembly.controller.view is not None
    assert world.assembly.controller.view.problems == ()


def test_a_restart_without_its_log_books_the_most_until_the_node_answers(world: World) -> None:
    world.run(15)
    world.stop()
    for path in (world.folder / "state").glob("grants.log*"):
        path.unlink()
    world.start()
    world.clock.now_s += 1.0
    world.assembly.controller.tick()
    view = world.assembly.controller.view
    assert view is not None
    assert sum(view.caps.booked_w) == 4 * MAX_W
    world.run(15)
    assert world.enforced_w <= 2000.0 * 0.98
    assert world.assembly.controller.view is not None
    assert sum(world.assembly.controller.view.caps.booked_w) <= 2000.0


def test_a_second_controller_is_kept_out(world: World) -> None:
    with pytest.raises(Exception, match="another coordinator"):
        World.start(world)


def test_an_agent_that_restarts_gets_a_lease_for_what_it_holds(world: World) -> None:
    world.run(15)
    before = dict(world.agent.enforced_w)
    world.agent.restart(world.clock.now_s)
    world.run(6)
    assert world.agent.enforced_w == before
    ledger_view = world.assembly.controller.view
    assert ledger_view is not None
    grants = (world.folder / "grants" / "n1.json").read_text()
    assert str(world.agent.incarnation) in grants


def test_a_rebooted_node_is_exposure_and_is_brought_back(world: World) -> None:
    world.run(15)
    for uuid in UUIDS:
        world.agent.enforced_w[uuid] = MAX_W
    world.agent.restart(world.clock.now_s)
    world.clock.now_s += 0.5
    world.agent.step(world.clock.now_s)
    world.assembly.controller.tick()
    view = world.assembly.controller.view
    assert view is not None
    assert view.caps.exposure_w > 0
    world.run(8)
    assert world.enforced_w <= 2000.0 * 0.98


def test_a_full_disk_sends_nothing_and_recovers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wattline.drivers.grant_log import GrantLog, GrantLogError

    world.run(10)
    before = (world.folder / "grants" / "n1.json").read_bytes()
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise GrantLogError("grants.log: cannot be written: No space left on device")

        patch.setattr(GrantLog, "append", full)
        world.assembly.controller.parts.budget.set(
            Override(total_w=1200.0, by="ann", why="x", since_s=world.clock.now_s)
        )
        world.run(4)
        assert (world.folder / "grants" / "n1.json").read_bytes() == before
        assert world.assembly.controller.view is not None
        assert any("No space" in why for why in world.assembly.controller.view.problems)
    world.run(4)
    assert world.enforced_w <= 1200.0 * 0.98
    assert world.assembly.controller.view.problems == ()


def test_advisory_computes_records_and_writes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start(advisory=True)
    outlets = tmp_path / "grants"
    before = dict(world.agent.enforced_w)
    world.run(10)
    view = world.assembly.controller.view
    assert view is not None
    assert view.advisory
    assert view.decision is not None
    assert view.decision.caps.gpu
    assert list(outlets.iterdir()) == []
    assert not list((tmp_path / "state").glob("grants.log*"))
    assert world.agent.enforced_w == before
    world.stop()
    outcome = replay(Recording(tmp_path / "state" / "recording"))
    assert outcome.difference is None
    assert outcome.decisions == 10


def test_a_live_recording_is_replayed_to_the_byte_also_while_it_is_written(world: World) -> None:
    world.run(12)
    folder = world.folder / "state" / "recording"
    during = replay(Recording(folder))
    assert during.difference is None
    assert during.decisions == 12
    assert any("is not closed" in note for note in during.notes)
    world.run(3)
    world.stop()
    after = replay(Recording(folder))
    assert (after.decisions, after.difference, after.notes) == (15, None, ())
    world.start()


def test_reload_takes_what_may_change_and_refuses_the_rest(world: World) -> None:
    world.run(3)
    world.write_config(budget={"total_w": 1300})
    assert "budget.total_w" in world.assembly.reload()
    world.run(4)
    assert world.enforced_w <= 1300.0 * 0.98
    world.write_config(budget={"total_w": 1300}, listen="127.0.0.1:9999")
    assert "listen" in world.assembly.reload()
    world.config.write_text("budget: [")
    assert world.assembly.reload().startswith("refused")
    world.write_config(budget={"total_w": 1300}, decision={"headroom": 1.5})
    assert "decision.headroom" in world.assembly.reload()
    world.run(3)
    folder = world.folder / "state" / "recording"
    assert len(list(folder.iterdir())) == 2
    outcome = replay(Recording(folder))
    assert outcome.difference is None
    assert outcome.decisions == 10


def test_a_budget_below_all_lowest_limits_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, budget={"total_w": 700})
    with pytest.raises(InputError, match="lowest limits"):
        world.start()


def test_a_controller_that_was_overtaken_stops_and_changes_nothing(world: World) -> None:
    world.run(5)
    before = (world.folder / "grants" / "n1.json").read_bytes()
    ours = world.assembly.controller.view
    assert ours is not None
    assert ours.caps.epoch is not None
    world.agent.node.on_adopt(
        Adopt(gpu=UUIDS[0], incarnation=1, epoch=ours.caps.epoch + (1 << 21), sequence=1)
    )
    with pytest.raises(FencedError, match="another controller has taken over"):
        world.run(1)
    with pytest.raises(FencedError):
        world.assembly.controller.run(0.05)
    assert (world.folder / "grants" / "n1.json").read_bytes() == before


def test_an_agent_that_takes_no_grants_is_a_problem(world: World) -> None:
    world.run(2)
    world.agent.mode = "annotations"
    world.run(2)
    view = world.assembly.controller.view
    assert view is not None
    assert any("mode annotations: it takes no grants" in why for why in view.problems)


def test_the_loop_runs_on_over_a_defect_and_ends_when_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = world.assembly.controller
    ticks = []

    def broken() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            controller.stop()
        raise RuntimeError("a defect")

    monkeypatch.setattr(controller, "tick", broken)
    controller.run(0.05)
    assert len(ticks) == 3
