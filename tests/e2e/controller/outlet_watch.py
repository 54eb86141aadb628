"""A real controller with all outlets open, everything that leaves it watched.

Watched are: every file that the process opens to write, renames or removes, every process that it
starts, every signal that it sends and every address that it connects to (by an audit hook in the
process itself); and what the stand-ins of a frontend and of the Kubernetes API are asked.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from governed_node import GovernedNode
from wattline.live.supervisor import Supervisor, WorkerPool

TOY = Path(__file__).parents[2] / "unit" / "live" / "toy_worker.py"
ANNOTATION = "dynamo.nvidia.com/gpu-power-limit"

# Runs in the controller's interpreter before anything else does.
HOOK = """
import json, os, signal, sys

log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"}
SIGNALS = {"os.kill", "os.killpg", "signal.pthread_kill"}
FILES = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime",
}

def note(kind, what):
    line = json.dumps({"pid": os.getpid(), "kind": kind, "what": str(what)}) + "\\n"
    os.write(log, line.encode())

def hook(event, args):
    if event == "open":
        path, mode, flags = args
        if flags & WRITES and not isinstance(path, int):
            note("write", os.fsdecode(path))
    elif event in FILES:
        for path in args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            note("write", os.fsdecode(path))
    elif event in STARTS:
        note("start", args[0] if args else event)
    elif event in SIGNALS:
        note("signal", args[:2])
    elif event == "socket.connect":
        note("connect", args[1])

send = signal.pidfd_send_signal

def pidfd_send_signal(*args):
    note("signal", args)
    return send(*args)

signal.pidfd_send_signal = pidfd_send_signal
sys.addaudithook(hook)
"""


class StandIn(ThreadingHTTPServer):
    """A server that remembers method, path and body of what it is asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path, _ in self.asked if method != "GET"]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        raise NotImplementedError

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.asked.append((self.command, self.path, body))
        status, answer = self.server.answer(self.command, self.path, body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        self._any()

    def do_POST(self) -> None:
        self._any()

    def do_PATCH(self) -> None:
        self._any()

    def do_PUT(self) -> None:
        self._any()

    def do_DELETE(self) -> None:
        self._any()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Frontend(StandIn):
    """A frontend that serves 40 requests a second, and keeps the thresholds that it is sent."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.held: dict[str, Any] = {
            "model": "chat",
            "active_decode_blocks_threshold": None,
            "active_prefill_tokens_threshold": None,
            "active_prefill_tokens_threshold_frac": None,
        }
        super().__init__()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/busy_threshold":
            if method == "POST":
                self.held |= json.loads(body)
                return 200, json.dumps(self.held).encode()
            return 200, json.dumps({"thresholds": [self.held]}).encode()
        count = 400 + int(40.0 * (time.monotonic() - self.began_s))
        prefix, model = "dynamo_frontend_", '{model="chat"}'
        lines = [
            f"{prefix}model_ready{model} 1",
            f"{prefix}requests_started_total{model} {count}",
            f'{prefix}requests_total{{model="chat",status="success"}} {count}',
        ]
        for name, mean in (
            ("input_sequence_tokens", 1000),
            ("output_sequence_tokens", 200),
            ("cached_tokens", 0),
        ):
            lines.append(f'{prefix}{name}_bucket{{model="chat",le="+Inf"}} {count}')
            lines.append(f"{prefix}{name}_sum{model} {count * mean}")
            lines.append(f"{prefix}{name}_count{model} {count}")
        return 200, ("\n".join(lines) + "\n").encode()


class KubeStandIn(StandIn):
    """Two pods of four GPUs, by component, whose annotations can be patched; nothing of Dynamo."""

    def __init__(self) -> None:
        self.limits: dict[str, str] = {}
        super().__init__()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        bare, _, query = path.partition("?")
        component = "prefill" if "prefill" in path else "decode"
        if method == "PATCH":
            change = json.loads(body)["metadata"]["annotations"]
            self.limits[component] = change[ANNOTATION]
            return 200, json.dumps(self._pod(component)).encode()
        if bare.endswith("/pods") and query:
            return 200, json.dumps({"items": [self._pod(component)]}).encode()
        return 404, b'{"message": "not found"}'

    def _pod(self, component: str) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": f"{component}-0", "uid": f"uid-{component}"}
        if component in self.limits:
            owned: dict[str, Any] = {"f:metadata": {"f:annotations": {f"f:{ANNOTATION}": {}}}}
            metadata |= {
                "annotations": {ANNOTATION: self.limits[component]},
                "managedFields": [{"manager": "wattline-controller", "fieldsV1": owned}],
            }
        container = {"resources": {"limits": {"nvidia.com/gpu": "4"}}}
        return {"metadata": metadata, "spec": {"containers": [container]}}


@dataclass(frozen=True, slots=True)
class Left:
    """What left the controller."""

    written: frozenset[Path]
    started: tuple[str, ...]
    signals: tuple[str, ...]
    connected: frozenset[str]
    frontend: tuple[tuple[str, str], ...]
    kube: tuple[tuple[str, str], ...]
    state: dict[str, Any]

    def outside(self, folder: Path) -> set[Path]:
        """Written anywhere but there."""
        return {path for path in self.written if folder not in (path, *path.parents)}


class Outlets:
    """The node, the stand-ins, and a configuration that opens every outlet.

    caps: `grants`, with a supervisor of workers, or `annotations`.
    """

    def __init__(self, node: GovernedNode, caps: str) -> None:
        self.node = node
        self.caps = caps
        self.frontend, self.kube = Frontend(), KubeStandIn()
        self.state_dir = node.folder / "controller"
        self.plugin_file = node.folder / "outlets" / "plugin.json"
        self.plugin_file.parent.mkdir()
        self._log = node.folder / "watch.log"
        hook = node.folder / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        self._env = {
            "PYTHONPATH": str(hook),
            "PYTHONDONTWRITEBYTECODE": "1",
            "WATCH_LOG": str(self._log),
        }
        node.configure(
            tick_s=0.1,
            sources={"frontends": {"chat": [self.frontend.url]}},
            actuation={
                "admission": "autoset",
                "plugin_state": {"chat": str(self.plugin_file)},
                **(self._annotations() if caps == "annotations" else self._supervisor()),
            },
        )

    def _supervisor(self) -> dict[str, Any]:
        argv = [sys.executable, str(TOY), "{metrics_port}", "ready"]
        workers = {pool: {"argv": argv} for pool in ("prefill", "decode")}
        return {"caps": "grants", "replicas": "supervisor", "workers": workers}

    def _annotations(self) -> dict[str, Any]:
        kubeconfig = self.node.folder / "kubeconfig"
        named = {"name": "t"}
        document = {
            "current-context": "t",
            "contexts": [named | {"context": {"cluster": "t", "user": "t"}}],
            "clusters": [named | {"cluster": {"server": self.kube.url}}],
            "users": [named | {"user": {"token": "t"}}],
        }
        kubeconfig.write_text(json.dumps(document))
        pods = {
            pool: {"graph_deployment": "chat", "component": pool} for pool in ("prefill", "decode")
        }
        return {
            "caps": "annotations",
            "annotations": {
                "namespace": "ml",
                "pods": pods,
                "kubeconfig": str(kubeconfig),
                "interval_s": 0.5,
            },
        }

    def run(self, *, advisory: bool) -> Left:
        """Start a controller, let it work, order a drain, end it; what left it."""
        node = self.node
        node.log.unlink(missing_ok=True)
        words = ["run", "--config", node.config, "--log-format", "json"]
        with environment(self._env):
            node.controller = node.start(node.log, *words, *(["--advisory"] if advisory else []))
        node.until(node.address, "an address to listen on")
        node.until(lambda: node.state()["tick"] >= 0, "a first tick")
        # The second run goes on with the numbers of the first.
        first = node.state()["tick"]
        node.until(lambda: node.state()["tick"] >= first + 12, "twelve ticks")
        if not advisory:
            # What the run before was ordered is still in force.
            node.post("resume")
            node.until(self._used, "every outlet in use")
        node.post("cordon", node="n1")
        node.until(lambda: node.state()["orders"], "the order in force")
        began = node.state()["tick"]
        if not advisory and self.caps == "grants":
            node.until(lambda: node.state()["counters"]["drains"] > 0, "a drain")
        node.until(lambda: node.state()["tick"] >= began + 10, "ten more ticks")
        state = node.state()
        assert node.end_controller() == 0, node.tail()
        return self._left(node.controller.pid, state)

    def _used(self) -> bool:
        pools = self.node.state()["pools"]
        return (
            bool(self.frontend.writes())
            and self.plugin_file.exists()
            and (bool(self.kube.writes()) or self.caps == "grants")
            and (all(pool["ready"] for pool in pools) or self.caps == "annotations")
        )

    def _left(self, pid: int, state: dict[str, Any]) -> Left:
        entries = [json.loads(line) for line in self._log.read_text().splitlines()]
        mine = [entry for entry in entries if entry["pid"] == pid]
        kinds = {
            kind: [entry["what"] for entry in mine if entry["kind"] == kind]
            for kind in ("write", "start", "signal", "connect")
        }
        return Left(
            written=frozenset(Path(what) for what in kinds["write"]),
            started=tuple(kinds["start"]),
            signals=tuple(kinds["signal"]),
            connected=frozenset(kinds["connect"]),
            frontend=tuple(self.frontend.writes()),
            kube=tuple(self.kube.writes()),
            state=state,
        )

    def close(self) -> None:
        """End the stand-ins, and the workers that a controller leaves behind on purpose."""
        self.frontend.end()
        self.kube.end()
        if self.caps == "grants":
            # Not before its controller is gone: a folder has one supervisor.
            for process in self.node.processes:
                process.kill()
                process.wait()
            pools = [WorkerPool(name=name, argv=("true",)) for name in ("prefill", "decode")]
            with suppress(FileNotFoundError):
                Supervisor(pools, self.state_dir / "workers").stop(limit_s=0.0)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
