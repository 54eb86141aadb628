"""The same command gives the same bytes, whatever the processor's vector units and hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from numpy._core._multiarray_umath import (  # type: ignore[import-not-found]
    __cpu_baseline__,
    __cpu_dispatch__,
    __cpu_features__,
)

HERE = Path(__file__).parent
DISPATCHED = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
"""Instructions that numpy found here and chooses at run time: those that can be switched off."""

RECORD = """
import sys
from pathlib import Path
from loop_fixtures import small
from numpy._core._multiarray_umath import __cpu_features__ as features
from wattline.sim.runs import Job, run

still_on = [name for name in sys.argv[3].split() if features[name]]
assert not still_on, f"numpy still uses {still_on}"
ready = small()
run(ready, Job(sys.argv[1], ready.budget_w(None)), record=Path(sys.argv[2]))
"""


def record(folder: Path, policy: str, *, hash_seed: int, without: str = "") -> bytes:
    """Bytes of a recording made in a fresh process."""
    path = folder / f"{policy}-{hash_seed}-{len(without)}.jsonl.gz"
    environment = os.environ | {
        "PYTHONPATH": str(HERE),
        "PYTHONHASHSEED": str(hash_seed),
        "NPY_DISABLE_CPU_FEATURES": without,
    }
    if not without:
        del environment["NPY_DISABLE_CPU_FEATURES"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RECORD, policy, str(path), without],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path.read_bytes()


@pytest.fixture(scope="module", params=["wattline", "threshold"])
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def _reference(folder: Path, policy: str) -> bytes:
    return record(folder, policy, hash_seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


def test_without_the_processors_vector_units(folder: Path, policy: str) -> None:
    if not DISPATCHED:
        pytest.skip(
            f"numpy found nothing to switch off here beyond its baseline {__cpu_baseline__}: "
            "that recordings do not depend on the processor was NOT checked"
        )
    plain = record(folder, policy, hash_seed=1, without=" ".join(DISPATCHED))
    assert plain == _reference(folder, policy)


def test_under_another_hash_seed(folder: Path, policy: str) -> None:
    assert record(folder, policy, hash_seed=2) == _reference(folder, policy)
