"""The kubelet stand-in, asked by a gRPC client and read by the agent's own decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from wattline.core.errors import InputError
from wattline.drivers.kubelet.wire import ClaimedDevice, decode_list
from wattline.drivers.pods import PodName, SourceError
from wattline.virtual.kubelet import KubeletServer, fault_of
from wattline.virtual.podresources import Claim, Device, get_request, requested_pod
from wattline.virtual.pods import KubeletFault, NodePods, VirtualPod

UUID = "GPU-8a204f31-b354-5e30-a239-cda5037ffc2f"
Call = Callable[..., bytes]


@pytest.fixture
def pods(tmp_path: Path) -> NodePods:
    made = NodePods(tmp_path / "pods.json", tmp_path / "kubelet.json")
    made.create()
    return made


@pytest.fixture
def socket(tmp_path: Path, pods: NodePods) -> Iterator[Path]:
    path = tmp_path / "kubelet.sock"
    devices = [Device(UUID), Device("MIG-1", "nvidia.com/mig-1g.10gb", numa_node=1)]
    with KubeletServer(path, pods, lambda: devices, calls_per_s=0.1):
        yield path


@pytest.fixture
def ask(socket: Path) -> Iterator[Callable[[str], Call]]:
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:

        def method(name: str) -> Call:
            call = channel.unary_unary(f"/v1.PodResourcesLister/{name}")
            return lambda request=b"", timeout=10.0: call(
                request, timeout=timeout, wait_for_ready=True
            )

        yield method


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def pod(name: str = "vllm-0", *devices: Device, **more: object) -> VirtualPod:
    return VirtualPod(name=name, uid=f"uid-of-{name}", devices=devices, **more)  # type: ignore[arg-type]


def test_pods_come_and_go(pods: NodePods, ask: Callable[[str], Call]) -> None:
    assert decode_list(ask("List")()) == ()
    pods.add(pod("a", Device(UUID), Device(f"{UUID}::2", "nvidia.com/gpu.shared")))
    (listed,) = decode_list(ask("List")())
    assert listed.pod == PodName("default", "a")
    assert [(d.resource, d.ids) for d in listed.plugin_devices] == [
        ("nvidia.com/gpu", (UUID,)),
        ("nvidia.com/gpu.shared", (f"{UUID}::2",)),
    ]
    pods.remove("default", "a")
    assert decode_list(ask("List")()) == ()


def test_claims_are_listed_as_dynamic_resources(pods: NodePods, ask: Callable[[str], Call]) -> None:
    pods.add(pod(claims=(Claim("gpu-claim", "gpu-0", "node-1"),)))
    (listed,) = decode_list(ask("List")())
    assert listed.claimed_devices == (ClaimedDevice("gpu.nvidia.com", "node-1", "gpu-0"),)


def test_get_answers_for_one_pod(pods: NodePods, ask: Callable[[str], Call]) -> None:
    pods.add(pod("a", Device(UUID)))
    pods.add(pod("b"))
    (found,) = decode_list(ask("Get")(get_request("default", "a")))
    assert found.pod.name == "a"
    with pytest.raises(grpc.RpcError) as refused:
        ask("Get")(get_request("default", "c"))
    assert refused.value.code() is grpc.StatusCode.UNKNOWN
    with pytest.raises(grpc.RpcError) as refused:
        ask("Get")(b"\x0a\x7f")
    assert refused.value.code() is grpc.StatusCode.INTERNAL


def test_a_request_is_read_as_it_was_written() -> None:
    assert requested_pod(get_request("team", "p" * 200)) == ("team", "p" * 200)


def test_allocatable_devices_are_named(ask: Callable[[str], Call]) -> None:
    answer = ask("GetAllocatableResources")()
    assert UUID.encode() in answer
    assert b"nvidia.com/mig-1g.10gb" in answer


def test_calls_beyond_the_rate_are_refused(socket: Path, ask: Callable[[str], Call]) -> None:
    codes = []
    for _ in range(20):
        try:
            ask("List")()
        except grpc.RpcError as error:
            codes.append(error.code())
    assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(codes) >= 5


def test_an_error_lasts_for_its_count(pods: NodePods, ask: Callable[[str], Call]) -> None:
    pods.set_fault(KubeletFault(kind="error", code="INTERNAL", count=2))
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as refused:
            ask("List")()
        assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert ask("List")() == b""


def test_garbage_is_no_listing(pods: NodePods, ask: Callable[[str], Call]) -> None:
    pods.set_fault(fault_of("garbage"))
    with pytest.raises(SourceError):
        decode_list(ask("List")())


def test_an_empty_answer_has_no_pods(pods: NodePods, ask: Callable[[str], Call]) -> None:
    pods.add(pod("a", Device(UUID)))
    pods.set_fault(fault_of("empty"))
    assert decode_list(ask("List")()) == ()
    pods.set_fault(fault_of("none"))
    assert len(decode_list(ask("List")())) == 1


def test_a_slow_answer_misses_a_deadline(pods: NodePods, ask: Callable[[str], Call]) -> None:
    ask("List")()
    pods.set_fault(KubeletFault(delay_s=0.5, count=1))
    with pytest.raises(grpc.RpcError) as refused:
        ask("List")(timeout=0.05)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_socket_goes_and_comes_back(
    pods: NodePods, socket: Path, ask: Callable[[str], Call]
) -> None:
    ask("List")()
    pods.set_fault(fault_of("gone"))
    wait_until(lambda: not socket.exists())
    with pytest.raises(grpc.RpcError):
        ask("List")(timeout=0.2)
    pods.set_fault(fault_of("none"))
    assert ask("List")(timeout=30.0) == b""


def test_bound_and_allocated_are_two_things(pods: NodePods) -> None:
    made = pod("a", Device(UUID), limit="400")
    pods.bind(made)
    assert pods.names() == [("default", "a")]
    assert pods.resources() == []
    pods.allocate(made)
    assert [found.name for found in pods.resources()] == ["a"]
    pods.unbind("default", "a")
    assert pods.names() == []
    assert [found.name for found in pods.resources()] == ["a"]


@pytest.mark.parametrize("text", ["", "goner", "error:NO_SUCH", "error:OK", "slow", "slow:x"])
def test_a_text_that_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="use none, gone"):
        fault_of(text)
