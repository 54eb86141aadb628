"""UUIDs of DRA devices from this node's ResourceSlices; read only when a claim is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.kube.api import KubeApi, KubeError, KubeFault
from wattline.drivers.kubelet.devices import DRA_DRIVER
from wattline.drivers.kubelet.wire import ClaimedDevice
from wattline.drivers.pods import SourceError

VERSIONS = ("v1", "v1beta2", "v1beta1")
"""Of `resource.k8s.io`, newest first: GA in Kubernetes 1.34, beta from 1.32."""


TIMEOUT_S = 4
"""Short: whoever asks is about to tell the owners of other GPUs, too."""


class ResourceSlices:
    """Reads the slices of one node when called; a `read_slices` for `ClaimedGpus`.

    `connect` opens a connection for each reading: readings are rare, idle connections are not free.
    """

    def __init__(self, connect: Callable[[], KubeApi], node: str) -> None:
        self._connect = connect
        self._node = node
        self._version: str | None = None

    def __call__(self) -> Mapping[ClaimedDevice, str]:
        """UUID per device of `gpu.nvidia.com`: a GPU's; for a MIG instance its GPU's if told.

        Raises SourceError; as a KubeError with fault ABSENT where the cluster has no DRA.
        """
        try:
            api = self._connect()
        except InputError as error:
            raise SourceError(str(error)) from error
        try:
            return uuids_of(self._list(api).get("items"))
        finally:
            api.close()

    def _list(self, api: KubeApi) -> Mapping[str, Any]:
        params = {"fieldSelector": f"spec.nodeName={self._node}"}
        absent: KubeError | None = None
        for version in [self._version] if self._version else VERSIONS:
            try:
                answer = api.get(
                    f"/apis/resource.k8s.io/{version}/resourceslices", params, timeout_s=TIMEOUT_S
                )
            except KubeError as error:
                if error.fault is not KubeFault.ABSENT:
                    raise
                absent = error
            else:
                self._version = version
                return answer
        self._version = None
        raise absent or KubeError(KubeFault.ABSENT, "resource.k8s.io: no version is served")


def uuids_of(items: object) -> dict[ClaimedDevice, str]:
    """Devices of NVIDIA's driver with a UUID, from the newest generation of each pool.

    Raises SourceError on items that are no ResourceSlices.
    """
    newest: dict[str, int] = {}
    found: list[tuple[int, ClaimedDevice, str]] = []
    for item in _list_of(items, "items"):
        spec = _mapping(_mapping(item, "item").get("spec"), "spec")
        if spec.get("driver") != DRA_DRIVER:
            continue
        pool = _mapping(spec.get("pool"), "spec.pool")
        name, generation = str(pool.get("name")), pool.get("generation")
        if not isinstance(generation, int):
            raise SourceError("resourceslices: spec.pool.generation is no number")
        newest[name] = max(newest.get(name, generation), generation)
        for device, uuid in _devices(spec):
            found.append((generation, ClaimedDevice(DRA_DRIVER, name, device), uuid))
    return {device: uuid for made, device, uuid in found if made == newest[device.pool]}


def _devices(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for item in _list_of(spec.get("devices"), "spec.devices"):
        device = _mapping(item, "device")
        basic = _mapping(
            device.get("basic") or device, "device.basic"
        )  # v1beta1 has one level more
        attributes = _mapping(basic.get("attributes"), "device.attributes")
        uuid = _attribute(attributes, "parentUUID") or _attribute(attributes, "uuid")
        if uuid is not None:
            yield str(device.get("name")), uuid


def _attribute(attributes: Mapping[str, Any], name: str) -> str | None:
    """Text of an attribute; its name may carry the driver's domain or leave it out."""
    for key in (name, f"{DRA_DRIVER}/{name}"):
        if key in attributes:
            value = _mapping(attributes[key], key).get("string")
            if isinstance(value, str) and value:
                return value
    return None


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SourceError(f"resourceslices: {where} is {type(value).__name__}: not an object")
    return value


def _list_of(value: object, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise SourceError(f"resourceslices: {where} is {type(value).__name__}: not a list")
    return value
