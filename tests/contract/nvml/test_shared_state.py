"""Several processes on the same virtual GPUs, also when they are killed in the middle."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from wattline.virtual import library
from wattline.virtual.build import build
from wattline.virtual.gpus import Cause, VirtualGpus, VirtualProcess
from wattline.virtual.node import VirtualNode

pytest_plugins = ("virtual_fixtures",)

WRITER = """
import sys, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
print("ready", flush=True)
count = int(sys.argv[1])
done = 0
while count < 0 or done < count:
    pynvml.nvmlDeviceSetPowerManagementLimit(handle, 200_000 + done % 500 * 1000)
    done += 1
if sys.argv[2] == "wait":
    print("done", flush=True)
    sys.stdin.read()
if sys.argv[2] != "abandon":
    pynvml.nvmlShutdown()
"""

HOLDER = """
import ctypes, sys
from wattline.virtual.library import load
from pathlib import Path
loaded = load(Path(sys.argv[1]))
context = ctypes.c_void_p()
assert loaded.wv_open(sys.argv[2].encode(), ctypes.byref(context)) == 0
assert loaded.wv_hold_lock(context) == 0
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(node: VirtualNode, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is ready; reaped at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | node.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.stdin.close()
        child.stdout.close()
        child.wait()


def assert_whole(gpus: VirtualGpus, gpu: int) -> None:
    """The log leads from each entry to the next, and to the limit in force."""
    changes, _ = gpus.changes(gpu)
    numbers = [change.sequence for change in changes]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for before, after in pairwise(changes):
        assert after.before_mw == before.enforced_mw
        assert after.time_ns >= before.time_ns
    assert changes[-1].enforced_mw == gpus.enforced_mw(gpu)


def test_a_write_of_one_process_is_seen_by_another(virtual_node: VirtualNode) -> None:
    with process(virtual_node, WRITER, "300", "leave") as child:
        child.wait(timeout=30)
        assert virtual_node.gpus.state(0).enforced_w == 200 + 299
        last = virtual_node.gpus.changes(0)[0][-1]
        assert (last.cause, last.pid) == (Cause.NVML, child.pid)


def test_two_writers_lose_no_entry(virtual_node: VirtualNode) -> None:
    with (
        process(virtual_node, WRITER, "400", "leave") as one,
        process(virtual_node, WRITER, "400", "leave") as two,
    ):
        assert (one.wait(timeout=30), two.wait(timeout=30)) == (0, 0)
        pids = {one.pid, two.pid}
    changes, lost = virtual_node.gpus.changes(0)
    assert lost == 0
    assert sum(1 for change in changes if change.pid in pids) == 800
    assert_whole(virtual_node.gpus, 0)


def test_an_overrun_of_the_log_is_told(virtual_node: VirtualNode) -> None:
    for watts in range(200, 700):
        virtual_node.gpus.write_limit(0, watts)
        virtual_node.gpus.write_limit(0, watts + 0.5)
        virtual_node.gpus.write_limit(0, watts)
    changes, lost = virtual_node.gpus.changes(0)
    assert len(changes) + lost == 1 + 1500
    assert lost > 0
    assert virtual_node.gpus.changes(0, changes[-1].sequence) == ([], 0)


def test_writers_that_are_killed_leave_the_state_whole(virtual_node: VirtualNode) -> None:
    for delay_s in (0.0, 0.002, 0.01, 0.03):
        with process(virtual_node, WRITER, "-1", "leave") as child:
            time.sleep(delay_s)
            child.send_signal(signal.SIGKILL)
            child.wait(timeout=30)
        assert_whole(virtual_node.gpus, 0)
        virtual_node.gpus.write_limit(0, 333)
        assert virtual_node.gpus.state(0).enforced_w == 333.0


def test_a_lock_whose_holder_was_killed_is_free(virtual_node: VirtualNode) -> None:
    arguments = (str(virtual_node.gpus.library), str(virtual_node.gpus_file))
    with process(virtual_node, HOLDER, *arguments) as child:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=30)
        virtual_node.gpus.write_limit(0, 444)
        assert virtual_node.gpus.state(0).enforced_w == 444.0
    assert_whole(virtual_node.gpus, 0)


def test_a_reader_sees_whole_entries_only(virtual_node: VirtualNode) -> None:
    """While another process writes as fast as it can: no mix of two entries, no step back."""
    gpus = virtual_node.gpus
    gpus.set_load(0, 650)
    with process(virtual_node, WRITER, "-1", "leave"):
        last, seen = gpus.state(0), 0
        for _ in range(3000):
            state = gpus.state(0)
            assert state.enforced_w == state.requested_w
            assert 200.0 <= state.enforced_w <= 700.0
            assert state.energy_j >= last.energy_j
            seen += state.enforced_w != last.enforced_w
            last = state
    assert seen > 0


def test_readers_need_no_lock(virtual_node: VirtualNode) -> None:
    """A writer that is stopped while it holds the lock must not blind an observer."""
    arguments = (str(virtual_node.gpus.library), str(virtual_node.gpus_file))
    with process(virtual_node, HOLDER, *arguments):
        uuid = virtual_node.gpus.uuids()[0]
        assert virtual_node.gpus.enforced_mw(uuid) == 700_000
        assert virtual_node.gpus.state(0).enforced_w == 700.0
        assert virtual_node.gpus.changes(uuid)[0][-1].enforced_mw == 700_000


@pytest.fixture
def forgetful_node(tmp_path: Path) -> Iterator[VirtualNode]:
    """A node without persistence mode."""
    with VirtualNode(tmp_path / "node", ["h100"], persistence=False, settle_s=0.0) as node:
        yield node


def test_without_persistence_the_last_client_takes_the_limit_along(
    forgetful_node: VirtualNode,
) -> None:
    gpus = forgetful_node.gpus
    with process(forgetful_node, WRITER, "101", "wait") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        assert gpus.clients() == (child.pid,)
        assert gpus.state(0).enforced_w == 300.0
        child.communicate(timeout=30)
        assert gpus.state(0).enforced_w == 700.0
        assert gpus.changes(0)[0][-1].cause is Cause.UNLOAD


def test_a_client_that_is_killed_counts_no_more(forgetful_node: VirtualNode) -> None:
    with process(forgetful_node, WRITER, "101", "wait") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        child.kill()
        child.wait(timeout=30)
        assert forgetful_node.gpus.clients() == ()
        assert forgetful_node.gpus.state(0).enforced_w == 700.0


def test_a_process_on_the_gpu_keeps_the_driver(forgetful_node: VirtualNode) -> None:
    gpus = forgetful_node.gpus
    gpus.set_processes(0, [VirtualProcess(7)])
    with process(forgetful_node, WRITER, "101", "leave") as child:
        child.wait(timeout=30)
    assert gpus.state(0).enforced_w == 300.0
    gpus.set_processes(0, [])
    assert gpus.state(0).enforced_w == 700.0


def test_with_persistence_the_limit_stays(virtual_node: VirtualNode) -> None:
    with process(virtual_node, WRITER, "101", "abandon") as child:
        child.wait(timeout=30)
    assert virtual_node.gpus.clients() == ()
    assert virtual_node.gpus.state(0).enforced_w == 300.0


def test_the_layout_of_python_is_that_of_c(virtual_node: VirtualNode) -> None:
    """An observer of its own may map the file: sizes are part of the contract."""
    sizes = {
        library.Entry: 88,
        library.Spec: 320,
        library.Process: 24,
        library.Mig: 112,
        library.View: 144,
    }
    assert {kind: ctypes.sizeof(kind) for kind in sizes} == sizes
    assert virtual_node.gpus_file.read_bytes()[:12] == b"WLVGPU01\x01\x00\x00\x00"


def test_the_library_is_built_once(tmp_path: Path) -> None:
    first = build(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert build(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in first.parent.iterdir()] == [first.name]
