"""Read request traces: Azure CSV, Mooncake JSON lines, and Wattline's own JSON lines.

The format is recognised from the first line, gzip from the first bytes. Whatever is wrong with a
file is one `InputError` with the file, the line, the field, the value and what to do.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from wattline.core.errors import InputError
from wattline.sim.traces import FORMAT, HASH_BLOCK_TOKENS, Floats, Ints, Trace

MAX_TOKENS = 10_000_000
MAX_SPAN_S = 400 * 86_400.0
_MAX_LINE_BYTES = 4 << 20
_MIN_DURATION_S = 1.0

AZURE = "azure-csv"
MOONCAKE = "mooncake-jsonl"
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_KNOWN = (
    "a trace is CSV with TIMESTAMP,ContextTokens,GeneratedTokens, or JSON lines with "
    "timestamp,input_length,output_length or time_s,input_tokens,output_tokens"
)


@dataclass(slots=True)
class _Columns:
    """Rows as they are read. `origin_s` is the first row's time where times are absolute."""

    where: str
    time_s: array[float] = field(default_factory=lambda: array("d"))
    input_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    deployment: array[int] = field(default_factory=lambda: array("q"))
    hash_start: array[int] = field(default_factory=lambda: array("q", [0]))
    hashes: array[int] = field(default_factory=lambda: array("q"))
    last_s: float = 0.0
    dropped: int = 0
    duration_s: float | None = None

    def add(
        self,
        line: int,
        time_s: float,
        input_tokens: int,
        output_tokens: int,
        deployment: int = 0,
        hashes: list[int] | None = None,
    ) -> None:
        where = f"{self.where}:{line}"
        if time_s < self.last_s:
            raise InputError(
                f"{where}: time",
                f"{time_s:.6f} s after the first row, {self.last_s:.6f} s in a row before it",
                "sort the file by time",
            )
        if time_s > MAX_SPAN_S:
            raise InputError(
                f"{where}: time",
                f"{time_s:.6g} s after the start",
                "a trace spans at most 400 days",
            )
        self.last_s = time_s
        if input_tokens == 0 or output_tokens == 0:
            self.dropped += 1
            return
        if hashes is not None:
            self._add_hashes(where, input_tokens, hashes)
        self.hash_start.append(len(self.hashes))
        self.time_s.append(time_s)
        self.input_tokens.append(input_tokens)
        self.output_tokens.append(output_tokens)
        self.deployment.append(deployment)

    def _add_hashes(self, where: str, input_tokens: int, hashes: list[int]) -> None:
        if len(hashes) > -(-input_tokens // HASH_BLOCK_TOKENS):
            raise InputError(
                f"{where}: prefix hashes",
                f"{len(hashes)} for {input_tokens} tokens",
                f"one hash stands for {HASH_BLOCK_TOKENS} prompt tokens",
            )
        self.hashes.extend(hashes)


def read_trace(path: Path | str, seed: int = 0) -> Trace:
    """Read the trace in `path`; `seed` spreads requests within coarse time steps.

    Rows without input or output tokens were never served: they are left out and counted.
    InputError for anything that is not a trace in order of time.
    """
    where = str(path)
    with _opened(Path(path)) as file:
        lines = _decoded(file, where)
        head = next(((number, text) for number, text in lines if text.strip()), None)
        if head is None:
            raise InputError(where, "no rows", _KNOWN)
        columns = _Columns(where)
        kind = _read_rows(columns, head, lines)
    if not columns.time_s:
        raise InputError(where, "no request with tokens", _KNOWN)
    return _finished(columns, kind, seed)


def _finished(columns: _Columns, kind: str, seed: int) -> Trace:
    time_s: Floats = np.array(columns.time_s, dtype=np.float64)
    np.round(time_s, 6, out=time_s)
    notes = []
    if columns.dropped:
        notes.append(f"{columns.dropped} rows without input or output tokens were left out.")
    quantum_s = coarse_step_s(time_s)
    if quantum_s is not None:
        time_s = spread(time_s, quantum_s, seed)
        notes.append(
            f"Times in the file are in steps of {quantum_s:g} s; requests are spread evenly at "
            f"random within their step (seed {seed})."
        )
    duration_s = columns.duration_s
    if duration_s is None:
        duration_s = max(columns.last_s + (quantum_s or 0.0), _MIN_DURATION_S)
    if duration_s < time_s[-1]:
        raise InputError(
            f"{columns.where}:1: duration_s", duration_s, "must not end before the last request"
        )
    return Trace(
        time_s=time_s,
        input_tokens=_ints(columns.input_tokens),
        output_tokens=_ints(columns.output_tokens),
        deployment=_ints(columns.deployment),
        hash_start=_ints(columns.hash_start),
        hashes=_ints(columns.hashes),
        duration_s=round(duration_s, 6),
        source=Path(columns.where).name,
        format=kind,
        quantum_s=quantum_s,
        dropped=columns.dropped,
        notes=tuple(notes),
    )


def _ints(values: array[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def coarse_step_s(time_s: Floats) -> float | None:
    """Find the time step of a trace whose clock is too coarse for its requests, else None.

    Coarse: steps of 0.1 s or more, nearly all gaps a multiple of it, and at least a fifth of the
    requests at the same instant as another.
    """
    distinct, counts = np.unique(time_s, return_counts=True)
    if len(distinct) < 3 or int(counts[counts > 1].sum()) < 0.2 * len(time_s):
        return None
    gaps = np.diff(distinct)
    step_s = float(np.median(gaps[gaps <= 1.5 * gaps.min()]))
    multiples = gaps / step_s
    regular = np.abs(multiples - np.round(multiples)) <= 0.01 * np.round(multiples)
    if step_s < 0.1 or int(regular.sum()) < 0.95 * len(gaps):
        return None
    return round(step_s, 3)


def spread(time_s: Floats, step_s: float, seed: int) -> Floats:
    """Move times evenly at random within their step, never past the next one, in order."""
    distinct, index = np.unique(time_s, return_inverse=True)
    width_s = np.minimum(np.diff(distinct, append=distinct[-1] + step_s), step_s)
    shift = np.random.Generator(np.random.PCG64(seed)).random(len(time_s))
    moved: Floats = np.sort(np.round(time_s + shift * width_s[index], 6))
    return moved


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            if magic == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=raw) as file:
                    yield file  # type: ignore[misc]  # a GzipFile reads bytes
            else:
                yield raw
    except (OSError, ValueError) as error:
        # ValueError: a NUL in the name.
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(str(path), reason, "give a readable trace file") from error


def _decoded(file: IO[bytes], where: str) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(_MAX_LINE_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{where}:{number}", str(error), "the file is cut off or damaged: fetch it again"
            ) from error
        if not line:
            return
        if len(line) == _MAX_LINE_BYTES:
            raise InputError(f"{where}:{number}", "a line over 4 MiB", _KNOWN)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}:{number}", line[error.start : error.start + 8], "the file must be UTF-8"
            ) from error
        yield number, text


def _read_rows(columns: _Columns, head: tuple[int, str], lines: Iterator[tuple[int, str]]) -> str:
    number, text = head
    if not text.lstrip().startswith("{"):
        _read_azure(columns, head, lines)
        return AZURE
    first = _json_object(f"{columns.where}:{number}", text)
    if "timestamp" in first and "input_length" in first:
        _read_json(columns, number, first, lines, _add_mooncake)
        return MOONCAKE
    if "format" in first:
        _own_header(columns, number, first)
        _read_json(columns, number, None, lines, _add_own)
        return FORMAT
    if "time_s" in first:
        _read_json(columns, number, first, lines, _add_own)
        return FORMAT
    raise InputError(f"{columns.where}:{number}", sorted(first), _KNOWN)


def _read_azure(columns: _Columns, head: tuple[int, str], lines: Iterator[tuple[int, str]]) -> None:
    where = columns.where
    header = [name.strip() for name in head[1].split(",")]
    if any(name not in header for name in _AZURE_COLUMNS):
        raise InputError(f"{where}:{head[0]}", head[1].strip(), _KNOWN)
    at_time, at_input, at_output = (header.index(name) for name in _AZURE_COLUMNS)
    origin: datetime | None = None
    for number, text in lines:
        if not text.strip():
            continue
        row = text.rstrip("\r\n").split(",")
        if len(row) != len(header):
            raise InputError(
                f"{where}:{number}", text.strip(), f"a row has {len(header)} fields: is it cut off?"
            )
        moment = _moment(f"{where}:{number}: TIMESTAMP", row[at_time])
        origin = moment if origin is None else origin
        columns.add(
            number,
            (moment - origin).total_seconds(),
            _whole(f"{where}:{number}: ContextTokens", row[at_input]),
            _whole(f"{where}:{number}: GeneratedTokens", row[at_output]),
        )


def _moment(where: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
        # Azure's 2023 files carry no time zone, those of 2024 do: UTC in both.
        if moment.tzinfo is None:
            return moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InputError(where, text, "write a time as 2023-11-16 18:15:46.680590") from error


def _whole(where: str, text: str) -> int:
    digits = text.strip()
    # A length limit first: int() on a huge string is slow.
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 12:
        raise InputError(where, text, f"must be a whole number from 0 to {MAX_TOKENS}")
    return _tokens(where, int(digits))


def _tokens(where: str, value: Any) -> int:
    return _integer(where, value, MAX_TOKENS)


def _integer(where: str, value: Any, most: int) -> int:
    # bool is an int to Python, not to a trace.
    if type(value) is not int or not 0 <= value <= most:
        raise InputError(where, value, f"must be a whole number from 0 to {most}")
    return value


def _number(where: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0.0 <= value <= 1e15 or not math.isfinite(value):
        raise InputError(where, value, "must be a finite number, 0 or more")
    return float(value)


def _json_object(where: str, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, text.strip(), f"not JSON ({error}): is it cut off?") from error
    if not isinstance(row, dict):
        raise InputError(where, row, "a row must be a JSON object")
    return row


def _field(where: str, row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise InputError(f"{where}: {name}", sorted(row), "the row lacks this field")
    return row[name]


def _read_json(
    columns: _Columns,
    number: int,
    first: dict[str, Any] | None,
    lines: Iterator[tuple[int, str]],
    add: Callable[[_Columns, int, dict[str, Any]], None],
) -> None:
    if first is not None:
        add(columns, number, first)
    for number, text in lines:
        if text.strip():
            add(columns, number, _json_object(f"{columns.where}:{number}", text))


def _add_mooncake(columns: _Columns, number: int, row: dict[str, Any]) -> None:
    where = f"{columns.where}:{number}"
    columns.add(
        number,
        _number(f"{where}: timestamp", _field(where, row, "timestamp")) / 1e3,
        _tokens(f"{where}: input_length", _field(where, row, "input_length")),
        _tokens(f"{where}: output_length", _field(where, row, "output_length")),
        hashes=_hashes(f"{where}: hash_ids", row.get("hash_ids", [])),
    )


def _add_own(columns: _Columns, number: int, row: dict[str, Any]) -> None:
    where = f"{columns.where}:{number}"
    columns.add(
        number,
        _number(f"{where}: time_s", _field(where, row, "time_s")),
        _tokens(f"{where}: input_tokens", _field(where, row, "input_tokens")),
        _tokens(f"{where}: output_tokens", _field(where, row, "output_tokens")),
        deployment=_integer(f"{where}: deployment", row.get("deployment", 0), 9999),
        hashes=_hashes(f"{where}: prefix_hashes", row.get("prefix_hashes", [])),
    )


def _own_header(columns: _Columns, number: int, header: dict[str, Any]) -> None:
    where = f"{columns.where}:{number}"
    if header["format"] != FORMAT:
        raise InputError(f"{where}: format", header["format"], f"this version reads {FORMAT}")
    if "duration_s" in header:
        columns.duration_s = _number(f"{where}: duration_s", header["duration_s"])
        if not 0.0 < columns.duration_s <= MAX_SPAN_S:
            raise InputError(f"{where}: duration_s", header["duration_s"], "from 0 s to 400 days")


def _hashes(where: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        raise InputError(where, value, "must be a list of whole numbers")
    for block in value:
        if type(block) is not int or not 0 <= block < 2**63:
            raise InputError(where, block, "a hash is a whole number from 0 to 2^63 - 1")
    return value
