"""Random histories on the simulated driver and on NVML and DCGM over stand-ins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_nvml import Release
from gpu_rigs import DcgmRig, NvmlRig, SimulatedRig
from hypothesis import given, settings

from gpu_histories import HISTORIES, Step, check_history

RIGS: dict[str, Callable[[], SimulatedRig]] = {
    "simulated": SimulatedRig,
    "nvml": NvmlRig,
    "nvml-handles-that-move": lambda: NvmlRig(Release(handles_move=True)),
    "dcgm": DcgmRig,
}


@pytest.mark.parametrize("name", list(RIGS))
@settings(max_examples=60)
@given(steps=HISTORIES)
def test_a_write_lands_where_it_was_meant_or_nowhere(name: str, steps: list[Step]) -> None:
    rig = RIGS[name]()
    check_history(rig, steps)
    for gpu in rig.node.gpus:
        assert all(200.0 <= watts <= 700.0 for watts in gpu.writes)
