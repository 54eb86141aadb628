"""Which GPU a device of a PodResources listing is, or is a part of."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from wattline.core.errors import WattlineError
from wattline.drivers.kubelet.wire import ClaimedDevice, PodDevices
from wattline.drivers.pods import OwnerMethod, Ownership, PodName, SourceError

DRA_DRIVER = "gpu.nvidia.com"
"""Driver of NVIDIA's DRA claims for GPUs and MIG instances."""

_PLUGIN_GPU = re.compile(r"nvidia\.com/(?:gpu|mig-[^/]+)(?:\.shared)?")
"""Always GPUs or parts of one; other names of `nvidia.com/` may be network cards."""
_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-fA-F-]+)/\d+/\d+")
"""MIG ids before driver R470 name their GPU."""
_NO_GPU_HERE = "of no GPU that is known here"
_NOT_IN_SLICES = "in no ResourceSlice of this node"
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 300.0


class ClaimedGpus:
    """UUIDs of DRA devices, kept; `read_slices` is called only when a device is not known yet.

    While a device stays unknown it is asked for again after 1 s, 2 s, 4 s, ... and in the end every
    5 minutes, so that no claim can make the agent poll the API server.
    """

    def __init__(
        self,
        read_slices: Callable[[], Mapping[ClaimedDevice, str]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_slices = read_slices
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """The GPUs of the node have changed: ask anew."""
        self._uuids: Mapping[ClaimedDevice, str] = {}
        self._problem = _NOT_IN_SLICES
        self._retry_s = _FIRST_RETRY_S
        self._not_before_s: float | None = None

    def uuid(self, device: ClaimedDevice) -> str:
        """UUID of the GPU or MIG instance. SourceError says why there is none."""
        if device not in self._uuids:
            self._refresh()
        if device not in self._uuids:
            raise SourceError(self._problem)
        return self._uuids[device]

    def _refresh(self) -> None:
        now_s = self._clock()
        if self._not_before_s is not None and now_s < self._not_before_s:
            return
        before = self._uuids
        try:
            self._uuids = self._read_slices()
            self._problem = _NOT_IN_SLICES
        except SourceError as error:
            self._problem = str(error)
        if self._uuids != before:
            self._retry_s = _FIRST_RETRY_S
        self._not_before_s = now_s + self._retry_s
        self._retry_s = min(2.0 * self._retry_s, _LAST_RETRY_S)


class GpuResolver:
    """Turns a listing into owners of GPUs.

    `parents` gives the GPU UUID for MIG UUIDs and for other ids that a plugin may use; it may raise
    WattlineError. Without `claims`, DRA devices stay unresolved.
    """

    def __init__(
        self,
        parents: Callable[[], Mapping[str, str]] = dict,
        claims: ClaimedGpus | None = None,
    ) -> None:
        self._parents = parents
        self._claims = claims

    def forget(self) -> None:
        """The GPUs of the node have changed: ask for claimed devices anew."""
        if self._claims is not None:
            self._claims.forget()

    def ownership(self, listing: Sequence[PodDevices]) -> Ownership:
        """Owners per GPU UUID. A device of a GPU that cannot be told is named in `unresolved`."""
        holders: dict[str, set[PodName]] = {}
        unresolved: dict[str, None] = {}  # a set that keeps its order
        for pod in listing:
            for name, found in [*self._plugin_gpus(pod), *self._claimed_gpus(pod)]:
                if isinstance(found, SourceError):
                    who = f"{pod.pod.namespace}/{pod.pod.name}"
                    unresolved[_printable(f"{name} of {who}: {found}")] = None
                else:
                    holders.setdefault(found, set()).add(pod.pod)
        return Ownership(
            OwnerMethod.POD_RESOURCES,
            {gpu: frozenset(pods) for gpu, pods in holders.items()},
            tuple(unresolved),
        )

    def _plugin_gpus(self, pod: PodDevices) -> Iterator[tuple[str, str | SourceError]]:
        for devices in pod.plugin_devices:
            if not devices.resource.startswith("nvidia.com/"):
                continue
            is_gpu = _PLUGIN_GPU.fullmatch(devices.resource) is not None
            for device in devices.ids:
                if is_gpu or device.startswith(("GPU-", "MIG-")):
                    whole = device.split("::", 1)[0]  # time slices and MPS: `<id>::<n>`
                    yield f"{devices.resource} {device}", self._gpu(whole)

    def _claimed_gpus(self, pod: PodDevices) -> Iterator[tuple[str, str | SourceError]]:
        for device in pod.claimed_devices:
            if device.driver == DRA_DRIVER:
                yield f"claimed device {device.pool}/{device.device}", self._claimed_gpu(device)

    def _claimed_gpu(self, device: ClaimedDevice) -> str | SourceError:
        if self._claims is None:
            return SourceError("ResourceSlices are not read here")
        try:
            return self._gpu(self._claims.uuid(device))
        except SourceError as error:
            return error

    def _gpu(self, device: str) -> str | SourceError:
        """UUID of the GPU that a device is or is a part of, or why it cannot be told."""
        if device.startswith("GPU-"):
            return device
        old_mig = _OLD_MIG.fullmatch(device)
        if old_mig:
            return old_mig[1]
        try:
            return self._parents().get(device) or SourceError(_NO_GPU_HERE)
        except WattlineError as error:
            return SourceError(str(error))


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in line)
