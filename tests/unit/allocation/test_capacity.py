"""Capacity of replicas on an engine whose times can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.capacity import Limit, Margins, capacity, fleet_capacity_rps, rounded
from wattline.core.engine import ForwardPass, PassCost
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, Fleet, GpuProduct, Pool, Role, Setting, Slo
from wattline.core.mix import Mix
from wattline.core.queueing import mean_batch, mean_wait_s, most_utilisation

P, D, A = Role.PREFILL, Role.DECODE, Role.AGGREGATED
CAPS = tuple(Setting(float(cap)) for cap in range(200, 725, 25))
EXACT = Margins(
    itl_fraction=1.0,
    kv_fraction=1.0,
    batch_deviations=0.0,
    cache_deviations=0.0,
    itl_deviations=0.0,
    input_cv2=0.0,
    output_cv2=0.0,
)


@dataclass(frozen=True)
class Engine:
    """Prompts take 0.1 ms a token, a decode step 10 ms + 0.1 ms per sequence; both at 700 W.

    Prompt time grows as the cap falls, decode time only below 400 W.
    """

    kv_capacity_tokens: int = 1_000_000
    kv_bytes_per_token: float = 100_000.0
    max_num_seqs: int = 1_000
    max_batched_tokens: int = 8_192
    idle_w: float = 100.0

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        clock = min(setting.cap_w / 700.0, setting.clock) * derate
        prompt_s = work.prefill_tokens * 1e-4 / clock
        decode_s = 0.0
        if work.decode_batch:
            decode_s = (0.01 + work.decode_batch * 1e-4) * max(1.0, 4.0 / 7.0 / clock)
        watts = setting.cap_w if work.prefill_tokens else min(setting.cap_w, 450.0)
        return PassCost(prompt_s + decode_s, watts, clock)


TOP = (Setting(700.0),)


def test_prefill_waits_within_what_the_target_leaves() -> None:
    mix, slo = Mix(1000.0, 100.0), Slo(1.0, 0.05)
    point = capacity(Engine(), P, TOP, mix, slo, servers=8, margins=EXACT).points[0]
    # Batching gains nothing here: 0.1 s a prompt, 0.052 s for the cache and the first step.
    left_s = 1.0 - 0.1 - (0.002 + 1000 * 100_000 / 50e9) - 0.05
    used = most_utilisation(left_s, 0.1, 8, 0.0, 0.9)
    assert used > 0.95
    assert point.limit is Limit.COMPUTE
    assert point.rate_rps == pytest.approx(9.5)
    tight = capacity(Engine(), P, TOP, mix, replace(slo, ttft_s=0.2), servers=1, margins=EXACT)
    assert tight.points[0].limit is Limit.TTFT
    assert 0.0 < tight.rate_rps[0] < 5.0
    both = (Setting(350.0), *TOP)
    partly = capacity(Engine(), P, both, mix, replace(slo, ttft_s=0.25), margins=EXACT)
    assert partly.rate_rps[0] == 0.0 < partly.rate_rps[1]
    assert partly.relaxed == 1.0


def test_targets_that_no_setting_meets_are_served_as_best_effort() -> None:
    mix, slo = Mix(1000.0, 100.0), Slo(0.15, 0.05)
    never = capacity(Engine(), P, CAPS, mix, slo, margins=EXACT)
    assert never.relaxed == 2.0
    assert 0.0 < max(never.rate_rps) < 0.01
    assert never.rate_rps[-1] == max(never.rate_rps)
    tiny = replace(Engine(), kv_capacity_tokens=100)
    assert set(capacity(tiny, D, CAPS, mix, slo).rate_rps) == {0.0}


def test_prefill_computes_only_what_no_cache_holds() -> None:
    slo = Slo(2.0, 0.05)
    full = capacity(Engine(), P, TOP, Mix(1000.0, 100.0), slo, margins=EXACT)
    half = capacity(Engine(), P, TOP, Mix(1000.0, 100.0, 0.5), slo, margins=EXACT)
    assert half.rate_rps[0] == pytest.approx(2.0 * full.rate_rps[0], rel=0.02)


def test_prompts_longer_than_a_pass_take_several() -> None:
    point = capacity(Engine(), P, TOP, Mix(20_000.0, 100.0), Slo(60.0, 0.05), margins=EXACT)
    assert point.rate_rps[0] == pytest.approx(0.95 / 2.0, rel=1e-3)


def test_decode_batch_meets_the_itl_target() -> None:
    mix = Mix(1000.0, 200.0)
    point = capacity(Engine(), D, TOP, mix, Slo(1.0, 0.05), margins=EXACT).points[0]
    assert point.limit is Limit.ITL
    assert point.batch == 400.0
    assert point.itl_s == pytest.approx(0.05)
    assert point.rate_rps == pytest.approx(400.0 / (200.0 * 0.05))


def test_decode_batch_fits_the_cache_and_the_engine() -> None:
    mix, slo = Mix(1000.0, 200.0), Slo(1.0, 0.05)
    small = replace(Engine(), kv_capacity_tokens=110_000)
    point = capacity(small, D, TOP, mix, slo, margins=EXACT).points[0]
    assert (point.limit, point.batch) == (Limit.KV, 100.0)
    few = replace(Engine(), max_num_seqs=64)
    point = capacity(few, D, TOP, mix, slo, margins=EXACT).points[0]
    assert (point.limit, point.batch) == (Limit.SEQS, 64.0)
    tiny = replace(Engine(), kv_capacity_tokens=1_000)
    point = capacity(tiny, D, TOP, mix, slo, margins=EXACT).points[0]
    assert (point.limit, point.rate_rps) == (Limit.KV, 0.0)


def test_decode_leaves_room_for_the_spread_of_its_batch() -> None:
    mix, slo = Mix(1000.0, 200.0), Slo(1.0, 0.05)
    spread = replace(EXACT, batch_deviations=2.0)
    batches = [
        capacity(Engine(), D, TOP, mix, slo, servers=n, margins=spread).points[0].batch
        for n in (1, 4, 100)
    ]
    assert batches == sorted(batches)
    assert batches[0] + 2.0 * sqrt(batches[0]) == pytest.approx(400.0, abs=0.01)
    assert batches[2] + 0.2 * sqrt(batches[2]) == pytest.approx(400.0, abs=0.01)


def test_aggregated_steps_include_prompt_chunks() -> None:
    mix, slo = Mix(1000.0, 201.0), Slo(10.0, 0.05)
    point = capacity(Engine(), A, TOP, mix, slo, margins=EXACT).points[0]
    # Per step of a batch b, b / 200 prompts of 0.1 s end: 0.01 + b (0.0001 + 0.0005) seconds.
    assert point.limit is Limit.ITL
    assert point.batch == pytest.approx(66.7, rel=0.01)
    assert point.itl_s is not None
    assert point.itl_s == pytest.approx(0.05, rel=0.01)
    assert point.itl_s <= 0.05
    assert point.rate_rps == pytest.approx(point.batch / 200.0 / point.itl_s, rel=1e-4)


def test_aggregated_prompts_must_keep_up() -> None:
    mix, slo = Mix(4000.0, 2.0), Slo(100.0, 10.0)
    point = capacity(Engine(), A, TOP, mix, slo, margins=EXACT).points[0]
    assert point.limit is Limit.COMPUTE
    assert point.rate_rps < 2.5
    quick = capacity(Engine(), A, TOP, mix, replace(slo, ttft_s=0.5), margins=EXACT).points[0]
    assert quick.limit is Limit.TTFT
    assert quick.rate_rps < point.rate_rps


@given(
    st.sampled_from((P, D, A)),
    st.floats(10.0, 20_000.0),
    st.floats(1.0, 2_000.0),
    st.floats(0.0, 0.9),
    st.floats(0.1, 10.0),
    st.floats(0.005, 0.2),
)
@settings(max_examples=80, deadline=None)
def test_more_watts_or_speed_or_time_never_serve_less(
    role: Role, prompt: float, output: float, cached: float, ttft_s: float, itl_s: float
) -> None:
    mix = Mix(prompt, output, cached)
    table = capacity(Engine(), role, CAPS, mix, Slo(ttft_s, itl_s))
    slowed = capacity(Engine(), role, CAPS, mix, Slo(ttft_s, itl_s), derate=0.7)
    # A whole batch more or less, and rounding to six digits, may go either way.
    for low, high in zip(table.rate_rps, table.rate_rps[1:], strict=False):
        assert low <= high * 1.02 + 1e-9
    if table.relaxed == slowed.relaxed:
        for healthy, derated in zip(table.rate_rps, slowed.rate_rps, strict=True):
            assert derated <= healthy * 1.02 + 1e-9
    assert slowed.relaxed >= table.relaxed
    for setting, point in zip(CAPS, table.points, strict=True):
        assert 100.0 <= point.draw_w <= setting.cap_w
        assert point.curve_w[0] == 100.0
        assert point.itl_s is None or point.itl_s <= itl_s * table.relaxed
    longer = capacity(Engine(), role, CAPS, mix, Slo(ttft_s * 2.0, itl_s))
    if longer.relaxed == table.relaxed:
        assert longer.rate_rps[-1] >= table.rate_rps[-1] * 0.98


def test_a_slowed_gpu_loses_rate_and_not_watts() -> None:
    mix, slo = Mix(1000.0, 100.0), Slo(2.0, 0.05)
    healthy = capacity(Engine(), P, TOP, mix, slo)
    slowed = capacity(Engine(), P, TOP, mix, slo, derate=0.5)
    assert slowed.rate_rps[0] < 0.55 * healthy.rate_rps[0]
    assert slowed.points[0].busy_w == healthy.points[0].busy_w


def test_draw_between_idle_and_full_use() -> None:
    table = capacity(Engine(), D, TOP, Mix(1000.0, 200.0), Slo(1.0, 0.05))
    assert table.draw_at(0, 0.0) == 100.0
    assert table.draw_at(0, table.rate_rps[0]) == table.draw_w[0]
    # Decoding draws nearly as much at half of its rate: a batch is in flight all the time.
    assert table.draw_at(0, table.rate_rps[0] / 2.0) > 440.0


def test_rounded_mixes_share_tables() -> None:
    one, two = Mix(1000.0, 200.0, 0.101), Mix(1010.0, 201.0, 0.099)
    assert rounded(one) == rounded(two)
    assert rounded(one).input_tokens == pytest.approx(1000.0, rel=0.05)
    with pytest.raises(InputError, match="above 0"):
        rounded(Mix(float("nan"), 1.0))


@given(
    st.floats(0.01, 5.0),
    st.floats(0.001, 1.0),
    st.integers(1, 64),
    st.floats(0.0, 4.0),
    st.floats(0.5, 0.99),
)
@settings(max_examples=100, deadline=None)
def test_the_wait_keeps_its_quantile(
    left_s: float, service_s: float, servers: int, cv2: float, quantile: float
) -> None:
    used = most_utilisation(left_s, service_s, servers, cv2, quantile)
    assert 0.0 <= used < 1.0
    scale_s = service_s * (1.0 + cv2) / (2.0 * servers * (1.0 - used))
    chance = used ** (sqrt(2.0 * (servers + 1.0)) - 1.0)
    assert chance * exp(-left_s / scale_s) <= 1.0 - quantile + 1e-9


def test_one_exponential_server_waits_as_theory_says() -> None:
    # M/M/1: W = u s / (1 - u); the chance to wait is u, since sqrt(4) - 1 = 1.
    assert mean_wait_s(0.8, 0.1, 1, 1.0) == pytest.approx(0.4)
    assert mean_wait_s(0.0, 0.1, 1, 1.0) == 0.0
    assert mean_batch(100, 1, 0.0) == 100.0


def test_fleet_capacity_is_that_of_all_gpus_at_their_largest_limit() -> None:
    product = GpuProduct(
        name="X",
        architecture="x",
        min_limit_w=200.0,
        default_limit_w=700.0,
        max_limit_w=700.0,
        idle_w=100.0,
        peak_flops={"bf16": 1e15},
        hbm_bytes=8e10,
        hbm_bytes_per_s=3e12,
        interconnect_bytes_per_s=None,
        min_clock_mhz=None,
        max_clock_mhz=None,
        settle_s=2.0,
    )

    def pool(name: str, deployment: str, role: Role, gpus: int) -> Pool:
        return Pool(
            name=name,
            deployment=deployment,
            role=role,
            gpu="X",
            gpus=gpus,
            gpus_per_replica=2,
            min_replicas=0,
            max_replicas=gpus,
            startup_s=10.0,
        )

    fleet = Fleet(
        products=(product,),
        deployments=(
            Deployment(name="a", model="m", slo=Slo(2.0, 0.05)),
            Deployment(name="b", model="m", slo=Slo(2.0, 0.05)),
        ),
        pools=(pool("p", "a", P, 9), pool("d", "a", D, 4), pool("g", "b", A, 6)),
    )
    mix = Mix(1000.0, 200.0)
    rates = fleet_capacity_rps(fleet, (Engine(),) * 3, (mix, mix))
    slo = Slo(2.0, 0.05)
    prefill = capacity(Engine(), P, TOP, mix, slo, servers=4).rate_rps[0]
    decode = capacity(Engine(), D, TOP, mix, slo, servers=2).rate_rps[0]
    aggregated = capacity(Engine(), A, TOP, mix, slo, servers=3).rate_rps[0]
    assert rates == (min(4 * prefill, 2 * decode), 3 * aggregated)
