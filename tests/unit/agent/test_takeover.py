"""A Dynamo Power Agent: how it is told, refused, and taken over with its state file."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.agent import takeover
from wattline.agent.journal import GpuRecord, Journal, JournalState
from wattline.agent.lock import WriterLock
from wattline.agent.settings import AgentSettings
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.gpu.device import GpuFault
from wattline.drivers.gpu.simulated import SimulatedDriver, SimulatedNode
from wattline.drivers.pods import Pod


def _free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return server.server_port


@contextmanager
def _metrics(text: str) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class Node:
    """One node's directories: ours, theirs, and a process tree."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "ours"
        self.state_dir.mkdir()
        self.theirs = folder / "theirs" / "managed_gpus.json"
        self.theirs.parent.mkdir()
        self.proc = folder / "proc"
        self.proc.mkdir()
        self.gpus = SimulatedNode(["NVIDIA H100 80GB HBM3"] * 2)
        self.uuids = [device.identity.uuid for device in self.driver().enumerate()]
        self.settings = AgentSettings(
            node="n1", state_dir=self.state_dir, dynamo_state=self.theirs, proc_root=self.proc
        )

    def driver(self) -> SimulatedDriver:
        return SimulatedDriver(self.gpus)

    def manages(self, *uuids: str) -> None:
        self.theirs.write_text(json.dumps({"managed_uuids": uuids}), encoding="utf-8")

    def process(self, pid: int, *arguments: str) -> None:
        (self.proc / str(pid)).mkdir()
        command = "\0".join(arguments) + "\0"
        (self.proc / str(pid) / "cmdline").write_bytes(command.encode())

    def find(self, *pods: Pod, port: int | None = None, wall_s: float = 4e9) -> takeover.Rival:
        return takeover.find(
            self.settings, pods, wall_s=lambda: wall_s, metrics_port=port or _free_port()
        )

    def journal(self) -> JournalState:
        return Journal(self.state_dir).load()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_an_empty_node_has_no_rival(node: Node) -> None:
    node.process(1, "/sbin/init")
    node.process(7, "python3", "-m", "power_agent_exporter")
    rival = node.find(Pod("dynamo", "wattline-agent-x7z2q", "uid", None))
    assert not rival
    takeover.refuse(rival)


@pytest.mark.parametrize(
    "name", ["power-agent-x7z2q", "dynamo-power-agent-abcde", "my-release-power-agent-12345"]
)
def test_its_pods_are_known_by_name(node: Node, name: str) -> None:
    rival = node.find(Pod("dynamo", name, "uid", None))
    assert rival.running == (f"its pod dynamo/{name} is on this node",)
    assert node.find(Pod("dynamo", name, "uid", None, host_pid=True)) == rival
    assert not node.find(Pod("dynamo", name, "uid", None, finished=True))


def test_a_tenants_pod_with_such_a_name_is_none(node: Node) -> None:
    """It cannot see the node's processes, so it is not Dynamo's, and keeps nobody from starting."""
    assert not node.find(Pod("tenant", "my-power-agent-abcde", "uid", None, host_pid=False))


@pytest.mark.parametrize(
    "arguments",
    [
        ("python3", "/app/power_agent.py", "--safe-default-watts", "500"),
        ("/usr/bin/python3.11", "-u", "-m", "power_agent"),
        ("python", "-m", "dynamo.power_agent"),
    ],
    ids=["file", "module", "package"],
)
def test_its_process_is_known_by_its_arguments(node: Node, arguments: tuple[str, ...]) -> None:
    node.process(4711, *arguments)
    node.process(4712, "vim", "power_agent.py")
    assert node.find().running == ("its process 4711 runs",)


def test_its_metrics_are_told_from_ours(node: Node) -> None:
    with _metrics('dynamo_power_agent_applied_limit_watts{gpu="0"} 480\n') as port:
        assert node.find(port=port).running == (f"its metrics are served on port {port}",)
    with _metrics("dynamo_power_agent_apply_failures_total 0\nwattline_agent_info 1\n") as port:
        assert not node.find(port=port)


def test_its_state_file_tells_what_it_manages_and_whether_it_lives(node: Node) -> None:
    node.manages()
    assert not node.find()
    node.manages("GPU-A", "GPU-B", "GPU-A")
    changed_s = node.theirs.stat().st_mtime
    old = node.find(wall_s=changed_s + 1000.0)
    assert (old.running, old.managed) == ((), ("GPU-A", "GPU-B"))
    assert node.find(wall_s=changed_s + 10.0).running == ("its state file changed 10 s ago",)


def test_a_rival_is_refused_in_one_line_with_a_remedy(node: Node) -> None:
    node.manages("GPU-A")
    with pytest.raises(WattlineError) as caught:
        takeover.refuse(node.find(Pod("dynamo", "power-agent-abcde", "uid", None)))
    text = str(caught.value)
    assert "dynamo/power-agent-abcde" in text
    assert "1 GPUs" in text
    assert "--take-over" in text
    assert "\n" not in text


@given(st.binary(max_size=60))
def test_any_state_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "managed_gpus_fuzzed.json"
    path.write_bytes(content)
    try:
        uuids = takeover.read_state(path)
    except InputError as error:
        text = str(error)
        uuids = ()
    else:
        text = ""
    assert "\n" not in text
    assert all(isinstance(uuid, str) for uuid in uuids)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"managed_uuids": 3}',
        '{"managed_uuids": [3]}',
        '{"managed_uuids": [""]}',
        '{"managed_uuids": ["a\\nb"]}',
        "[" * 5000,
    ],
    ids=["empty", "torn", "list", "without", "number", "numbers", "nameless", "lines", "deep"],
)
def test_a_state_file_that_cannot_be_used_is_a_sign_too(node: Node, content: str) -> None:
    node.theirs.write_text(content, encoding="utf-8")
    rival = node.find()
    assert rival.managed == ()
    assert rival.state_problem is not None
    with pytest.raises(WattlineError, match="state file cannot be used"):
        takeover.refuse(rival)


def test_its_gpus_become_ours_with_the_default_as_original(node: Node) -> None:
    first, second = node.uuids
    driver = node.driver()
    driver.enumerate()[0].write_limit(480.0)
    node.manages(first, "GPU-gone")
    lines = takeover.take_over(node.settings, driver)
    state = node.journal()
    assert state.gpus == {first: GpuRecord(original_w=700.0, ours_w=(480.0,), held_w=480.0)}
    assert second not in state.gpus
    assert any("GPU-gone: not on this node" in line for line in lines)
    assert not node.theirs.exists()
    aside = node.theirs.with_name("managed_gpus.json.taken-over-by-wattline")
    assert takeover.read_state(aside) == (first, "GPU-gone")
    assert driver.enumerate()[0].enforced_w() == 480.0
    assert not node.find()


def test_taking_over_twice_changes_nothing(node: Node) -> None:
    first = node.uuids[0]
    journal = Journal(node.state_dir)
    ours = GpuRecord(original_w=650.0, ours_w=(300.0,), held_w=300.0)
    journal.load()
    journal.commit(JournalState(incarnation=5, gpus={first: ours}))
    node.manages(first)
    assert f"{first}: already ours" in takeover.take_over(node.settings, node.driver())
    state = node.journal()
    assert (state.incarnation, state.gpus) == (5, {first: ours})
    assert takeover.take_over(node.settings, node.driver()) == []


def test_a_torn_state_file_is_set_aside(node: Node) -> None:
    node.theirs.write_text("{", encoding="utf-8")
    (line,) = takeover.take_over(node.settings, node.driver())
    assert "set aside" in line
    assert not node.theirs.exists()
    assert node.journal() == JournalState()


def test_what_cannot_be_taken_over_whole_is_left_as_it_was(node: Node) -> None:
    first = node.uuids[0]
    node.manages(first)
    node.gpus.fail(first, GpuFault.LOST, "default_w")
    with pytest.raises(WattlineError, match="cannot be taken over"):
        takeover.take_over(node.settings, node.driver())
    node.gpus.fail(first, None, "default_w")
    lock = WriterLock(node.state_dir)
    try:
        with pytest.raises(WattlineError, match="another agent"):
            takeover.take_over(node.settings, node.driver())
    finally:
        lock.release()
    assert takeover.read_state(node.theirs) == (first,)
    assert node.journal() == JournalState()
