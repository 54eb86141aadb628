"""What a virtual GPU draws: held against its own log, by the law of the simulator's plant."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.sim.plant.config import LimiterNoise
from wattline.virtual.gpus import Change, GpuState, VirtualGpus

SETTLE_NS = 2_000_000_000
IDLE_W = 70.0
HELD = LimiterNoise().mean_fraction


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[VirtualGpus]:
    with VirtualGpus.create(tmp_path / "gpus.state", ["h100"], settle_s=SETTLE_NS / 1e9) as made:
        yield made


@contextmanager
def changed(changes: list[tuple[float, float]]) -> Iterator[VirtualGpus]:
    """A GPU of its own with these limits and loads, written as fast as can be."""
    with (
        TemporaryDirectory() as folder,
        VirtualGpus.create(Path(folder) / "gpus.state", ["h100"], settle_s=SETTLE_NS / 1e9) as gpus,
    ):
        for limit_w, load_w in changes:
            gpus.write_limit(0, limit_w)
            gpus.set_load(0, load_w)
        yield gpus


def after(gpus: VirtualGpus, seconds: float) -> GpuState:
    """The GPU so long after the newest change."""
    return gpus.state(0, at_ns=gpus.changes(0)[0][-1].time_ns + round(seconds * 1e9))


def expected_w(log: list[Change], at_ns: int) -> float:
    """Draw at a time past the newest change: the register of a settle time ago limits it."""
    obeyed = [change for change in log if change.time_ns + SETTLE_NS <= at_ns] or log[:1]
    load_w = log[-1].load_mw / 1000
    return max(IDLE_W, min(load_w, HELD * obeyed[-1].enforced_mw / 1000))


changes = st.lists(st.tuples(st.floats(200.0, 700.0), st.floats(0.0, 900.0)), max_size=8)
times = st.integers(0, 2 * SETTLE_NS)


@given(changes=changes, later_ns=times)
@settings(max_examples=60)
def test_the_draw_obeys_the_register_of_a_settle_time_ago(
    changes: list[tuple[float, float]], later_ns: int
) -> None:
    with changed(changes) as gpus:
        log, _ = gpus.changes(0)
        at_ns = log[-1].time_ns + later_ns
        found_w = gpus.state(0, at_ns=at_ns).draw_w
    assert found_w == pytest.approx(expected_w(log, at_ns), abs=1e-6)


@given(changes=changes, later_ns=times, span_ns=times)
@settings(max_examples=60)
def test_energy_is_the_integral_of_the_draw(
    changes: list[tuple[float, float]], later_ns: int, span_ns: int
) -> None:
    with changed(changes) as gpus:
        log, _ = gpus.changes(0)
        start_ns = log[-1].time_ns + later_ns
        end_ns = start_ns + span_ns
        found_j = [gpus.state(0, at_ns=at_ns).energy_j for at_ns in (start_ns, end_ns)]
    steps = [change.time_ns + SETTLE_NS for change in log]
    cuts = sorted({start_ns, end_ns, *(step for step in steps if start_ns < step < end_ns)})
    want_j = sum(expected_w(log, a) * (b - a) / 1e9 for a, b in pairwise(cuts))
    assert found_j[1] - found_j[0] == pytest.approx(want_j, abs=1e-6)


def test_lowering_and_raising_are_both_late(gpus: VirtualGpus) -> None:
    gpus.set_load(0, 650.0)
    gpus.write_limit(0, 300.0)
    assert after(gpus, 2.0 - 1e-9).draw_w == 650.0
    assert after(gpus, 2.0).draw_w == pytest.approx(HELD * 300.0)
    gpus.write_limit(0, 500.0)
    assert after(gpus, 2.0 - 1e-9).draw_w == pytest.approx(HELD * 300.0)
    assert after(gpus, 2.0).draw_w == pytest.approx(HELD * 500.0)


def test_the_load_acts_at_once(gpus: VirtualGpus) -> None:
    for load_w in (650.0, 0.0, 300.0):
        gpus.set_load(0, load_w)
        assert after(gpus, 0.0).draw_w == max(IDLE_W, load_w)


def test_energy_is_carried_over_changes(gpus: VirtualGpus) -> None:
    start = gpus.changes(0)[0][0]
    for load_w in (100.0, 650.0, 300.0):
        gpus.set_load(0, load_w)
    log, _ = gpus.changes(0)
    want_j = sum(
        max(IDLE_W, a.load_mw / 1000) * (b.time_ns - a.time_ns) / 1e9 for a, b in pairwise(log)
    )
    found_j = gpus.state(0, at_ns=log[-1].time_ns).energy_j
    assert start.time_ns < log[-1].time_ns
    assert found_j == pytest.approx(want_j, abs=1e-6)


def test_the_mean_is_that_of_the_last_second(gpus: VirtualGpus) -> None:
    gpus.set_load(0, 650.0)
    gpus.write_limit(0, 300.0)
    for seconds in (1.0, 1.9, 2.25, 2.75, 3.0, 10.0):
        end = after(gpus, seconds)
        start = after(gpus, seconds - 1.0)
        assert end.average_w == pytest.approx(end.energy_j - start.energy_j, abs=1e-3)
    assert after(gpus, 2.5).average_w == pytest.approx((650.0 + HELD * 300.0) / 2, abs=0.5)


def test_samples_deviate_as_the_limiter_does(gpus: VirtualGpus) -> None:
    gpus.set_load(0, 650.0)
    gpus.write_limit(0, 400.0)
    samples = [after(gpus, 10.0 + i / 10).instant_w for i in range(3000)]
    mean_w = HELD * 400.0
    sigma_w = LimiterNoise().sample_sigma * (mean_w - IDLE_W)
    assert statistics.fmean(samples) == pytest.approx(mean_w, abs=5 * sigma_w / 3000**0.5)
    assert statistics.pstdev(samples) == pytest.approx(sigma_w, rel=0.1)
    assert max(samples) > 400.0


def test_an_idle_gpu_draws_evenly(gpus: VirtualGpus) -> None:
    state = after(gpus, 10.0)
    assert (state.draw_w, state.instant_w, state.average_w) == (IDLE_W, IDLE_W, IDLE_W)
    assert (state.capped, state.clock_mhz) == (False, 345)


def test_a_capped_gpu_runs_slower(gpus: VirtualGpus) -> None:
    gpus.set_load(0, 650.0)
    clocks = []
    for limit_w in (600.0, 500.0, 400.0, 300.0, 200.0):
        gpus.write_limit(0, limit_w)
        state = after(gpus, 10.0)
        assert state.capped
        clocks.append(state.clock_mhz)
    assert clocks == sorted(clocks, reverse=True)
    assert len(set(clocks)) == len(clocks)
