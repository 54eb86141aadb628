"""Logs: one line each, fields with reasons, repeats thinned and counted."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.agent.logs import JsonFormatter, TextFormatter, Thinning, configure


@pytest.fixture
def restored() -> Iterator[None]:
    """The process' logger as it was."""
    logger = logging.getLogger("wattline")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def _record(
    message: str = "limit written", level: int = logging.INFO, **fields: object
) -> logging.LogRecord:
    values = {"msg": message, "levelno": level, "levelname": logging.getLevelName(level)}
    return logging.makeLogRecord({**values, "created": 1700000000.0421, **fields})


def test_text_is_for_people() -> None:
    line = TextFormatter().format(_record(gpu="GPU-1", watts=400.0, why="no permission"))
    assert line == (
        '2023-11-14T22:13:20.042Z info limit written gpu=GPU-1 watts=400.0 why="no permission"'
    )


def test_json_is_for_machines() -> None:
    line = JsonFormatter().format(_record(gpu="GPU-1", path=frozenset({1}), audit=True))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.042Z",
        "level": "info",
        "message": "limit written",
        "gpu": "GPU-1",
        "path": "frozenset({1})",
    }


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_record_is_one_line_whatever_it_holds(message: str, value: str) -> None:
    record = _record(message.replace("%", "%%"), why=value)
    record.args = ()
    for formatter in (TextFormatter(), JsonFormatter()):
        assert len(formatter.format(record).splitlines()) == 1


def test_errors_stay_on_their_line() -> None:
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError as error:
        record = _record(exc_info=(type(error), error, error.__traceback__))
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert "RuntimeError" in line


def test_repeats_are_thinned_per_kind_and_counted() -> None:
    now = [0.0]
    thinning = Thinning(burst=2, window_s=60.0, now=lambda: now[0])
    assert [thinning.filter(_record(gpu="GPU-1")) for _ in range(4)] == [True, True, False, False]
    assert thinning.filter(_record(gpu="GPU-2"))
    assert thinning.filter(_record(level=logging.ERROR, gpu="GPU-1"))
    assert thinning.filter(_record("another"))
    now[0] = 60.0
    record = _record(gpu="GPU-1")
    assert thinning.filter(record)
    assert record.__dict__["suppressed"] == 2
    record = _record(gpu="GPU-1")
    assert thinning.filter(record)
    assert "suppressed" not in record.__dict__


def test_audit_records_always_pass() -> None:
    thinning = Thinning(burst=1, now=lambda: 0.0)
    assert all(thinning.filter(_record(audit=True)) for _ in range(50))


def test_kinds_are_bounded() -> None:
    thinning = Thinning(burst=1, now=lambda: 0.0, most_kinds=10)
    for number in range(100):
        assert thinning.filter(_record(f"message {number}"))
    assert not thinning.filter(_record("message 99"))
    assert thinning.filter(_record("message 0"))


@pytest.mark.usefixtures("restored")
def test_configured_once_however_often() -> None:
    stream = io.StringIO()
    for _ in range(3):
        configure("json", "warning", stream)
    log = logging.getLogger("wattline.agent.loop")
    log.info("not shown")
    log.warning("limit not written: %s", "why", extra={"gpu": "GPU-1"})
    document = json.loads(stream.getvalue())
    assert document["message"] == "limit not written: why"
    assert document["gpu"] == "GPU-1"
