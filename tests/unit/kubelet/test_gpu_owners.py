"""From a listing to owners of GPUs: whole GPUs, parts of them, claims, and what is no GPU."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.kubelet.devices import DRA_DRIVER, ClaimedGpus, GpuResolver
from wattline.drivers.kubelet.wire import ClaimedDevice, PluginDevices, PodDevices, decode_list
from wattline.drivers.pods import OwnerMethod, PodName, SourceError

GPU = "GPU-8f0a4f3c-0000-4000-8000-00000000000"
MIG = "MIG-11111111-2222-3333-4444-555555555555"
OTHER_MIG = "MIG-99999999-2222-3333-4444-555555555555"
WEB = PodName("default", "web")
CASES: list[Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "podresources.json").read_text()
)["cases"]


def holding(resource: str, *ids: str, pod: PodName = WEB) -> PodDevices:
    return PodDevices(pod, (PluginDevices(resource, ids),), ())


def claiming(device: str, driver: str = DRA_DRIVER) -> PodDevices:
    return PodDevices(WEB, (), (ClaimedDevice(driver, "node-1", device),))


class Slices:
    """ResourceSlices that can change and fail, and that count who asks."""

    def __init__(self, **uuids: str) -> None:
        self.uuids = uuids
        self.error: SourceError | None = None
        self.readings = 0

    def __call__(self) -> Mapping[ClaimedDevice, str]:
        self.readings += 1
        if self.error is not None:
            raise self.error
        return {
            ClaimedDevice(DRA_DRIVER, "node-1", name): uuid for name, uuid in self.uuids.items()
        }


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_owners_of_all_vectors() -> None:
    listing = [pod for case in CASES for pod in decode_list(base64.b64decode(case[1]))]
    slices = Slices(**{"gpu-0": f"{GPU}6", "gpu-3": OTHER_MIG})
    resolver = GpuResolver(lambda: {MIG: f"{GPU}3", OTHER_MIG: f"{GPU}4"}, ClaimedGpus(slices))
    owners = resolver.ownership(listing)
    assert owners.method is OwnerMethod.POD_RESOURCES
    assert owners.unresolved == ()
    names = {
        gpu.removeprefix(GPU): sorted(pod.name for pod in pods if isinstance(pod, PodName))
        for gpu, pods in owners.pods.items()
    }
    assert names == {
        "0": ["a", "b", "decode-0"],
        "1": ["decode-0"],
        "2": ["decode-0"],
        "3": ["mig"],
        "4": ["dra", "mig"],
        "5": ["rdma"],
        "6": ["dra"],
    }


@pytest.mark.parametrize(
    ("resource", "device", "gpu"),
    [
        ("nvidia.com/gpu", f"{GPU}0", f"{GPU}0"),
        ("nvidia.com/gpu.shared", f"{GPU}0::17", f"{GPU}0"),
        ("nvidia.com/h100", f"{GPU}0", f"{GPU}0"),
        ("nvidia.com/mig-1g.10gb", MIG, f"{GPU}3"),
        ("nvidia.com/gpu", MIG, f"{GPU}3"),
        ("nvidia.com/mig-1g.10gb.shared", f"{MIG}::0", f"{GPU}3"),
        ("nvidia.com/gpu", f"MIG-{GPU}5/1/0", f"{GPU}5"),
        ("nvidia.com/gpu", "nvidia0", f"{GPU}7"),
    ],
)
def test_ids_of_device_plugins(resource: str, device: str, gpu: str) -> None:
    resolver = GpuResolver(lambda: {MIG: f"{GPU}3", "nvidia0": f"{GPU}7"})
    owners = resolver.ownership([holding(resource, device)])
    assert owners.pods == {gpu: frozenset({WEB})}
    assert owners.unresolved == ()


@pytest.mark.parametrize(
    ("resource", "device"),
    [
        ("nvidia.com/gpu", "nvidia3"),
        ("nvidia.com/gpu.shared", "nvidia0/vgpu1"),
        ("nvidia.com/mig-7g.80gb", OTHER_MIG),
        ("nvidia.com/a-name-of-its-own", OTHER_MIG),
        ("nvidia.com/gpu", "1"),
    ],
)
def test_a_gpu_that_cannot_be_told_is_named_with_its_pod(resource: str, device: str) -> None:
    owners = GpuResolver(lambda: {MIG: GPU}).ownership([holding(resource, device)])
    assert owners.pods == {}
    [line] = owners.unresolved
    assert device in line
    assert "default/web" in line


@pytest.mark.parametrize(
    ("resource", "device"),
    [
        ("nvidia.com/hostdev", "0000:3b:00.2"),
        ("nvidia.com/rdma", "0"),
        ("rdma/hca", f"{GPU}0"),
        ("amd.com/gpu", "x"),
    ],
)
def test_what_is_no_nvidia_gpu_is_passed_over(resource: str, device: str) -> None:
    """Not even where its id is one that a GPU has, too."""
    owners = GpuResolver(lambda: {"0": f"{GPU}0"}).ownership([holding(resource, device)])
    assert owners.pods == {}
    assert owners.unresolved == ()


def test_what_is_named_stays_on_one_line() -> None:
    pod = PodName("default", "we\nb")
    [line] = GpuResolver().ownership([holding("nvidia.com/gpu", "x\x1b[2J", pod=pod)]).unresolved
    assert line.startswith("nvidia.com/gpu x?[2J of default/we?b: ")


def test_parts_that_cannot_be_read_now_leave_other_gpus_told() -> None:
    def fail() -> dict[str, str]:
        raise GpuError(GpuFault.UNAVAILABLE, "the driver does not answer")

    owners = GpuResolver(fail).ownership(
        [holding("nvidia.com/gpu", f"{GPU}0"), holding("nvidia.com/gpu", MIG)]
    )
    assert owners.pods == {f"{GPU}0": frozenset({WEB})}
    assert "the driver does not answer" in owners.unresolved[0]


def test_claims_of_other_drivers_do_not_read_slices() -> None:
    slices = Slices()
    owners = GpuResolver(claims=ClaimedGpus(slices)).ownership(
        [claiming("channel-0", "compute-domain.nvidia.com"), holding("nvidia.com/gpu", f"{GPU}0")]
    )
    assert owners.unresolved == ()
    assert slices.readings == 0


def test_slices_are_read_when_a_device_is_met_and_not_while_it_is_held() -> None:
    slices = Slices(**{"gpu-0": f"{GPU}0", "gpu-1": f"{GPU}1"})
    resolver = GpuResolver(claims=ClaimedGpus(slices, clock=Clock()))
    for held, readings in ((["gpu-0"], 1), (["gpu-0"], 1), (["gpu-0", "gpu-1"], 2), (["gpu-1"], 2)):
        owners = resolver.ownership([claiming(device) for device in held])
        assert owners.unresolved == ()
        assert len(owners.pods) == len(held)
        assert slices.readings == readings


def test_a_new_device_does_not_wait_for_one_that_stays_unknown() -> None:
    slices, clock = Slices(), Clock()
    resolver = GpuResolver(claims=ClaimedGpus(slices, clock=clock))
    for _ in range(600):
        resolver.ownership([claiming("gpu-9")])
        clock.now_s += 1.0
    slices.uuids["gpu-1"] = f"{GPU}1"
    owners = resolver.ownership([claiming("gpu-9"), claiming("gpu-1")])
    assert owners.pods == {f"{GPU}1": frozenset({WEB})}
    before = slices.readings
    resolver.ownership([claiming("gpu-9"), claiming("gpu-1")])
    assert slices.readings == before


def test_an_unknown_device_reads_slices_ever_more_rarely() -> None:
    slices, clock = Slices(), Clock()
    resolver = GpuResolver(claims=ClaimedGpus(slices, clock=clock))
    asked = []
    for _ in range(3600):
        before = slices.readings
        [line] = resolver.ownership([claiming("gpu-0")]).unresolved
        assert "in no ResourceSlice" in line
        if slices.readings > before:
            asked.append(clock.now_s)
        clock.now_s += 1.0
    gaps = [round(after - before) for before, after in pairwise(asked)]
    assert gaps[:8] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert set(gaps[9:]) == {300}


def test_a_new_device_is_found_when_its_slice_comes() -> None:
    slices, clock = Slices(**{"gpu-0": f"{GPU}0"}), Clock()
    resolver = GpuResolver(claims=ClaimedGpus(slices, clock=clock))
    assert resolver.ownership([claiming("gpu-1")]).pods == {}
    slices.uuids["gpu-1"] = f"{GPU}1"
    clock.now_s += 1.0
    assert resolver.ownership([claiming("gpu-1")]).pods == {f"{GPU}1": frozenset({WEB})}


def test_slices_that_cannot_be_read_leave_other_gpus_told() -> None:
    slices = Slices()
    slices.error = SourceError("resourceslices: a permission is missing")
    resolver = GpuResolver(claims=ClaimedGpus(slices, clock=Clock()))
    owners = resolver.ownership([claiming("gpu-0"), holding("nvidia.com/gpu", f"{GPU}5")])
    assert owners.pods == {f"{GPU}5": frozenset({WEB})}
    assert "a permission is missing" in owners.unresolved[0]


def test_known_devices_outlive_slices_that_fail() -> None:
    slices, clock = Slices(**{"gpu-0": f"{GPU}0"}), Clock()
    resolver = GpuResolver(claims=ClaimedGpus(slices, clock=clock))
    resolver.ownership([claiming("gpu-0")])
    slices.error = SourceError("no connection")
    clock.now_s += 1000.0
    owners = resolver.ownership([claiming("gpu-0"), claiming("gpu-9")])
    assert owners.pods == {f"{GPU}0": frozenset({WEB})}


def test_a_device_that_is_given_out_again_may_be_another_gpu() -> None:
    slices = Slices(**{"gpu-0": f"{GPU}0"})
    resolver = GpuResolver(claims=ClaimedGpus(slices, clock=Clock()))
    assert resolver.ownership([claiming("gpu-0")]).pods == {f"{GPU}0": frozenset({WEB})}
    resolver.ownership([])
    slices.uuids["gpu-0"] = f"{GPU}8"
    assert resolver.ownership([claiming("gpu-0")]).pods == {f"{GPU}8": frozenset({WEB})}


def test_without_slices_claims_are_unresolved() -> None:
    [line] = GpuResolver().ownership([claiming("gpu-0")]).unresolved
    assert "node-1/gpu-0 of default/web" in line
