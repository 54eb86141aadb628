"""A signal in the midst of anything."""

import signal
import threading

import pytest

from wattline.cli.signals import on_signals


@pytest.mark.timeout(60)
def test_an_action_may_want_the_lock_that_the_main_thread_holds() -> None:
    lock, done = threading.Lock(), threading.Event()

    def action() -> None:
        with lock:
            done.set()

    before = signal.getsignal(signal.SIGUSR1)
    try:
        on_signals([signal.SIGUSR1], action)
        with lock:
            signal.raise_signal(signal.SIGUSR1)
            assert not done.is_set()
        assert done.wait(30.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
