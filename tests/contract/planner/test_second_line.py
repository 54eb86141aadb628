"""The real planner without its plugin decides what it likes: the enforced limits hold the budget.

Controller and agent are real and run on a virtual node; the plan that the plugin answers from is
the controller's own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from planner_stack import DECODE_WORKERS, Stack, wait_until

from wattline.virtual.node import VirtualNode

pytest_plugins = ("virtual_fixtures",)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MAIN = (
    "from wattline.cli.main import COMMANDS, Entry, main;"
    "COMMANDS.setdefault('run', Entry('wattline.cli.run:run', '', 'sim')); main()"
)
WATTLINE = (sys.executable, "-c", MAIN)
BUDGET_W, GUARD_W = 4000.0, 80.0
LARGEST_W = 8 * 700.0
WANTED = 40

CONFIG = """
state_dir: {folder}/controller
listen: 127.0.0.1:0
tick_s: 0.5
deployments:
  - name: chat
    model: Llama-3.1-8B
    slo: {{ttft_s: 0.5, itl_s: 0.03}}
    pools:
      - {{name: prefill, role: prefill, gpu: H100, gpus: 4}}
      - {{name: decode, role: decode, gpu: H100, gpus: 4}}
nodes:
  - name: n1
    grants: {folder}/grants/
    report_file: {folder}/agent/report.json
    gpus:
      prefill: [{prefill}]
      decode: [{decode}]
budget: {{total_w: 4000}}
actuation:
  plugin_state: {{chat: {folder}/plan.json}}
"""


class Node:
    """A virtual node with its agent and a controller."""

    def __init__(self, folder: Path, virtual: VirtualNode) -> None:
        self.folder = folder
        self.virtual = virtual
        self.uuids = virtual.gpus.uuids()
        self.plan = folder / "plan.json"
        self.log = folder / "processes.log"
        (folder / "grants").mkdir(mode=0o755)
        config = folder / "controller.yaml"
        prefill, decode = ", ".join(self.uuids[:4]), ", ".join(self.uuids[4:])
        config.write_text(CONFIG.format(folder=folder, prefill=prefill, decode=decode))
        agent = {
            "node": "n1",
            "grants": folder / "grants",
            "state-dir": folder / "agent",
            "listen": "127.0.0.1:0",
            "kubelet-socket": virtual.kubelet_socket,
            "proc-root": virtual.proc_root,
            "dynamo-state": folder / "none.json",
            "readback-s": 0.2,
        }
        words = [word for name, value in agent.items() for word in (f"--{name}", str(value))]
        self.processes = [self.start("agent", "run", *words), self.start("run", "--config", config)]

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*WATTLINE, *map(str, words)],
                env={**os.environ, **self.virtual.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def enforced_w(self) -> float:
        return sum(self.virtual.gpus.enforced_mw(uuid) for uuid in self.uuids) / 1000.0

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def node(tmp_path: Path, virtual_node: VirtualNode) -> Iterator[Node]:
    made = Node(tmp_path, virtual_node)
    try:
        yield made
    finally:
        made.close()


def test_with_the_plugin_killed_the_enforced_limits_hold_the_budget(
    stack: Stack, node: Node
) -> None:
    wait_until(lambda: node.enforced_w() <= BUDGET_W - GUARD_W, node.tail, 60)
    wait_until(node.plan.exists, node.tail, 30)
    document = json.loads(node.plan.read_text())
    assert set(document["roles"]) == {"prefill", "decode"}
    assert document["budget_w"] == BUDGET_W
    plugin = stack.plugin(
        node.plan, "--listen", "127.0.0.1:0", "--id", "second-line", "--stale-s", "15",
        "--register", stack.gateway, "--secret-file", str(stack.folder / "first"),
    )  # fmt: skip
    wait_until(lambda: stack.evaluations("second-line", "at_most") > 2, plugin.child.tail, 60)
    stack.want(WANTED)
    until = stack.ticks() + 4
    wait_until(lambda: stack.ticks() >= until, stack.planner.tail, 60)
    assert WANTED not in stack.decided(), stack.planner.tail()
    assert plugin.value("plan_fault") == 0.0
    age_s = plugin.value("plan_age_seconds")
    assert age_s is not None
    assert age_s < 15.0, "the controller's plan is what the plugin answers from"
    assert plugin.value("verdicts_total", {"code": "held"}) is None, plugin.child.tail()

    plugin.child.end(signal.SIGKILL)
    wait_until(lambda: WANTED in stack.decided(), stack.planner.tail, 30)
    # Its replicas come up on every GPU, and each would draw all that it can.
    for uuid in node.uuids:
        node.virtual.gpus.set_load(uuid, LARGEST_W / len(node.uuids))
    seen_w = []
    end_s = time.monotonic() + 5.0
    while time.monotonic() < end_s:
        seen_w.append(node.enforced_w())
        time.sleep(0.02)
    stack.want(DECODE_WORKERS)
    assert max(seen_w) <= BUDGET_W - GUARD_W
    assert node.processes[0].poll() is None
    assert node.processes[1].poll() is None, node.tail()
