"""A snapshot, and the servers over it, for tests of what the agent shows."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattline.agent.commands import Answer, Command
from wattline.agent.http import Face, Servers
from wattline.agent.metrics import exposition
from wattline.agent.snapshot import AgentSnapshot, GpuView, Mode, Reason

TOKEN = "0123456789abcdef0123456789abcdef"


def gpu(index: int = 0, **changes: Any) -> GpuView:
    values: dict[str, Any] = {
        "uuid": f"GPU-{index}",
        "index": index,
        "product": "NVIDIA H200",
        "reason": Reason.GRANTED,
        "min_w": 200.0,
        "max_w": 700.0,
        "default_w": 700.0,
        "enforced_w": 400.0,
        "requested_w": 400.0,
        "wanted_w": 400.0,
        "granted_w": 400.0,
        "held_w": 400.0,
        "original_w": 700.0,
        "draw_w": 390.5,
        "energy_j": 1234.5,
        "sm_clock_mhz": 1500,
        "throttle_reasons": frozenset({"sw_power_cap"}),
        "persistence": True,
        "mig": False,
        "owners": ("team/worker-0",),
        "read_age_s": 0.5,
        **changes,
    }
    return GpuView(**values)


def snapshot(*gpus: GpuView, **changes: Any) -> AgentSnapshot:
    values: dict[str, Any] = {
        "node": "n1",
        "version": "0.0.1",
        "mode": Mode.GRANTS,
        "made_s": time.monotonic(),
        "incarnation": 7,
        "report_sequence": 12,
        "gpus": gpus,
        "epoch": 3,
        "budget_version": 17,
        "owner_method": "pod_resources",
        "sources": {"grants": 0.2, "pods": None},
        "report": b'{"protocol": 1}\n',
        **changes,
    }
    return AgentSnapshot(**values)


@dataclass
class Agent:
    """Stands in for the loop: what it shows, and what it was asked."""

    shown: AgentSnapshot | None
    answer: Answer = field(default_factory=lambda: Answer(done=True, text="done"))
    asked: list[Command] = field(default_factory=list)

    def submit(self, command: Command) -> Answer:
        self.asked.append(command)
        return self.answer

    def face(self) -> Face:
        return Face(
            snapshot=lambda: self.shown,
            metrics=exposition(lambda: self.shown, time.monotonic),
            submit=self.submit,
            stale_s=10.0,
            now=time.monotonic,
        )


@contextmanager
def serving(
    agent: Agent, folder: Path, *, listen: str = "127.0.0.1:0", token_file: Path | None = None
) -> Iterator[Servers]:
    servers = Servers(
        agent.face(),
        listen=listen,
        token_file=token_file,
        control_socket=folder / "control.sock",
    )
    try:
        yield servers
    finally:
        servers.close()


def get(
    address: str, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def get_json(address: str, path: str) -> Any:
    status, text = get(address, path)
    assert status == 200
    return json.loads(text)
