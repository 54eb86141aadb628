"""Dynamo's real planner on one machine: etcd, mock workers, the planner, and plugins of ours.

The planner runs with `environment: virtual`, whose decisions lie in an etcd on a free port
(`ETCD_ENDPOINTS`); everything else finds itself through files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wattline.drivers.dynamo.pages import Page, parse_page
from wattline.drivers.dynamo.plugin.constrain import PowerPlan, RolePlan
from wattline.drivers.dynamo.plugin.state_file import write_state
from wattline.live.environment import Environment

HERE = Path(__file__).resolve().parent
NAMESPACE, MODEL = "dynamo", "tiny"
TICK_S = 1
CALL_S = 0.5
SECRETS = {"first-secret": "first", "second-secret": "second"}
GREEDY = "greedy"
PREFILL_WORKERS, DECODE_WORKERS = 1, 2
START_S = 90.0


def find_etcd(env: Mapping[str, str]) -> Path | None:
    """An etcd: of the API server's test binaries, the cache of this repository, or on PATH."""
    cache = HERE.parents[2] / ".cache" / "kube"
    folders = [Path(env["KUBEBUILDER_ASSETS"])] if env.get("KUBEBUILDER_ASSETS") else []
    for folder in [*folders, *sorted(cache.glob("*"))]:
        if os.access(folder / "etcd", os.X_OK):
            return folder / "etcd"
    found = shutil.which("etcd", path=env.get("PATH"))
    return Path(found) if found else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: Callable[[], str], limit_s: float) -> None:
    """Poll until it holds; AssertionError after a generous time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what()}"
        time.sleep(0.1)


def get(url: str) -> tuple[int, str]:
    """Status and text; status 0: no answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


@dataclass
class Child:
    """A process with its output in a file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def tail(self) -> str:
        return f"{self.name}: ...{self.text()[-1500:]}"

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal it and reap it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(15)


@dataclass
class Plugin:
    """A `wattline dynamo-plugin` and its page."""

    child: Child
    page_port: int

    def metrics(self) -> Page:
        status, text = get(f"http://127.0.0.1:{self.page_port}/metrics")
        assert status == 200, self.child.tail()
        return parse_page(text.encode(), self.child.name, ["wattline_plugin"])

    def value(self, name: str, where: Mapping[str, str] | None = None) -> float | None:
        found = self.metrics().select(f"wattline_plugin_{name}", where)
        return sum(sample.value for sample in found) if found else None

    def ready(self) -> str:
        return get(f"http://127.0.0.1:{self.page_port}/readyz")[1]


@dataclass
class Stack:
    """All processes of one deployment; `close` ends them."""

    environment: Environment
    etcd: Path
    folder: Path
    children: list[Child] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    planner_port: int = field(default_factory=free_port)
    gateway: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    greedy_port: int = field(default_factory=free_port)

    def begin(self) -> None:
        """Start everything but the plugin under test."""
        etcd_port = free_port()
        client, peer = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{free_port()}"
        discovery = self.folder / "discovery"
        discovery.mkdir()
        self.variables = {
            **os.environ,
            **self.environment.variables(discovery),
            "ETCD_ENDPOINTS": client,
            "DYN_LOG": "info",
        }
        for name in ("first", "second"):
            secret = next(text for text, subject in SECRETS.items() if subject == name)
            (self.folder / name).write_text(secret + "\n")
        self.start(
            "etcd",
            [
                str(self.etcd),
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
            ],
        )
        wait_until(lambda: get(f"{client}/health")[0] == 200, lambda: "etcd", 30)
        self._mocker("prefill", PREFILL_WORKERS, f"--bootstrap-ports={free_port()}")
        self._mocker("decode", DECODE_WORKERS)
        python = str(self.environment.python)
        self.deployment = self.start(
            "deployment", [python, str(HERE / "virtual_deployment.py"), NAMESPACE], dynamo=True
        )
        self.want(DECODE_WORKERS)
        listen = f"127.0.0.1:{self.greedy_port}"
        self.greedy = self.plugin(self.folder / "greedy.json", "--listen", listen, "--propose")
        self.planner = self.start_planner()

    def want(self, decode: int) -> None:
        """Have the plugin in the planner's own list propose so many decode workers."""
        plan = plan_of(1e6, prefill=PREFILL_WORKERS, decode=decode)
        write_state(self.folder / "greedy.json", plan, made_s=time.time())

    def start(self, name: str, command: list[str], *, dynamo: bool = False) -> Child:
        log = self.folder / f"{name}-{len(self.children)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.variables if dynamo else None,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def _mocker(self, role: str, workers: int, *more: str) -> None:
        command = [
            str(self.environment.python), "-m", "dynamo.mocker",
            "--model-path", str(self.environment.model_dir), "--model-name", MODEL,
            "--num-gpu-blocks-override", "64", "--disaggregation-mode", role,
            "--num-workers", str(workers), *more,
        ]  # fmt: skip
        self.start(role, command, dynamo=True)

    def start_planner(self) -> Child:
        """The planner with its gateway on, and one plugin in its own list."""
        config = {
            "environment": "virtual",
            "backend": "mocker",
            "mode": "disagg",
            "namespace": NAMESPACE,
            "model_name": MODEL,
            "optimization_target": "throughput",
            "pre_deployment_sweeping_mode": "none",
            "prefill_engine_num_gpu": 1,
            "decode_engine_num_gpu": 1,
            "max_gpu_budget": 64,
            "load_adjustment_interval_seconds": TICK_S,
            "metric_reporting_prometheus_port": self.planner_port,
            "metric_pulling_prometheus_endpoint": "http://127.0.0.1:9",
            "control_api_port": 0,
            "live_dashboard_port": 0,
            "report_interval_hours": None,
            "plugin_registration": {
                "transport": {"allow_insecure_grpc": True, "request_timeout_seconds": CALL_S},
                "auth": {"trusted_sources": ["static_secret"], "static_secrets": SECRETS},
            },
            "scheduling": {
                "scale_interval_seconds": TICK_S,
                "gateway": {"enabled": True, "listen": self.gateway, "allow_insecure": True},
                "external_plugins": [
                    {
                        "plugin_id": GREEDY,
                        "plugin_type": "propose",
                        "priority": 5,
                        "endpoint": f"grpc://127.0.0.1:{self.greedy_port}",
                        "auth_token": "second-secret",
                    }
                ],
            },
        }
        path = self.folder / "planner.json"
        path.write_text(json.dumps(config))
        python = str(self.environment.python)
        self.planner = self.start(
            "planner", [python, "-m", "dynamo.planner", "--config", str(path)], dynamo=True
        )
        wait_until(
            lambda: "[summary]" in self.planner.text() or self.planner.process.poll() is not None,
            self.planner.tail,
            START_S,
        )
        assert self.planner.process.poll() is None, self.planner.tail()
        return self.planner

    def plugin(self, plan: Path, *options: str) -> Plugin:
        """Start a plugin; its page is up when this returns."""
        port = free_port()
        command = [
            sys.executable, "-c",
            "from wattline.cli.dynamo_plugin import dynamo_plugin; dynamo_plugin()",
            "--state", str(plan), "--metrics", f"127.0.0.1:{port}", "--stale-s", "3600", *options,
        ]  # fmt: skip
        plugin = Plugin(self.start("plugin", command), port)
        wait_until(lambda: bool(plugin.ready()), plugin.child.tail, 30)
        return plugin

    def metrics(self) -> Page:
        """The planner's page, its plugin series only."""
        status, text = get(f"http://127.0.0.1:{self.planner_port}/metrics")
        assert status == 200, self.planner.tail()
        wanted = ["dynamo_planner_plugin", "dynamo_planner_constrain", "dynamo_planner_num"]
        return parse_page(text.encode(), "planner", wanted)

    def ticks(self) -> int:
        """Decisions that the planner has logged, those to do nothing included."""
        return self.planner.text().count("[summary]")

    def evaluations(self, plugin_id: str, result: str) -> float:
        found = self.metrics().select(
            "dynamo_planner_plugin_evaluations_total",
            {"plugin_id": plugin_id, "result": result},
        )
        return sum(sample.value for sample in found)

    def circuit(self, plugin_id: str) -> float | None:
        found = self.metrics().select(
            "dynamo_planner_plugin_circuit_state", {"plugin_id": plugin_id}
        )
        return found[0].value if found else None

    def decided(self) -> list[int]:
        """Decode workers of all decisions that the deployment was given so far."""
        lines = self.deployment.text().splitlines()
        said = [json.loads(line[9:]) for line in lines if line.startswith("decision ")]
        return [int(decision["decode"]) for decision in said]

    def close(self) -> None:
        """End everything, the last started first."""
        for child in reversed(self.children):
            with contextlib.suppress(ProcessLookupError):
                child.end()


@contextlib.contextmanager
def running(environment: Environment, etcd: Path, folder: Path) -> Iterator[Stack]:
    """A stack, ended at the end whatever happens."""
    stack = Stack(environment, etcd, folder)
    try:
        stack.begin()
        yield stack
    finally:
        stack.close()


def plan_of(
    budget_w: float, *, prefill: int | None = None, decode: int | None = None, version: int = 1
) -> PowerPlan:
    """Replicas of 1000 W in both roles, 100 W of guard, and what is wanted."""
    return PowerPlan(
        version=version,
        budget_w=budget_w + 100.0,
        guard_w=100.0,
        roles={
            "prefill": RolePlan(watts_per_replica_w=1000.0, wanted_replicas=prefill),
            "decode": RolePlan(watts_per_replica_w=1000.0, wanted_replicas=decode),
        },
    )
