"""A virtual node under a budget: its real agent and one real controller.

The fixture `governed_node` of `virtual_fixtures` makes one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from wattline.drivers.grant_files import decode_report
from wattline.virtual.node import VirtualNode

WATTLINE = (sys.executable, "-c", "from wattline.cli.main import main; main()")
DEADLINE_S = 60.0
TOKEN = "0123456789abcdef0123456789abcdef"


class GovernedNode:
    """Eight GPUs, four of them for prefill and four for decode, a budget of 4,000 W."""

    def __init__(self, folder: Path, virtual: VirtualNode) -> None:
        self.folder = folder
        self.virtual = virtual
        self.uuids = virtual.gpus.uuids()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.controller: subprocess.Popen[bytes]
        (folder / "grants").mkdir(mode=0o755)
        self.token = folder / "token"
        self.token.write_text(TOKEN)
        self.config = folder / "controller.yaml"
        self.log = folder / "controller.log"
        self.configure()

    def configure(self, **changes: object) -> None:
        """Write the controller's file, with top-level keys replaced."""
        pools = ("prefill", self.uuids[:4]), ("decode", self.uuids[4:])
        document: dict[str, object] = {
            "state_dir": str(self.folder / "controller"),
            "listen": "127.0.0.1:0",
            "token_file": str(self.token),
            "tick_s": 0.2,
            "deployments": [
                {
                    "name": "chat",
                    "model": "Llama-3.1-8B",
                    "slo": {"ttft_s": 0.5, "itl_s": 0.03},
                    "pools": [
                        {"name": name, "role": name, "gpu": "H100", "gpus": len(gpus)}
                        for name, gpus in pools
                    ],
                }
            ],
            "nodes": [
                {
                    "name": "n1",
                    "grants": f"{self.folder}/grants/",
                    "report_file": f"{self.folder}/agent/report.json",
                    "gpus": {name: list(gpus) for name, gpus in pools},
                }
            ],
            "budget": {"total_w": 4000.0},
        }
        # By way of JSON, because YAML would write a value that is there twice as an alias.
        plain = json.loads(json.dumps(document | changes))
        self.config.write_text(yaml.safe_dump(plain))

    # Processes

    def start(self, log: Path, *words: object) -> subprocess.Popen[bytes]:
        """`wattline WORDS`, seeing the virtual GPUs, what it says at the end of `log`."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*WATTLINE, *map(str, words)],
                env={**os.environ, **self.virtual.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.processes.append(process)
        return process

    def start_agent(self) -> None:
        """The node's agent, until it has reported on every GPU."""
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
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.start(self.folder / "agent.log", "agent", "run", *words)
        report = self.folder / "agent" / "report.json"
        self.until(
            lambda: all(
                gpu.report
                for gpu in decode_report(report.read_bytes(), node="n1", where="report").gpus
            ),
            "a whole report",
        )

    def start_controller(self) -> None:
        """A controller, until its first tick."""
        self.log.unlink(missing_ok=True)
        words = ("run", "--config", self.config, "--log-format", "json")
        self.controller = self.start(self.log, *words)
        self.until(self.address, "an address to listen on")
        self.until(lambda: self.state()["tick"] >= 0, "a first tick")

    def end_controller(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        self.controller.send_signal(number)
        return self.controller.wait(DEADLINE_S)

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.wait()

    # Looking and asking

    def address(self) -> str | None:
        """Where the controller listens, None until it says so."""
        for line in self.log.read_text().splitlines():
            if line.startswith("{") and json.loads(line).get("message") == "listening":
                return str(json.loads(line)["address"])
        return None

    def state(self) -> dict[str, Any]:
        """The controller's `/state`."""
        with urllib.request.urlopen(f"http://{self.address()}/state", timeout=10.0) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def operate(self, *words: object) -> subprocess.CompletedProcess[str]:
        """`wattline operate WORDS` with the token."""
        return subprocess.run(
            [
                *WATTLINE,
                *("operate", "--url", f"http://{self.address()}", "--token-file", str(self.token)),
                *map(str, words),
            ],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def post(self, command: str, **body: object) -> None:
        """Give an order over HTTP."""
        request = urllib.request.Request(
            f"http://{self.address()}/{command}",
            data=json.dumps({"by": "test", "why": "a test", **body}).encode(),
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            assert answer.status == 200

    def enforced_w(self) -> float:
        """Sum of the limits in force."""
        return sum(self.virtual.gpus.enforced_mw(uuid) for uuid in self.uuids) / 1000.0

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition; a connection that is refused counts as not yet."""
        end_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            assert time.monotonic() < end_s, f"never: {what}: {self.tail()}"
            time.sleep(0.02)

    def tail(self) -> str:
        """The end of what the controller said."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else "no log"
