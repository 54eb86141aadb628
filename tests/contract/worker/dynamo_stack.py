"""A real frontend, real workers of ours and a virtual node, on free ports of loopback."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from wattline.core.fleet import Role
from wattline.live.environment import Environment
from wattline.live.supervisor import Supervisor, WorkerPhase, WorkerPool, WorkerView
from wattline.live.worker_command import worker_pool
from wattline.live.worker_spec import WorkerSpec
from wattline.virtual.node import VirtualNode

MODEL = "tiny"
WITHIN_S = 60.0


@dataclass(slots=True)
class Answer:
    """A streamed answer: when each item came, counted from the request, and all text."""

    status: int
    times_s: list[float] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    error: str | None = None


class Stack:
    """What a test talks to."""

    def __init__(
        self, environment: Environment, node: VirtualNode, folder: Path, *pools: WorkerPool
    ) -> None:
        self.node = node
        self.port = _free_port()
        self._log: TextIO = (folder / "frontend.log").open("w")
        self._frontend = subprocess.Popen(
            [
                *(str(environment.python), "-m", "dynamo.frontend", "--http-host", "127.0.0.1"),
                *("--http-port", str(self.port), "--router-mode", "kv"),
            ],
            env={**os.environ, **environment.variables(folder / "kv"), "DYN_LOG": "warn"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.supervisor = Supervisor(pools, folder / "workers")

    def close(self) -> None:
        """End all, workers first; nothing is left behind."""
        try:
            self.supervisor.stop(limit_s=WITHIN_S)
        finally:
            self._frontend.terminate()
            try:
                self._frontend.wait(20)
            except subprocess.TimeoutExpired:
                self._frontend.kill()
                self._frontend.wait()
            self._log.close()

    def view(self, replica: str) -> WorkerView:
        return next(view for view in self.supervisor.replicas() if view.replica == replica)

    def wait_for(self, replica: str, phase: WorkerPhase) -> WorkerView:
        end_s = time.monotonic() + WITHIN_S
        while time.monotonic() < end_s:
            view = self.view(replica)
            if view.phase is phase:
                return view
            assert view.phase is not WorkerPhase.DEAD, view.why
            time.sleep(0.05)
        raise AssertionError(f"{replica} is {view.phase}, not {phase}")

    def wait_until_served(self) -> None:
        """Until the frontend has answered one request."""
        end_s = time.monotonic() + WITHIN_S
        while time.monotonic() < end_s:
            try:
                if self.ask("hello", 1).status == 200:
                    return
            except OSError:
                assert self._frontend.poll() is None, "the frontend ended"
            time.sleep(0.1)
        raise AssertionError("the frontend serves nothing")

    def ask(self, text: str, max_tokens: int) -> Answer:
        """One streamed chat completion."""
        document: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
        began_s = time.monotonic()
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(document), headers)
            response = connection.getresponse()
            answer = Answer(response.status)
            if response.status == 200:
                for line in response:
                    _take(answer, line, time.monotonic() - began_s)
            return answer
        finally:
            connection.close()

    def page(self, url: str) -> dict[str, float]:
        """Series of a metrics page by name; labels are left out."""
        host = url.removeprefix("http://").partition("/")[0]
        connection = http.client.HTTPConnection(host, timeout=10)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name.partition("{")[0]: float(value) for name, _, value in pairs}

    def frontend_page(self) -> dict[str, float]:
        return self.page(f"http://127.0.0.1:{self.port}/metrics")


def _take(answer: Answer, line: bytes, at_s: float) -> None:
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return
    item = json.loads(line[6:])
    usage = item.get("usage")
    if usage:
        answer.tokens, answer.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
    if "choices" not in item:
        answer.error = json.dumps(item)  # the status was sent with the first byte
        return
    for choice in item["choices"]:
        text = choice["delta"].get("content")
        if text:
            answer.text += text
            answer.times_s.append(at_s)
        answer.finish = choice.get("finish_reason") or answer.finish


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def pool(
    environment: Environment, node: VirtualNode, folder: Path, role: Role, **changes: Any
) -> WorkerPool:
    """A pool named as its role."""
    values: dict[str, Any] = {
        "role": role,
        "gpus": (),
        "gpus_file": str(node.gpus_file),
        "model": "Qwen3-8B",
        "model_dir": str(environment.model_dir),
        "served_name": MODEL,
        "name": role.value,
        "quiet_s": 0.5,
        "drain_s": WITHIN_S,
    }
    return worker_pool(environment, WorkerSpec(**{**values, **changes}), folder / "kv")


@contextmanager
def stack(
    environment: Environment, folder: Path, roles: tuple[Role, ...], **changes: Any
) -> Iterator[Stack]:
    """A node of four H100 that settle at once, a frontend, and pools without replicas."""
    with VirtualNode(folder / "node", ("h100",) * 4, settle_s=0.0) as node:
        pools = [pool(environment, node, folder, role, **changes) for role in roles]
        made = Stack(environment, node, folder, *pools)
        try:
            yield made
        finally:
            made.close()
