"""The commands of `wattline virtual-node` that go on until they are interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from wattline.drivers.kubelet.wire import decode_list
from wattline.virtual.node import VirtualNode

pytest_plugins = ("virtual_fixtures",)

MAIN = "from wattline.cli.main import main; main()"


@contextmanager
def command(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", MAIN, "virtual-node", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert child.stdout is not None
    try:
        yield child
    finally:
        child.kill()
        child.stdout.close()
        child.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_the_kubelet_serves_until_it_is_asked_to_end(
    virtual_node: VirtualNode, number: signal.Signals
) -> None:
    virtual_node.add_pod("a", [0])
    with command("kubelet", virtual_node.folder) as child:
        assert child.stdout is not None
        assert "PodResources v1 on" in child.stdout.readline()
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(f"unix:{virtual_node.kubelet_socket}", options) as channel:
            call = channel.unary_unary("/v1.PodResourcesLister/List")
            (listed,) = decode_list(call(b"", timeout=30, wait_for_ready=True))
        assert listed.pod.name == "a"
        child.send_signal(number)
        assert child.wait(timeout=30) == 0
    assert not virtual_node.kubelet_socket.exists()


def test_the_log_is_followed(virtual_node: VirtualNode) -> None:
    with command("log", virtual_node.folder, "--follow") as child:
        assert child.stdout is not None
        created = [child.stdout.readline() for _ in range(8)]
        assert all("created" in line for line in created)
        virtual_node.gpus.write_limit(3, 400)
        assert "700 -> 400 W control" in child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 143
