"""Replicas that load, drain, get lost and come back."""

from __future__ import annotations

import pytest
from plant_fixtures import PRODUCT, make_plant, pool

from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.core.snapshot import Phase
from wattline.sim.plant import Plant, Routing
from wattline.sim.request import Request


def _requests(count: int, gap_s: float = 0.01, output: int = 100) -> list[Request]:
    return [Request(gap_s * i, 50, output) for i in range(count)]


def _phases(plant: Plant) -> list[Phase]:
    return plant.gpu_columns().phase


def test_a_run_starts_as_planned_with_the_rest_parked() -> None:
    plant = make_plant([], (pool(Role.AGGREGATED, 7, per_replica=2),), ready=(2,), cap_w=500.0)
    columns = plant.gpu_columns()
    assert columns.phase == [Phase.READY] * 4 + [Phase.PARKED] * 3
    assert columns.replica == [0, 0, 1, 1, -1, -1, -1]
    assert columns.enforced_w == [500.0] * 4 + [PRODUCT.min_limit_w] * 3
    assert columns.draw_w is None


def test_more_replicas_than_gpus_are_refused() -> None:
    with pytest.raises(InputError, match="replicas at the start"):
        make_plant([], (pool(Role.AGGREGATED, 7, per_replica=2),), ready=(4,))


def test_a_started_replica_serves_after_its_start_up_time() -> None:
    plant = make_plant([], (pool(Role.AGGREGATED, 2, startup_s=30.0),), ready=(1,))
    assert plant.start_replicas(0, 5) == 1
    plant.advance(29.9)
    assert _phases(plant) == [Phase.READY, Phase.STARTING]
    assert plant.pool_view(0).starts == ((1, 29.9),)
    plant.advance(30.0)
    assert plant.pool_view(0).starts == ()
    assert _phases(plant) == [Phase.READY, Phase.READY]
    assert plant.start_replicas(0, 1) == 0


def test_stopping_cancels_a_start_first() -> None:
    plant = make_plant([], (pool(Role.AGGREGATED, 3, startup_s=30.0),), ready=(1,))
    plant.start_replicas(0, 2)
    plant.advance(10.0)
    assert plant.stop_replicas(0, 2) == 2
    plant.advance(60.0)
    assert _phases(plant) == [Phase.READY, Phase.PARKED, Phase.PARKED]


def test_a_draining_replica_takes_nothing_new_and_loses_nothing() -> None:
    plant = make_plant(_requests(60), (pool(Role.AGGREGATED, 2),))
    plant.advance(0.3)
    assert plant.stop_replicas(0, 1) == 1
    assert plant.pool_view(0).draining == 1
    plant.advance(60.0)
    assert plant.totals().completed == 60
    columns = plant.gpu_columns()
    assert sorted(columns.phase) == [Phase.PARKED, Phase.READY]
    assert columns.enforced_w == [700.0, 700.0]


def test_without_any_worker_requests_are_refused() -> None:
    plant = make_plant(_requests(10), (pool(Role.AGGREGATED, 1),))
    plant.stop_replicas(0, 1)
    plant.advance(10.0)
    assert plant.totals().rejected == 10


def test_a_lost_node_restarts_its_requests_elsewhere_and_returns_at_default_limits() -> None:
    plant = make_plant(_requests(100, output=200), (pool(Role.AGGREGATED, 16),), cap_w=400.0)
    plant.advance(0.5)
    before = plant.totals()
    plant.lose_node(1)
    assert _phases(plant)[8:] == [Phase.LOST] * 8
    assert plant.write_limit(8, 300.0) == 400.0
    plant.advance(60.0)
    totals = plant.totals()
    assert totals.completed == 100
    assert totals.retried > 0
    assert totals.generated_tokens == 100 * 200
    assert before.completed == 0
    plant.return_node(1)
    columns = plant.gpu_columns()
    assert columns.phase[8:] == [Phase.PARKED] * 8
    assert columns.enforced_w == [400.0] * 8 + [PRODUCT.default_limit_w] * 8
    assert plant.enforced_changes[-1] == (60.0, 8 * 400.0 + 8 * 700.0)
    assert plant.start_replicas(0, 9) == 8


def test_a_replica_over_two_nodes_is_lost_with_either() -> None:
    plant = make_plant([], (pool(Role.AGGREGATED, 16, per_replica=16),))
    plant.lose_node(0)
    assert _phases(plant) == [Phase.LOST] * 8 + [Phase.PARKED] * 8
    assert plant.start_replicas(0, 1) == 0
    plant.return_node(0)
    assert plant.start_replicas(0, 1) == 1


def test_prefilled_requests_wait_for_a_decode_worker() -> None:
    pools = (pool(Role.PREFILL, 1), pool(Role.DECODE, 1, startup_s=5.0))
    plant = make_plant(_requests(5, gap_s=0.001), pools)
    plant.advance(0.006)
    plant.lose_node(1)
    plant.advance(3.0)
    assert plant.totals().unfinished == 5
    plant.return_node(1)
    plant.start_replicas(1, 1)
    plant.advance(20.0)
    assert plant.totals().completed == 5


def test_a_blocked_start_never_becomes_ready() -> None:
    plant = make_plant([], (pool(Role.AGGREGATED, 2, startup_s=10.0),), ready=(1,))
    plant.block_startup(0, True)
    plant.start_replicas(0, 1)
    plant.block_startup(0, False)
    plant.advance(1000.0)
    assert plant.pool_view(0).starting == 1
    plant.stop_replicas(0, 1)
    plant.start_replicas(0, 1)
    plant.advance(1010.0)
    assert plant.pool_view(0).ready == 2


def test_least_loaded_evens_out_what_round_robin_does_not() -> None:
    # Every second request is long: round robin gives all of those to one worker.
    requests = [Request(0.02 * i, 50, 400 if i % 2 else 10) for i in range(80)]
    waits = {}
    for routing in (Routing.ROUND_ROBIN, Routing.LEAST_LOADED):
        plant = make_plant(requests, (pool(Role.AGGREGATED, 2),), routing=routing)
        plant.advance(120.0)
        waits[routing] = float(plant.totals().ttft_s.mean())
    assert waits[Routing.LEAST_LOADED] < 0.9 * waits[Routing.ROUND_ROBIN]


def test_time_does_not_go_back() -> None:
    plant = make_plant([], (pool(Role.AGGREGATED, 1),))
    plant.advance(5.0)
    with pytest.raises(ValueError, match="go back"):
        plant.advance(4.0)
