"""Finds the node's GPUs by a thread of its own: a driver that is being reloaded blocks for long."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.drivers.gpu.device import GpuDevice, GpuDriver, GpuError, GpuFault

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enumerated:
    """GPUs as they are now. error: they could not be listed, and nothing is known of them.

    left_out: one line for each GPU that is there and did not answer.
    """

    devices: Sequence[GpuDevice] = ()
    left_out: Sequence[str] = ()
    error: GpuError | None = None


class Discovery:
    """Enumerates when asked to; requests that come meanwhile are answered by one more."""

    def __init__(self, driver: GpuDriver, post: Callable[[Enumerated], None]) -> None:
        self._driver = driver
        self._post = post
        self._wanted = threading.Semaphore(0)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Enumerate anew; the result is posted."""
        self._wanted.release()

    def close(self, timeout_s: float) -> bool:
        """End the thread; False: it still hangs in a call."""
        self._closing = True
        self._wanted.release()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._wanted.acquire()
            while self._wanted.acquire(blocking=False):
                pass
            if self._closing:
                return
            try:
                devices = self._driver.enumerate()
                self._post(Enumerated(devices=devices, left_out=self._driver.unreachable))
            except GpuError as error:
                self._post(Enumerated(error=error))
            except Exception as error:  # A driver's bug must not end the search for GPUs.
                log.exception("enumeration failed")
                text = f"enumerate: {type(error).__name__}: {error}"
                self._post(Enumerated(error=GpuError(GpuFault.UNKNOWN, text)))
