"""Answer of the kubelet's PodResources v1 `List`, read from its bytes without generated code.

Source of the field numbers: k8s.io/kubelet v0.36.3, pkg/apis/podresources/v1/api.proto. Unknown
fields are skipped, as protobuf wants it. The schema is four messages deep and each level has a
reader of its own, so that no input can nest deeper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wattline.drivers.pods import PodName, SourceError

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""The kubelet's own bound on a message (`apiServerMaxMsgSize` in its podresources server)."""
_MAX_TEXT_BYTES = 1024
"""Kubernetes names have 253 characters at most, device ids are shorter still."""

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class PluginDevices:
    """Devices that a device plugin gave to a container: ids are the plugin's own words."""

    resource: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """A device of a DRA claim, named as in its ResourceSlice."""

    driver: str
    pool: str
    device: str


@dataclass(frozen=True, slots=True)
class PodDevices:
    """All devices of one pod, over its containers."""

    pod: PodName
    plugin_devices: tuple[PluginDevices, ...]
    claimed_devices: tuple[ClaimedDevice, ...]


def decode_list(answer: bytes) -> tuple[PodDevices, ...]:
    """Pods with their devices. SourceError on bytes that are no `ListPodResourcesResponse`."""
    if len(answer) > MAX_ANSWER_BYTES:
        raise SourceError(
            f"kubelet PodResources: the answer has {len(answer)} bytes, more than "
            f"{MAX_ANSWER_BYTES}: not read"
        )
    try:
        return tuple(_pod(body) for number, body in _messages(answer) if number == 1)
    except _WireError as error:
        raise SourceError(
            f"kubelet PodResources: the answer cannot be decoded ({error}): "
            "is the socket the kubelet's?"
        ) from None


class _WireError(ValueError):
    """Bytes that are not protobuf, or not of this schema."""


def _pod(body: bytes) -> PodDevices:
    name = namespace = ""
    plugin: list[PluginDevices] = []
    claimed: list[ClaimedDevice] = []
    for number, value in _messages(body):
        if number == 1:
            name = _text(value)
        elif number == 2:
            namespace = _text(value)
        elif number == 3:
            for field, inner in _messages(value):
                if field == 2:
                    plugin.append(_plugin_devices(inner))
                elif field == 5:
                    claimed.extend(_claim(inner))
    if not name or not namespace:
        raise _WireError("a pod without a name or namespace")
    return PodDevices(PodName(namespace, name), tuple(plugin), tuple(claimed))


def _plugin_devices(body: bytes) -> PluginDevices:
    resource = ""
    ids: list[str] = []
    for number, value in _messages(body):
        if number == 1:
            resource = _text(value)
        elif number == 2:
            ids.append(_text(value))
    return PluginDevices(resource, tuple(ids))


def _claim(body: bytes) -> Iterator[ClaimedDevice]:
    for number, value in _messages(body):
        if number == 4:
            texts = {2: "", 3: "", 4: ""}
            for field, inner in _messages(value):
                if field in texts:
                    texts[field] = _text(inner)
            yield ClaimedDevice(driver=texts[2], pool=texts[3], device=texts[4])


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Length-delimited fields of a message, in order; numbers and fixed fields are passed over."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _WireError(f"field number 0 at byte {at}")
        if kind == _LENGTH_DELIMITED:
            length, at = _varint(data, at)
            end = at + length
            if end > len(data):
                raise _WireError(f"{length} bytes announced at byte {at}, {len(data) - at} there")
            yield number, data[at:end]
            at = end
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
            if at > len(data):
                raise _WireError("cut short in a fixed-width field")
        else:
            raise _WireError(f"wire type {kind} at byte {at}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:  # nearly all are of one byte
        return data[at], at + 1
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if at + index >= len(data):
            raise _WireError("cut short in a number")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise _WireError(f"a number of more than {_MAX_VARINT_BYTES} bytes at byte {at}")


def _text(value: bytes) -> str:
    if len(value) > _MAX_TEXT_BYTES:
        raise _WireError(f"a text of {len(value)} bytes")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise _WireError("a text that is not UTF-8") from None
