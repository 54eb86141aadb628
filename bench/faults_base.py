"""What every cell of a fault campaign has: virtual nodes with real agents, and a clockwork."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from faults_processes import AgentProcess, Disk, mount_small
from faults_rival import Rival
from wattline.agent import control
from wattline.agent.commands import Resume
from wattline.core.errors import WattlineError
from wattline.virtual.judge import Known
from wattline.virtual.node import VirtualNode
from wattline.virtual.observer import Observer

STEP_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSettings:
    """What a cell is made of. `tmpfs`: each agent's state lies on a small disk of its own.

    patience: stated times are multiplied by it, for machines that are slow or shared.
    """

    folder: Path
    seed: int
    faults: int
    nodes: int = 2
    gpus: int = 4
    guard_w: float = 50.0
    settle_s: float = 0.3
    lease_s: float = 6.0
    period_s: float = 1.2
    pause_s: float = 0.45
    clock_shim: Path | None = None
    tmpfs: bool = False
    sabotage: str | None = None
    patience: float = 1.0
    mode: str = "grants"


@dataclass(slots=True)
class CellNode:
    """A node of the cell. `busy`: what is being done to it, so that no two faults get mixed up."""

    name: str
    virtual: VirtualNode
    agent: AgentProcess
    brake_file: Path
    source: Path
    """The file that tells the agent what to enforce: its grants, or its pods."""
    shift_file: Path
    uuids: tuple[str, ...]
    rival: Rival
    disk: Disk
    original_w: dict[str, float]
    busy: set[str] = field(default_factory=set)
    rival_free_s: dict[str, float] = field(default_factory=dict)
    journal_lost: bool = False
    unmanaged_s: float | None = None
    """Since when its agent has had neither journal nor grant; None: it has."""


class Cell:
    """Processes, files, clockwork of one cell; faults are injected into it from outside."""

    def __init__(self, settings: CellSettings) -> None:
        self.settings = settings
        self.rng = random.Random(settings.seed)
        self.known = Known()
        self.folder = settings.folder
        self.unexpected: list[str] = []
        self.observer: Observer | None = None
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.nodes = [self._node(number) for number in range(settings.nodes)]

    def agent_settings(self, virtual: VirtualNode, name: str) -> Mapping[str, str]:
        """What the agent of a node is told."""
        raise NotImplementedError

    def source_of(self, virtual: VirtualNode, name: str) -> Path:
        """The file that tells the agent of a node what to enforce."""
        raise NotImplementedError

    def _node(self, number: int) -> CellNode:
        settings = self.settings
        name = f"n{number + 1}"
        virtual = VirtualNode(
            self.folder / f"v{name}",
            ["h100"] * settings.gpus,
            seed=settings.seed * 100 + number,
            settle_s=settings.settle_s,
        )
        uuids = virtual.gpus.uuids()
        # Not the default limit: giving the original back must not be the same as a reset.
        original_w = {uuid: 600.0 + 10 * index for index, uuid in enumerate(uuids)}
        for uuid, watts in original_w.items():
            virtual.gpus.write_limit(uuid, watts)
            virtual.gpus.set_load(uuid, 650.0)
        brake_dir = self.folder / f"brake-{name}"
        brake_dir.mkdir(mode=0o755)
        shift_file = self.folder / f"shift-{name}"
        shift_file.write_bytes(bytes(8))
        extra_env = {"CLOCK_SHIFT_FILE": str(shift_file)}
        if settings.clock_shim is not None:
            extra_env["LD_PRELOAD"] = str(settings.clock_shim)
        agent = AgentProcess(
            name,
            virtual,
            {
                "brake_file": str(brake_dir / "brake"),
                "log_level": "debug",
                "log_format": "json",
                **self.agent_settings(virtual, name),
            },
            self.folder,
            self.known,
            extra_env,
        )
        rival = Rival(virtual)
        self.known.rivals.add(rival.pid)
        return CellNode(
            name=name,
            virtual=virtual,
            agent=agent,
            brake_file=brake_dir / "brake",
            source=self.source_of(virtual, name),
            shift_file=shift_file,
            uuids=uuids,
            rival=rival,
            disk=Disk(agent.state_dir, settings.tmpfs and mount_small(agent.state_dir)),
            original_w=original_w,
        )

    # Clockwork

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do `action` after a while."""
        heapq.heappush(self._actions, (time.monotonic() + delay_s, next(self._order), action))

    def pump(self, seconds: float) -> None:
        """Let so much time pass, doing what comes due."""
        end_s = time.monotonic() + seconds
        while True:
            now_s = time.monotonic()
            while self._actions and self._actions[0][0] <= now_s:
                heapq.heappop(self._actions)[2]()
            self.look()
            if now_s >= end_s:
                return
            due_s = self._actions[0][0] if self._actions else end_s
            time.sleep(max(0.0, min(STEP_S, due_s - now_s, end_s - now_s)))

    def pump_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Let time pass until `condition` holds; False if it never does."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= end_s:
                return False
            self.pump(STEP_S)
        return True

    @property
    def pending(self) -> int:
        """Actions that have not come due."""
        return len(self._actions)

    def look(self) -> None:
        """Notice who is up, and start again what has ended by itself."""
        for node in self.nodes:
            node.agent.look()
            code = node.agent.exited()
            if code is None:
                continue
            node.agent.hindered.begin("agent down")
            node.agent.up = False
            if "process" in node.busy and code == -signal.SIGKILL:
                continue  # killed by a fault that sees to the restart itself
            if "start refused" not in node.busy:
                self.unexpected.append(f"agent of {node.name} ended by itself: exit {code}")
            self.later(0.5, lambda node=node: self.restart(node))  # type: ignore[misc]

    def restart(self, node: CellNode) -> None:
        """Start the agent unless it runs."""
        if node.agent.pid is None:
            node.agent.start()

    def heal(self) -> None:
        """End every fault and let what is under way come to its end."""
        self.pump_until(lambda: self.pending == 0, 30.0)
        for node in self.nodes:
            node.virtual.gpus.clear()
            with contextlib.suppress(FileNotFoundError):
                node.brake_file.unlink()
            self.restart(node)
        self.pump_until(lambda: all(node.agent.up for node in self.nodes), 30.0)
        for node in self.nodes:
            resume(node)

    def begin(self) -> None:
        """Everything up and as it should be; from here on it is observed."""
        raise NotImplementedError

    def observe(self) -> Observer:
        """Begin to observe, now."""
        self.observer = Observer({node.name: node.virtual.gpus_file for node in self.nodes})
        self.observer.start()
        return self.observer

    def at_rest(self) -> bool:
        """Everything is up and as it should be."""
        raise NotImplementedError

    def raise_in_secret(self) -> None:
        """Raise a limit behind everybody's back, and tell nobody: the observer must blame us."""
        gpus = self.rng.choice(self.nodes).virtual.gpus
        for uuid in gpus.uuids():
            gpus.write_limit(uuid, 700.0)

    def close(self) -> None:
        """Leave no process and no mapping behind."""
        for node in self.nodes:
            node.agent.kill()
            node.rival.close()
            node.virtual.close()
            node.disk.unmount()


def resume(node: CellNode) -> None:
    """End a hold, pins and a brake by hand; an agent that is down is asked again when it is up."""
    with contextlib.suppress(WattlineError):
        control.send(node.agent.state_dir / "control.sock", Resume(by="campaign"), timeout_s=2.0)


def shift_wall_clock(node: CellNode, seconds: float) -> None:
    """Move the wall clock of the node's agent; it is the running process that sees it move."""
    descriptor = os.open(node.shift_file, os.O_WRONLY)
    try:
        os.pwrite(descriptor, int(seconds * 1e9).to_bytes(8, "little", signed=True), 0)
    finally:
        os.close(descriptor)
