"""Busy thresholds: what may be held must be servable within the targets."""

from dataclasses import replace

import pytest
from decision_fixtures import MIX, PlainEngine, make_site
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.admit import InForce, Worker, admission, worker_admission
from wattline.core.decision import Admission
from wattline.core.engine import ForwardPass
from wattline.core.fleet import Role, Setting, Slo
from wattline.core.mix import Mix

ENGINE = PlainEngine()
SLO = Slo(2.0, 0.05)


def workers(
    prefill_w: float = 700.0, decode_w: float = 700.0, engine: PlainEngine = ENGINE
) -> list[Worker]:
    return [
        Worker(Role.PREFILL, engine, 1, InForce(2, Setting(prefill_w))),
        Worker(Role.DECODE, engine, 1, InForce(2, Setting(decode_w))),
    ]


def test_prompt_tokens_held_are_computed_within_the_target() -> None:
    limits = worker_admission(workers(), MIX, SLO)
    assert limits.active_prefill_tokens is not None
    assert limits.active_prefill_tokens > 0
    speed = ENGINE.prompt_tokens_per_s
    assert (limits.active_prefill_tokens + MIX.input_tokens) / speed <= SLO.ttft_s


def test_decode_blocks_held_meet_the_itl_target() -> None:
    limits = worker_admission(workers(), MIX, SLO)
    assert limits.active_decode_blocks is not None
    tokens = limits.active_decode_blocks * ENGINE.kv_capacity_tokens
    batch = int(tokens / MIX.input_tokens)
    step = ENGINE.cost(ForwardPass(decode_batch=batch, decode_kv_tokens=tokens), Setting(700.0))
    assert 0.0 < limits.active_decode_blocks < 1.0
    assert step.duration_s <= SLO.itl_s


@given(st.floats(200.0, 690.0), st.floats(1.0, 200.0))
def test_a_lower_cap_never_admits_more(cap_w: float, more_w: float) -> None:
    higher_w = min(700.0, cap_w + more_w)
    low = worker_admission(workers(cap_w, cap_w), MIX, SLO)
    high = worker_admission(workers(higher_w, higher_w), MIX, SLO)
    assert low.active_prefill_tokens is not None
    assert high.active_prefill_tokens is not None
    assert low.active_decode_blocks is not None
    assert high.active_decode_blocks is not None
    assert low.active_prefill_tokens <= high.active_prefill_tokens
    # Prompts arrive faster from a faster prefill, which may cost a sequence of room.
    assert low.active_decode_blocks <= high.active_decode_blocks + 0.01


def test_the_slowest_pool_sets_the_threshold_and_an_empty_one_does_not_count() -> None:
    slow = Worker(Role.PREFILL, ENGINE, 1, InForce(1, Setting(200.0)))
    empty = Worker(Role.PREFILL, ENGINE, 1, InForce(0, Setting(200.0)))
    alone = worker_admission([slow, workers()[1]], MIX, SLO)
    assert worker_admission([*workers(), slow], MIX, SLO) == alone
    assert worker_admission([*workers(), empty], MIX, SLO) == worker_admission(workers(), MIX, SLO)


def test_nothing_that_serves_leaves_the_thresholds_unset() -> None:
    none = [replace(worker, in_force=InForce(0, Setting(700.0))) for worker in workers()]
    assert worker_admission(none, MIX, SLO) == Admission()


def test_a_cache_is_never_planned_full() -> None:
    small = replace(ENGINE, kv_capacity_tokens=20_000)
    limits = worker_admission(workers(engine=small), MIX, SLO)
    assert limits.active_decode_blocks is not None
    assert 0.5 < limits.active_decode_blocks < 0.95


def test_aggregated_workers_get_both_thresholds_and_admit_less_than_a_pure_decode() -> None:
    shared = [Worker(Role.AGGREGATED, ENGINE, 1, InForce(2, Setting(700.0)))]
    mix = Mix(4000.0, 100.0)
    limits = worker_admission(shared, mix, SLO)
    pure = worker_admission(workers(), mix, SLO)
    assert limits.active_prefill_tokens is not None
    assert limits.active_decode_blocks is not None
    assert pure.active_decode_blocks is not None
    assert 0.0 < limits.active_decode_blocks < pure.active_decode_blocks


@pytest.mark.parametrize("mix", [MIX, Mix(1.0, 1.0)])
@pytest.mark.parametrize("role", [Role.DECODE, Role.AGGREGATED])
def test_an_impossible_target_leaves_room_beside_one_sequence(role: Role, mix: Mix) -> None:
    """Nobody is served in time either way; an idle fleet that refuses serves nobody at all."""
    worker = Worker(role, ENGINE, 1, InForce(1, Setting(200.0)))
    limits = worker_admission([worker], mix, Slo(0.01, 0.001))
    assert limits.active_decode_blocks is not None
    one = -(-(mix.input_tokens + mix.output_tokens) // 64) * 64
    assert one <= limits.active_decode_blocks * ENGINE.kv_capacity_tokens < 2 * one + 64


def test_an_impossible_target_computes_one_prompt_at_a_time() -> None:
    assert worker_admission(workers(), MIX, Slo(0.01, 0.001)).active_prefill_tokens == 0.0


@pytest.mark.parametrize("output_tokens", [1.0, 2.0, 8.0])
def test_short_answers_leave_room_to_decode(output_tokens: float) -> None:
    """Prefill takes longer than such an answer: most of a batch is on its way, never all of it."""
    mix = replace(MIX, output_tokens=output_tokens)
    limits = worker_admission(workers(), mix, SLO)
    assert limits.active_decode_blocks is not None
    assert limits.active_decode_blocks * ENGINE.kv_capacity_tokens > mix.input_tokens


def test_the_fleet_form_picks_the_pools_of_its_deployment() -> None:
    site = make_site(deployments=2)
    in_force = [InForce(2, Setting(watts)) for watts in (700.0, 700.0, 300.0, 300.0)]
    engines = site.settings.engines
    first, second = (
        admission(index, site.fleet, engines, in_force, MIX, SLO) for index in range(2)
    )
    assert first == worker_admission(workers(), MIX, SLO)
    assert second == worker_admission(workers(300.0, 300.0), MIX, SLO)


@pytest.mark.parametrize("role", list(Role))
def test_thresholds_stay_within_what_the_frontend_accepts(role: Role) -> None:
    for mix in (Mix(1.0, 1.0), Mix(150_000.0, 1.0, 0.9), Mix(10.0, 50_000.0)):
        limits = worker_admission([Worker(role, ENGINE, 1, InForce(1, Setting(450.0)))], mix, SLO)
        assert limits.active_decode_blocks is None or 0.0 <= limits.active_decode_blocks <= 1.0
        assert limits.active_prefill_tokens is None or limits.active_prefill_tokens >= 0.0


def test_well_below_capacity_more_prompts_may_wait() -> None:
    unknown = worker_admission(workers(), MIX, SLO)
    calm = worker_admission(workers(), MIX, SLO, 0.1)
    full = worker_admission(workers(), MIX, SLO, 1e6)
    assert full == unknown
    assert calm.active_prefill_tokens is not None
    assert full.active_prefill_tokens is not None
    assert calm.active_prefill_tokens > full.active_prefill_tokens
    assert calm.active_decode_blocks is not None
    steps = [worker_admission(workers(), MIX, SLO, float(rate)) for rate in range(0, 200, 5)]
    held = [step.active_prefill_tokens or 0.0 for step in steps]
    assert held == sorted(held, reverse=True)
