"""Signals that set something off in a process that goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable


def on_signals(numbers: Iterable[signal.Signals], action: Callable[[], object]) -> None:
    """Let each of these signals run `action`, in a thread of its own.

    A handler runs in the main thread between any two of its steps, also where that holds the lock
    of the very `threading.Event` that the action sets: there it would wait for itself for ever.
    """

    def handle(number: int, frame: object) -> None:
        threading.Thread(target=action, name=f"signal-{number}", daemon=True).start()

    for number in numbers:
        signal.signal(number, handle)
