"""Drivers over simulated hardware, each with the hands that break it."""

from __future__ import annotations

from collections.abc import Sequence

from fake_dcgm import FakeEngine, fake_binding
from fake_nvml import FakeNvml, Release

from wattline.drivers.gpu.dcgm import DcgmDriver
from wattline.drivers.gpu.device import GpuDriver, GpuFault, GpuProcess
from wattline.drivers.gpu.nvml import NvmlDriver
from wattline.drivers.gpu.simulated import SimulatedDriver, SimulatedNode

FOUR_H100 = ("NVIDIA H100 80GB HBM3",) * 4


class SimulatedRig:
    """The simulated driver; what the other rigs do to the same hardware is inherited."""

    step_w = 0.0
    """Limits are kept to a multiple of this; 0: exactly."""
    clock_ceilings = True
    driver: GpuDriver

    def __init__(self) -> None:
        self.node = SimulatedNode(FOUR_H100)
        self.driver = SimulatedDriver(self.node)

    def fail(self, uuid: str, fault: GpuFault | None) -> None:
        self.node.fail(uuid, fault)

    def refuse_writes(self, uuid: str) -> None:
        self.node.fail(uuid, GpuFault.NO_PERMISSION, "write_limit")

    def hold_below(self, uuid: str, watts: float) -> None:
        self.node.clamp(uuid, watts)

    def rival(self, uuid: str, watts: float) -> None:
        self.node.rival_write(uuid, watts)

    def load(self, uuid: str, watts: float) -> None:
        self.node.load(uuid, watts)

    def reload(self) -> None:
        self.node.reload()

    def reorder(self, uuids: Sequence[str]) -> None:
        present = [gpu.uuid for gpu in self.node.gpus]
        self.node.reenumerate([present.index(uuid) for uuid in uuids])

    def split(self, uuid: str, pid: int) -> Sequence[str]:
        instances = ("MIG-aaaa", "MIG-bbbb")
        with self.node.changing(uuid) as gpu:
            gpu.mig_uuids = instances
            gpu.processes = (GpuProcess(pid, instances[0]),)
        return instances

    def run(self, uuid: str, pids: Sequence[int]) -> None:
        with self.node.changing(uuid) as gpu:
            gpu.processes = tuple(GpuProcess(pid) for pid in pids)

    def enforced_w(self, uuid: str) -> float:
        return self.node.gpu(uuid).enforced_w


class NvmlRig(SimulatedRig):
    """The NVML driver over a stand-in for its binding."""

    step_w = 0.001

    def __init__(self, release: Release | None = None) -> None:
        super().__init__()
        self.binding = FakeNvml(self.node, release)
        self.driver = NvmlDriver(self.binding)

    def reload(self) -> None:
        self.binding.reload()


class DcgmRig(SimulatedRig):
    """The DCGM driver over a stand-in for its bindings, with NVML beside it for readings."""

    step_w = 1.0
    clock_ceilings = False

    def __init__(self) -> None:
        super().__init__()
        self.engine = FakeEngine(self.node)
        binding = FakeNvml(self.node)
        self.driver = DcgmDriver(
            "localhost",
            binding=fake_binding(self.engine),
            readings=lambda: NvmlDriver(binding),
        )

    def reload(self) -> None:
        super().reload()
        self.engine.restart()

    def reorder(self, uuids: Sequence[str]) -> None:
        super().reorder(uuids)
        self.engine.renumber(list(uuids))
