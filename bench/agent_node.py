"""A virtual node with one real agent on it, for measurements: start, wait, watch, read /proc."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from faults_processes import AgentProcess
from wattline.virtual.judge import Known
from wattline.virtual.node import VirtualNode
from wattline.virtual.observer import Change, NodeView


class MeasureError(Exception):
    """Something that is to be measured did not come about."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used: CPU seconds so far, and memory and descriptors now."""

    at_s: float
    cpu_s: float
    resident_mib: float
    proportional_mib: float
    threads: int
    descriptors: int


class MeasuredNode:
    """A node in a folder of its own; `close` ends the agent and the kubelet stand-in."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *, kubelet: bool) -> None:
        folder.mkdir(mode=0o755)
        self.virtual = VirtualNode(folder / "node")
        if kubelet:
            self.virtual.start_kubelet()
        self.uuids = self.virtual.gpus.uuids()
        self.agent = AgentProcess("agent", self.virtual, settings, folder, Known())
        self.view = NodeView("node", self.virtual.gpus_file)
        self.log = folder / "agent.log"

    def start(self) -> None:
        """Start the agent and wait for its first report."""
        self.agent.start()
        self.wait(self._is_up, 30.0, "the agent's first report")

    def _is_up(self) -> bool:
        self.agent.look()
        code = self.agent.exited()
        if code is not None:
            raise MeasureError(f"agent ended with {code}: {self.log.read_text()[-2000:]}")
        return self.agent.up

    def close(self) -> None:
        """End everything."""
        self.agent.end()
        self.virtual.close()

    def wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for something, looking every millisecond."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end_s:
                tail = self.log.read_text()[-3000:]
                raise MeasureError(f"{what} has not come about in {timeout_s:g} s\n{tail}")
            time.sleep(0.001)

    def enforced_w(self, uuid: str) -> float:
        """What is enforced now."""
        return self.view.enforced_mw(uuid) / 1000

    def changes_until(self, wanted_w: Mapping[str, float], timeout_s: float) -> list[Change]:
        """Changes since the last call, up to the moment when all of `wanted_w` is enforced."""
        changes: list[Change] = []

        def there() -> bool:
            changes.extend(self.view.drain())
            return all(self.enforced_w(uuid) == watts for uuid, watts in wanted_w.items())

        self.wait(there, timeout_s, f"{wanted_w} enforced")
        changes.extend(self.view.drain())
        return changes

    def usage(self) -> Usage:
        """What the agent's process uses, from /proc."""
        assert self.agent.pid is not None
        process = Path(f"/proc/{self.agent.pid}")
        memory = {
            name: int(rest.split()[0])
            for name, _, rest in (
                line.partition(":") for line in (process / "smaps_rollup").read_text().splitlines()
            )
            if rest.strip().endswith("kB")
        }
        return Usage(
            at_s=time.monotonic(),
            # The process's CPU clock, to the nanosecond: ticks of 10 ms are too coarse for this.
            cpu_s=time.clock_gettime((~self.agent.pid << 3) | 2),
            resident_mib=memory["Rss"] / 1024,
            proportional_mib=memory["Pss"] / 1024,
            threads=len(list((process / "task").iterdir())),
            descriptors=len(list((process / "fd").iterdir())),
        )


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000 * len(ordered)) // 1000) - 1))]


def spread(seconds: list[float]) -> dict[str, float]:
    """Number, median, 90th and 99th percentile and largest, in milliseconds."""
    return {
        "rounds": len(seconds),
        "p50_ms": percentile(seconds, 0.5) * 1000,
        "p90_ms": percentile(seconds, 0.9) * 1000,
        "p99_ms": percentile(seconds, 0.99) * 1000,
        "max_ms": max(seconds) * 1000,
    }
