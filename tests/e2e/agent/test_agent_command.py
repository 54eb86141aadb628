"""`wattline agent` as people use it: real processes, simulated GPUs."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WATTLINE = (sys.executable, "-c", "from wattline.cli.main import main; main()")
DEADLINE_S = 40.0
ANNOTATION = "dynamo.nvidia.com/gpu-power-limit"

Status = dict[str, Any]


class Place:
    """Directories of one node, and the agent that runs there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.log = folder / "agent.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.write("pods.json", {"pods": []})
        self.write("owners.json", {"gpus": {}})

    def write(self, name: str, document: object) -> None:
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(json.dumps(document), encoding="utf-8")
        os.replace(temporary, self.folder / name)

    def options(self, **changes: object) -> list[str]:
        values: dict[str, object] = {
            "driver": "simulated",
            "node": "n1",
            "state-dir": self.state,
            "listen": "127.0.0.1:0",
            "mode": "annotations",
            "safe-default-w": 500,
            "pods": f"file:{self.folder / 'pods.json'}",
            "owners": f"file:{self.folder / 'owners.json'}",
            "dynamo-state": self.folder / "managed_gpus.json",
            "proc-root": self.folder / "proc",
            "reconcile-s": 1,
            "readback-s": 0.2,
            **changes,
        }
        given = [(f"--{name}", str(value)) for name, value in values.items() if value is not None]
        return [word for pair in given for word in pair]

    def start(self, *more: str, **changes: object) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*WATTLINE, "agent", "run", *self.options(**changes), *more],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    def agent(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*WATTLINE, "agent", *words],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.agent(*words, "--state-dir", str(self.state))

    def status(self) -> Status:
        found: Status = json.loads(self.ask("status", "--output", "json").stdout)
        return found

    def until(self, what: Callable[[Status], bool]) -> Status:
        """The first status of which `what` is true."""
        end_s = time.monotonic() + DEADLINE_S
        while True:
            answer = self.ask("status", "--output", "json")
            if answer.returncode == 0 and what(status := json.loads(answer.stdout)):
                found: Status = status
                return found
            assert self.processes[-1].poll() is None, self.logged()
            assert time.monotonic() < end_s, answer.stderr + self.logged()
            time.sleep(0.05)

    def ready(self) -> Status:
        return self.until(lambda status: bool(status["gpus"]) and not status["not_ready"])

    def logged(self) -> str:
        return self.log.read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for process in place.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def _limits(status: Status) -> list[float]:
    return [gpu["enforced_w"] for gpu in status["gpus"]]


def _worker(place: Place, uuid: str, limit: str) -> None:
    pod = {
        "namespace": "team",
        "name": "worker",
        "uid": "uid-1",
        "annotations": {ANNOTATION: limit},
    }
    place.write("pods.json", {"pods": [{**pod, "phase": "Running"}]})
    place.write("owners.json", {"gpus": {uuid: [{"namespace": "team", "name": "worker"}]}})


def test_a_day_of_an_operator(place: Place) -> None:
    agent = place.start()
    first = place.ready()["gpus"][0]["uuid"]
    _worker(place, first, "450")
    place.until(lambda status: _limits(status)[0] == 450.0)

    pinned = place.ask("pin", "0", "300", "--why", "runs hot")
    assert (pinned.returncode, pinned.stderr) == (0, "")
    assert "300 W" in pinned.stdout
    place.until(lambda status: _limits(status)[0] == 300.0)
    above = place.ask("pin", "0", "690", "--why", "too much")
    assert (above.returncode, above.stdout) == (1, "")
    assert above.stderr.startswith("wattline: ")
    assert above.stderr.count("\n") == 1

    assert place.ask("hold", "--why", "PSU 2 is being changed").returncode == 0
    shown = place.ask("status").stdout
    assert "HELD by" in shown
    assert "PSU 2 is being changed" in shown
    assert "\x1b" not in shown

    assert place.ask("resume").returncode == 0
    place.until(lambda status: _limits(status)[0] == 450.0 and status["operator_hold"] is None)

    assert place.ask("brake").returncode == 0
    braked = place.until(lambda status: set(_limits(status)) == {200.0})
    assert {gpu["reason"] for gpu in braked["gpus"]} == {"braked"}
    assert "BRAKED" in place.ask("status").stdout
    assert place.ask("resume").returncode == 0
    place.until(lambda status: _limits(status)[0] == 450.0)

    assert place.ask("restore", "0").returncode == 0
    place.until(lambda status: _limits(status)[0] == 700.0)

    agent.send_signal(signal.SIGTERM)
    assert agent.wait(DEADLINE_S) == 0
    assert not (place.state / "control.sock").exists()
    lines = (place.state / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    audit = [json.loads(line) for line in lines]
    asked = [entry["what"] for entry in audit if "done" in entry]
    assert asked == ["pin", "pin", "hold", "resume", "brake", "resume", "restore"]
    assert all(f"uid {os.getuid()}" in entry["by"] for entry in audit if "done" in entry)


def test_signals(place: Place) -> None:
    agent = place.start()
    before = place.ready()
    enumerations = before["counters"]["wattline_agent_enumerations_total"]
    agent.send_signal(signal.SIGHUP)
    agent.send_signal(signal.SIGUSR1)
    place.until(lambda status: set(_limits(status)) == {200.0})
    assert enumerations >= 1
    agent.send_signal(signal.SIGINT)
    assert agent.wait(DEADLINE_S) == 0


def test_the_report_is_the_same_everywhere(place: Place) -> None:
    place.start()
    place.ready()
    address = next(
        word.removeprefix("address=")
        for line in place.logged().splitlines()
        if " listening " in line
        for word in line.split()
        if word.startswith("address=")
    )

    def get(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    end_s = time.monotonic() + DEADLINE_S
    while get("/report")[1] != (place.state / "report.json").read_bytes():
        assert time.monotonic() < end_s
    assert json.loads(get("/report")[1])["node"] == "n1"
    assert get("/readyz") == (200, b"ready\n")
    assert get("/healthz")[0] == 200
    metrics = get("/metrics")[1].decode()
    assert "dynamo_power_agent_apply_failures_total 0.0" in metrics
    assert metrics.count("wattline_agent_gpu_enforced_limit_watts{") == 8


def test_a_second_agent_is_refused_and_the_first_goes_on(place: Place) -> None:
    place.start()
    place.ready()
    second = place.start()
    assert second.wait(DEADLINE_S) == 1
    assert "another agent" in place.logged().splitlines()[-1]
    assert place.ask("hold", "--why", "still here").returncode == 0
    third = place.start("--listen", "0.0.0.0:0")
    assert third.wait(DEADLINE_S) == 2
    assert "--token-file" in place.logged().splitlines()[-1]


def test_a_killed_agent_leaves_no_obstacle(place: Place) -> None:
    first = place.start()
    place.ready()
    first.kill()
    first.wait()
    assert (place.state / "control.sock").exists()
    assert "no agent listens here" in place.ask("status").stderr
    place.start()
    place.ready()


def test_dynamos_agent_is_refused_or_taken_over(place: Place) -> None:
    gpu = "GPU-00000000-0000-4000-8000-000000000001"
    state = place.folder / "managed_gpus.json"
    state.write_text(json.dumps({"managed_uuids": [gpu]}), encoding="utf-8")
    refused = place.start()
    assert refused.wait(DEADLINE_S) == 1
    assert "--take-over" in place.logged().splitlines()[-1]
    assert state.exists()
    place.start("--take-over")
    place.ready()
    assert f"{gpu}: taken over; its original is 700 W" in place.logged()
    assert not state.exists()


def test_dynamos_pod_at_the_first_listing_is_refused(place: Place) -> None:
    pod = {"namespace": "dynamo", "name": "power-agent-abcde", "uid": "u", "phase": "Running"}
    place.write("pods.json", {"pods": [pod]})
    refused = place.start()
    assert refused.wait(DEADLINE_S) == 1
    assert "dynamo/power-agent-abcde" in place.logged().splitlines()[-1]


def test_dynamos_pod_that_comes_later_is_reported(place: Place) -> None:
    agent = place.start()
    place.ready()
    pod = {"namespace": "dynamo", "name": "power-agent-abcde", "uid": "u", "phase": "Running"}
    place.write("pods.json", {"pods": [pod]})
    end_s = time.monotonic() + DEADLINE_S
    while "dynamo/power-agent-abcde" not in place.logged():
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert agent.poll() is None
    place.ready()


def test_check_ends_with_what_it_found(place: Place) -> None:
    good = place.agent("check", *place.options(), "--output", "json")
    assert good.returncode == 0, good.stdout + good.stderr
    assert {row["level"] for row in json.loads(good.stdout)} <= {"ok", "warn"}
    assert not place.state.exists()
    (place.folder / "managed_gpus.json").write_text("{", encoding="utf-8")
    bad = place.agent("check", *place.options())
    assert bad.returncode == 1
    assert any(line.startswith("fail") for line in bad.stdout.splitlines())


def test_settings_that_cannot_be_used_end_in_one_line(place: Place) -> None:
    for words in (
        ("run",),
        ("run", "--mode", "annotations"),
        ("run", "--grants", "/g", "--pods", "x"),
    ):
        done = place.agent(*words)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
    config = place.folder / "agent.yaml"
    config.write_text("redback_s: 1\n", encoding="utf-8")
    warned = place.agent("run", "--config", str(config))
    assert "did you mean `readback_s`?" in warned.stderr.splitlines()[0]
    assert place.ask("status").returncode == 1
