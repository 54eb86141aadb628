"""Random histories of a node: a write always lands on the GPU that was meant, or nowhere.

For any rig of `gpu_conformance`.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st

from gpu_conformance import Rig
from wattline.drivers.gpu.device import GpuDevice, GpuError, GpuFault

GPUS = 4


@dataclass(frozen=True)
class Write:
    gpu: int
    watts: float


@dataclass(frozen=True)
class Rival:
    gpu: int
    watts: float


@dataclass(frozen=True)
class Reorder:
    order: tuple[int, ...]


@dataclass(frozen=True)
class Fault:
    gpu: int
    fault: GpuFault | None


@dataclass(frozen=True)
class Enumerate:
    pass


@dataclass(frozen=True)
class Reload:
    pass


PLACES = st.integers(0, GPUS - 1)
WATTS = st.one_of(
    st.floats(150.0, 750.0),
    st.sampled_from([200.0, 199.9999, 700.0, 700.0001, 0.0, -1.0, 1e18]),
    st.floats(allow_nan=True, allow_infinity=True),
)
STEPS = st.one_of(
    st.builds(Write, PLACES, WATTS),
    st.builds(Write, PLACES, st.floats(200.0, 700.0)),
    st.builds(Rival, PLACES, st.integers(200, 700).map(float)),
    st.builds(Reorder, st.permutations(range(GPUS)).map(tuple)),
    st.builds(Fault, PLACES, st.sampled_from([None, *GpuFault])),
    st.just(Enumerate()),
    st.just(Reload()),
)

Step = Write | Rival | Reorder | Fault | Enumerate | Reload
HISTORIES = st.lists(STEPS, max_size=25)


def check_history(rig: Rig, steps: list[Step]) -> None:
    """Live through the steps and compare each GPU's register with what it must be."""
    devices = {gpu.identity.uuid: gpu for gpu in rig.driver.enumerate()}
    uuids = list(devices)
    expected = dict.fromkeys(uuids, 700.0)
    for step in steps:
        match step:
            case Write(gpu, watts):
                written = attempt(rig, devices[uuids[gpu]], watts)
                if written is not None:
                    expected[uuids[gpu]] = written
            case Rival(gpu, watts):
                rig.rival(uuids[gpu], watts)
                expected[uuids[gpu]] = watts
            case Reorder(order):
                rig.reorder([uuids[place] for place in order])
            case Fault(gpu, fault):
                rig.fail(uuids[gpu], fault)
            case Reload():
                rig.reload()
                expected = dict.fromkeys(uuids, 700.0)
            case Enumerate():
                with contextlib.suppress(GpuError):
                    devices |= {gpu.identity.uuid: gpu for gpu in rig.driver.enumerate()}
        for uuid in uuids:
            assert rig.enforced_w(uuid) == pytest.approx(expected[uuid], abs=1e-9)


def attempt(rig: Rig, device: GpuDevice, watts: float) -> float | None:
    """Write; the limit that must now hold, None when the driver refused."""
    try:
        device.write_limit(watts)
    except GpuError:
        return None
    if not rig.step_w:
        return watts
    return math.floor(watts / rig.step_w + 1e-6) * rig.step_w
