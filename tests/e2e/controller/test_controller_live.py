"""The whole loop: a real Dynamo frontend, workers started by the controller, the agent, a cut.

Needs Dynamo's environment; skipped with a reason where it is not built.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wattline.core.fleet import Role
from wattline.live import environment
from wattline.live.environment import Environment
from wattline.live.supervisor import Supervisor, WorkerPool
from wattline.live.worker_command import worker_pool
from wattline.live.worker_spec import WorkerSpec
from wattline.recording.record import Recording
from wattline.sim.replay import replay
from wattline.virtual.node import VirtualNode

WATTLINE = (sys.executable, "-c", "from wattline.cli.main import main; main()")
DEADLINE_S = 90.0
TOKEN = "0123456789abcdef0123456789abcdef"
MODEL = "tiny"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Live:
    """Node, agent, frontend and controller, each a process of its own."""

    def __init__(self, folder: Path, node: VirtualNode, dynamo: Environment) -> None:
        self.folder = folder
        self.node = node
        self.uuids = node.gpus.uuids()
        self.frontend_port = free_port()
        self.url = f"http://127.0.0.1:{free_port()}"
        self.pools = [self._pool(dynamo, role) for role in (Role.PREFILL, Role.DECODE)]
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "grants").mkdir()
        (folder / "token").write_text(TOKEN)
        (folder / "controller.yaml").write_text(yaml.safe_dump(self._settings()))
        self._start(
            "frontend",
            [
                *(str(dynamo.python), "-m", "dynamo.frontend", "--http-host", "127.0.0.1"),
                *("--http-port", str(self.frontend_port), "--router-mode", "kv"),
            ],
            {**dynamo.variables(folder / "kv"), "DYN_LOG": "warn"},
        )
        agent = {
            "node": "n1",
            "grants": folder / "grants",
            "state-dir": folder / "agent",
            "listen": "127.0.0.1:0",
            "kubelet-socket": node.kubelet_socket,
            "proc-root": node.proc_root,
            "dynamo-state": folder / "none.json",
            "readback-s": 0.5,
        }
        words = [word for name, value in agent.items() for word in (f"--{name}", str(value))]
        self._start("agent", [*WATTLINE, "agent", "run", *words], node.env)
        self.controller = self._start(
            "controller", [*WATTLINE, "run", "--config", str(folder / "controller.yaml")], {}
        )

    def _start(self, name: str, argv: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                argv, env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT
            )
        self.processes.append(process)
        return process

    def _pool(self, dynamo: Environment, role: Role) -> WorkerPool:
        spec = WorkerSpec(
            role=role,
            gpus=(),
            gpus_file=str(self.node.gpus_file),
            model="Qwen3-8B",
            model_dir=str(dynamo.model_dir),
            served_name=MODEL,
            name=role.value,
            quiet_s=0.5,
            drain_s=30.0,
        )
        return worker_pool(dynamo, spec, self.folder / "kv")

    def _settings(self) -> dict[str, Any]:
        pools = [
            {"name": role, "role": role, "gpu": "H100", "gpus": 1} for role in ("prefill", "decode")
        ]
        return {
            "state_dir": str(self.folder / "controller"),
            "listen": self.url.removeprefix("http://"),
            "token_file": str(self.folder / "token"),
            "deployments": [
                {
                    "name": "chat",
                    "model": "Qwen3-8B",
                    "slo": {"ttft_s": 0.5, "itl_s": 0.03},
                    "pools": pools,
                }
            ],
            "nodes": [
                {
                    "name": "n1",
                    "grants": f"{self.folder}/grants/",
                    "report_file": str(self.folder / "agent" / "report.json"),
                    "gpus": {"prefill": [self.uuids[0]], "decode": [self.uuids[1]]},
                }
            ],
            "budget": {"total_w": 1200},
            "sources": {
                "frontends": {"chat": [f"http://127.0.0.1:{self.frontend_port}"]},
                "model_names": {"chat": MODEL},
            },
            "actuation": {
                "replicas": "supervisor",
                "admission": "autoset",
                "workers": {
                    pool.name: {"argv": list(pool.argv), "env": dict(pool.env)}
                    for pool in self.pools
                },
            },
        }

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/state", timeout=10.0) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def set_budget(self, watts: float) -> None:
        request = urllib.request.Request(
            f"{self.url}/budget",
            data=json.dumps({"by": "test", "why": "a cut", "total_w": watts}).encode(),
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            assert answer.status == 200

    def ask(self) -> int:
        """One chat completion; its status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.frontend_port, timeout=60)
        try:
            document = {
                "model": MODEL,
                "messages": [{"role": "user", "content": "bafu dego " * 100}],
                "max_tokens": 20,
            }
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(document), headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def enforced_w(self) -> float:
        return sum(self.node.gpus.enforced_mw(uuid) for uuid in self.uuids) / 1000

    def until(self, condition: Callable[[], Any], what: str) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            said = (self.folder / "controller.log").read_text()[-2000:]
            assert time.monotonic() < end_s, f"never: {what}: {said}"
            time.sleep(0.1)

    def close(self) -> None:
        for process in self.processes[1:]:
            process.kill()
            process.wait()
        # The controller leaves its workers serving: the next supervisor finds and ends them.
        Supervisor(self.pools, self.folder / "controller" / "workers").stop(limit_s=30.0)
        self.processes[0].kill()
        self.processes[0].wait()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    dynamo = environment.find()
    if dynamo is None:
        pytest.skip(
            f"Dynamo {environment.RELEASE} is not built in {environment.default_home()}: "
            "`python -m wattline.live.environment` builds it (0.7 GB, about a minute)"
        )
    with VirtualNode(tmp_path / "node", ("h100",) * 2, settle_s=0.0) as node:
        made = Live(tmp_path, node, dynamo)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_frontend_and_its_workers_are_kept_within_a_budget_that_is_cut(live: Live) -> None:
    live.until(lambda: all(pool["ready"] for pool in live.state()["pools"]), "workers that serve")
    live.until(lambda: live.ask() == 200, "an answer")

    def seen() -> bool:
        live.ask()
        facts = live.state()["deployments"][0]["facts"]
        return facts["outage"] is None and facts["seen_rps"] > 0

    live.until(seen, "demand that is seen")
    live.until(lambda: live.enforced_w() > 600.0, "watts for those who serve")
    live.until(
        lambda: live.state()["admission"]["frontends"][0]["held"] is not None,
        "thresholds at the frontend",
    )
    live.set_budget(700.0)
    live.until(lambda: live.enforced_w() <= 686.0, "the cut enforced")
    live.until(lambda: live.state()["budget"]["booked_w"] <= 686.0, "the cut booked")
    assert live.ask() in (200, 529)
    live.controller.send_signal(signal.SIGTERM)
    assert live.controller.wait(DEADLINE_S) == 0
    assert live.ask() in (200, 529), "workers go on without the controller"
    assert live.enforced_w() <= 686.0
    outcome = replay(Recording(live.folder / "controller" / "recording"))
    assert outcome.difference is None
    assert outcome.decisions > 5
