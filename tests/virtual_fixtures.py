"""Fixtures on a virtual GPU node, for any test module.

A test module asks for them with `pytest_plugins = ("virtual_fixtures",)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
    monkeypatch.setenv(GPUS_VARIABLE, str(virtual_node.gpus_file))
    return virtual_node
