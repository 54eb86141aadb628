"""Dynamo itself on our profile files, and we on the grid that Dynamo makes of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from wattline.catalog.profiles import Profile, raw_documents, read_profile
from wattline.core.profile import DecodeSlice
from wattline.live import environment
from wattline.sim.files import write_text

pytestmark = pytest.mark.slow

CONVERT = """
import sys
from dynamo.mocker.utils.planner_profiler_perf_data_converter import (
    convert_profile_results_to_npz, is_mocker_format_npz, is_profile_results_dir,
)
from pathlib import Path
assert is_profile_results_dir(Path(sys.argv[1]))
convert_profile_results_to_npz(sys.argv[1], sys.argv[2])
assert is_mocker_format_npz(Path(sys.argv[2]))
"""


@pytest.fixture(name="dynamo")
def _dynamo() -> environment.Environment:
    found = environment.find(planner=True)
    if found is None:
        reason = "Dynamo's planner: `python -m wattline.live.environment --planner`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def test_dynamo_reads_our_pair_and_we_read_its_grid(
    dynamo: environment.Environment, tmp_path: Path
) -> None:
    lengths = [200.0, 1000.0, 2000.0, 4000.0, 8000.0]
    usage = [0.05, 0.2, 0.4, 0.6, 0.8, 1.0]
    held = 500_000

    def step_s(context: float, used: float) -> float:
        # What Dynamo's regression can hold: linear in sequences and in tokens held.
        tokens = used * held
        return 0.005 + 2e-5 * tokens / context + 2e-8 * tokens

    profile = Profile(
        tuple(lengths),
        tuple(0.01 + 3e-5 * tokens for tokens in lengths),
        tuple(
            DecodeSlice(context, tuple(usage), tuple(step_s(context, u) for u in usage))
            for context in (2000.0, 4000.0, 8000.0)
        ),
        held,
    )
    folder = tmp_path / "pair"
    for name, document in raw_documents(profile, 2).items():
        write_text(folder / name, json.dumps(document))
    assert read_profile(folder).gpus == 2
    grid = tmp_path / "perf_data.npz"
    done = subprocess.run(
        [dynamo.python, "-c", CONVERT, folder, grid],
        env={**os.environ, **dynamo.variables(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = read_profile(grid)
    assert found.form == "planner profile data"
    assert found.max_kv_tokens == pytest.approx(held, rel=0.001)
    for tokens, seconds in zip(found.prefill_tokens, found.prefill_s, strict=True):
        assert seconds == pytest.approx(0.01 + 3e-5 * tokens, rel=0.01)
    for entry in found.decode:
        if entry.context_tokens < 2000.0:
            continue  # drawn on beyond what was profiled
        for used, seconds in zip(entry.kv_usage, entry.itl_s, strict=True):
            if used * held >= entry.context_tokens:
                expected_s = step_s(entry.context_tokens, used)
                assert seconds == pytest.approx(expected_s, rel=0.05)
