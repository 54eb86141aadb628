"""Which GPU a device of a PodResources listing is, or is a part of."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

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
_NO_SLICES = "ResourceSlices are not read here"
_NOT_IN_SLICES = "in no ResourceSlice of this node"
_ASK_NOW = (float("-inf"), 1.0)
_LAST_RETRY_S = 300.0


class ClaimedGpus:
    """UUIDs of the DRA devices that pods hold.

    `read_slices` is called when a device is met that was not held a moment ago: a name may stand
    for another GPU when it is given out again. For a device that stays unknown it is called again
    after 1 s, 2 s, 4 s, ... and in the end every 5 minutes, so that no claim can make the agent
    poll the API server.
    """

    def __init__(
        self,
        read_slices: Callable[[], Mapping[ClaimedDevice, str]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_slices = read_slices
        self._clock = clock
        self._uuids: dict[ClaimedDevice, str] = {}
        self._retries: dict[ClaimedDevice, tuple[float, float]] = {}
        """Per unknown device when to ask again, and the wait after that."""
        self.problem = _NOT_IN_SLICES
        """Why the newest reading did not tell a device."""

    def uuids(self, held: Collection[ClaimedDevice]) -> Mapping[ClaimedDevice, str]:
        """UUID of the GPU or MIG instance per device; a device that cannot be told is absent.

        `held`: all devices of the newest listing.
        """
        now_s = self._clock()
        self._uuids = {device: uuid for device, uuid in self._uuids.items() if device in held}
        unknown = [device for device in held if device not in self._uuids]
        self._retries = {device: self._retries.get(device, _ASK_NOW) for device in unknown}
        if any(self._retries[device][0] <= now_s for device in unknown):
            self._read(held)
            for device in unknown:
                at_s, wait_s = self._retries.pop(device)
                if device in self._uuids:
                    continue
                if at_s <= now_s:
                    at_s, wait_s = now_s + wait_s, min(2.0 * wait_s, _LAST_RETRY_S)
                self._retries[device] = at_s, wait_s
        return self._uuids

    def _read(self, held: Collection[ClaimedDevice]) -> None:
        try:
            found = self._read_slices()
        except SourceError as error:
            self.problem = str(error)
            return
        self.problem = _NOT_IN_SLICES
        self._uuids |= {device: uuid for device, uuid in found.items() if device in held}


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

    def ownership(self, listing: Sequence[PodDevices]) -> Ownership:
        """Owners per GPU UUID. A device of a GPU that cannot be told is named in `unresolved`."""
        claimed = self._claimed_uuids(listing)
        holders: dict[str, set[PodName]] = {}
        unresolved: dict[str, None] = {}  # a set that keeps its order
        for pod in listing:
            for name, found in [*self._plugin_gpus(pod), *self._claimed_gpus(pod, claimed)]:
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

    def _claimed_uuids(self, listing: Sequence[PodDevices]) -> Mapping[ClaimedDevice, str]:
        held = {
            device
            for pod in listing
            for device in pod.claimed_devices
            if device.driver == DRA_DRIVER
        }
        return {} if self._claims is None else self._claims.uuids(held)

    def _claimed_gpus(
        self, pod: PodDevices, uuids: Mapping[ClaimedDevice, str]
    ) -> Iterator[tuple[str, str | SourceError]]:
        problem = _NO_SLICES if self._claims is None else self._claims.problem
        for device in pod.claimed_devices:
            if device.driver == DRA_DRIVER:
                uuid = uuids.get(device)
                found = SourceError(problem) if uuid is None else self._gpu(uuid)
                yield f"claimed device {device.pool}/{device.device}", found

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
