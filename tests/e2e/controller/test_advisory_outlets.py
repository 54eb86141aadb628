"""`--advisory` writes nothing anywhere: a real controller, watched at every outlet.

The same controller without `--advisory` uses each of them, so that the watch is known to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outlet_watch import Left, Outlets

from governed_node import GovernedNode
from wattline.virtual.node import VirtualNode

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("advisory")]

CAPS = ("grants", "annotations")


class Both:
    """What left the controller in advisory mode first, and then without it."""

    def __init__(self, outlets: Outlets) -> None:
        self.state_dir = outlets.state_dir
        self.folder = outlets.node.folder
        self.servers = {outlets.frontend.url, outlets.kube.url}
        self.advisory = outlets.run(advisory=True)
        self.acting = outlets.run(advisory=False)


@pytest.fixture(scope="module", params=CAPS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp(request.param)
    with VirtualNode(folder / "node", settle_s=0.0) as virtual:
        node = GovernedNode(folder, virtual)
        outlets = Outlets(node, request.param)
        try:
            node.start_agent()
            yield Both(outlets)
        finally:
            outlets.close()
            node.close()


def test_advisory_leaves_nothing_behind_but_its_own_folder(both: Both) -> None:
    left = both.advisory
    assert left.state["advisory"]
    assert left.outside(both.state_dir) <= {Path("/dev/null")}
    assert left.frontend == ()
    assert left.kube == ()
    assert left.started == ()
    assert left.signals == ()
    assert all("127.0.0.1" in address for address in left.connected)


def test_advisory_decides_and_records_all_the_same(both: Both) -> None:
    left = both.advisory
    assert left.state["orders"], "an operator's order is kept"
    assert left.state["deployments"][0]["facts"]["demand_rps"] > 0.0
    for pool in left.state["pools"]:
        assert pool["plan"]["setting"]["cap_w"] > 0.0
        assert pool["reason"]
    assert any("segment-" in path.name for path in left.written)


OUTLETS: dict[str, Callable[[Left, Path], bool]] = {
    "grant file": lambda left, folder: any(
        folder / "grants" in path.parents for path in left.written
    ),
    "thresholds": lambda left, folder: ("POST", "/busy_threshold") in left.frontend,
    "plugin file": lambda left, folder: any(
        folder / "outlets" in path.parents for path in left.written
    ),
    "workers": lambda left, folder: bool(left.started),
    "signals": lambda left, folder: bool(left.signals),
    "annotations": lambda left, folder: any(method == "PATCH" for method, _ in left.kube),
}
WITH = {
    "grants": {"grant file", "thresholds", "plugin file", "workers", "signals"},
    "annotations": {"thresholds", "plugin file", "annotations"},
}


@pytest.mark.parametrize("outlet", sorted(OUTLETS))
def test_the_watch_sees_an_outlet_that_is_open(
    both: Both, outlet: str, request: pytest.FixtureRequest
) -> None:
    caps = request.node.callspec.params["both"]
    assert not OUTLETS[outlet](both.advisory, both.folder)
    assert OUTLETS[outlet](both.acting, both.folder) == (outlet in WITH[caps])
