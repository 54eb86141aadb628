"""The real AIConfigurator: that it answers as the stand-in does, and what its answers are worth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from build_predictor import find

from wattline.catalog import engine_profile
from wattline.controller.model_engines import profile_of
from wattline.core.engine import ForwardPass
from wattline.core.fleet import Pool, Role
from wattline.drivers.aic import Aic, AicError, Request, Table

POOL = Pool(
    name="pool",
    deployment="one",
    role=Role.AGGREGATED,
    gpu="H200",
    gpus=2,
    gpus_per_replica=2,
    min_replicas=0,
    max_replicas=1,
    startup_s=0.0,
)
TOKENS = tuple(2**power for power in range(7, 14))
REQUEST = Request(
    models=("Qwen/Qwen3-32B",),
    system="h200_sxm",
    backend="vllm",
    backend_version=None,
    tp=2,
    prefill_tokens=TOKENS,
    contexts=TOKENS,
    batches=tuple(2**power for power in range(10)),
)

pytestmark = pytest.mark.slow


@pytest.fixture(name="python", scope="module")
def _python() -> Path:
    python = find()
    if python is None:
        reason = "the real AIConfigurator: `python tests/contract/aic/build_predictor.py`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return python


@pytest.fixture(name="aic", scope="module")
def _aic(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aic]:
    aic = Aic(python=python, limit_s=100.0, cache=tmp_path_factory.mktemp("cache"))
    yield aic
    aic.close()


@pytest.fixture(name="table", scope="module")
def _table(aic: Aic) -> Table:
    return aic.sweep([REQUEST])[0]


def test_it_answers_every_point_that_fits(table: Table) -> None:
    assert table.package.startswith(("aiconfigurator 0.", "aisimulate 0."))
    assert [point.tokens for point in table.prefill] == list(TOKENS)
    assert (table.failed_points, table.why) == (0, None)
    times = [point.seconds for point in table.prefill]
    assert times == sorted(times)
    assert 0.001 < times[0] < times[-1] < 10.0
    assert 100_000 < table.kv_tokens < 2_000_000
    assert {point.tokens for point in table.decode} == set(TOKENS)
    assert all(point.batch * point.tokens <= table.kv_tokens for point in table.decode)
    for context in TOKENS:
        steps = [point.seconds for point in table.decode if point.tokens == context]
        assert steps[-1] > steps[0]


def test_watts_are_withheld_where_too_little_was_measured(table: Table) -> None:
    # In 0.12 that is nearly everywhere: 3 of its 736 tables have power columns.
    for point in (*table.prefill, *table.decode):
        assert point.coverage is not None
        if point.coverage < 0.9:
            assert point.power_w is None


def test_between_the_points_the_engine_agrees_with_the_library(aic: Aic, table: Table) -> None:
    between = replace(
        REQUEST,
        prefill_tokens=(200, 700, 3000, 6000),
        contexts=(300, 1500, 5000),
        batches=(3, 50, 100, 250),
    )
    asked = aic.sweep([between])[0]
    engine = engine_profile(profile_of(table), POOL)
    for point in asked.prefill:
        work = ForwardPass(point.tokens, point.tokens * (point.tokens + 1) / 2.0)
        assert engine.measured_s(work) == pytest.approx(point.seconds, rel=0.2)
    for point in asked.decode:
        held = float(point.batch * point.tokens)
        work = ForwardPass(decode_batch=point.batch, decode_kv_tokens=held)
        assert engine.measured_s(work) == pytest.approx(point.seconds, rel=0.1)


def test_a_mixture_of_experts_on_another_system_and_framework(aic: Aic) -> None:
    request = replace(
        REQUEST,
        models=("Qwen/Qwen3-30B-A3B",),
        system="b200_sxm",
        backend="trtllm",
        moe_tp=2,
        moe_ep=1,
    )
    table = aic.sweep([request])[0]
    assert len(table.prefill) == len(TOKENS)
    assert table.kv_tokens > 100_000


def test_what_it_does_not_know_is_one_line_and_never_a_download(aic: Aic) -> None:
    for unknown in (
        replace(REQUEST, models=("nobody/has-this",)),
        replace(REQUEST, system="h9000"),
        replace(REQUEST, backend_version="0.0.1"),
    ):
        with pytest.raises(AicError) as caught:
            aic.sweep([unknown])
        assert "\n" not in str(caught.value)
        assert not caught.value.missing


def test_the_command_sweeps_sizes_and_caps_and_keeps_profiles(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "wattline", "profile", "sweep"),
            *("--model", "Qwen3-32B", "--gpu", "H200", "--python", str(python)),
            *("--gpus-per-replica", "1", "--gpus-per-replica", "2"),
            *("--out", str(tmp_path / "profiles"), "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    one, two = json.loads(done.stdout)
    assert (one["gpus_per_replica"], two["gpus_per_replica"]) == (1, 2)
    for role in ("prefill", "decode"):
        rates = [row[role]["rps"] for row in two["rows"]]
        assert rates == sorted(rates, reverse=True)
        assert two["rows"][0][role]["rps"] > one["rows"][0][role]["rps"]
    assert "too little was measured" in one["coverage"]
    engine = engine_profile(tmp_path / "profiles" / "2", POOL)
    assert engine.kv_capacity_tokens == two["kv_capacity_tokens"]
