"""A controller on one fake node: the protocol's own node state machine behind real files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from wattline.catalog.yaml_files import parse
from wattline.controller.assemble import Assembly, assemble
from wattline.controller.settings import ControllerSettings
from wattline.controller.sources import ReplicaView
from wattline.core.errors import WattlineError
from wattline.core.snapshot import DemandView, Phase
from wattline.drivers.dynamo.sources import DemandReading, PoolLoad
from wattline.drivers.grant_files import (
    GpuFacts,
    GpuReport,
    NodeReport,
    decode_grants,
    encode_report,
)
from wattline.drivers.trusted_files import replace_file
from wattline.grants.node import Node
from wattline.grants.node_state import Found

UUIDS = tuple(f"GPU-{index:08d}-0000-0000-0000-000000000000" for index in range(4))
MIN_W, MAX_W = 200.0, 700.0

CONFIG = """
state_dir: {folder}/state
listen: 127.0.0.1:0
deployments:
  - name: chat
    model: Llama-3.1-8B
    slo: {{ttft_s: 0.5, itl_s: 0.03}}
    pools:
      - {{name: prefill, role: prefill, gpu: H200, gpus: 2, startup_s: 20}}
      - {{name: decode, role: decode, gpu: H200, gpus: 2, startup_s: 20}}
nodes:
  - name: n1
    grants: {folder}/grants/
    report_file: {folder}/report.json
    gpus:
      prefill: [{prefill}]
      decode: [{decode}]
budget: {{total_w: 2000}}
sources: {{call_s: 2.0}}
"""


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class FakeAgent:
    """One node: reads its grant file, obeys as the protocol says, writes its report."""

    def __init__(self, folder: Path, enforced_w: float = MAX_W, incarnation: int = 1) -> None:
        self.folder = folder
        self.incarnation = incarnation
        self.enforced_w = dict.fromkeys(UUIDS, enforced_w)
        self.obeys = True
        self.mode = "grants"
        self.original_w: float | None = 600.0
        self.let_go: tuple[str, ...] = ()
        self.start()

    def start(self, now_s: float = 0.0) -> None:
        """A new start of the agent: what is found is held, nothing is obeyed yet."""
        found = {uuid: Found(watts, MIN_W, MAX_W) for uuid, watts in self.enforced_w.items()}
        self.node: Node[str] = Node(found, incarnation=self.incarnation, now_s=now_s)
        for uuid in UUIDS:
            self.node.set_persistence(uuid, True)

    def restart(self, now_s: float) -> None:
        """End and start again."""
        self.incarnation += 1_000
        self.start(now_s)

    def step(self, now_s: float) -> None:
        """Read grants, write limits, report."""
        path = self.folder / "grants" / "n1.json"
        if path.exists() and self.obeys:
            file = decode_grants(path.read_bytes(), node="n1", where="grants")
            for entry in file.grants:
                self.node.on_grant(entry.grant, now_s)
            self.let_go = file.restore
            for adopt in file.adopt:
                self.node.on_adopt(adopt)
        for uuid in UUIDS:
            watts = self.node.write_due(uuid, now_s)
            if watts is not None and self.obeys:
                self.node.begin_write(uuid, watts, now_s)
                self.enforced_w[uuid] = watts
                self.node.end_write(uuid, watts, now_s)
            self.node.on_enforced(uuid, self.enforced_w[uuid], now_s)
        self.report(now_s)

    def report(self, now_s: float) -> None:
        """Write the report file."""
        reports = {uuid: self.node.report(uuid, now_s) for uuid in UUIDS}
        document = NodeReport(
            node="n1",
            version="test",
            incarnation=self.incarnation,
            report_sequence=max(report.report_sequence for report in reports.values()),
            mode=self.mode,
            gpus=tuple(
                GpuReport(
                    gpu=uuid,
                    report=report,
                    facts=GpuFacts(
                        min_w=MIN_W,
                        max_w=MAX_W,
                        draw_w=0.8 * self.enforced_w[uuid],
                        original_w=self.original_w,
                    ),
                )
                for uuid, report in reports.items()
            ),
        )
        replace_file(self.folder / "report.json", encode_report(document), durable=False)


class FakeDemand:
    """Frontends that count `rps` requests a second, or fail with `why`."""

    def __init__(self, rps: int = 60) -> None:
        self.rps = rps
        self.why: str | None = None

    def read(self, now_s: float) -> DemandReading:
        if self.why is not None:
            raise WattlineError(self.why)
        view = DemandView(
            window_s=1.0,
            arrivals=self.rps,
            input_tokens_sum=1000 * self.rps,
            cached_tokens_sum=0,
            completions=self.rps,
            output_tokens_sum=200 * self.rps,
            rejected=0,
            ttft_p50_s=0.1,
            ttft_p99_s=0.2,
            itl_p50_s=0.01,
            itl_p99_s=0.02,
            age_s=0.0,
        )
        return DemandReading(view=view)

    def close(self) -> None:
        """Nothing is open."""


class FakeLoad:
    """Workers with a little to do."""

    def __init__(self) -> None:
        self.why: str | None = None

    def read(self, now_s: float, urls: Sequence[str]) -> PoolLoad:
        if self.why is not None:
            raise WattlineError(self.why)
        return PoolLoad(queued_prefill_tokens=500.0, active_kv_tokens=20_000.0, running=20.0)

    def close(self) -> None:
        """Nothing is open."""


class FakeReplicas:
    """Replicas of one GPU that start and end when the test says so."""

    def __init__(self) -> None:
        self.views: list[ReplicaView] = []
        self.started = 0
        self.drained: list[str] = []
        self.why: str | None = None
        self.unreadable = False

    def replicas(self) -> Sequence[ReplicaView]:
        if self.unreadable:
            raise WattlineError("no answer")
        return tuple(self.views)

    def start(self, pool: str, gpus: Sequence[str]) -> str:
        if self.why is not None:
            raise WattlineError(self.why)
        name = f"{pool}-{self.started}"
        self.started += 1
        self.views.append(ReplicaView(name=name, pool=pool, gpus=tuple(gpus), phase=Phase.STARTING))
        return name

    def drain(self, replica: str) -> None:
        self.drained.append(replica)
        self.views = [
            replace(view, phase=Phase.DRAINING) if view.name == replica else view
            for view in self.views
        ]

    def now_ready(self) -> None:
        """All that started are serving."""
        self.views = [
            replace(view, phase=Phase.READY) if view.phase is Phase.STARTING else view
            for view in self.views
        ]

    def now_gone(self) -> None:
        """All that drained have ended."""
        self.views = [view for view in self.views if view.phase is not Phase.DRAINING]


class World:
    """One controller, one node, one clock."""

    def __init__(self, folder: Path, enforced_w: float = 400.0, **changes: object) -> None:
        self.folder = folder
        (folder / "grants").mkdir(exist_ok=True)
        self.config = folder / "controller.yaml"
        self.write_config(**changes)
        self.clock = Clock()
        self.agent = FakeAgent(folder, enforced_w)
        self.agent.step(self.clock.now_s)
        self.demand = FakeDemand()
        self.load = FakeLoad()
        self.replicas: FakeReplicas | None = None
        self.assembly: Assembly

    def write_config(self, **changes: object) -> None:
        """The configuration with top-level keys replaced."""
        text = CONFIG.format(
            folder=self.folder, prefill=", ".join(UUIDS[:2]), decode=", ".join(UUIDS[2:])
        )
        document = yaml.safe_load(text) | changes
        self.config.write_text(yaml.safe_dump(document))

    @property
    def settings(self) -> ControllerSettings:
        """As the file has them."""
        return parse(ControllerSettings, self.config.read_bytes(), str(self.config))

    def start(self, *, advisory: bool = False) -> Assembly:
        """Build the controller with fake demand and load."""
        self.assembly = assemble(
            self.settings, self.config, advisory=advisory, replicas=self.replicas, clock=self.clock
        )
        parts = self.assembly.controller.parts
        for source in (*parts.demand, *parts.loads):
            if source is not None:
                source.close()
        parts.demand = [self.demand]
        parts.loads = [self.load, self.load]
        parts.worker_urls = {"prefill": ["http://w"], "decode": ["http://w"]}
        return self.assembly

    def run(self, ticks: int) -> None:
        """So many seconds: the node reports, the controller ticks, the node obeys."""
        for _ in range(ticks):
            self.clock.now_s += 0.5
            self.agent.step(self.clock.now_s)
            self.clock.now_s += 0.5
            self.assembly.controller.tick()
            self.agent.step(self.clock.now_s)

    @property
    def enforced_w(self) -> float:
        """Sum of the limits in force."""
        return sum(self.agent.enforced_w.values())

    def stop(self) -> None:
        """End the controller."""
        self.assembly.controller.close()
