"""GPUs without hardware, in this process: for tests and for trying the agent on any machine.

`SimulatedNode` is the hardware: what a person, a rival or a fault would do to it is a method there.
`SimulatedDriver` is what the agent sees of it, through the same seam as the real drivers, and is
stricter than they are: after a reload or a re-enumeration each old device answers STALE_HANDLE
until the driver enumerates anew.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from wattline.drivers.gpu.device import (
    GpuError,
    GpuFault,
    GpuIdentity,
    GpuProcess,
    LimitRange,
)


@dataclass(frozen=True, slots=True)
class SimulatedProduct:
    """What is fixed about a product; watts, and MHz of the SM clock."""

    name: str
    min_w: float
    max_w: float
    default_w: float
    idle_w: float
    max_sm_clock_mhz: int


PRODUCTS: Mapping[str, SimulatedProduct] = MappingProxyType(
    {
        product.name: product
        # Ranges are those of the admission catalogue of NVIDIA Dynamo's power feature, defaults the
        # boards' TDP; idle watts are rounded stand-ins, not measurements.
        for product in (
            SimulatedProduct("NVIDIA H100 80GB HBM3", 200.0, 700.0, 700.0, 70.0, 1980),
            SimulatedProduct("NVIDIA H200", 200.0, 700.0, 700.0, 75.0, 1980),
            SimulatedProduct("NVIDIA B200", 200.0, 1000.0, 1000.0, 140.0, 1965),
        )
    }
)

ANY_CALL = "*"
"""Name under which a fault or a delay holds for every call of a GPU."""


@dataclass(slots=True)
class SimulatedGpu:
    """The state of one GPU: what registers and the outside world would hold.

    load_w: what it would draw without a limit. ceiling_w: an out-of-band limit (BMC), None: none.
    faults and delays_s: by name of the device's method, or ANY_CALL. writes: every limit that was
    accepted, in order. Change it through `SimulatedNode` while threads use it.
    """

    uuid: str
    product: SimulatedProduct
    requested_w: float
    load_w: float
    ceiling_w: float | None = None
    clock_ceiling_mhz: int | None = None
    energy_j: float = 0.0
    energy_at_s: float = 0.0
    persistence: bool = True
    mig_uuids: tuple[str, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    faults: dict[str, GpuFault] = field(default_factory=dict)
    delays_s: dict[str, float] = field(default_factory=dict)
    writes: list[float] = field(default_factory=list)

    @property
    def enforced_w(self) -> float:
        """The lowest of what was asked for in-band and out of band, in watts."""
        if self.ceiling_w is None:
            return self.requested_w
        return min(self.requested_w, self.ceiling_w)

    @property
    def draw_w(self) -> float:
        """Watts now: the load as far as the limit lets it; the limit acts at once."""
        return min(self.load_w, self.enforced_w)


class SimulatedNode:
    """GPUs of one node, shared by any number of drivers and threads.

    `clock` gives seconds for the energy counter and `wait` carries out injected delays; both can be
    a test's own.
    """

    def __init__(
        self,
        products: Sequence[str] = ("NVIDIA H100 80GB HBM3",) * 8,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._wait = wait
        self._lock = threading.RLock()
        self.enumeration = 0
        """Counts re-enumerations and reloads: devices of an older one are stale."""
        self.gpus: list[SimulatedGpu] = []
        for product in products:
            self.add(product)

    def add(self, product: str, uuid: str | None = None) -> SimulatedGpu:
        """Plug in a GPU; it takes the next index."""
        kind = PRODUCTS[product]
        with self._lock:
            gpu = SimulatedGpu(
                uuid=uuid or f"GPU-00000000-0000-4000-8000-{len(self.gpus):012d}",
                product=kind,
                requested_w=kind.default_w,
                load_w=kind.idle_w,
                energy_at_s=self._clock(),
            )
            self.gpus.append(gpu)
            return gpu

    def gpu(self, uuid: str) -> SimulatedGpu:
        """The GPU with this UUID; GpuError LOST: there is none."""
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise GpuError(GpuFault.LOST, f"{uuid}: no such GPU on this node")

    @contextmanager
    def changing(self, uuid: str) -> Iterator[SimulatedGpu]:
        """Change one GPU's state under the lock; its energy is counted up to now first."""
        with self._lock:
            gpu = self.gpu(uuid)
            now_s = self._clock()
            gpu.energy_j += gpu.draw_w * max(0.0, now_s - gpu.energy_at_s)
            gpu.energy_at_s = now_s
            yield gpu

    def fail(self, uuid: str, fault: GpuFault | None, call: str = ANY_CALL) -> None:
        """Let a call, or every call, of a GPU fail until told otherwise (None)."""
        with self.changing(uuid) as gpu:
            if fault is None:
                gpu.faults.pop(call, None)
            else:
                gpu.faults[call] = fault

    def delay(self, uuid: str, seconds: float, call: str = ANY_CALL) -> None:
        """Let a call, or every call, of a GPU take so long."""
        with self.changing(uuid) as gpu:
            gpu.delays_s[call] = seconds

    def rival_write(self, uuid: str, watts: float) -> None:
        """Write as another program on the node would: accepted, and none of ours."""
        with self.changing(uuid) as gpu:
            gpu.requested_w = watts

    def clamp(self, uuid: str, ceiling_w: float | None) -> None:
        """Limit a GPU out of band, as a BMC does; None takes it away."""
        with self.changing(uuid) as gpu:
            gpu.ceiling_w = ceiling_w

    def load(self, uuid: str, watts: float) -> None:
        """Say what a GPU would draw without a limit."""
        with self.changing(uuid) as gpu:
            gpu.load_w = watts

    def reload(self) -> None:
        """Reload the driver: limits at default, clocks free, counters at 0, old devices stale."""
        with self._lock:
            self.enumeration += 1
            for gpu in self.gpus:
                gpu.requested_w = gpu.product.default_w
                gpu.clock_ceiling_mhz = None
                gpu.energy_j, gpu.energy_at_s = 0.0, self._clock()

    def reenumerate(self, order: Sequence[int]) -> None:
        """Give the GPUs new indices: `order` has the old index of each new one; stale after."""
        with self._lock:
            self.gpus = [self.gpus[index] for index in order]
            self.enumeration += 1

    @contextmanager
    def call(self, uuid: str, name: str, enumeration: int) -> Iterator[SimulatedGpu]:
        """One device call: waits as told, fails as told, else lets the caller at the state."""
        gpu = self.gpu(uuid)
        delay_s = gpu.delays_s.get(name, gpu.delays_s.get(ANY_CALL, 0.0))
        if delay_s:
            self._wait(delay_s)
        with self.changing(uuid) as gpu:
            if enumeration != self.enumeration:
                raise GpuError(GpuFault.STALE_HANDLE, f"{name} on {uuid}: enumerate anew")
            fault = gpu.faults.get(name, gpu.faults.get(ANY_CALL))
            if fault is not None:
                raise GpuError(fault, f"{name} on {uuid}: {fault.value} (injected)")
            yield gpu


class SimulatedDriver:
    """A driver over a `SimulatedNode`; without one, over a node of eight H100."""

    name = "simulated"

    def __init__(self, node: SimulatedNode | None = None) -> None:
        self.node = node if node is not None else SimulatedNode()
        self.unreachable: tuple[str, ...] = ()

    def enumerate(self) -> Sequence[SimulatedDevice]:
        """All GPUs in their present order; a lost one is left out, as NVML does."""
        node = self.node
        enumeration = node.enumeration  # first: a change while we list makes these devices stale
        gpus = list(enumerate(list(node.gpus)))
        lost = [index for index, gpu in gpus if gpu.faults.get(ANY_CALL) is GpuFault.LOST]
        self.unreachable = tuple(f"GPU {index} is lost" for index in lost)
        return [
            SimulatedDevice(node, GpuIdentity(gpu.uuid, index, gpu.product.name), enumeration)
            for index, gpu in gpus
            if index not in lost
        ]

    def close(self) -> None:
        """Nothing to let go of."""


class SimulatedDevice:
    """One simulated GPU through the seam; every method raises GpuError as injected."""

    def __init__(self, node: SimulatedNode, identity: GpuIdentity, enumeration: int) -> None:
        self._node = node
        self._identity = identity
        self._enumeration = enumeration

    @property
    def identity(self) -> GpuIdentity:
        """Who it is, as of the enumeration that produced this device."""
        return self._identity

    def sources(self) -> dict[str, str]:
        """Say where quantities come from."""
        return {"every quantity": "simulated: no hardware is behind it"}

    def range(self) -> LimitRange:
        """Limits that the product accepts, in watts."""
        with self._call("range") as gpu:
            return LimitRange(gpu.product.min_w, gpu.product.max_w)

    def enforced_w(self) -> float:
        """The lowest of what was asked for in-band and out of band."""
        with self._call("enforced_w") as gpu:
            return gpu.enforced_w

    def requested_w(self) -> float | None:
        """Limit that was last asked for in-band."""
        with self._call("requested_w") as gpu:
            return gpu.requested_w

    def default_w(self) -> float | None:
        """The product's default."""
        with self._call("default_w") as gpu:
            return gpu.product.default_w

    def write_limit(self, watts: float) -> None:
        """Ask for a limit; OUT_OF_RANGE outside the product's range, as NVML rejects it."""
        with self._call("write_limit") as gpu:
            low, high = gpu.product.min_w, gpu.product.max_w
            if not (math.isfinite(watts) and low <= watts <= high):
                raise GpuError(
                    GpuFault.OUT_OF_RANGE,
                    f"limit {watts:g} W for {gpu.uuid}: it accepts {low:g} to {high:g} W",
                )
            gpu.requested_w = watts
            gpu.writes.append(watts)

    def draw_w(self) -> float | None:
        """The load as far as the limit lets it."""
        with self._call("draw_w") as gpu:
            return gpu.draw_w

    def energy_j(self) -> float | None:
        """Draw over the node's clock since the last reload."""
        with self._call("energy_j") as gpu:
            return gpu.energy_j

    def sm_clock_mhz(self) -> int | None:
        """The ceiling, or the product's highest clock."""
        with self._call("sm_clock_mhz") as gpu:
            return gpu.clock_ceiling_mhz or gpu.product.max_sm_clock_mhz

    def max_sm_clock_mhz(self) -> int | None:
        """The product's highest clock."""
        with self._call("max_sm_clock_mhz") as gpu:
            return gpu.product.max_sm_clock_mhz

    def lock_clocks(self, max_mhz: int) -> None:
        """Set a ceiling on the SM clock."""
        with self._call("lock_clocks") as gpu:
            if not 0 < max_mhz <= gpu.product.max_sm_clock_mhz:
                raise GpuError(
                    GpuFault.OUT_OF_RANGE,
                    f"clock ceiling {max_mhz} MHz for {gpu.uuid}: "
                    f"it accepts 1 to {gpu.product.max_sm_clock_mhz} MHz",
                )
            gpu.clock_ceiling_mhz = max_mhz

    def reset_clocks(self) -> None:
        """Take the ceiling away."""
        with self._call("reset_clocks") as gpu:
            gpu.clock_ceiling_mhz = None

    def throttle_reasons(self) -> frozenset[str]:
        """`sw_power_cap` while the limit holds the load down."""
        with self._call("throttle_reasons") as gpu:
            return frozenset({"sw_power_cap"} if gpu.load_w > gpu.enforced_w else ())

    def persistence_mode(self) -> bool | None:
        """As set on the node's GPU."""
        with self._call("persistence_mode") as gpu:
            return gpu.persistence

    def mig_enabled(self) -> bool | None:
        """True when the GPU has instances."""
        with self._call("mig_enabled") as gpu:
            return bool(gpu.mig_uuids)

    def mig_uuids(self) -> Sequence[str]:
        """UUIDs of its MIG instances."""
        with self._call("mig_uuids") as gpu:
            return list(gpu.mig_uuids)

    def processes(self) -> Sequence[GpuProcess]:
        """Processes as set on the node's GPU."""
        with self._call("processes") as gpu:
            return list(gpu.processes)

    @contextmanager
    def _call(self, name: str) -> Iterator[SimulatedGpu]:
        with self._node.call(self._identity.uuid, name, self._enumeration) as gpu:
            yield gpu
