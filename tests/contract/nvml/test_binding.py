"""The unmodified nvidia-ml-py on the virtual GPUs, in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pynvml
import pytest

from wattline.virtual.gpus import Group, NvmlCode
from wattline.virtual.node import VirtualNode

pytest_plugins = ("virtual_fixtures",)


@pytest.fixture
def handle(local_node: VirtualNode) -> Iterator[object]:
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


def test_a_limit_in_range_is_enforced(local_node: VirtualNode, handle: object) -> None:
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 400_000
    assert local_node.gpus.state(0).enforced_w == 400.0


@pytest.mark.parametrize("limit_mw", [0, 199_999, 700_001, 2**32 - 1])
def test_a_limit_out_of_range_changes_nothing(handle: object, limit_mw: int) -> None:
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, limit_mw)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000


def test_a_fault_lasts_for_its_count(local_node: VirtualNode, handle: object) -> None:
    local_node.gpus.fail(0, Group.LIMIT_WRITE, NvmlCode.NO_PERMISSION, count=1)
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 400_000)
