"""Measurements under grants: a grant file replaced, and a brake, until eight GPUs enforce it."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

from agent_node import MeasuredNode, spread
from wattline.agent import control
from wattline.agent.commands import Brake, Resume
from wattline.drivers.grant_files import GpuGrant, GrantFile, encode_grants
from wattline.drivers.trusted_files import replace_file
from wattline.grants.messages import Grant

BRAKE_W = 200.0
EPOCH = 1


class Granter:
    """Writes grants to the one node as a coordinator would, without booking anything."""

    def __init__(self, node: MeasuredNode, grants: Path) -> None:
        self._node = node
        self._path = grants / "agent.json"
        self._sequence = 0

    def grant(self, watts: dict[str, float]) -> float:
        """Replace the grant file; the time just before."""
        said = self._node.agent.said()
        assert said is not None
        self._sequence += 1
        grants = tuple(
            GpuGrant(
                grant=Grant(
                    gpu=uuid,
                    incarnation=said["incarnation"],
                    epoch=EPOCH,
                    sequence=self._sequence,
                    watts=each,
                    brake_w=BRAKE_W,
                    lease_s=3600.0,
                )
            )
            for uuid, each in watts.items()
        )
        content = encode_grants(GrantFile(node="agent", epoch=EPOCH, grants=grants))
        start_s = time.monotonic()
        replace_file(self._path, content, durable=False, mode=0o644)
        return start_s

    def reach(self, watts: dict[str, float]) -> float:
        """Grant, and wait until all of it is enforced: seconds until the last register changed."""
        self._node.view.drain()
        start_s = self.grant(watts)
        changes = self._node.changes_until(watts, 20.0)
        return max(change.at_s for change in changes) - start_s

    def until_incarnation_changes(self, before: int) -> None:
        """Wait until the node reports under a new incarnation."""

        def changed() -> bool:
            said = self._node.agent.said()
            return said is not None and said["incarnation"] != before

        self._node.wait(changed, 10.0, "a report after the brake")


def start(folder: Path, *, kubelet: bool = False) -> tuple[MeasuredNode, Granter, Path]:
    """A node under grants, with its brake file's path; `kubelet`: one is there to tell owners."""
    grants, brakes = folder / "grants", folder / "brakes"
    folder.mkdir(mode=0o755)
    grants.mkdir(mode=0o755)
    brakes.mkdir(mode=0o755)
    settings = {
        "mode": "grants",
        "grants": str(grants),
        "brake_file": str(brakes / "brake"),
        "kubelet_socket": str(folder / "n" / "node" / "kubelet.sock"),
    }
    node = MeasuredNode(folder / "n", settings, kubelet=kubelet)
    node.start()
    return node, Granter(node, grants), brakes / "brake"


def measure_grants(node: MeasuredNode, granter: Granter, rounds: int) -> dict[str, Any]:
    """A grant file replaced until eight GPUs enforce it, at random moments of the agent's round."""
    draw = random.Random(1)
    taken = []
    for _ in range(rounds):
        time.sleep(draw.uniform(0.05, 0.15))
        taken.append(granter.reach({uuid: float(draw.randint(250, 690)) for uuid in node.uuids}))
    return spread(taken)


def measure_brakes(
    node: MeasuredNode, granter: Granter, brake_file: Path, rounds: int
) -> dict[str, Any]:
    """A brake called in each of three ways, until eight GPUs enforce the brake watts."""
    draw = random.Random(2)
    taken: dict[str, list[float]] = {"file": [], "signal": [], "command": []}
    for number in range(rounds):
        way = list(taken)[number % 3]
        granter.reach({uuid: float(draw.randint(400, 690)) for uuid in node.uuids})
        time.sleep(draw.uniform(0.05, 0.15))
        said = node.agent.said()
        assert said is not None
        node.view.drain()
        start_s = _brake(node, brake_file, way)
        changes = node.changes_until(dict.fromkeys(node.uuids, BRAKE_W), 20.0)
        taken[way].append(max(change.at_s for change in changes) - start_s)
        brake_file.unlink(missing_ok=True)
        if way != "file":
            control.send(node.agent.state_dir / "control.sock", Resume(by="bench"))
        granter.until_incarnation_changes(said["incarnation"])
    return {way: spread(seconds) for way, seconds in taken.items()}


def _brake(node: MeasuredNode, brake_file: Path, way: str) -> float:
    start_s = time.monotonic()
    if way == "file":
        replace_file(brake_file, json.dumps({}).encode(), durable=False, mode=0o644)
    elif way == "signal":
        node.agent.signal(signal.SIGUSR1)
    else:
        control.send(node.agent.state_dir / "control.sock", Brake(by="bench"))
    return start_s


def measure_rest(node: MeasuredNode, seconds: float) -> dict[str, Any]:
    """CPU and memory while nothing changes."""
    before = node.usage()
    most_mib = before.resident_mib
    while time.monotonic() < before.at_s + seconds:
        time.sleep(1.0)
        most_mib = max(most_mib, node.usage().resident_mib)
    after = node.usage()
    return {
        "seconds": after.at_s - before.at_s,
        "cpu_percent_of_a_core": 100 * (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s),
        "resident_mib": after.resident_mib,
        "resident_most_mib": most_mib,
        "proportional_mib": after.proportional_mib,
        "threads": after.threads,
        "descriptors": after.descriptors,
    }
