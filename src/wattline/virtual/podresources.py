"""Answers of the kubelet's PodResources v1, written as protobuf without generated code.

Source of the messages and field numbers: k8s.io/kubelet v0.36.3,
pkg/apis/podresources/v1/api.proto. Numbers that are 0 and texts that are empty are left out, as
proto3 does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_VARINT, _LENGTH_DELIMITED = 0, 2


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a device plugin: `id` is a GPU or MIG UUID, with `::n` when time-sliced."""

    id: str
    resource: str = "nvidia.com/gpu"
    numa_node: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A device of a DRA claim; its ResourceSlice says which GPU it is."""

    claim: str
    device: str
    pool: str
    driver: str = "gpu.nvidia.com"


@dataclass(frozen=True, slots=True)
class PodResources:
    """What the kubelet has given to a pod, here always in one container."""

    namespace: str
    name: str
    devices: tuple[Device, ...] = ()
    claims: tuple[Claim, ...] = ()
    container: str = "main"


def list_response(pods: Iterable[PodResources]) -> bytes:
    """`ListPodResourcesResponse`."""
    return b"".join(_bytes(1, _pod(pod)) for pod in pods)


def get_response(pod: PodResources) -> bytes:
    """`GetPodResourcesResponse`."""
    return _bytes(1, _pod(pod))


def allocatable_response(devices: Sequence[Device], cpus: int) -> bytes:
    """`AllocatableResourcesResponse` with these devices and CPUs 0 to cpus - 1."""
    packed = b"".join(_varint(cpu) for cpu in range(cpus))
    return b"".join(_bytes(1, _device(device)) for device in devices) + _bytes(2, packed)


def requested_pod(request: bytes) -> tuple[str, str]:
    """Namespace and name in a `GetPodResourcesRequest`; ValueError if it is none."""
    texts = {1: "", 2: ""}
    at = 0
    while at < len(request):
        key, at = _read_varint(request, at)
        length, at = _read_varint(request, at)
        if key & 7 != _LENGTH_DELIMITED or at + length > len(request):
            raise ValueError("not a GetPodResourcesRequest")
        texts[key >> 3] = request[at : at + length].decode()
        at += length
    return texts[2], texts[1]


def get_request(namespace: str, name: str) -> bytes:
    """`GetPodResourcesRequest`, for a client."""
    return _text(1, name) + _text(2, namespace)


def _pod(pod: PodResources) -> bytes:
    # The kubelet writes one entry per device, each with its own topology.
    container = (
        _text(1, pod.container)
        + b"".join(_bytes(2, _device(device)) for device in pod.devices)
        + b"".join(_bytes(5, _claim(pod.namespace, claim)) for claim in pod.claims)
    )
    return _text(1, pod.name) + _text(2, pod.namespace) + _bytes(3, container)


def _device(device: Device) -> bytes:
    node = _number(1, device.numa_node)
    return _text(1, device.resource) + _text(2, device.id) + _bytes(3, _bytes(1, node))


def _claim(namespace: str, claim: Claim) -> bytes:
    cdi = _text(1, f"k8s.{claim.driver}/claim={claim.claim}-{claim.device}")
    resource = (
        _bytes(1, cdi) + _text(2, claim.driver) + _text(3, claim.pool) + _text(4, claim.device)
    )
    return _text(2, claim.claim) + _text(3, namespace) + _bytes(4, resource)


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode()) if value else b""


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("cut short in a number")
