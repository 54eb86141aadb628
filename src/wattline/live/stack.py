"""Everything that a live deployment is, as processes of this machine: a context manager.

Virtual GPU nodes with their agents, Dynamo's frontends, a controller whose supervisor starts
workers, Prometheus where there is one, and the plugin for Dynamo's planner. Ports are free ones of
loopback, every process has a log of its own, and all of them are ended by their ids: at the end, on
an interrupt, and when the start fails.
"""

from __future__ import annotations

import json
import logging
import secrets
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from wattline.core.errors import InputError, WattlineError
from wattline.live import prometheus_server
from wattline.live.environment import Environment
from wattline.live.processes import Adopted, free_ports
from wattline.live.stack_process import Managed, Processes, cpu_s, end_adopted, undisturbed
from wattline.live.stack_spec import (
    StackSpec,
    agent_settings,
    controller_document,
    node_name,
    plan_file,
    worker_pools,
)
from wattline.live.stack_watts import StackWatts
from wattline.virtual.node import VirtualNode

log = logging.getLogger(__name__)

CONTROLLER, PROMETHEUS, PLUGIN = "controller", "prometheus", "plugin"
_WATTLINE = (sys.executable, "-m", "wattline")
_CALL_S = 10.0
_LOOK_S = 0.1
_END_S = 5.0
_TARGETS_S = 1.0
_LEAST_PROMPT = "bafu dego"


@dataclass(frozen=True, slots=True)
class WorkerNote:
    """A worker process as its supervisor noted it. asked: it was asked to end."""

    replica: str
    pool: str
    gpus: tuple[str, ...]
    pid: int
    started_ticks: int
    metrics_port: int
    system_port: int
    asked: bool


class LiveStack:
    """One live deployment in `folder`, a new one of its own.

    Processes are named `frontend-1`..., `agent-node-1`..., `controller`, `prometheus`, `plugin`;
    workers as their supervisor names them, `decode-1` and so on. `urls` has the address of each of
    the former; of Prometheus only where it runs, else `prometheus_missing` says why it does not.
    Methods raise WattlineError for what does not come about, InputError for names that are unknown.
    """

    def __init__(self, folder: Path, spec: StackSpec, environment: Environment) -> None:
        spec.check()
        self.folder = folder.absolute()
        self.spec = spec
        self.environment = environment
        self.urls: dict[str, str] = {}
        self.nodes: dict[str, VirtualNode] = {}
        self.uuids: dict[str, tuple[str, ...]] = {}
        """GPUs of each pool."""
        self.prometheus_missing: str | None = None
        self.watts = StackWatts(spec)
        """Limits and draw of the GPUs, and who put limits above the budget."""
        self.processes = Processes(self.folder)
        self._token = secrets.token_hex(16)
        self._ended = threading.Event()
        self._targets: threading.Thread | None = None

    # From start to end

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "grants").mkdir()
        plan_file(self.folder).parent.mkdir(mode=0o700)
        self._make_nodes()
        names = [f"frontend-{number + 1}" for number in range(self.spec.frontends)]
        names += [f"agent-{node}" for node in self.nodes]
        names += [CONTROLLER, PLUGIN, PROMETHEUS]
        ports = free_ports(len(names) + 1)
        self.urls = {
            name: f"http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)
        }
        for name in self.frontends:
            self._start_frontend(name)
        for node in self.nodes.values():
            self._start_agent(node)
        if self.spec.plugin:
            self._start_plugin(ports[-1])
        else:
            del self.urls[PLUGIN]
        self._start_prometheus()
        self._start_controller()

    def close(self) -> None:
        """End every process, workers included, and let go of the nodes; again is harmless."""
        with undisturbed():
            self._ended.set()
            if self._targets is not None:
                self._targets.join()
            self.watts.close()
            # First the controller, which would start workers anew.
            if CONTROLLER in self.processes:
                self.processes.end([CONTROLLER], _END_S)
            end_adopted({note.pid: note.started_ticks for note in self.workers()}, _END_S)
            self.processes.end([p.name for p in self.processes if p.name != CONTROLLER], _END_S)
            strays = self.processes.kill_strays()
            if strays:
                log.warning("processes had to be killed", extra={"pids": strays})
            for node in self.nodes.values():
                node.close()

    # Its parts

    def _make_nodes(self) -> None:
        spec = self.spec
        for number in range(spec.nodes):
            name = node_name(number)
            self.nodes[name] = VirtualNode(
                self.folder / name, spec.products_of(number), settle_s=spec.settle_s, seed=number
            )
        taken = dict.fromkeys(self.nodes, 0)
        for index, pool in enumerate(spec.deployment.pools):
            name = node_name(spec.node_of(index))
            uuids = self.nodes[name].gpus.uuids()
            self.uuids[pool.name] = uuids[taken[name] : taken[name] + pool.gpus]
            taken[name] += pool.gpus
            self.watts.add(pool.name, self.nodes[name], self.uuids[pool.name])

    @property
    def frontends(self) -> tuple[str, ...]:
        """Names of the frontends."""
        return tuple(name for name in self.urls if name.startswith("frontend-"))

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of the agents."""
        return tuple(f"agent-{node}" for node in self.nodes)

    def _start_frontend(self, name: str) -> None:
        argv = [
            *(str(self.environment.python), "-m", "dynamo.frontend", "--http-host", "127.0.0.1"),
            *("--http-port", self._address(name).partition(":")[2], "--router-mode", "kv"),
        ]
        self.processes.add(name, argv, self.environment.variables(self.folder / "kv"))

    def _start_agent(self, node: VirtualNode) -> None:
        name = f"agent-{node.folder.name}"
        settings = agent_settings(
            self.folder, node.folder.name, self._address(name), node.proc_root
        )
        words = [word for key, value in settings.items() for word in (f"--{key}", value)]
        self.processes.add(name, [*_WATTLINE, "agent", "run", *words], node.env)

    def _start_controller(self) -> None:
        token_file = self.folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(self._token)
        gpus_files = [node.gpus_file for node in self.nodes.values()]
        pools = self.spec.deployment.pools
        nodes = [
            {
                "name": name,
                "grants": f"{self.folder}/grants/",
                "report_file": str(self.folder / f"agent-{name}" / "report.json"),
                "gpus": {
                    pool.name: list(self.uuids[pool.name])
                    for index, pool in enumerate(pools)
                    if self.spec.node_of(index) == number
                },
            }
            for number, name in enumerate(self.nodes)
        ]
        document = controller_document(
            self.spec,
            folder=self.folder,
            listen=self._address(CONTROLLER),
            frontends=[self.urls[name] for name in self.frontends],
            nodes=nodes,
            pools=worker_pools(self.spec, self.environment, gpus_files, self.folder / "kv"),
            token_file=token_file,
            prometheus=self.urls.get(PROMETHEUS),
        )
        path = self.folder / "controller.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        self.processes.add(CONTROLLER, [*_WATTLINE, "run", "--config", str(path)], {})

    def _start_plugin(self, port: int) -> None:
        argv = [
            *(*_WATTLINE, "dynamo-plugin", "--state", str(plan_file(self.folder))),
            *("--listen", f"127.0.0.1:{port}", "--metrics", self._address(PLUGIN)),
        ]
        self.processes.add(PLUGIN, argv, {})

    def _start_prometheus(self) -> None:
        binary = prometheus_server.find_binary() if self.spec.prometheus else None
        if binary is None:
            del self.urls[PROMETHEUS]
            wanted = self.spec.prometheus
            self.prometheus_missing = prometheus_server.MISSING if wanted else "not asked for"
            return
        jobs = {
            "frontends": [self._address(name) for name in self.frontends],
            "agents": [self._address(name) for name in self.agents],
            "controller": [self._address(CONTROLLER)],
        }
        if PLUGIN in self.urls:
            jobs["plugin"] = [self._address(PLUGIN)]
        folder = self.folder / "prometheus"
        config = prometheus_server.write_config(folder, jobs, self.spec.scrape_s)
        argv = prometheus_server.command(binary, config, self._address(PROMETHEUS))
        self.processes.add(PROMETHEUS, argv, {})
        self._targets = threading.Thread(
            target=self._name_targets, args=(folder,), name="targets", daemon=True
        )
        self._targets.start()

    def _name_targets(self, folder: Path) -> None:
        """Tell Prometheus of workers that come and go."""
        named: dict[str, list[str]] = {}
        while not self._ended.wait(_TARGETS_S):
            found: dict[str, list[str]] = {}
            for note in self.workers():
                ports = (note.metrics_port, note.system_port)
                found.setdefault(note.pool, []).extend(f"127.0.0.1:{port}" for port in ports)
            if found != named:
                prometheus_server.write_targets(folder, found)
                named = found

    def _address(self, name: str) -> str:
        return self.urls[name].removeprefix("http://")

    # Processes by name

    def alive(self, name: str) -> bool:
        """Whether a process or worker runs, stopped or not."""
        if name in self.processes:
            return self.processes[name].alive
        return any(note.replica == name for note in self.workers())

    def kill(self, name: str) -> None:
        """SIGKILL, and reap."""
        if name in self.processes:
            self.processes[name].kill()
        else:
            self._signal_worker(name, signal.SIGKILL)

    def stop(self, name: str) -> None:
        """SIGSTOP: it hangs until `resume`."""
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._signal(name, signal.SIGCONT)

    def end(self, name: str, limit_s: float = _END_S) -> bool:
        """SIGTERM; killed after the time. Whether it ended by itself. Not for workers."""
        return self.processes[name].end(limit_s)

    def start(self, name: str) -> None:
        """Start it again with the command that it had. Not for workers: the controller does."""
        self.processes[name].start()

    def restart(self, name: str) -> None:
        """`end` and `start`."""
        self.end(name)
        self.start(name)

    def process(self, name: str) -> Managed:
        """The process itself: log, ids, exit code."""
        return self.processes[name]

    def _signal(self, name: str, number: signal.Signals) -> None:
        if name in self.processes:
            self.processes[name].send(number)
        else:
            self._signal_worker(name, number)

    def _signal_worker(self, replica: str, number: signal.Signals) -> None:
        notes = {note.replica: note for note in self.workers()}
        if replica not in notes:
            names = [process.name for process in self.processes]
            raise InputError("process", replica, f"use one of {', '.join([*names, *notes])}")
        Adopted(notes[replica].pid, notes[replica].started_ticks).send(number)

    def workers(self) -> tuple[WorkerNote, ...]:
        """Workers that run, by the notes of their supervisor."""
        found = []
        for path in sorted((self.folder / "controller" / "workers").glob("*.json")):
            try:
                raw = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError):
                continue  # it ended while we looked
            note = WorkerNote(**{**raw, "gpus": tuple(raw["gpus"])})
            if Adopted(note.pid, note.started_ticks).alive():
                found.append(note)
        return tuple(found)

    def processor_s(self) -> dict[str, float]:
        """Seconds of processor time since its start, of each process and worker that runs."""
        pids = {process.name: process.pid for process in self.processes}
        pids |= {note.replica: note.pid for note in self.workers()}
        return {name: seconds for name, pid in pids.items() if (seconds := cpu_s(pid)) is not None}

    # What it is asked and told

    def get(self, url: str) -> tuple[int, bytes]:
        """Status and body of a page, whatever the status; OSError without an answer."""
        return _call(urllib.request.Request(url))

    def state(self) -> dict[str, Any]:
        """The controller's `/state`; OSError while it does not answer."""
        status, body = self.get(f"{self.urls[CONTROLLER]}/state")
        if status != 200:
            raise ConnectionError(f"/state answers {status}")
        document: dict[str, Any] = json.loads(body)
        return document

    def order(self, path: str, document: dict[str, Any]) -> str:
        """An operator's command to the controller; its answer. WattlineError when it refuses."""
        request = urllib.request.Request(
            f"{self.urls[CONTROLLER]}/{path}",
            data=json.dumps({"by": "stack", "why": "asked", **document}).encode(),
            headers={"Authorization": f"Bearer {self._token}"},
        )
        status, body = _call(request)
        if status != 200:
            raise WattlineError(f"controller, {path}: {status}: {body.decode(errors='replace')}")
        return body.decode(errors="replace").strip()

    def set_budget(self, watts: float, why: str = "asked") -> None:
        """A new budget. It is in force, for the judge of limits, from before the call."""
        at_s = time.monotonic()
        self.order("budget", {"total_w": watts, "why": why})
        self.watts.budget_changed(at_s, watts)

    def ask(self, frontend: str = "frontend-1", tokens: int = 1, limit_s: float = 30.0) -> int:
        """One short chat completion; its status. OSError without an answer."""
        document = {
            "model": self.spec.model_name,
            "messages": [{"role": "user", "content": _LEAST_PROMPT}],
            "max_tokens": tokens,
        }
        request = urllib.request.Request(
            f"{self.urls[frontend]}/v1/chat/completions",
            data=json.dumps(document).encode(),
            headers={"Content-Type": "application/json"},
        )
        return _call(request, limit_s)[0]

    def until(self, condition: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
        """Wait for a condition; one that raises OSError does not hold yet.

        WattlineError after the time, and at once when a process has ended that was not ended here.
        """
        end_s = time.monotonic() + limit_s
        while True:
            try:
                if condition():
                    return
            except OSError as error:
                log.debug("not yet", extra={"what": what, "why": str(error)})
            if time.monotonic() > end_s:
                said = self.processes[CONTROLLER].said()
                raise WattlineError(f"after {limit_s:g} s: {what}: not come about: {said}")
            time.sleep(_LOOK_S)

    def ready(self, limit_s: float = 90.0) -> None:
        """Wait until every pool serves, every frontend answers, and limits are in the budget."""

        def serving() -> bool:
            self._check()
            pools = self.spec.deployment.pools
            found = {pool["name"]: pool["ready"] for pool in self.state()["pools"]}
            return all(found[pool.name] >= max(1, pool.min_replicas) for pool in pools)

        self.until(serving, "workers that serve", limit_s)
        for name in self.frontends:
            self.until(partial(self._answers, name), f"an answer of {name}", limit_s)
        self.until(self.watts.within, "limits within the budget", limit_s)

    def _answers(self, frontend: str) -> bool:
        return self.ask(frontend) == 200

    def _check(self) -> None:
        for process in self.processes:
            if not process.alive:
                code, said = process.exit_code, process.said()
                raise WattlineError(f"{process.name} ended with exit code {code}: {said}")


def _call(request: urllib.request.Request, limit_s: float = _CALL_S) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=limit_s) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
