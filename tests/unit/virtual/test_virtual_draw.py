"""What a virtual GPU draws: held against a stepwise integration, and against the settle time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.virtual.gpus import VirtualGpus

SETTLE_S = 2.0
IDLE_W, MIN_W, MAX_W = 70.0, 200.0, 700.0


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualGpus]:
    path = tmp_path_factory.mktemp("draw") / "gpus.state"
    with VirtualGpus.create(path, ["h100"], settle_s=SETTLE_S) as made:
        yield made


def at(gpus: VirtualGpus, after_s: float) -> tuple[float, float, float]:
    """Draw, mean of the last second and energy, so long after the newest change."""
    since_ns = gpus.changes(0)[0][-1].time_ns
    state = gpus.state(0, at_ns=since_ns + round(after_s * 1e9))
    return state.draw_w, state.average_w, state.energy_j


watts = st.floats(MIN_W, MAX_W)
loads = st.floats(0.0, 900.0)


@given(limit_w=watts, load_w=loads)
@settings(max_examples=40)
def test_the_limit_is_obeyed_when_the_settle_time_has_passed(
    gpus: VirtualGpus, limit_w: float, load_w: float
) -> None:
    gpus.set_load(0, load_w)
    gpus.write_limit(0, limit_w)
    for after_s in (SETTLE_S, SETTLE_S * 1.5, 100.0):
        draw_w, _, _ = at(gpus, after_s)
        assert draw_w == pytest.approx(max(IDLE_W, min(load_w, limit_w)), abs=0.002)


@given(limit_w=watts, load_w=loads, after_s=st.floats(0.0, SETTLE_S))
@settings(max_examples=40)
def test_meanwhile_the_draw_lies_between(
    gpus: VirtualGpus, limit_w: float, load_w: float, after_s: float
) -> None:
    gpus.set_load(0, load_w)
    gpus.write_limit(0, limit_w)
    low_w, high_w = sorted([at(gpus, 0.0)[0], at(gpus, SETTLE_S)[0]])
    draw_w, _, _ = at(gpus, after_s)
    assert low_w <= draw_w <= high_w


@given(limit_w=watts, load_w=loads, span_s=st.floats(0.1, 4.0))
@settings(max_examples=12)
def test_energy_is_the_integral_of_the_draw(
    gpus: VirtualGpus, limit_w: float, load_w: float, span_s: float
) -> None:
    gpus.set_load(0, load_w)
    gpus.write_limit(0, limit_w)
    steps = 200
    width_s = span_s / steps
    middles = [at(gpus, (i + 0.5) * width_s)[0] for i in range(steps)]
    energy_j = at(gpus, span_s)[2] - at(gpus, 0.0)[2]
    # The kinks of the draw lie inside a step each, where the midpoint rule is off.
    kinks_j = 2 * (MAX_W - MIN_W) / SETTLE_S * width_s**2
    assert energy_j == pytest.approx(sum(middles) * width_s, abs=kinks_j + 0.01)


@given(changes=st.lists(st.tuples(watts, loads), min_size=1, max_size=8))
@settings(max_examples=25)
def test_energy_never_falls_and_lies_between_idle_and_most(
    gpus: VirtualGpus, changes: list[tuple[float, float]]
) -> None:
    first = gpus.state(0)
    start_ns = gpus.changes(0)[0][-1].time_ns
    start_j = gpus.state(0, at_ns=start_ns).energy_j
    for limit_w, load_w in changes:
        gpus.write_limit(0, limit_w)
        gpus.set_load(0, load_w)
        after = gpus.state(0)
        assert after.energy_j >= first.energy_j
    end_ns = gpus.changes(0)[0][-1].time_ns
    span_s = (end_ns - start_ns) / 1e9
    energy_j = gpus.state(0, at_ns=end_ns).energy_j - start_j
    assert IDLE_W * span_s - 1e-6 <= energy_j <= max(MAX_W, 900.0) * span_s + 1e-6


def test_the_mean_follows_within_a_second(gpus: VirtualGpus) -> None:
    gpus.write_limit(0, MAX_W)
    gpus.set_load(0, 650.0)
    draw_w, mean_w, _ = at(gpus, SETTLE_S + 1.0)
    assert draw_w == mean_w == pytest.approx(650.0)
    settled_ns = gpus.changes(0)[0][-1].time_ns + 4_000_000_000
    energy_j = [gpus.state(0, at_ns=settled_ns + ns).energy_j for ns in (0, 1_000_000_000)]
    assert energy_j[1] - energy_j[0] == pytest.approx(650.0)


def test_a_load_below_the_limit_is_not_held_back(gpus: VirtualGpus) -> None:
    gpus.write_limit(0, MAX_W)
    gpus.set_load(0, 0.0)
    settled_ns = gpus.changes(0)[0][-1].time_ns + 10_000_000_000
    state = gpus.state(0, at_ns=settled_ns)
    assert (state.draw_w, state.capped, state.clock_mhz) == (IDLE_W, False, 345)


def test_a_capped_gpu_runs_slower(gpus: VirtualGpus) -> None:
    gpus.set_load(0, 650.0)
    clocks = []
    for limit_w in (600.0, 500.0, 400.0, 300.0, 200.0):
        gpus.write_limit(0, limit_w)
        settled_ns = gpus.changes(0)[0][-1].time_ns + 10_000_000_000
        state = gpus.state(0, at_ns=settled_ns)
        assert state.capped
        clocks.append(state.clock_mhz)
    assert clocks == sorted(clocks, reverse=True)
    assert len(set(clocks)) == len(clocks)
