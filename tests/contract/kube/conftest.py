"""One control plane per test process, with the agent's permissions and nothing more."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_control_plane import BINARIES, find_assets
from control_plane import NAMESPACED_TOKEN, ControlPlane, NodePods, TcpProxy, running

RBAC = Path(__file__).resolve().parents[3] / "deploy" / "agent"


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    assets = find_assets(os.environ)
    if assets is None:
        missing = (
            f"no {' and '.join(BINARIES)}: run `python tests/contract/kube/build_control_plane.py` "
            "(needs Go, 5 minutes, once) or set KUBEBUILDER_ASSETS"
        )
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with running(assets, tmp_path_factory.mktemp("control-plane")) as plane:
        plane.apply((RBAC / "rbac.yaml").read_text())
        yield plane


@pytest.fixture(scope="session")
def namespaced_token(plane: ControlPlane) -> str:
    """Token of an agent that has the namespaced variant of the permissions, and only that."""
    plane.apply(
        json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dynamo"}})
    )
    # The same file for another account, which shares no role with the first.
    manifest = (RBAC / "rbac-namespaced.yaml").read_text()
    plane.apply(manifest.replace("name: wattline-agent", "name: namespaced-agent"))
    return NAMESPACED_TOKEN


@pytest.fixture
def proxy(plane: ControlPlane) -> Iterator[TcpProxy]:
    """The way from the agent to the server, which a test may cut."""
    proxy = TcpProxy(plane.port)
    yield proxy
    proxy.close()


@pytest.fixture
def node(plane: ControlPlane) -> Iterator[NodePods]:
    """A node of the test's own, whose pods go with it."""
    node = NodePods(plane, f"node-{uuid.uuid4().hex[:8]}")
    yield node
    node.clear()
