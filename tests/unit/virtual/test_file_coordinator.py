"""The coordinator over files, with nodes that are the protocol's own machine on fake registers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wattline.core.errors import InputError
from wattline.drivers.grant_files import (
    GpuFacts,
    GpuReport,
    NodeReport,
    decode_grants,
    encode_report,
)
from wattline.drivers.grant_log import FencedError
from wattline.drivers.trusted_files import replace_file
from wattline.grants.ledger import Ledger
from wattline.grants.node import Node
from wattline.grants.node_state import Found
from wattline.virtual.coordinator import FileCoordinator, new_epoch, read_spec

NODES = ("n1", "n2")
SETTLE_S = 0.2
STEP_S = 0.05


class FakeNode:
    """A node's machine, its registers, and the two files that it shares with the coordinator."""

    def __init__(self, folder: Path, name: str, incarnation: int = 1000) -> None:
        self.name, self.incarnation = name, incarnation
        self.grants = folder / "grants" / f"{name}.json"
        self.report_file = folder / f"{name}.report.json"
        self.registers_w = {f"GPU-{name}-{index}": 600.0 for index in range(2)}
        self.reports = 0
        self.seen: bytes | None = None
        self.start()

    def start(self) -> None:
        self.incarnation += 1000
        found = {gpu: Found(watts, 200.0, 700.0) for gpu, watts in self.registers_w.items()}
        self.machine: Node[str] = Node(found, incarnation=self.incarnation)
        for gpu in found:
            self.machine.set_persistence(gpu, True)
        self.seen = None

    def step(self, now_s: float) -> None:
        if self.grants.exists() and (content := self.grants.read_bytes()) != self.seen:
            self.seen = content
            file = decode_grants(content, node=self.name, where="grants")
            for adopt in file.adopt:
                self.machine.on_adopt(adopt)
            for entry in file.grants:
                self.machine.on_grant(entry.grant, now_s)
        self.machine.tick(now_s)
        for gpu in self.registers_w:
            watts = self.machine.write_due(gpu, now_s)
            if watts is not None:
                self.machine.begin_write(gpu, watts, now_s)
                self.registers_w[gpu] = watts
                self.machine.end_write(gpu, watts, now_s)
        self.report(now_s)

    def report(self, now_s: float) -> None:
        self.reports += 1
        gpus = tuple(
            GpuReport(gpu=report.gpu, report=report, facts=GpuFacts(original_w=600.0))
            for report in self.machine.reports(now_s)
        )
        report = NodeReport(
            node=self.name,
            version="test",
            incarnation=self.machine.incarnation,
            report_sequence=self.reports,
            mode="grants",
            gpus=gpus,
        )
        replace_file(self.report_file, encode_report(report), durable=False)


class Fleet:
    """Two nodes, a budget, a coordinator, and a clock that only the test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "grants").mkdir()
        self.nodes = [FakeNode(folder, name) for name in NODES]
        self.now_s = 100.0
        self.version = 0
        self.usable_w = 0.0
        self.most_over_w = float("-inf")
        self.coordinator: FileCoordinator | None = None
        self.spec = folder / "spec.json"
        self.spec.write_text(
            json.dumps(
                {
                    "nodes": [
                        {
                            "name": node.name,
                            "report": str(node.report_file),
                            "gpus": {gpu: [200, 700, 700] for gpu in node.registers_w},
                        }
                        for node in self.nodes
                    ],
                    "grants_dir": str(folder / "grants"),
                    **{name: str(folder / name) for name in ("budget", "log", "status", "restore")},
                    "seed": 5,
                    "period_s": 2.0,
                    "settle_s": SETTLE_S,
                    "lease_s": 3.0,
                    "brake_w": 200.0,
                }
            )
        )
        self.set_budget(1700.0)

    def set_budget(self, watts: float) -> None:
        self.version += 1
        self.usable_w = watts - 50.0
        document = {"version": self.version, "watts": watts, "guard_w": 50.0}
        replace_file(self.folder / "budget", json.dumps(document).encode())

    def start(self) -> None:
        self.coordinator = FileCoordinator(read_spec(self.spec))

    def stop(self) -> None:
        if self.coordinator is not None:
            self.coordinator.close()
            self.coordinator = None

    @property
    def enforced_w(self) -> float:
        return sum(sum(node.registers_w.values()) for node in self.nodes)

    def run(
        self,
        seconds: float,
        silent: tuple[str, ...] = (),
        beside: FileCoordinator | None = None,
    ) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += STEP_S
            if beside is not None:
                beside.step(self.now_s)
            if self.coordinator is not None:
                self.coordinator.step(self.now_s)
            for node in self.nodes:
                if node.name not in silent:
                    node.step(self.now_s)
                self.most_over_w = max(self.most_over_w, self.enforced_w - self.usable_w)

    def used(self) -> bool:
        """Come to use the budget within a few seconds of the fleet's clock."""
        for _ in range(int(6.0 / STEP_S)):
            if self.enforced_w > 0.9 * self.usable_w:
                return True
            self.run(STEP_S)
        return False

    def status(self) -> dict[str, Any]:
        assert self.coordinator is not None
        return self.coordinator.status(self.now_s)

    def settled(self) -> None:
        """Come to rest under the budget; from here on nothing may go above it."""
        self.run(4.0)
        assert self.enforced_w <= self.usable_w
        self.most_over_w = float("-inf")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.stop()


def test_watts_move_between_nodes_and_never_above_the_budget(fleet: Fleet) -> None:
    fleet.start()
    fleet.settled()
    sums_w = []
    for _ in range(6):
        fleet.run(1.0)
        sums_w.append(sum(fleet.nodes[0].registers_w.values()))
    assert max(sums_w) - min(sums_w) > 200.0
    assert fleet.most_over_w <= 0.0
    assert fleet.used()
    assert fleet.status()["proven"] == 4


def test_a_cut_is_obeyed_and_a_rise_is_used(fleet: Fleet) -> None:
    fleet.start()
    fleet.settled()
    fleet.set_budget(1200.0)
    fleet.run(1.0)
    assert fleet.enforced_w <= 1150.0
    fleet.set_budget(2400.0)
    assert fleet.used()
    assert fleet.enforced_w > 2000.0


@pytest.mark.parametrize("keeps_log", [True, False], ids=["with its log", "without its log"])
def test_a_restart_raises_nothing_that_it_does_not_know_to_be_free(
    fleet: Fleet, keeps_log: bool
) -> None:
    fleet.start()
    fleet.settled()
    fleet.run(2.1, silent=("n2",))  # n2 keeps watts that only the log, or n2, can tell of
    fleet.stop()
    if not keeps_log:
        (fleet.folder / "log").unlink()
        fleet.nodes[1].report_file.unlink()
    fleet.start()
    fleet.run(6.0, silent=("n2",))
    assert fleet.most_over_w <= 0.0
    booked_w = fleet.status()["gpus"]["GPU-n2-0"]["booked_w"]
    assert booked_w < 700.0 if keeps_log else booked_w == 700.0
    fleet.run(4.0)
    assert fleet.most_over_w <= 0.0
    assert fleet.status()["proven"] == 4
    assert fleet.used()


def test_a_node_that_starts_anew_is_asked_before_its_watts_are_used(fleet: Fleet) -> None:
    fleet.start()
    fleet.settled()
    for _ in range(5):
        fleet.nodes[0].start()
        fleet.run(1.3)
    assert fleet.most_over_w <= 0.0
    fleet.run(3.0)
    assert fleet.used()


def test_a_second_coordinator_without_the_log_fences_the_first(
    fleet: Fleet, tmp_path: Path
) -> None:
    fleet.start()
    fleet.settled()
    rival_spec = json.loads(fleet.spec.read_text()) | {
        "log": str(tmp_path / "other"),
        "status": str(tmp_path / "other-status"),
    }
    (tmp_path / "rival.json").write_text(json.dumps(rival_spec))
    rival = FileCoordinator(read_spec(tmp_path / "rival.json"))
    try:
        with pytest.raises(FencedError, match="another coordinator"):
            fleet.run(5.0, beside=rival)
        assert fleet.most_over_w <= 0.0
        with pytest.raises(FencedError, match="has it open"):
            FileCoordinator(read_spec(tmp_path / "rival.json"))
    finally:
        rival.close()


def test_originals_are_granted_when_asked_for(fleet: Fleet) -> None:
    fleet.start()
    fleet.settled()
    (fleet.folder / "restore").touch()
    fleet.run(3.0)
    assert fleet.enforced_w <= fleet.usable_w, "a restore is a raise: it needs its watts"
    fleet.set_budget(2850.0)
    fleet.run(4.0)
    assert [list(node.registers_w.values()) for node in fleet.nodes] == [[600.0, 600.0]] * 2
    content = fleet.nodes[0].grants.read_bytes()
    file = decode_grants(content, node="n1", where="grants")
    assert set(file.restore) == set(fleet.nodes[0].registers_w)


def test_reports_that_cannot_be_read_free_nothing(fleet: Fleet) -> None:
    fleet.start()
    fleet.settled()
    for content in (b"", b"{", b"{}", b"\xff", b'{"protocol":1,"node":"n9"}'):
        for node in fleet.nodes:
            replace_file(node.report_file, content)
        assert fleet.coordinator is not None
        fleet.coordinator.step(fleet.now_s)
    fleet.run(2.0)
    assert fleet.most_over_w <= 0.0


def test_the_log_is_compacted_and_still_proves_the_bounds(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattline.virtual.coordinator.COMPACT_BYTES", 2000)
    fleet.start()
    fleet.settled()
    fleet.run(10.0)
    assert (fleet.folder / "log").stat().st_size < 4000
    fleet.stop()
    fleet.start()
    booked = fleet.status()["gpus"]
    assert all(entry["booked_w"] < 700.0 for entry in booked.values())
    fleet.run(4.0)
    assert fleet.most_over_w <= 0.0


def test_epochs_of_two_that_know_the_same_differ() -> None:
    epochs = {new_epoch(7 << 20) for _ in range(50)}
    assert len(epochs) == 50
    assert all(epoch > 7 << 20 for epoch in epochs)
    assert new_epoch(max(epochs)) > max(epochs)


def test_a_spec_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"nodes": []}')
    with pytest.raises(InputError, match="grants_dir"):
        read_spec(tmp_path / "spec.json")


def test_a_limit_found_above_its_leave_before_the_first_grant_is_mended(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without a grant writes nothing of its own accord: the coordinator must."""
    gpu = next(iter(fleet.nodes[0].registers_w))
    monkeypatch.setattr(Ledger, "found_above_w", property(lambda _: {gpu: 20.0}))
    for node in fleet.nodes:
        node.report(fleet.now_s)
    fleet.start()
    fleet.run(1.0)
    assert fleet.status()["gpus"][gpu]["granted_w"] == 200.0
    assert fleet.nodes[0].registers_w[gpu] == 200.0
