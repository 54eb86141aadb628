"""One control plane per test process, with the agent's permissions and nothing more."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_control_plane import BINARIES, find_assets
from control_plane import ControlPlane, NodePods, TcpProxy, running

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    assets = find_assets(os.environ)
    if assets is None:
        pytest.skip(
            f"no {' and '.join(BINARIES)}: run `python tests/contract/kube/build_control_plane.py` "
            "(needs Go, 5 minutes, once) or set KUBEBUILDER_ASSETS"
        )
    with running(assets, tmp_path_factory.mktemp("control-plane")) as plane:
        plane.apply(REPOSITORY / "deploy" / "agent" / "rbac.yaml")
        yield plane


@pytest.fixture
def proxy(plane: ControlPlane) -> Iterator[TcpProxy]:
    """The way from the agent to the server, which a test may cut."""
    proxy = TcpProxy(plane.port)
    yield proxy
    proxy.close()


@pytest.fixture
def node(plane: ControlPlane) -> NodePods:
    """A node of the test's own."""
    return NodePods(plane, f"node-{uuid.uuid4().hex[:8]}")
