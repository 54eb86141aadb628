"""`wattline run` over the real agent on a virtual node: a cut, a kill, a restart, a replay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wattline.drivers.grant_files import decode_report
from wattline.recording.record import Recording
from wattline.sim.replay import replay
from wattline.virtual.node import VirtualNode

pytest_plugins = ("virtual_fixtures",)

WATTLINE = (sys.executable, "-c", "from wattline.cli.main import main; main()")
RUN = (*WATTLINE, "run")
DEADLINE_S = 60.0
TOKEN = "0123456789abcdef0123456789abcdef"

CONFIG = """
state_dir: {folder}/controller
listen: 127.0.0.1:0
token_file: {folder}/token
tick_s: 0.2
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
"""


class Place:
    """A virtual node, its agent, and one controller at a time."""

    def __init__(self, folder: Path, virtual: VirtualNode) -> None:
        self.folder = folder
        self.virtual = virtual
        self.uuids = virtual.gpus.uuids()
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "grants").mkdir(mode=0o755)
        (folder / "token").write_text(TOKEN)
        self.config = folder / "controller.yaml"
        text = CONFIG.format(
            folder=folder, prefill=", ".join(self.uuids[:4]), decode=", ".join(self.uuids[4:])
        )
        self.config.write_text(text)
        self.log = folder / "controller.log"
        self.controller: subprocess.Popen[bytes]

    def start_agent(self) -> None:
        options = {
            "node": "n1",
            "grants": self.folder / "grants",
            "state-dir": self.folder / "agent",
            "listen": "127.0.0.1:0",
            "kubelet-socket": self.virtual.kubelet_socket,
            "proc-root": self.virtual.proc_root,
            "dynamo-state": self.folder / "none.json",
            "readback-s": 0.2,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self.folder / "agent.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [*WATTLINE, "agent", "run", *words],
                    env={**os.environ, **self.virtual.env},
                    stderr=log,
                )
            )
        report = self.folder / "agent" / "report.json"
        self.until(
            lambda: all(
                gpu.report
                for gpu in decode_report(report.read_bytes(), node="n1", where="report").gpus
            ),
            "a whole report",
        )

    def start_controller(self) -> None:
        with self.log.open("wb") as log:
            self.controller = subprocess.Popen(
                [*RUN, "--config", str(self.config), "--log-format", "json"], stderr=log
            )
        self.processes.append(self.controller)
        self.until(self.address, "an address to listen on")
        self.until(lambda: self.state()["tick"] >= 0, "a first tick")

    def address(self) -> str | None:
        for line in self.log.read_text().splitlines():
            if line.startswith("{") and json.loads(line).get("message") == "listening":
                return str(json.loads(line)["address"])
        return None

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.address()}/state", timeout=10.0) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def post(self, command: str, **body: object) -> None:
        request = urllib.request.Request(
            f"http://{self.address()}/{command}",
            data=json.dumps({"by": "test", "why": "a test", **body}).encode(),
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            assert answer.status == 200

    def enforced_w(self) -> float:
        return sum(self.virtual.gpus.enforced_mw(uuid) for uuid in self.uuids) / 1000

    def until(self, condition: Callable[[], Any], what: str) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            assert time.monotonic() < end_s, f"never: {what}: {self.log.read_text()[-2000:]}"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def place(tmp_path: Path, virtual_node: VirtualNode) -> Iterator[Place]:
    made = Place(tmp_path, virtual_node)
    try:
        made.start_agent()
        yield made
    finally:
        made.close()


def test_a_cut_holds_through_a_kill_and_a_restart(place: Place) -> None:
    assert place.enforced_w() == 8 * 700.0
    place.start_controller()
    place.until(lambda: place.enforced_w() <= 3920.0, "4,000 W enforced")
    place.until(lambda: place.state()["budget"]["booked_w"] <= 3920.0, "4,000 W booked")
    place.post("budget", total_w=2800.0)
    place.until(lambda: place.enforced_w() <= 2744.0, "2,800 W enforced")
    place.until(lambda: place.state()["budget"]["booked_w"] <= 2744.0, "2,800 W booked")
    held_w = place.enforced_w()

    place.controller.send_signal(signal.SIGKILL)
    place.controller.wait(DEADLINE_S)
    place.start_controller()
    state = place.state()
    # The cut and what was granted outlive the kill: nothing is booked at its largest limit.
    assert state["budget"]["total_w"] == 2800.0
    assert state["budget"]["booked_w"] <= 2744.0
    assert place.enforced_w() == held_w
    assert state["tick"] > 1
    first = state["tick"]
    place.until(lambda: place.state()["tick"] > first + 10, "ten more ticks")
    assert place.enforced_w() <= 2744.0

    place.post("budget", clear=True)
    place.until(lambda: place.state()["budget"]["cause"] == "configuration", "the old budget")
    place.config.write_text(place.config.read_text().replace("total_w: 4000", "total_w: 2500"))
    place.controller.send_signal(signal.SIGHUP)
    place.until(lambda: place.enforced_w() <= 2450.0, "the configuration read again")
    place.until(lambda: "budget.total_w" in place.state()["reload"], "a line on the reload")
    place.config.write_text(place.config.read_text().replace("tick_s: 0.2", "tick_s: 0.3"))
    place.controller.send_signal(signal.SIGHUP)
    place.until(lambda: "tick_s" in place.state()["reload"], "a refusal that names the key")

    place.post("hold", for_s=3600)
    place.until(lambda: place.state()["orders"], "an order in force")
    assert {pool["reason"] for pool in place.state()["pools"]} == {"operator_hold"}

    place.controller.send_signal(signal.SIGTERM)
    assert place.controller.wait(DEADLINE_S) == 0
    assert place.enforced_w() <= 2450.0
    outcome = replay(Recording(place.folder / "controller" / "recording"))
    assert outcome.difference is None
    assert outcome.decisions > 20
    assert len(outcome.notes) == 1, "the segment of the controller that was killed is not closed"


def test_check_config_says_what_there_is_and_what_is_wrong(place: Place) -> None:
    good = subprocess.run(
        [*RUN, "--config", str(place.config), "--check-config"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert "8 GPUs" in good.stdout
    text = place.config.read_text()
    place.config.write_text(text.replace("total_w: 4000", "total_w: 40"))
    bad = subprocess.run(
        [*RUN, "--config", str(place.config), "--check-config"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert bad.returncode == 2
    assert "budget.total_w" in bad.stderr
    assert len(bad.stderr.splitlines()) == 1
