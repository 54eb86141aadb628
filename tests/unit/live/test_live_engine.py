"""The live engine is the plant's replica: same times, same watts, whoever holds the clock."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from live_fixtures import PRODUCT, Watched, drive, live_engine

from wattline.catalog.engines import engine_polynomial
from wattline.core.decision import PoolPlan
from wattline.core.engine import ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, Fleet, Pool, Role, Setting, Slo
from wattline.core.snapshot import Phase
from wattline.live.worker_engine import LiveEngine, transfer_s
from wattline.sim.plant import Plant, PlantConfig
from wattline.sim.plant.prefix import PrefixCache
from wattline.sim.request import Request


def _plant(requests: list[Request], kv_tokens: int, cap_w: float) -> Plant:
    pool = Pool(
        name="only",
        deployment="chat",
        role=Role.AGGREGATED,
        gpu=PRODUCT.name,
        gpus=1,
        gpus_per_replica=1,
        min_replicas=1,
        max_replicas=1,
        startup_s=10.0,
    )
    chat = Deployment(name="chat", model="", slo=Slo(1.0, 1.0))
    return Plant(
        Fleet(products=(PRODUCT,), deployments=(chat,), pools=(pool,)),
        (engine_polynomial("H200", kv_capacity_tokens=kv_tokens),),
        requests,
        seed=1,
        config=PlantConfig(gpus_per_node=1),
        initial=(PoolPlan(1, Setting(cap_w)),),
    )


@pytest.mark.parametrize(("kv_tokens", "rate"), [(1 << 20, 20.0), (6000, 60.0)])
def test_requests_take_as_long_as_in_the_plant(kv_tokens: int, rate: float) -> None:
    draw = random.Random(5)
    requests, time_s = [], 0.0
    for _ in range(120):
        time_s = round(time_s + draw.expovariate(rate), 9)
        requests.append(Request(time_s, draw.randint(1, 1500), draw.randint(1, 80)))
    plant = _plant(requests, kv_tokens, 400.0)
    plant.advance(120.0)

    engine = live_engine(engine_polynomial("H200", kv_capacity_tokens=kv_tokens), cap_w=400.0)
    watched = [Watched() for _ in requests]
    now = 0.0
    jobs = []
    for request, each in zip(requests, watched, strict=True):
        jobs.append((request, each))
        now = _to(engine, watched, now, request.time_s)
        engine.submit(
            request.time_s,
            prompt_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            changed=each.changed,
        )
    _to(engine, watched, now, 120.0)

    totals = plant.totals()
    assert totals.completed == len(requests) == engine.completed
    first = [each.moves[0][0] - request.time_s for request, each in jobs]
    last = [each.moves[-1][0] for _, each in jobs]
    assert first == pytest.approx(totals.ttft_s.tolist(), abs=1e-6)
    assert last == pytest.approx(totals.finished_s.tolist(), abs=1e-6)
    assert (engine.load(120.0).preemptions > 0) == (totals.preemptions > 0) == (kv_tokens == 6000)
    for request, each in jobs:
        made = [count for _, count in each.moves]
        assert made[-1] == request.output_tokens
        assert all(before < after for before, after in pairwise(made))


def _to(engine: LiveEngine, watched: list[Watched], now: float, until_s: float) -> float:
    while (next_s := engine.next_s(now)) is not None and next_s <= until_s:
        now = max(next_s, now)
        for each in watched:
            each.now = now
        engine.run_until(now)
    for each in watched:
        each.now = until_s
    engine.run_until(until_s)
    return max(now, until_s)


def test_halving_the_limit_slows_a_prompt_as_the_engine_model_says() -> None:
    model = engine_polynomial("H200")
    work = ForwardPass(prefill_tokens=4096, prefill_context=4096 * 4097 / 2, decode_batch=1,
                       decode_kv_tokens=4096.0)  # fmt: skip
    took = {}
    for cap_w in (700.0, 350.0):
        engine, watched = live_engine(model, cap_w=cap_w), Watched()
        engine.submit(0.0, prompt_tokens=4096, output_tokens=1, changed=watched.changed)
        drive(engine, watched, 5.0)
        took[cap_w] = watched.moves[0][0]
        assert took[cap_w] == pytest.approx(model.cost(work, Setting(cap_w)).duration_s, rel=1e-4)
    assert took[350.0] > 1.2 * took[700.0]


def test_a_new_limit_stretches_what_is_left_of_a_pass() -> None:
    model = engine_polynomial("H200")
    work = ForwardPass(4096, 4096 * 4097 / 2, 1, 4096.0)
    fast_s, slow_s = (model.cost(work, Setting(cap)).duration_s for cap in (700.0, 300.0))
    engine, watched = live_engine(model), Watched()
    engine.submit(0.0, prompt_tokens=4096, output_tokens=1, changed=watched.changed)
    watched.now = fast_s / 4
    engine.obey(watched.now, (300.0,), (1.0,))
    drive(engine, watched, 5.0)
    assert watched.moves[0][0] == pytest.approx(fast_s / 4 + slow_s * 0.75, rel=1e-4)


def test_the_slowest_gpu_sets_the_pace_and_a_clock_ceiling_counts() -> None:
    model = engine_polynomial("H200")
    for limits, clocks, setting in (
        ((700.0, 300.0), (1.0, 1.0), Setting(300.0)),
        ((700.0, 700.0), (1.0, 0.6), Setting(700.0, 0.6)),
    ):
        engine, watched = live_engine(model, gpus=2), Watched()
        engine.obey(0.0, limits, clocks)
        engine.submit(0.0, prompt_tokens=2048, output_tokens=1, changed=watched.changed)
        drive(engine, watched, 5.0)
        work = ForwardPass(2048, 2048 * 2049 / 2, 1, 2048.0)
        expected_s = model.cost(work, setting).duration_s
        assert watched.moves[0][0] == pytest.approx(expected_s, rel=1e-4)


def test_tokens_come_one_by_one_or_in_strides() -> None:
    for stride in (1, 8):
        engine, watched = live_engine(), Watched()
        engine.step_stride = stride
        engine.submit(0.0, prompt_tokens=100, output_tokens=33, changed=watched.changed)
        drive(engine, watched, 5.0)
        assert [made for _, made in watched.moves] == [1, *range(1 + stride, 34, stride)]


def test_a_late_caller_makes_no_pass_longer() -> None:
    punctual, late = Watched(), Watched()
    engine = live_engine()
    engine.submit(0.0, prompt_tokens=100, output_tokens=50, changed=punctual.changed)
    drive(engine, punctual, 60.0)
    engine = live_engine()
    engine.submit(0.0, prompt_tokens=100, output_tokens=50, changed=late.changed)
    half_s = punctual.moves[24][0] + 1e-6
    engine.run_until(half_s)
    assert late.moves == [(0.0, 25)]
    engine.submit(half_s, prompt_tokens=10, output_tokens=1, changed=late.changed)
    engine.run_until(60.0)
    assert engine.completed == 2


def test_a_prefill_replica_answers_once_and_never_decodes() -> None:
    engine, watched = live_engine(role=Role.PREFILL), Watched()
    job = engine.submit(0.0, prompt_tokens=1000, output_tokens=1, changed=watched.changed)
    drive(engine, watched, 5.0)
    assert job.prefilled
    assert job.finished
    assert job.made == 0
    assert len(watched.moves) == 1
    assert engine.in_flight == 0


def test_a_decode_replica_waits_for_the_cache_and_does_not_prefill() -> None:
    model = engine_polynomial("H200")
    engine, watched = live_engine(model, role=Role.DECODE), Watched()
    delay_s = transfer_s(model, 4000, 2)
    assert delay_s == pytest.approx(model.kv_bytes_per_token * 4000 / 100e9 + 0.002)
    engine.submit(
        0.0,
        prompt_tokens=4000,
        output_tokens=2,
        changed=watched.changed,
        prefilled=True,
        delay_s=delay_s,
    )
    drive(engine, watched, 5.0)
    step_s = model.cost(ForwardPass(0, 0.0, 1, 4000.0), Setting(700.0)).duration_s
    assert watched.moves[0][0] == pytest.approx(delay_s + step_s, rel=1e-3)
    assert watched.moves[1][0] == pytest.approx(delay_s + 2 * step_s, rel=1e-3)


def test_a_cached_prefix_is_not_computed_again() -> None:
    engine, watched = live_engine(cache=PrefixCache(64)), Watched()
    hashes = tuple(range(16))
    took = []
    for _ in range(2):
        began = watched.now
        engine.submit(
            began, prompt_tokens=1025, output_tokens=1, changed=watched.changed, hashes=hashes
        )
        drive(engine, watched, began + 5.0)
        took.append(watched.moves[-1][0] - began)
    assert took[1] < took[0] / 1.5
    assert engine.load(watched.now).cached_tokens == 1024


def test_watts_follow_what_runs() -> None:
    model = engine_polynomial("H200")
    engine, watched = live_engine(model, cap_w=300.0, startup_s=4.0), Watched()
    loading = engine.load(1.0)
    assert loading.phase is Phase.STARTING
    assert 75.0 < loading.drawn_w < 300.0
    engine.run_until(4.0)
    assert engine.load(4.0).drawn_w == engine.load(4.0).wanted_w == model.idle_w
    engine.submit(5.0, prompt_tokens=4096, output_tokens=40, changed=watched.changed)
    busy = engine.load(5.0)
    assert busy.drawn_w <= 0.987 * 300.0
    assert busy.wanted_w == model.cost(busy.work or ForwardPass(), Setting(700.0)).power_w
    assert busy.wanted_w > 300.0
    assert (busy.running, busy.waiting, busy.queued_prefill_tokens) == (1, 0, 4096)
    watched.now = 5.0
    drive(engine, watched, 60.0)
    assert engine.load(60.0).drawn_w == model.idle_w
    engine.stop(60.0)
    assert engine.load(60.0).phase is Phase.PARKED
    assert engine.load(60.0).drawn_w == 75.0


def test_a_stopped_engine_finishes_what_it_has() -> None:
    engine, watched = live_engine(), Watched()
    engine.submit(0.0, prompt_tokens=100, output_tokens=50, changed=watched.changed)
    engine.stop(0.1)
    assert engine.phase is Phase.DRAINING
    watched.now = 0.1
    drive(engine, watched, 60.0)
    assert watched.moves[-1][1] == 50
    assert engine.load(60.0).phase is Phase.PARKED


def test_what_can_never_fit_is_refused() -> None:
    engine = live_engine(engine_polynomial("H200", kv_capacity_tokens=4096))
    with pytest.raises(InputError, match="4096 tokens"):
        engine.submit(0.0, prompt_tokens=4000, output_tokens=97, changed=Watched().changed)
    assert engine.in_flight == 0
