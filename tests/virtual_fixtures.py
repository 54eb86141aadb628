"""Fixtures on a virtual GPU node, for any test module.

A test module asks for them with `pytest_plugins = ("virtual_fixtures",)`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from governed_node import GovernedNode
from wattline.virtual.build import LIBRARY
from wattline.virtual.node import GPUS_VARIABLE, VirtualNode


@pytest.fixture
def virtual_node(tmp_path: Path) -> Iterator[VirtualNode]:
    """Eight H100 that settle at once; processes see them with `env=os.environ | node.env`."""
    with VirtualNode(tmp_path / "node", settle_s=0.0) as node:
        yield node


@pytest.fixture
def local_node(virtual_node: VirtualNode, monkeypatch: pytest.MonkeyPatch) -> VirtualNode:
    """The same node, seen by the NVML binding of the test's own process.

    The control has loaded the library, so the binding finds it by its soname.
    """
    refuse_real_nvml()
    monkeypatch.setenv(GPUS_VARIABLE, str(virtual_node.gpus_file))
    return virtual_node


@pytest.fixture
def governed_node(tmp_path: Path, virtual_node: VirtualNode) -> Iterator[GovernedNode]:
    """The node with its agent under a budget; a test starts controllers."""
    made = GovernedNode(tmp_path, virtual_node)
    try:
        made.start_agent()
        yield made
    finally:
        made.close()


def refuse_real_nvml() -> None:
    """Fail where this process would reach real GPUs: tests write limits."""
    for found in (ctypes.CDLL(LIBRARY), pynvml.nvmlLib):
        if found is not None and not hasattr(found, "wv_create"):
            pytest.fail("this process has loaded the NVML of a real driver")
