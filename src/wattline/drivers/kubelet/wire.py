"""Answer of the kubelet's PodResources v1 `List`, read from its bytes without generated code.

Source of the field numbers: k8s.io/kubelet v0.36.3, pkg/apis/podresources/v1/api.proto. Unknown
fields are skipped, as protobuf wants it. The schema is four messages deep and each level has a
reader of its own, so that no input can nest deeper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wattline.drivers.pods import PodName, SourceError
from wattline.drivers.protobuf import WireError, as_text, read_messages

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""The kubelet's own bound on a message (`apiServerMaxMsgSize` in its podresources server)."""
_MAX_TEXT_BYTES = 1024
"""Kubernetes names have 253 characters at most, device ids are shorter still."""


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
        return tuple(_pod(body) for number, body in read_messages(answer) if number == 1)
    except WireError as error:
        raise SourceError(
            f"kubelet PodResources: the answer cannot be decoded ({error}): "
            "is the socket the kubelet's?"
        ) from None


def _pod(body: bytes) -> PodDevices:
    name = namespace = ""
    plugin: list[PluginDevices] = []
    claimed: list[ClaimedDevice] = []
    for number, value in read_messages(body):
        if number == 1:
            name = _text(value)
        elif number == 2:
            namespace = _text(value)
        elif number == 3:
            for field, inner in read_messages(value):
                if field == 2:
                    plugin.append(_plugin_devices(inner))
                elif field == 5:
                    claimed.extend(_claim(inner))
    if not name or not namespace:
        raise WireError("a pod without a name or namespace")
    return PodDevices(PodName(namespace, name), tuple(plugin), tuple(claimed))


def _plugin_devices(body: bytes) -> PluginDevices:
    resource = ""
    ids: list[str] = []
    for number, value in read_messages(body):
        if number == 1:
            resource = _text(value)
        elif number == 2:
            ids.append(_text(value))
    return PluginDevices(resource, tuple(ids))


def _claim(body: bytes) -> Iterator[ClaimedDevice]:
    for number, value in read_messages(body):
        if number == 4:
            texts = {2: "", 3: "", 4: ""}
            for field, inner in read_messages(value):
                if field in texts:
                    texts[field] = _text(inner)
            yield ClaimedDevice(driver=texts[2], pool=texts[3], device=texts[4])


def _text(value: bytes) -> str:
    return as_text(value, _MAX_TEXT_BYTES)
