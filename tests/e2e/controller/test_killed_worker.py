"""A worker of the supervisor is killed: its GPU of the virtual node idles, and another starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from governed_node import DEADLINE_S, WATTLINE, GovernedNode

pytest_plugins = ("virtual_fixtures",)
pytestmark = pytest.mark.slow

TOY = Path(__file__).parents[2] / "unit" / "live" / "toy_worker.py"


def configure(node: GovernedNode, virtual_node: Path) -> None:
    worker: dict[str, object] = {
        "argv": [sys.executable, str(TOY), "{metrics_port}", "ready"],
        "virtual_node": str(virtual_node),
    }
    actuation = {"replicas": "supervisor", "workers": {"prefill": worker, "decode": dict(worker)}}
    node.configure(actuation=actuation)


def notes(node: GovernedNode) -> dict[str, tuple[int, list[str]]]:
    """Process and GPUs of every worker, as the supervisor has noted them."""
    found = {}
    for path in (node.folder / "controller" / "workers").glob("*.json"):
        note = json.loads(path.read_text())
        found[str(note["replica"])] = int(note["pid"]), list(note["gpus"])
    return found


def test_gpus_of_a_killed_worker_idle(governed_node: GovernedNode) -> None:
    node = governed_node
    configure(node, node.virtual.folder)
    node.start_controller()
    try:
        node.until(
            lambda: all(pool["ready"] for pool in node.state()["pools"]), "a worker in each pool"
        )
        name, (pid, gpus) = sorted(notes(node).items())[0]
        for uuid in node.uuids:
            node.virtual.gpus.set_load(uuid, 650.0)
        os.kill(pid, signal.SIGKILL)
        node.until(
            lambda: all(node.virtual.gpus.state(uuid).load_w == 0.0 for uuid in gpus),
            "idle GPUs of the killed worker",
        )
        others = [uuid for uuid in node.uuids if uuid not in gpus]
        assert {node.virtual.gpus.state(uuid).load_w for uuid in others} == {650.0}
        pool = name.rpartition("-")[0]
        node.until(
            lambda: any(other.startswith(pool) for other in notes(node) if other != name),
            "another worker in its place",
        )
        assert node.enforced_w() <= 4000.0 * 0.98
    finally:
        node.end_controller()
        for pid, _ in notes(node).values():
            os.kill(pid, signal.SIGKILL)


def test_a_virtual_node_that_is_not_there_is_refused(governed_node: GovernedNode) -> None:
    configure(governed_node, governed_node.folder / "nothing")
    found = subprocess.run(
        [*WATTLINE, "run", "--config", str(governed_node.config), "--check-config"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert found.returncode == 2
    assert "virtual node" in found.stderr
    assert len(found.stderr.splitlines()) == 1
