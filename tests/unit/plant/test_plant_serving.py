"""What must hold for every request: nothing is lost, nothing waits beside an idle worker."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plant_fixtures import LinearEngine, make_plant, mock_engine, pool

from wattline.core.decision import Admission
from wattline.core.errors import InputError
from wattline.core.fleet import Pool, Role
from wattline.sim.plant import Plant, Routing, Totals
from wattline.sim.plant.prefix import PrefixCache
from wattline.sim.request import Request

AGGREGATED = (pool(Role.AGGREGATED, 4),)
DISAGGREGATED = (pool(Role.PREFILL, 2), pool(Role.DECODE, 2))


def _traffic(count: int, rate_rps: float, seed: int = 3) -> list[Request]:
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1.0 / rate_rps, count)).tolist()
    prompts = random.integers(1, 900, count).tolist()
    outputs = random.integers(1, 200, count).tolist()
    return [Request(t, p, o) for t, p, o in zip(times, prompts, outputs, strict=True)]


def _check_conservation(totals: Totals, offered: int) -> None:
    assert totals.offered == offered
    assert totals.completed + totals.rejected + totals.unfinished == offered
    assert int((totals.status == 1).sum()) == totals.completed
    assert int((totals.status == 2).sum()) == totals.rejected
    completed = totals.status == 1
    assert not np.isnan(totals.ttft_s[completed]).any()
    assert np.isnan(totals.ttft_s[totals.status == 2]).all()
    assert (totals.finished_s[completed] >= totals.arrival_s[completed]).all()
    tokens = int(totals.output_tokens[completed].sum())
    assert tokens <= totals.generated_tokens <= int(totals.output_tokens.sum())
    if not totals.unfinished:
        assert totals.generated_tokens == tokens


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    pools=st.sampled_from([AGGREGATED, DISAGGREGATED]),
    routing=st.sampled_from(list(Routing)),
    count=st.integers(1, 120),
    rate_rps=st.floats(1.0, 60.0),
    threshold=st.sampled_from([None, 0.2, 0.7]),
    events=st.lists(
        st.tuples(st.floats(0.0, 3.0), st.sampled_from(["lose", "return", "stop", "start", "cap"])),
        max_size=8,
    ),
)
def test_every_request_ends_exactly_once(
    pools: tuple[Pool, ...],
    routing: Routing,
    count: int,
    rate_rps: float,
    threshold: float | None,
    events: list[tuple[float, str]],
) -> None:
    engine = LinearEngine(kv_capacity_tokens=2048)
    plant = make_plant(_traffic(count, rate_rps), pools, engine=engine, routing=routing)
    plant.set_admission(0, Admission(active_decode_blocks=threshold))
    now = 0.0
    for gap_s, kind in events:
        now += gap_s
        plant.advance(now)
        _check_conservation(plant.totals(), plant.totals().offered)
        if kind == "lose":
            plant.lose_node(0)
        elif kind == "return":
            plant.return_node(0)
        elif kind == "stop":
            plant.stop_replicas(len(pools) - 1, 1)
        elif kind == "start":
            plant.start_replicas(0, 1)
        else:
            plant.write_limit(1, 300.0)
    for node in range(len(pools)):
        plant.return_node(node)
    for index in range(len(pools)):
        plant.start_replicas(index, 4)
    plant.advance(now + 2000.0)
    totals = plant.totals()
    _check_conservation(totals, count)
    assert totals.unfinished == 0


def test_no_worker_idles_while_its_requests_wait() -> None:
    plant = make_plant(_traffic(300, 40.0), AGGREGATED)
    for step in range(1, 200):
        plant.advance(step * 0.0503)
        view = plant.pool_view(0)
        assert view.running > 0 or view.waiting == 0


def test_a_lower_cap_never_serves_more() -> None:
    served = []
    for cap_w in (200.0, 300.0, 450.0, 600.0, 700.0):
        plant = make_plant(_traffic(600, 60.0), DISAGGREGATED, cap_w=cap_w)
        plant.advance(15.0)
        served.append(plant.totals().generated_tokens)
    assert served == sorted(served)
    assert served[0] < 0.5 * served[-1]


def test_disaggregated_first_token_waits_for_transfer_and_a_decode_step() -> None:
    engine = LinearEngine()
    plant = make_plant([Request(0.0, 200, 11)], DISAGGREGATED, engine=engine)
    plant.advance(5.0)
    totals = plant.totals()
    prefill_s = 1e-3 + 1e-4 * 200 + 1e-7 * 200 * 201 / 2
    transfer_s = 1e6 * 200 / 50e9 + 0.002
    step_s = 5e-3 + 2e-4 + 1e-6 * 200
    assert totals.ttft_s[0] == pytest.approx(prefill_s + transfer_s + step_s, abs=1e-8)
    steps_s = sum(5e-3 + 2e-4 + 1e-6 * (201 + i) for i in range(10))
    assert totals.itl_s[0] == pytest.approx(steps_s / 10, abs=1e-8)


def test_long_prompts_are_chunked_and_short_ones_share_a_pass() -> None:
    engine = LinearEngine(max_batched_tokens=256)
    long = make_plant([Request(0.0, 600, 1)], (pool(Role.AGGREGATED, 1),), engine=engine)
    long.advance(5.0)
    # 256 + 256 + 88 tokens: three passes, each with its own millisecond.
    passes_s = 3e-3 + 1e-4 * 600 + 1e-7 * 600 * 601 / 2 + 5e-3 + 2e-4 + 1e-6 * 600
    assert long.totals().ttft_s[0] == pytest.approx(passes_s, abs=1e-8)
    both = make_plant(
        [Request(0.0, 400, 1), Request(0.01, 100, 1), Request(0.01, 100, 1)],
        (pool(Role.AGGREGATED, 1),),
        engine=engine,
    )
    both.advance(5.0)
    ttft_s = both.totals().ttft_s
    # 256 of the first, then the 144 left of it with all of the second and 12 of the third.
    assert 0.01 + ttft_s[1] == pytest.approx(float(ttft_s[0]), abs=1e-9)
    assert ttft_s[2] > ttft_s[1]


@pytest.mark.parametrize(
    ("admission", "rejects"),
    [
        (Admission(), False),
        (Admission(active_prefill_tokens=1500.0), True),
        (Admission(active_prefill_tokens_frac=6.0), True),
        (Admission(active_decode_blocks=0.9), True),
        (Admission(active_prefill_tokens=1e9, active_decode_blocks=1e3), False),
    ],
)
def test_requests_are_refused_only_when_all_workers_are_busy(
    admission: Admission, rejects: bool
) -> None:
    requests = [Request(0.001 * i, 300, 20) for i in range(60)]
    plant = make_plant(requests, (pool(Role.AGGREGATED, 2),), routing=Routing.LEAST_LOADED)
    plant.set_admission(0, admission)
    plant.advance(0.1)
    counters = plant.demand_view(0)
    assert (counters.rejected > 0) is rejects
    assert counters.arrivals == 60
    plant.advance(60.0)
    assert plant.totals().completed == 60 - counters.rejected


def test_zero_load_is_not_busy_under_a_threshold_of_zero() -> None:
    plant = make_plant([Request(0.0, 10, 2)], (pool(Role.AGGREGATED, 1),))
    plant.set_admission(0, Admission(active_decode_blocks=0.0, active_prefill_tokens=0.0))
    plant.advance(1.0)
    assert plant.totals().completed == 1


@pytest.mark.parametrize("moment_s", [0.0311, 0.2503, 0.4507, 0.6011])
def test_a_worker_is_busy_only_above_its_threshold(moment_s: float) -> None:
    def rejected(tokens_under: int) -> int:
        late = Request(moment_s, 10, 5)
        plant = make_plant([Request(0.0, 200, 300), late], (pool(Role.AGGREGATED, 1),))
        plant.advance(moment_s - 1e-6)
        held = plant.pool_view(0).active_kv_tokens
        assert held > 0
        plant.set_admission(0, Admission(active_decode_blocks=(held - tokens_under) / 4096))
        plant.advance(moment_s)
        return plant.totals().rejected

    assert rejected(0) == 0
    assert rejected(1) == 1


def test_routing_avoids_busy_workers() -> None:
    requests = [Request(0.0, 200, 2), Request(1e-4, 200, 2), Request(2e-4, 200, 2)]
    plant = make_plant(requests, (pool(Role.AGGREGATED, 2),), routing=Routing.ROUND_ROBIN)
    plant.set_admission(0, Admission(active_prefill_tokens=150.0))
    plant.advance(1e-3)
    assert plant.pool_view(0).running == 2
    assert plant.totals().rejected == 1


def test_a_prompt_that_no_cache_can_hold_is_refused() -> None:
    plant = make_plant([Request(0.0, 4000, 200), Request(0.1, 10, 5)], AGGREGATED)
    plant.advance(5.0)
    assert plant.totals().status.tolist() == [2, 1]


def test_known_prefixes_are_not_computed_again() -> None:
    hashes = tuple(range(7))
    requests = [Request(0.0, 3600, 2, 0, hashes), Request(5.0, 3600, 2, 0, hashes)]
    engine = LinearEngine(kv_capacity_tokens=16384)
    plant = make_plant(requests, AGGREGATED, engine=engine, routing=Routing.KV_AWARE)
    plant.advance(20.0)
    totals, counters = plant.totals(), plant.demand_view(0)
    assert counters.cached_tokens_sum == 7 * 512
    assert totals.ttft_s[1] < 0.1 * totals.ttft_s[0]


def test_prefix_cache_forgets_the_least_recently_used_tail_first() -> None:
    cache, room = PrefixCache(512), 4 * 512
    cache.insert((1, 2, 3), room)
    cache.insert((1, 9), room)
    assert cache.match((1, 9)) == 2 * 512
    cache.insert((1, 9, 10), room)
    assert cache.match((1, 2, 3)) == 2 * 512
    cache.trim(512)
    assert cache.match((1, 9, 10)) == 512
    cache.clear()
    assert cache.match((1, 2)) == 0


def test_counters_over_windows_add_up() -> None:
    plant = make_plant(_traffic(200, 20.0), AGGREGATED)
    arrivals = completions = tokens = 0
    latencies: list[float] = []
    for second in range(1, 60):
        plant.advance(float(second))
        window = plant.demand_view(0)
        assert window.window_s == pytest.approx(1.0)
        arrivals += window.arrivals
        completions += window.completions
        tokens += window.output_tokens_sum
        latencies += window.ttft_s
    totals = plant.totals()
    assert (arrivals, completions) == (200, totals.completed)
    assert tokens == totals.output_tokens.sum()
    assert sorted(latencies) == sorted(totals.ttft_s.tolist())
    assert plant.demand_view(0).ttft_s == ()


def _digest(plant: Plant, stops: list[float]) -> tuple[bytes, ...]:
    samples = []
    for stop in stops:
        plant.advance(stop)
        samples.append(plant.power_samples().fleet_w)
    totals = plant.totals()
    return totals.finished_s.tobytes(), totals.ttft_s.tobytes(), np.concatenate(samples).tobytes()


def test_equal_seeds_give_equal_bytes_however_time_is_cut() -> None:
    def build(seed: int) -> Plant:
        return make_plant(_traffic(300, 30.0), DISAGGREGATED, engine=mock_engine(), seed=seed)

    once = _digest(build(1), [30.0])
    cut = _digest(build(1), [0.05, 3.7, 3.75, 12.0, 29.99, 30.0])
    assert once[:2] == cut[:2]
    assert once == _digest(build(1), [30.0])
    again = np.frombuffer(once[2]), np.frombuffer(cut[2])
    assert np.abs(again[0] - again[1]).max() < 0.01


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([Request(1.0, 5, 5), Request(0.5, 5, 5)], "request 1, time_s"),
        ([Request(float("nan"), 5, 5)], "request 0, time_s"),
        ([Request(-1.0, 5, 5)], "request 0, time_s"),
        ([Request(0.0, 0, 5)], "request 0, tokens"),
        ([Request(0.0, 5, 0)], "request 0, tokens"),
        ([Request(0.0, 5, 5), Request(0.0, 5, 5, 1)], "request 1, deployment"),
    ],
)
def test_requests_that_cannot_be_used_are_named(requests: list[Request], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_plant(requests, AGGREGATED).advance(10.0)


def test_roles_that_cannot_serve_together_are_refused() -> None:
    with pytest.raises(InputError, match="roles of its pools"):
        make_plant([], (pool(Role.PREFILL, 1),))
