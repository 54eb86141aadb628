"""Calls to other processes, all at once, each for a bounded time.

A call that hangs costs the tick its time limit once, and then nothing: until it comes back, its
name is not called again, and what it was asked for is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from wattline.core.errors import WattlineError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call gave nothing, in one line."""

    why: str


@dataclass(slots=True)
class _Call:
    began_s: float
    done: threading.Event = field(default_factory=threading.Event)
    outcome: Any = None


class Gatherer:
    """Runs named calls in threads of their own."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._hanging: dict[str, _Call] = {}

    def gather(self, calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Outcome per name: what the call returned, or a `Failure`."""
        now_s = monotonic()
        outcomes: dict[str, Any] = {}
        started: dict[str, _Call] = {}
        for name, call in calls.items():
            hanging = self._hanging.get(name)
            if hanging is not None and not hanging.done.is_set():
                outcomes[name] = Failure(f"no answer for {now_s - hanging.began_s:.0f} s")
                continue
            self._hanging.pop(name, None)
            started[name] = _started(name, call, now_s)
        end_s = now_s + self._limit_s
        for name, waiting in started.items():
            if waiting.done.wait(max(0.0, end_s - monotonic())):
                outcomes[name] = waiting.outcome
            else:
                self._hanging[name] = waiting
                outcomes[name] = Failure(f"no answer within {self._limit_s:g} s")
        return outcomes


class SlowCall:
    """A call that no tick waits for: begun in one tick, its outcome taken in a later one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._call: _Call | None = None

    def begin(self, call: Callable[[], Any]) -> bool:
        """Begin it in a thread of its own; False while the one before is still under way."""
        if self._call is not None:
            return False
        self._call = _started(self._name, call, monotonic())
        return True

    def take(self) -> Any | None:
        """What it returned, or a `Failure`, once; None while there is nothing."""
        if self._call is None or not self._call.done.is_set():
            return None
        outcome, self._call = self._call.outcome, None
        return outcome

    def end(self, limit_s: float) -> bool:
        """Wait for what is under way; False if it is not over within `limit_s`."""
        return self._call is None or self._call.done.wait(limit_s)

    @property
    def waiting_s(self) -> float | None:
        """How long it has been under way; None: it is not."""
        return None if self._call is None else monotonic() - self._call.began_s


def _started(name: str, call: Callable[[], Any], now_s: float) -> _Call:
    entry = _Call(now_s)

    def run() -> None:
        try:
            entry.outcome = call()
        except WattlineError as error:
            entry.outcome = Failure(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            entry.outcome = Failure(f"{where}{error.strerror or error}")
        except Exception as error:  # one source's defect must not end the loop
            text = " ".join(str(error).split())[:200]
            entry.outcome = Failure(f"{type(error).__name__}: {text}")
        finally:
            entry.done.set()

    # A daemon, so that a hanging call does not keep the process from ending.
    threading.Thread(target=run, name=f"call-{name}", daemon=True).start()
    return entry
