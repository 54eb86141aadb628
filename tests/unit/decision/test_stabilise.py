"""When a change of plan is worth its cost."""

from __future__ import annotations

from dataclasses import replace

from decision_fixtures import make_site

from wattline.core.allocate import allocate
from wattline.core.decision import PoolPlan
from wattline.core.fleet import Role, Setting
from wattline.core.problem import DeploymentProblem, PoolProblem
from wattline.core.settings import Settings
from wattline.core.stabilise import Change, Choice, choose, steady_replicas
from wattline.core.state import PoolState

SETTINGS = make_site().settings
CAPS = (200.0, 300.0, 400.0, 500.0, 600.0, 700.0)


def problem(demand_rps: float, present_w: float) -> DeploymentProblem:
    """One aggregated replica of one GPU that serves its cap / 100 requests per second."""
    settings = tuple(Setting(cap_w) for cap_w in CAPS)
    pool = PoolProblem(
        role=Role.AGGREGATED,
        gpus=1,
        gpus_per_replica=1,
        parked_w=200.0,
        min_replicas=1,
        max_replicas=1,
        settings=settings,
        rate_rps=tuple(cap_w / 100.0 for cap_w in CAPS),
        draw_w=CAPS,
        idle_w=100.0,
        current=PoolPlan(1, Setting(present_w)),
        fixed_replicas=1,
    )
    return DeploymentProblem(priority=1.0, demand_rps=demand_rps, pools=(pool,))


def decide_change(
    demand_rps: float,
    present_w: float,
    usable_w: float,
    *,
    held: bool = False,
    rested: bool = True,
    s: Settings = SETTINGS,
) -> tuple[Change, float]:
    faced = [problem(demand_rps, present_w)]
    best = allocate(faced, usable_w, s.objective, headroom=s.headroom)
    present = [(PoolPlan(1, Setting(present_w)),)]
    choice: Choice = choose(faced, best, present, [held], [rested], usable_w, s)
    return choice.changes[0], choice.plans[0][0].setting.cap_w


def test_demand_that_is_not_served_moves_the_plan() -> None:
    assert decide_change(6.0, 500.0, 700.0) == (Change.SERVES_MORE, 700.0)


def test_a_small_gain_waits_for_the_rest_and_a_large_one_does_not() -> None:
    patient = replace(SETTINGS, urgent_gain=0.5)
    assert decide_change(6.0, 500.0, 700.0, rested=False, s=patient)[0] is Change.NONE
    assert decide_change(6.0, 500.0, 700.0, rested=False)[0] is Change.SERVES_MORE


def test_spare_watts_move_only_where_spare_is_thin() -> None:
    assert decide_change(4.5, 500.0, 700.0) == (Change.MORE_CAPACITY, 700.0)
    assert decide_change(2.0, 500.0, 700.0) == (Change.NONE, 500.0)


def test_energy_gives_up_watts_that_serve_nothing() -> None:
    saving = replace(SETTINGS, objective="energy")
    # 2 requests/s draw 100 + 600 x 2/7 W at 700 W, and 100 + 200 x 2/3 W at 300 W.
    assert decide_change(2.0, 700.0, 700.0, s=saving) == (Change.SAVES_ENERGY, 300.0)
    assert decide_change(2.0, 300.0, 700.0, s=saving) == (Change.NONE, 300.0)


def test_what_is_held_stays_unless_it_no_longer_fits() -> None:
    assert decide_change(6.0, 500.0, 700.0, held=True) == (Change.NONE, 500.0)
    assert decide_change(6.0, 500.0, 400.0, held=True) == (Change.FORCED, 400.0)


def test_a_setting_that_is_not_offered_is_left() -> None:
    assert decide_change(1.0, 450.0, 700.0)[0] is Change.FORCED


def test_replicas_rise_at_once_and_fall_to_the_most_wanted_in_the_window() -> None:
    s = replace(SETTINGS, replica_interval_s=10.0, replica_down_s=30.0, replica_hold_s=0.0)
    state = PoolState(setting=Setting(400.0), replicas=3)
    seen = []
    for step, wanted in enumerate((1, 2, 1, 1, 1, 4)):
        state = steady_replicas(state, wanted, 1, 10.0 * step, s)
        seen.append(state.replicas)
    assert seen == [3, 3, 2, 2, 1, 4]


def test_replicas_rest_between_changes_but_never_below_the_floor() -> None:
    s = replace(SETTINGS, replica_hold_s=60.0)
    state = PoolState(setting=Setting(400.0), replicas=2, replicas_changed_s=0.0)
    assert steady_replicas(state, 4, 1, 30.0, s).replicas == 2
    assert steady_replicas(state, 4, 3, 30.0, s).replicas == 3
    assert steady_replicas(state, 4, 1, 60.0, s).replicas == 4
