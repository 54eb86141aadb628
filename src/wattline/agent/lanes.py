"""One thread per GPU, which makes all calls to it, so that a hung GPU delays no other.

Of orders that still wait the newest wins. A brake goes ahead of everything that waits, and orders
made before it are dropped. A call that hangs keeps its lane: no second thread ever writes to the
same GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from wattline.agent.device_calls import Order, Readings, Written, carry_out, take_readings
from wattline.drivers.gpu.device import GpuDevice

LaneEvent = Written | Readings

BRAKE_SERIAL = 0
"""Serial of the order that a brake makes; the loop's own begin at 1."""


class Lane:
    """The thread of one GPU. `post` takes its results, from this thread; `now` is the clock."""

    def __init__(
        self,
        device: GpuDevice,
        *,
        post: Callable[[LaneEvent], None],
        now: Callable[[], float],
    ) -> None:
        self.uuid = device.identity.uuid
        self._device = device
        self._post = post
        self._now = now
        self._wake = threading.Condition()
        self._order: Order | None = None
        self._brake: Order | None = None
        self._brakes = 0
        self._read = False
        self._read_facts = False
        self._closing = False
        self._busy_since_s: float | None = None
        name = f"gpu-{self.uuid[-8:]}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def busy_since_s(self) -> float | None:
        """When the job under way began; None: idle."""
        return self._busy_since_s

    def replace_device(self, device: GpuDevice) -> None:
        """Use the handle of a new enumeration from the next job on."""
        with self._wake:
            self._device = device

    def order(self, order: Order) -> None:
        """Put an order in; one that still waits is superseded, and its result never comes."""
        with self._wake:
            if order.brakes >= self._brakes:
                self._order = order
                self._wake.notify()

    def brake(self, watts: float, count: int) -> None:
        """Take the GPU to `watts` ahead of all that waits; `count`: the number of this brake."""
        with self._wake:
            self._brakes = count
            self._brake = Order(serial=BRAKE_SERIAL, brakes=count, watts=watts)
            self._order = None
            self._wake.notify()

    def read(self, *, facts: bool = False) -> None:
        """Ask for a reading, after what waits to be written."""
        with self._wake:
            self._read = True
            self._read_facts = self._read_facts or facts
            self._wake.notify()

    def close(self, timeout_s: float) -> bool:
        """End after the job under way and a brake that waits; False: it still hangs in a call."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            self._post(job())

    def _next_job(self) -> Callable[[], LaneEvent] | None:
        """Wait for the most urgent job; None: the lane is closed."""
        with self._wake:
            self._busy_since_s = None
            while not (self._closing or self._brake or self._order or self._read):
                self._wake.wait()
            if self._closing and self._brake is None:
                return None
            self._busy_since_s = self._now()
            device, uuid, now = self._device, self.uuid, self._now
            if self._brake is not None:
                brake, self._brake = self._brake, None
                return lambda: carry_out(device, uuid, brake, braking=True, now=now)
            if self._order is not None:
                order, self._order = self._order, None
                return lambda: carry_out(device, uuid, order, braking=False, now=now)
            facts, brakes = self._read_facts, self._brakes
            self._read = self._read_facts = False
            return lambda: take_readings(device, uuid, facts=facts, brakes=brakes, now=now)
