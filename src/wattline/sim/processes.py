"""Worker processes that an interrupt of the parent ends without a word."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver


@contextmanager
def undisturbed_start() -> Iterator[None]:
    """Start workers (of the fork server) in the body; signals to stop are answered after it.

    A worker that loses its parent while it starts would complain with a traceback, and Ctrl-C
    reaches the whole process group, whose answer is the parent's alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()  # ignores Ctrl-C from now on, and with it all workers
    finally:
        signal.signal(signal.SIGINT, before)
    caught: list[int] = []
    held = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for caught_number in caught:
        signal.raise_signal(caught_number)
