"""The real agent process over the unmodified NVML binding on a virtual node: what goes wrong."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wattline.drivers.grant_files import (
    GpuGrant,
    GrantFile,
    NodeReport,
    decode_report,
    write_grants,
)
from wattline.grants.messages import Grant
from wattline.virtual.gpus import Group, NvmlCode
from wattline.virtual.node import VirtualNode

WATTLINE = (sys.executable, "-c", "from wattline.cli.main import main; main()")
DEADLINE_S = 60.0
DEFAULT_W = 700.0


def assert_eventually(condition: Callable[[], Any], what: str) -> Any:
    end_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            if value := condition():
                return value
        except FileNotFoundError:
            pass
        assert time.monotonic() < end_s, f"never: {what}"
        time.sleep(0.005)


class Node:
    """A virtual node with one agent process at a time, under grants."""

    def __init__(self, folder: Path, virtual: VirtualNode) -> None:
        self.virtual = virtual
        self.gpus = virtual.gpus
        self.uuids = self.gpus.uuids()
        self.grants = folder / "grants"
        self.grants.mkdir(mode=0o755)
        self.state = folder / "state"
        self.brake = folder / "brake"
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._sequence = itertools.count(1)

    def start(self, **changes: object) -> subprocess.Popen[bytes]:
        options = {
            "node": "n1",
            "grants": self.grants,
            "state-dir": self.state,
            "brake-file": self.brake,
            "listen": "127.0.0.1:0",
            "kubelet-socket": self.virtual.kubelet_socket,
            "proc-root": self.virtual.proc_root,
            "dynamo-state": self.state / "none.json",
            "readback-s": 0.2,
            **changes,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        before = self.incarnation()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*WATTLINE, "agent", "run", *words],
                env={**os.environ, **self.virtual.env},
                stderr=log,
            )
        assert_eventually(
            lambda: self.incarnation() != before and self.whole(), "a first whole report"
        )
        return self.process

    def stop(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        self.process = None
        return code

    def report(self) -> NodeReport:
        content = (self.state / "report.json").read_bytes()
        return decode_report(content, node="n1", where="report.json")

    def incarnation(self) -> int | None:
        try:
            return self.report().incarnation
        except FileNotFoundError:
            return None

    def whole(self) -> bool:
        gpus = self.report().gpus
        return len(gpus) == len(self.uuids) and all(entry.report for entry in gpus)

    def limits(self) -> list[float]:
        return [self.gpus.enforced_mw(uuid) / 1000 for uuid in self.uuids]

    def grant(self, watts: float, **changes: Any) -> int:
        sequence = next(self._sequence)
        restore = changes.pop("restore", ())
        values: dict[str, Any] = {
            "incarnation": self.report().incarnation,
            "epoch": 1,
            "sequence": sequence,
            "watts": watts,
            "brake_w": 250.0,
            "lease_s": 600.0,
            **changes,
        }
        grants = tuple(GpuGrant(grant=Grant(gpu=uuid, **values)) for uuid in self.uuids)
        file = GrantFile(node="n1", epoch=1, grants=grants, restore=restore)
        write_grants(self.grants / "n1.json", file)
        return sequence

    def granted(self, watts: float) -> None:
        sequence = self.grant(watts)
        self.enforced(watts)
        assert_eventually(
            lambda: all(
                entry.report is not None
                and entry.report.sequence == sequence
                and entry.report.enforced_w == watts
                for entry in self.report().gpus
            ),
            f"a report of {watts} W",
        )

    def enforced(self, watts: float) -> None:
        assert_eventually(
            lambda: self.limits() == [watts] * len(self.uuids), f"{watts} W everywhere"
        )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with VirtualNode(tmp_path / "node", settle_s=0.0) as virtual:
        made = Node(tmp_path, virtual)
        try:
            yield made
        finally:
            if made.process is not None:
                made.process.send_signal(signal.SIGCONT)
                made.process.kill()
                made.process.wait()


def test_grants_brake_and_release(node: Node) -> None:
    node.start()
    for watts in (400.0, 550.0, 300.0):
        node.granted(watts)
    node.brake.write_text("")
    node.enforced(250.0)
    node.brake.unlink()
    assert_eventually(lambda: node.grant(500.0) and node.limits()[0] == 500.0, "it climbs back")
    node.enforced(500.0)
    assert node.process is not None
    before = node.report().incarnation
    node.process.send_signal(signal.SIGUSR1)
    node.enforced(250.0)
    assert_eventually(lambda: node.report().incarnation > before, "a new incarnation")
    node.granted(DEFAULT_W)
    node.grant(DEFAULT_W, restore=node.uuids)
    assert_eventually(lambda: all(e.facts.wanted_w is None for e in node.report().gpus), "released")
    assert node.stop(signal.SIGTERM) == 0
    assert node.limits() == [DEFAULT_W] * 8


def test_restarts_hold_and_originals_survive_any_kill(node: Node) -> None:
    """SIGKILL at random moments around a change, between journal and write among them."""
    rng = random.Random(7)
    for uuid in node.uuids:
        node.gpus.fail(uuid, Group.LIMIT_WRITE, NvmlCode.SUCCESS, delay_s=0.01)
    highest = DEFAULT_W
    node.start()
    node.granted(500.0)
    for turn in range(8):
        before, after = rng.sample([300.0, 400.0, 500.0, 600.0], 2)
        node.granted(before)
        node.grant(after)
        time.sleep(rng.uniform(0.0, 0.12))
        node.stop()
        highest = max(before, after)
        assert max(node.limits()) <= highest, f"turn {turn}"
        node.start()
        assert max(node.limits()) <= highest, f"turn {turn}"
        for entry in node.report().gpus:
            assert entry.report is not None
            assert entry.report.held_w <= highest
            assert entry.facts.original_w == DEFAULT_W
    node.granted(DEFAULT_W)
    node.grant(DEFAULT_W, restore=node.uuids)
    assert_eventually(lambda: all(e.facts.wanted_w is None for e in node.report().gpus), "released")
    assert node.limits() == [DEFAULT_W] * 8


def test_a_full_disk_stops_raises_and_lets_lowerings_and_brakes_through(node: Node) -> None:
    process = node.start()
    node.granted(400.0)
    hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
    incarnation = node.report().incarnation
    node.grant(600.0, incarnation=incarnation)
    answer = assert_eventually(lambda: journal_of(node), "the agent says that its journal is stuck")
    assert "no raises" in answer
    assert node.limits() == [400.0] * 8
    node.grant(300.0, incarnation=incarnation)
    node.enforced(300.0)
    process.send_signal(signal.SIGUSR1)
    node.enforced(250.0)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert_eventually(lambda: node.report().incarnation > incarnation, "reports again")
    node.granted(600.0)


def journal_of(node: Node) -> str | None:
    """What the agent says of its journal, over its control socket; None: all is well."""
    done = subprocess.run(
        [*WATTLINE, "agent", "status", "--state-dir", str(node.state), "--output", "json"],
        capture_output=True,
        check=True,
        timeout=DEADLINE_S,
    )
    words: str = json.loads(done.stdout)["journal"]
    return None if words == "ok" else words


def test_a_damaged_journal_is_set_aside_and_what_is_found_is_held(node: Node) -> None:
    node.start()
    node.granted(400.0)
    node.stop()
    journal = node.state / "journal.json"
    journal.write_bytes(journal.read_bytes()[:-30])
    node.start()
    assert "damaged" in node.report().journal
    assert node.limits() == [400.0] * 8
    assert (node.state / "journal.json.corrupt-1").exists()
    node.granted(450.0)


def test_rivals_reloads_and_torn_files_end_where_they_were(node: Node) -> None:
    node.start()
    node.granted(400.0)
    node.gpus.rival(node.uuids[3], 650.0)
    node.enforced(400.0)
    node.gpus.reload(absent_s=0.3)
    assert_eventually(lambda: max(node.limits()) == DEFAULT_W, "the reload")
    node.enforced(400.0)
    (node.grants / "n1.json").write_bytes(b'{"protocol": 1, "node": "n1", "epo')
    node.gpus.renumber(list(reversed(node.uuids)))
    node.granted(420.0)
    node.gpus.lose(node.uuids[2])
    assert_eventually(lambda: faults(node).get(node.uuids[2]), "the loss is told")
    node.grant(380.0)
    rest = [uuid for uuid in node.uuids if uuid != node.uuids[2]]
    assert_eventually(
        lambda: {node.gpus.enforced_mw(uuid) for uuid in rest} == {380_000}, "the others obey"
    )
    node.gpus.recover(node.uuids[2])
    node.enforced(380.0)


def faults(node: Node) -> dict[str, str | None]:
    return {entry.gpu: entry.facts.fault for entry in node.report().gpus}


def test_a_hung_gpu_keeps_the_lock_and_delays_no_other(node: Node) -> None:
    node.start()
    node.granted(400.0)
    node.gpus.fail(node.uuids[0], Group.LIMIT_WRITE, NvmlCode.SUCCESS, delay_s=4.0)
    node.grant(300.0)
    rest = node.uuids[1:]
    assert_eventually(
        lambda: {node.gpus.enforced_mw(u) for u in rest} == {300_000}, "the others obey"
    )
    assert node.gpus.enforced_mw(node.uuids[0]) == 400_000
    node.enforced(300.0)


def test_a_stopped_process_whose_lease_ended_goes_to_its_expiry_watts(node: Node) -> None:
    process = node.start()
    node.grant(500.0, lease_s=1.5, expiry_w=300.0)
    node.enforced(500.0)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    assert node.limits() == [500.0] * 8
    process.send_signal(signal.SIGCONT)
    node.enforced(300.0)


def test_pods_of_the_kubelet_get_their_limits_and_originals_come_back(node: Node) -> None:
    virtual = node.virtual
    kubelet = virtual.start_kubelet()
    options = {
        "mode": "annotations",
        "safe-default-w": 500,
        "pods": f"file:{virtual.pods_file}",
        "reconcile-s": 1,
    }
    node.start(**options)
    virtual.add_pod("worker", [0, 1], limit="480")
    virtual.add_pod("bystander", [2])
    assert_eventually(lambda: node.limits()[:3] == [480.0, 480.0, DEFAULT_W], "the worker's limit")
    virtual.add_pod("second", [1], limit="300")
    assert_eventually(lambda: node.limits()[1] == 500.0, "the safe default on the shared GPU")
    node.stop()
    virtual.remove_pod("worker")
    node.start(**options)
    assert_eventually(
        lambda: node.limits()[:2] == [DEFAULT_W, 300.0], "an orphan, and one taken up"
    )
    kubelet.stop()
    virtual.remove_pod("second")
    assert_eventually(
        lambda: reasons(node)[node.uuids[1]] == "frozen", "frozen without the kubelet"
    )
    assert node.limits()[1] == 300.0
    virtual.start_kubelet()
    assert_eventually(
        lambda: reasons(node)[node.uuids[1]] == "kept", "kept for a worker that comes back"
    )
    assert node.stop(signal.SIGTERM) == 0
    assert node.limits() == [DEFAULT_W] * 8


def reasons(node: Node) -> dict[str, str | None]:
    return {entry.gpu: entry.facts.reason for entry in node.report().gpus}


def test_check_needs_no_settings_and_writes_nothing(tmp_path: Path, node: Node) -> None:
    node.gpus.write_limit(2, 450.0)
    before = [node.gpus.changes(gpu) for gpu in node.uuids]
    files = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [*WATTLINE, "agent", "check", "--state-dir", str(node.state), "--listen", "127.0.0.1:0"],
        env={**os.environ, **node.virtual.env},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("fail  settings") and "--grants" in line for line in lines)
    assert any(line.startswith("ok    gpu 2") and "enforced 450 W" in line for line in lines)
    for gpu in node.uuids:
        for group in (Group.LIMIT_WRITE, Group.CLOCK_WRITE):
            assert node.gpus.calls(gpu, group) == 0
    assert [node.gpus.changes(gpu) for gpu in node.uuids] == before
    assert sorted(tmp_path.rglob("*")) == files
