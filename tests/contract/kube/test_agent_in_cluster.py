"""The agent's manifests and its whole command against a real API server."""

from __future__ import annotations

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
import yaml
from control_plane import AGENT_TOKEN, STRANGER_TOKEN, ControlPlane, NodePods, TcpProxy

DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "agent"
WATTLINE = (sys.executable, "-c", "from wattline.cli.main import main; main()")
ANNOTATION = "dynamo.nvidia.com/gpu-power-limit"
DEADLINE_S = 60.0
DRY_RUN = "dryRun=All&fieldValidation=Strict"


def _documents() -> dict[str, Any]:
    text = (DEPLOY / "daemonset.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_the_manifest_is_accepted_strictly(plane: ControlPlane) -> None:
    documents = _documents()
    for kind, path in (
        ("ConfigMap", "/api/v1/namespaces/wattline-system/configmaps"),
        ("DaemonSet", "/apis/apps/v1/namespaces/wattline-system/daemonsets"),
    ):
        answer = plane.request("POST", f"{path}?{DRY_RUN}", documents[kind])
        assert answer.status_code == 201, answer.text


def test_the_strict_check_can_fail(plane: ControlPlane) -> None:
    daemonset = _documents()["DaemonSet"]
    daemonset["spec"]["template"]["spec"]["hostPidd"] = True
    path = f"/apis/apps/v1/namespaces/wattline-system/daemonsets?{DRY_RUN}"
    answer = plane.request("POST", path, daemonset)
    assert answer.status_code == 400
    assert "hostPidd" in answer.text


def _options(folder: Path, node: str, kubeconfig: Path) -> list[str]:
    return [
        "--driver=simulated",
        f"--node={node}",
        f"--state-dir={folder / 'state'}",
        "--listen=127.0.0.1:0",
        "--mode=annotations",
        "--safe-default-w=500",
        f"--kubeconfig={kubeconfig}",
        f"--owners=file:{folder / 'owners.json'}",
        f"--dynamo-state={folder / 'managed_gpus.json'}",
        f"--proc-root={folder / 'proc'}",
        "--reconcile-s=1",
        "--readback-s=0.2",
    ]


def _owners(folder: Path, document: object) -> None:
    (folder / "owners.tmp").write_text(json.dumps({"gpus": document}), encoding="utf-8")
    os.replace(folder / "owners.tmp", folder / "owners.json")


@pytest.fixture
def agent(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods, tmp_path: Path
) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    options = _options(tmp_path, node.node, plane.kubeconfig(proxy.port, AGENT_TOKEN))

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "agent.log").open("ab") as log:
            command = [*WATTLINE, "agent", "run", *options]
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def _status(folder: Path) -> Any:
    command = [*WATTLINE, "agent", "status", f"--state-dir={folder / 'state'}", "--output=json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def _until(folder: Path, what: Callable[[Any], bool]) -> Any:
    end_s = time.monotonic() + DEADLINE_S
    while not ((status := _status(folder)) and what(status)):
        assert time.monotonic() < end_s, (status, (folder / "agent.log").read_text())
        time.sleep(0.05)
    return status


def test_an_annotated_pod_gets_its_limit_and_the_gpu_its_own_back(
    agent: Callable[[], subprocess.Popen[bytes]], node: NodePods, tmp_path: Path
) -> None:
    _owners(tmp_path, {})
    process = agent()
    gpu = _until(tmp_path, lambda found: found["gpus"] and not found["not_ready"])["gpus"][0]
    node.create("worker", {ANNOTATION: "450"}, gpus=1)
    _owners(tmp_path, {gpu["uuid"]: [{"namespace": "default", "name": "worker"}]})
    _until(tmp_path, lambda found: found["gpus"][0]["enforced_w"] == 450.0)
    node.delete("worker")
    node.create("bystander", gpus=1)
    _owners(tmp_path, {gpu["uuid"]: [{"namespace": "default", "name": "bystander"}]})
    _until(tmp_path, lambda found: found["gpus"][0]["enforced_w"] == 700.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def test_dynamos_pod_on_the_node_is_refused(
    agent: Callable[[], subprocess.Popen[bytes]], node: NodePods, tmp_path: Path
) -> None:
    node.create("tenants-power-agent-abcde")
    node.create("dynamo-power-agent-x7z2q", host_pid=True)
    _owners(tmp_path, {})
    assert agent().wait(DEADLINE_S) == 1
    last = (tmp_path / "agent.log").read_text().splitlines()[-1]
    assert "default/dynamo-power-agent-x7z2q" in last
    assert "tenants-power-agent" not in last
    assert "--take-over" in last


def _check(folder: Path, node: str, kubeconfig: Path) -> tuple[int, Any, Any]:
    """Exit code, and the rows about pods and about claimed devices."""
    _owners(folder, {})
    command = [*WATTLINE, "agent", "check", *_options(folder, node, kubeconfig), "--output=json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    rows = {row["about"]: row for row in json.loads(done.stdout)}
    return done.returncode, rows["pods"], rows["claimed devices"]


def test_check_tells_whether_the_permissions_are_there(
    plane: ControlPlane, proxy: TcpProxy, node: NodePods, tmp_path: Path
) -> None:
    node.create("worker", {ANNOTATION: "450"})
    code, pods, claims = _check(tmp_path, node.node, plane.kubeconfig(proxy.port, AGENT_TOKEN))
    assert (code, pods["level"], claims["level"]) == (0, "ok", "ok")
    assert "1 on" in pods["found"]
    assert "0 in this node" in claims["found"]
    code, pods, claims = _check(tmp_path, node.node, plane.kubeconfig(proxy.port, STRANGER_TOKEN))
    assert (code, pods["level"], claims["level"]) == (1, "fail", "warn")
    for row in (pods, claims):
        assert "permission" in row["found"]
        assert "rbac.yaml" in row["remedy"]
