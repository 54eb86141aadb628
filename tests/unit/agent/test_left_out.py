"""A GPU that did not answer when the agent started is looked for soon, not with the next hour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_fixtures import Bench, assert_eventually

from wattline.drivers.gpu.device import GpuFault
from wattline.drivers.gpu.simulated import ANY_CALL


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, settings={"reconcile_s": 3600.0})
    yield bench
    bench.stop()


def test_a_gpu_that_was_lost_at_the_start_is_found_when_it_is_back(bench: Bench) -> None:
    bench.gpu(1).faults[ANY_CALL] = GpuFault.LOST
    bench.start()
    assert_eventually(lambda: len(bench.picture().gpus) == 1, "the GPU that answers")
    del bench.gpu(1).faults[ANY_CALL]
    bench.known()
    bench.grant(400.0, 300.0)
    assert_eventually(lambda: bench.limits() == [400.0, 300.0], "both limits")
