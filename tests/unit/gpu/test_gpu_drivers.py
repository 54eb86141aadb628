"""What every driver must do, on the simulated driver and on NVML and DCGM over stand-ins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_nvml import Release
from gpu_rigs import DcgmRig, NvmlRig, SimulatedRig

from gpu_conformance import *  # noqa: F403 - the checks themselves

OLDEST = Release(
    bytes_text=True,
    missing=frozenset(
        {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses_v3"}
    ),
    hidden_fields=frozenset(range(185, 193)),
    limit_v2_code=13,
)
MOVING = Release(handles_move=True)

RIGS: dict[str, Callable[[], SimulatedRig]] = {
    "simulated": SimulatedRig,
    "nvml": NvmlRig,
    "nvml-oldest-release": lambda: NvmlRig(OLDEST),
    "nvml-handles-that-move": lambda: NvmlRig(MOVING),
    "dcgm": DcgmRig,
}


@pytest.fixture(params=list(RIGS))
def rig(request: pytest.FixtureRequest) -> SimulatedRig:
    return RIGS[request.param]()
