"""A cell under grants: two virtual nodes, their agents and a coordinator under one budget."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faults_base import Cell, CellNode, CellSettings
from faults_processes import COORDINATOR, TRUSTING, Hindrances, Supervised
from wattline.drivers.trusted_files import replace_file
from wattline.virtual.node import VirtualNode

BRAKE_DEADLINE_S = 0.5
"""A cut without notice is judged from its announcement and this on (the brake's stated time)."""


class GrantsCell(Cell):
    """Watts move among the GPUs of all nodes under one budget."""

    def __init__(self, settings: CellSettings) -> None:
        self.grants_dir = settings.folder / "grants"
        self.grants_dir.mkdir(mode=0o755)
        super().__init__(settings)
        self.budget_file = self.folder / "budget.json"
        self.status_file = self.folder / "status.json"
        (self.folder / "log").mkdir()
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
        self.forged: set[bytes] = set()
        """Contents of grant files that the injector made up."""

    def agent_settings(self, virtual: VirtualNode, name: str) -> Mapping[str, str]:
        """Grants from the cell's directory."""
        return {"mode": "grants", "grants": str(self.grants_dir)}

    def source_of(self, virtual: VirtualNode, name: str) -> Path:
        """The node's grants."""
        return self.grants_dir / f"{name}.json"

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

    def look(self) -> None:
        """The agents, and the coordinator."""
        super().look()
        for node in self.nodes:
            if node.unmanaged_s is not None and node.agent.up:
                reasons = {facts["reason"] for facts in node.agent.facts().values()}
                if reasons and "found" not in reasons:
                    self.end_unmanaged(node)
        if self.coordinator.exited() is not None:
            # It has been fenced off, or its disk refuses: as a supervisor does, try again.
            self.coordinator_hindered.begin("coordinator down")
            self.later(0.3, self.restart_coordinator)

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
            judged_s = max(effective_s, now_s + BRAKE_DEADLINE_S * self.settings.patience)
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

    # From start to end

    def begin(self) -> None:
        """Everything up and under the budget; from here on it is observed."""
        self.set_budget(self.random_budget())
        self.coordinator.start()
        for node in self.nodes:
            node.agent.start()
        if not self.pump_until(self.at_rest, 60.0):
            raise RuntimeError(f"{self.folder}: the fleet did not come under its budget")
        observer = self.observe()
        self.known.budgets = [(observer.start_s, self.known.budgets[-1][1])]

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

    def end_unmanaged(self, node: CellNode) -> None:
        """Every GPU of the node has a grant again, or the cell ends."""
        if node.unmanaged_s is not None:
            span = (node.unmanaged_s, time.monotonic())
            self.known.unmanaged.setdefault(node.name, []).append(span)
            node.unmanaged_s = None

    def heal(self) -> None:
        """End every fault and let what is under way come to its end."""
        super().heal()
        self.restart_coordinator()
        self.pump(2.2)

    def release(self) -> None:
        """Ask the coordinator to give every GPU back: the budget must have room for it first."""
        self.set_budget(self.most_w + self.settings.guard_w)
        replace_file(self.folder / "restore", b"all\n", durable=False)

    def close(self) -> None:
        """Leave no process and no mapping behind."""
        self.coordinator.kill()
        super().close()
