"""Generated traffic: published statistics, swings, surges, mixes, and the same bytes everywhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from wattline.sim import generate
from wattline.sim.generate import MixShift, Surge, Swing
from wattline.sim.traces import Floats, Trace


def digest(trace: Trace) -> str:
    rows = repr([(r.time_s, r.input_tokens, r.output_tokens) for r in trace])
    return hashlib.sha256(rows.encode()).hexdigest()


def dispersion(time_s: Floats, window_s: float, duration_s: float) -> float:
    windows = int(duration_s // window_s)
    counts = np.bincount((time_s // window_s).astype(np.int64), minlength=windows)[:windows]
    return float(counts.var() / counts.mean())


def sample(seed: int = 7) -> Trace:
    return generate.conversation(
        seed=seed,
        duration_s=600.0,
        mean_rps=5.0,
        swing=Swing(peak_to_trough=3.0, period_s=300.0),
        surges=[Surge(at_s=100.0, factor=3.0, rise_s=10.0, hold_s=30.0, fall_s=20.0)],
    )


def test_chat_has_the_published_lengths_and_rate() -> None:
    trace = generate.conversation(seed=1, duration_s=20_000.0, mean_rps=generate.AZURE_MEAN_RPS)
    mix = trace.mix()
    # Of the file: 5.53 per second, means 1,155 and 211, medians 1,020 and 129, 99th percentile of
    # outputs 601, squared coefficients of variation 0.92 and 0.60.
    assert mix.rate_rps == pytest.approx(5.53, rel=0.05)
    assert mix.mean_input_tokens == pytest.approx(1155.0, rel=0.02)
    assert mix.mean_output_tokens == pytest.approx(211.0, rel=0.02)
    assert np.median(trace.input_tokens) == pytest.approx(1020.0, rel=0.02)
    assert np.median(trace.output_tokens) == pytest.approx(129.0, rel=0.03)
    assert np.percentile(trace.output_tokens, 99) == pytest.approx(601.0, rel=0.02)
    assert mix.input_cv2 == pytest.approx(0.92, rel=0.04)
    assert mix.output_cv2 == pytest.approx(0.60, rel=0.04)


def test_chat_is_as_bursty_as_published() -> None:
    means = np.mean(
        [
            [dispersion(trace.time_s, w, 3500.0) for w in (1.0, 10.0, 60.0)]
            for seed in range(12)
            for trace in [generate.conversation(seed=seed, duration_s=3500.0, mean_rps=5.53)]
        ],
        axis=0,
    )
    assert means == pytest.approx([1.39, 3.86, 16.1], rel=0.15)


def test_without_burstiness_it_is_a_poisson_process() -> None:
    trace = generate.conversation(seed=3, duration_s=20_000.0, mean_rps=5.0, burstiness=0.0)
    for window_s in (1.0, 10.0, 60.0):
        assert dispersion(trace.time_s, window_s, 20_000.0) == pytest.approx(1.0, abs=0.2)


def test_swing_has_its_ratio_its_mean_and_its_peak() -> None:
    swing = Swing(peak_to_trough=4.0, period_s=3600.0, peak_at_s=1000.0)
    at = np.arange(3600.0)
    factor = generate.swing_factor(swing, at)
    assert factor.max() / factor.min() == pytest.approx(4.0)
    assert factor.mean() == pytest.approx(1.0, abs=1e-6)
    assert int(at[factor.argmax()]) == 1000


def test_wave_is_close_to_a_cosine() -> None:
    at = np.linspace(-1.0, 2.0, 10_001)
    cosine = (1.0 - np.cos(2.0 * np.pi * at)) / 2.0
    assert np.abs(generate.wave(at) - cosine).max() <= 0.0101


def test_surge_multiplies_the_rate_while_it_lasts() -> None:
    surge = Surge(at_s=1000.0, factor=4.0, rise_s=20.0, hold_s=400.0, fall_s=100.0)
    trace = generate.conversation(
        seed=2, duration_s=3000.0, mean_rps=20.0, surges=[surge], burstiness=0.0
    )
    counts = np.bincount((trace.time_s // 200.0).astype(np.int64), minlength=15) / 200.0
    assert counts[:5].mean() == pytest.approx(20.0, rel=0.05)
    assert counts[6] == pytest.approx(80.0, rel=0.05)
    assert counts[8:].mean() == pytest.approx(20.0, rel=0.05)


def test_mix_shift_moves_the_share_and_keeps_the_work() -> None:
    shift = MixShift(
        low_share=0.35, high_share=0.65, period_s=600.0, decode_token_cost=3.0, work_units=3000.0
    )
    trace = generate.mix_shift(seed=1, duration_s=12_000.0, mean_rps=20.0, shift=shift)
    part = (trace.time_s % 600.0 // 60.0).astype(np.int64)
    prefill = np.bincount(part, trace.input_tokens)
    work = prefill + 3.0 * np.bincount(part, trace.output_tokens)
    share = prefill / work
    assert share[[0, 9]] == pytest.approx([0.36, 0.36], abs=0.015)
    assert share[[4, 5]] == pytest.approx([0.64, 0.64], abs=0.015)
    assert work / np.bincount(part) == pytest.approx(np.full(10, 3000.0), rel=0.05)


def test_constant_traffic_is_what_it_says() -> None:
    even = generate.constant(
        seed=1, duration_s=10.0, rate_rps=4.0, input_tokens=2048, output_tokens=256, poisson=False
    )
    assert len(even) == 40
    assert np.diff(even.time_s) == pytest.approx(np.full(39, 0.25))
    assert {(r.input_tokens, r.output_tokens) for r in even} == {(2048, 256)}
    random = generate.constant(
        seed=1, duration_s=500.0, rate_rps=40.0, input_tokens=2048, output_tokens=256
    )
    assert len(random) == pytest.approx(20_000, rel=0.03)


def test_times_are_ordered_whole_microseconds_within_the_trace() -> None:
    trace = sample()
    assert np.all(np.diff(trace.time_s) >= 0.0)
    assert trace.time_s[-1] <= trace.duration_s
    assert trace.time_s.tolist() == [round(t, 6) for t in trace.time_s.tolist()]
    assert trace.input_tokens.min() >= 1


def test_one_seed_one_trace() -> None:
    assert digest(sample(7)) == digest(sample(7))
    assert digest(sample(7)) != digest(sample(8))


def test_same_trace_without_the_cpus_vector_units() -> None:
    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from test_generate import digest, sample; print(digest(sample()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(sample())
