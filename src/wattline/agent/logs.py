"""Logs with reasons: `key=value` for people, JSON for machines; repeats are thinned and counted.

Fields ride on `extra`: `log.warning("limit not written", extra={"gpu": uuid, "why": text})`.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

LOGGER = "wattline"
AUDIT = "audit"
"""A record with this field true is never thinned: commands, brakes, restores."""

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(log_format: str, level: str, stream: TextIO | None = None) -> logging.Logger:
    """Make the logger of everything under `wattline` write to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(Thinning())
    logger = logging.getLogger(LOGGER)
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    return logger


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`, in the order given, without the mark of audit records."""
    given = record.__dict__.items()
    return {name: value for name, value in given if name not in _PLAIN and name != AUDIT}


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z warning limit not written gpu=GPU-1 why="no permission"`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the fields hold."""
        parts = [_time(record), record.levelname.lower(), _one_line(record.getMessage())]
        given = fields_of(record).items()
        parts += [f"{name}={_word(value)}" for name, value in given if value is not None]
        if record.exc_info:
            parts.append(f"error={_word(self.formatException(record.exc_info))}")
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `message`, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a value that JSON does not know is written as its text."""
        document: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        for name, value in fields_of(record).items():
            document.setdefault(name, value)
        if record.exc_info:
            document["error"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class Thinning(logging.Filter):
    """Lets `burst` records of a kind through per window, then counts them.

    A kind is the message before its arguments, its level and its GPU. The first record of the next
    window says `suppressed=N`. Audit records always pass.
    """

    def __init__(
        self,
        *,
        burst: int = 5,
        window_s: float = 60.0,
        now: Callable[[], float] = time.monotonic,
        most_kinds: int = 1024,
    ) -> None:
        super().__init__()
        self._burst, self._window_s, self._now, self._most = burst, window_s, now, most_kinds
        self._lock = threading.Lock()
        self._kinds: OrderedDict[tuple[object, ...], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written. Any thread may call: handlers filter before they lock."""
        if getattr(record, AUDIT, False):
            return True
        kind = (record.msg, record.levelno, str(getattr(record, "gpu", "")))
        with self._lock:
            now_s = self._now()
            began_s, seen = self._kinds.pop(kind, (now_s, 0))
            if now_s - began_s >= self._window_s:
                if seen > self._burst:
                    record.suppressed = seen - self._burst
                began_s, seen = now_s, 0
            self._kinds[kind] = (began_s, seen + 1)
            if len(self._kinds) > self._most:
                self._kinds.popitem(last=False)
            return seen < self._burst


def _time(record: logging.LogRecord) -> str:
    text = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _one_line(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


def _word(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not any(sign in text for sign in ' "='):
        return text
    return json.dumps(text)
