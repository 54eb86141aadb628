"""The flight recorder: every snapshot and decision of a run, and the way back.

A recording is JSON lines, gzipped: a header with everything a policy is built from, then two lines
per tick, the snapshot and the decision. A snapshot's state is null where it is the previous
decision's `next_state`, which it always is within one run; reading puts it back. A recording of
another schema is refused. The controller's recordings are folders of such files, its segments: see
`wattline.recording.segments`.
"""

from __future__ import annotations

import gzip
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Self

from wattline.core.decision import Decision
from wattline.core.errors import InputError
from wattline.core.snapshot import Snapshot
from wattline.core.state import State
from wattline.recording.codec import (
    Header,
    decision_from_json,
    decision_to_json,
    header_from_json,
    header_to_json,
    snapshot_from_json,
    snapshot_to_json,
)
from wattline.recording.orders import LINE_START, Carried, carried_from_json
from wattline.recording.segments import MOST_LINE_BYTES, segment_files, segment_lines

_SNAPSHOT_START = b'{"schema":"wattline.snapshot/'

Lines = Iterator[tuple[int, bytes]]


class Recorder:
    """Writes a recording; use as a context manager. A failed run leaves no file behind."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._raw: IO[bytes] = self._partial.open("wb")
        # A fixed name and time: the same run gives the same bytes.
        self._file = gzip.GzipFile(
            filename="", mode="wb", fileobj=self._raw, compresslevel=3, mtime=0
        )
        self._previous: State | None = None
        self._file.write(header_to_json(header) + b"\n")

    def append(self, snapshot: Snapshot, decision: Decision) -> None:
        """Record one tick."""
        follows = snapshot.state is not None and snapshot.state is self._previous
        stored = replace(snapshot, state=None) if follows else snapshot
        self._file.write(snapshot_to_json(stored) + b"\n" + decision_to_json(decision) + b"\n")
        self._previous = decision.next_state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._file.close()
        self._raw.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Tick:
    """One recorded tick: the snapshot as decided on, the decision and its exact bytes.

    header: of the file that it stands in; `path` and `line` say where. carried: what was carried
    out where operators had ordered something, and its exact bytes.
    """

    line: int
    snapshot: Snapshot
    decision: Decision
    decision_json: bytes
    header: Header
    path: Path
    carried: Carried | None = None
    carried_json: bytes | None = None


class Recording:
    """Reads a recording: `header` at once (of a folder of segments: the first one's), ticks after.

    `notes` says, once ticks have been read, what could not be: a segment's torn end, a segment that
    was deleted meanwhile. Of a single file anything that is missing is an InputError.
    """

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self._segments = segment_files(path) if path.is_dir() else []
        single = path / "recording.jsonl.gz" if path.is_dir() else path
        if self._segments and not single.exists():
            self.path = path
            self.header = self._first_header()
            return
        self._segments = []
        self.path = single
        if not single.exists():
            raise InputError(
                str(single), "no such file", "give the folder or file that a run wrote"
            )
        first = next(_strict_lines(single), None)
        if first is None:
            raise InputError(str(single), "empty", "record the run again")
        self.header = header_from_json(first[1], f"{single}:1")

    def _first_header(self) -> Header:
        for path in self._segments:
            first = next(segment_lines(path, self.notes.append), None)
            if first is not None:
                self.notes.clear()
                return header_from_json(first[1], f"{path}:1")
        raise InputError(str(self.path), "no whole header", "nothing was recorded yet: wait a tick")

    def ticks(self) -> Iterator[Tick]:
        """The recorded ticks in order."""
        if not self._segments:
            yield from _ticks(self.path, _strict_lines(self.path), None)
            return
        self.notes.clear()
        for path in self._segments:
            yield from _ticks(path, segment_lines(path, self.notes.append), self.notes.append)

    def last_tick(self) -> Tick | None:
        """The newest recorded tick; of segments only the newest that hold one are read."""
        if not self._segments:
            return _last(self.ticks())
        for path in reversed(self._segments):
            lines = _tail(segment_lines(path, self.notes.append))
            found = _last(_ticks(path, lines, self.notes.append))
            if found is not None:
                return found
        return None


def _tail(lines: Lines) -> Lines:
    """The header and the last two ticks, unread but for how their lines begin.

    The last tick's state is the decision of the one before.
    """
    header = next(lines, None)
    if header is None:
        return
    yield header
    # Two ticks of up to three lines, and a snapshot that is being written.
    newest = deque(lines, maxlen=7)
    begun = False
    for number, line in newest:
        begun = begun or line.startswith(_SNAPSHOT_START)
        if begun:
            yield number, line


def _last(ticks: Iterator[Tick]) -> Tick | None:
    newest = None
    for tick in ticks:
        newest = tick
    return newest


def _strict_lines(path: Path) -> Lines:
    number = 0
    try:
        with gzip.open(path, "rb") as file:
            lines = iter(partial(file.readline, MOST_LINE_BYTES), b"")
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    raise InputError(f"{path}:{number}", "cut off", "the file is truncated")
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}:{number + 1}", str(error), "not a complete gzip file; record again"
        ) from error


def _ticks(path: Path, lines: Lines, torn: Callable[[str], None] | None) -> Iterator[Tick]:
    """The ticks of one file; `torn` is told of a snapshot without its decision at the end."""
    first = next(lines, None)
    if first is None:
        return
    header = header_from_json(first[1], f"{path}:1")
    previous: State | None = None
    snapshot: Snapshot | None = None
    ready: Tick | None = None
    number = 1
    for number, line in lines:
        raw = line.rstrip(b"\n")
        if ready is not None and raw.startswith(LINE_START):
            carried = carried_from_json(raw, f"{path}:{number}: orders")
            ready = replace(ready, carried=carried, carried_json=raw)
        elif snapshot is None:
            if ready is not None:
                yield ready
                ready = None
            snapshot = snapshot_from_json(raw, f"{path}:{number}: snapshot")
            if snapshot.state is None:
                snapshot = replace(snapshot, state=previous)
        else:
            decision = decision_from_json(raw, f"{path}:{number}: decision")
            ready = Tick(number, snapshot, decision, raw, header, path)
            previous = decision.next_state
            snapshot = None
    if ready is not None:
        yield ready
    if snapshot is not None:
        if torn is None:
            raise InputError(
                f"{path}:{number}", "a snapshot without its decision", "the file is truncated"
            )
        torn(f"{path.name}:{number}: the last tick has no decision: it was being written")
