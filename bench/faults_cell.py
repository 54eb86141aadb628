"""One cell of a fault campaign: a few virtual nodes with real agents under one budget."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults_processes import (
    COORDINATOR,
    TRUSTING,
    AgentProcess,
    Disk,
    Hindrances,
    Supervised,
    mount_small,
)
from faults_rival import Rival
from wattline.drivers.trusted_files import replace_file
from wattline.virtual.judge import Known
from wattline.virtual.node import VirtualNode
from wattline.virtual.observer import Observer

BRAKE_DEADLINE_S = 0.5
"""A cut without notice is judged from its announcement and this on (the brake's stated time)."""
STEP_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSettings:
    """What a cell is made of. `tmpfs`: each agent's state lies on a small disk of its own."""

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


@dataclass(slots=True)
class CellNode:
    """A node of the cell. `busy`: what is being done to it, so that no two faults get mixed up."""

    name: str
    virtual: VirtualNode
    agent: AgentProcess
    brake_file: Path
    grants: Path
    shift_file: Path
    uuids: tuple[str, ...]
    rival: Rival
    disk: Disk
    original_w: dict[str, float]
    busy: set[str] = field(default_factory=set)
    rival_free_s: dict[str, float] = field(default_factory=dict)
    journal_lost: bool = False


class Cell:
    """Processes, files, clockwork of one cell; faults are injected into it from outside."""

    def __init__(self, settings: CellSettings) -> None:
        self.settings = settings
        self.rng = random.Random(settings.seed)
        self.known = Known()
        self.folder = settings.folder
        self.grants_dir = self.folder / "grants"
        self.grants_dir.mkdir(mode=0o755)
        self.budget_file = self.folder / "budget.json"
        self.status_file = self.folder / "status.json"
        self.log_dir = self.folder / "log"
        self.log_dir.mkdir()
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.nodes = [self._node(number) for number in range(settings.nodes)]
        self.budget_version = 0
        self.budget_w = 0.0
        self.budget_quiet_s = 0.0
        program = TRUSTING if settings.sabotage == "trusting" else COORDINATOR
        self.coordinator = Supervised(
            "coordinator", [*program, str(self._spec("log", "status.json"))], {}, self.folder
        )
        self.coordinator_hindered = Hindrances(self.known, None)
        self.coordinator_busy = False
        self.rivals_started = 0
        self.unexpected: list[str] = []
        self.observer: Observer | None = None

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
                "mode": "grants",
                "grants": str(self.grants_dir),
                "brake_file": str(brake_dir / "brake"),
                "log_level": "debug",
                "log_format": "json",
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
            grants=self.grants_dir / f"{name}.json",
            shift_file=shift_file,
            uuids=uuids,
            rival=rival,
            disk=Disk(agent.state_dir, settings.tmpfs and mount_small(agent.state_dir)),
            original_w=original_w,
        )

    def _spec(self, log: str, status: str) -> Path:
        """What a coordinator is told; a rival coordinator has a log and a status of its own."""
        settings = self.settings
        spec = {
            "nodes": [
                {
                    "name": node.name,
                    "report": str(node.agent.report),
                    "gpus": {uuid: [200, 700, 700] for uuid in node.uuids},
                }
                for node in self.nodes
            ],
            "grants_dir": str(self.grants_dir),
            "budget": str(self.budget_file),
            "log": str(self.folder / log / "grants.log"),
            "status": str(self.folder / status),
            "restore": str(self.folder / "restore"),
            "brake_w": 200.0,
            "seed": settings.seed,
            "period_s": settings.period_s,
            "settle_s": settings.settle_s,
            "lease_s": settings.lease_s,
        }
        path = self.folder / f"spec-{log}.json"
        path.write_text(json.dumps(spec))
        return path

    def rival_coordinator(self, number: int) -> Supervised:
        """A second coordinator for the same nodes, that knows nothing of the first."""
        (self.folder / f"log{number}").mkdir()
        spec = self._spec(f"log{number}", f"status{number}.json")
        return Supervised(f"rival-coordinator{number}", [*COORDINATOR, str(spec)], {}, self.folder)

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
            self._look()
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

    def _look(self) -> None:
        """Notice who is up, and start again what has ended by itself."""
        for node in self.nodes:
            node.agent.look()
            code = node.agent.exited()
            if code is not None:
                node.agent.hindered.begin("agent down")
                node.agent.up = False
                if "process" in node.busy and code == -signal.SIGKILL:
                    continue  # killed by a fault that sees to the restart itself
                if "start refused" not in node.busy:
                    self.unexpected.append(f"agent of {node.name} ended by itself: exit {code}")
                self.later(0.5, lambda node=node: self.restart(node))  # type: ignore[misc]
        if self.coordinator.exited() is not None:
            # It has been fenced off, or its disk refuses: as a supervisor does, try again.
            self.coordinator_hindered.begin("coordinator down")
            self.later(0.3, self.restart_coordinator)

    def restart(self, node: CellNode) -> None:
        """Start the agent unless it runs."""
        if node.agent.pid is None:
            node.agent.start()

    def restart_coordinator(self) -> None:
        """Start the coordinator unless it runs."""
        if self.coordinator.pid is None:
            self.coordinator.start()
            # It must hear of every node before it knows anything: that takes a report of each.
            self.later(2.0, lambda: self.coordinator_hindered.end("coordinator down"))

    # The budget

    def set_budget(self, watts: float, lead_s: float = 0.0) -> None:
        """Announce a budget that holds in `lead_s`; the nodes are judged by rule 7."""
        now_s = time.monotonic()
        self.budget_version += 1
        effective_s = now_s + lead_s
        judged_s = now_s
        if watts < self.budget_w:
            judged_s = max(effective_s, now_s + BRAKE_DEADLINE_S)
        self.known.budgets.append((judged_s, round(watts * 1000)))
        self.budget_w = watts
        self.budget_quiet_s = judged_s + 2.0
        content = {
            "version": self.budget_version,
            "watts": watts,
            "guard_w": self.settings.guard_w,
            "effective_s": effective_s,
        }
        replace_file(self.budget_file, json.dumps(content).encode(), durable=False)

    @property
    def most_w(self) -> float:
        """Largest limits of all GPUs."""
        return 700.0 * self.settings.gpus * self.settings.nodes

    def random_budget(self) -> float:
        """Between what the smallest limits need and two thirds of the largest."""
        gpus = self.settings.gpus * self.settings.nodes
        return round(self.rng.uniform(260.0 * gpus, 480.0 * gpus) + self.settings.guard_w)

    def raise_in_secret(self) -> None:
        """Raise a limit behind everybody's back, and tell nobody: the observer must blame us."""
        gpus = self.rng.choice(self.nodes).virtual.gpus
        for uuid in gpus.uuids():
            gpus.write_limit(uuid, 700.0)

    # From start to end

    def start(self) -> None:
        """Everything up and under the budget; from here on it is observed."""
        self.set_budget(self.random_budget())
        self.coordinator.start()
        for node in self.nodes:
            node.agent.start()
        if not self.pump_until(self.at_rest, 60.0):
            raise RuntimeError(f"{self.folder}: the fleet did not come under its budget")
        self.observer = Observer({node.name: node.virtual.gpus_file for node in self.nodes})
        self.known.budgets = [(self.observer.start_s, self.known.budgets[-1][1])]
        self.observer.start()

    def status(self) -> dict[str, Any]:
        """What the coordinator said last; empty if nothing."""
        try:
            document = json.loads(self.status_file.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def at_rest(self) -> bool:
        """Every agent is up, and every limit is within what the coordinator has granted."""
        if not all(node.agent.up for node in self.nodes) or self.coordinator.pid is None:
            return False
        enforced_w = sum(
            node.virtual.gpus.enforced_mw(uuid) / 1000 for node in self.nodes for uuid in node.uuids
        )
        said = self.status()
        return (
            enforced_w + self.settings.guard_w <= self.budget_w
            and said.get("budget_version") == self.budget_version
            and said.get("proven") == self.settings.nodes * self.settings.gpus
            and said.get("exposure_w") == 0.0
        )

    def heal(self) -> None:
        """End every fault and let what is under way come to its end."""
        self.pump_until(lambda: self.pending == 0, 30.0)
        for node in self.nodes:
            node.virtual.gpus.clear()
            with contextlib.suppress(FileNotFoundError):
                node.brake_file.unlink()
            self.restart(node)
        self.restart_coordinator()
        self.pump(2.2)

    def release(self) -> None:
        """Ask the coordinator to give every GPU back: the budget must have room for it first."""
        self.set_budget(self.most_w + self.settings.guard_w)
        replace_file(self.folder / "restore", b"all\n", durable=False)

    def close(self) -> None:
        """Leave no process and no mapping behind."""
        self.coordinator.kill()
        for node in self.nodes:
            node.agent.kill()
            node.rival.close()
            node.virtual.close()
            node.disk.unmount()

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)


def shift_wall_clock(node: CellNode, seconds: float) -> None:
    """Move the wall clock of the node's agent; it is the running process that sees it move."""
    descriptor = os.open(node.shift_file, os.O_WRONLY)
    try:
        os.pwrite(descriptor, int(seconds * 1e9).to_bytes(8, "little", signed=True), 0)
    finally:
        os.close(descriptor)
