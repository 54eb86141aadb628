from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fit_fixtures import csv_text, kernel_rows

from wattline.catalog import gpu
from wattline.catalog.measurements import read_measurements
from wattline.core.fit.kernels import KernelRun, attention_work, gemm_work
from wattline.core.fit.ops import fit_ops
from wattline.core.fit.report import op_report


def kernels(
    folder: Path, product: str = "B200", limit_w: float = 1000.0, scale: float = 1.0
) -> list[KernelRun]:
    path = folder / f"{product}.csv"
    path.write_text(csv_text(kernel_rows(limit_w, scale)))
    return list(read_measurements(path, product).ops)


def median_error(predicted: list[float], runs: list[KernelRun]) -> float:
    measured = np.array([run.watts for run in runs], dtype=float)
    return float(np.median(np.abs(np.array(predicted) / measured - 1.0)))


def test_work_of_a_gemm_by_hand() -> None:
    work = gemm_work(2.0, 3.0, 4.0, "fp8_block")
    assert work.flop == 48.0
    assert work.bytes == 12.0 + 8.0 + 2.0 * 6.0
    assert work.arithmetic == "fp8"
    assert work.family == gemm_work(512.0, 3.0, 4.0, "bfloat16").family


def test_work_of_decode_attention_by_hand() -> None:
    work = attention_work(2.0, 1.0, 9.0, 8.0, 2.0, 64.0, "bfloat16", "fp8")
    assert work.flop == 4.0 * 2.0 * 8.0 * 64.0 * 10.0
    cache = 2.0 * 2.0 * 10.0 * 2.0 * 64.0
    assert work.bytes == cache + 2.0 * 8.0 * 64.0 * 4.0


def test_a_prompt_attends_causally() -> None:
    work = attention_work(1.0, 4.0, 0.0, 1.0, 1.0, 64.0, "bfloat16", "bfloat16")
    assert work.flop == 4.0 * 64.0 * (1 + 2 + 3 + 4)


def test_watts_of_known_kernels_are_recovered_on_shapes_not_seen(tmp_path: Path) -> None:
    runs = kernels(tmp_path)
    record = op_report(runs, []).record
    cross = record["cross_validation"]
    assert isinstance(cross, dict)
    assert cross["rows"] == len(runs)
    assert cross["watts_median_error"] < 0.06
    assert cross["token_rate_median_error"] is None
    assert cross["token_rate_reason"]
    assert 0 < cross["long_kernels"]["rows"] < len(runs)


def test_an_unseen_product_of_the_same_silicon_draws_the_same_watts(tmp_path: Path) -> None:
    fit = fit_ops(kernels(tmp_path, "H200", 700.0, 0.7) + kernels(tmp_path))
    unseen = kernels(tmp_path, "GB200", 1200.0)
    assert fit.base_for(gpu("GB200")).name == "B200"
    assert median_error(fit.predict(unseen), unseen) < 0.03


def test_no_prediction_exceeds_the_limit(tmp_path: Path) -> None:
    runs = kernels(tmp_path, "B200", 1000.0, 1.6)
    fit = fit_ops(runs)
    assert max(fit.predict(runs)) <= 1000.0
    lowered = [replace(run, limit_w=400.0) for run in runs]
    assert max(fit.predict(lowered)) <= 400.0


def test_a_higher_limit_frees_kernels_that_the_fit_saw_held(tmp_path: Path) -> None:
    fit = fit_ops(kernels(tmp_path, "B200", 1000.0, 1.8))
    unseen = kernels(tmp_path, "GB200", 1200.0, 1.8)
    faster = [replace(run, latency_s=run.latency_s / 1.05) for run in unseen]
    held = [i for i, run in enumerate(unseen) if run.watts == 1200.0]
    same, more = fit.predict(unseen), fit.predict(faster)
    assert held
    assert all(more[i] >= same[i] for i in held)
    assert np.median([more[i] for i in held]) > 1000.0


def test_rows_that_read_low_do_not_pull_the_rest_down(tmp_path: Path) -> None:
    runs = kernels(tmp_path)
    biased = [
        replace(run, watts=0.5 * (run.watts or 0.0)) if index % 11 == 0 else run
        for index, run in enumerate(runs)
    ]
    assert median_error(fit_ops(biased).predict(runs), runs) < 0.05


def test_a_kind_that_was_not_measured_is_still_predicted(tmp_path: Path) -> None:
    runs = kernels(tmp_path)
    fit = fit_ops([run for run in runs if run.op == "gemm"])
    assert all(100.0 < watts <= 1000.0 for watts in fit.predict(runs))
    fp4 = [replace(run, dtype="nvfp4") for run in runs if run.op == "gemm"]
    assert all(100.0 < watts <= 1000.0 for watts in fit.predict(fp4))


@pytest.mark.parametrize("rows", [1, 5])
def test_very_few_kernels_are_enough_not_to_fail(tmp_path: Path, rows: int) -> None:
    runs = kernels(tmp_path)
    assert len(fit_ops(runs[:rows]).predict(runs)) == len(runs)
