"""A recording that is written while things happen: a folder of segments of bounded size.

Each segment is a recording of its own: a header with the settings, then the ticks; its first
snapshot carries its state. Every tick goes to the file in one write that a reader can decode at
once, so a process that is killed loses at most the tick it was writing. A segment that was not
closed, or that is being written, ends in the middle: readers take what is whole and say so.

The oldest segments are deleted to stay within a total. A disk that takes no more stops the
recording, never the caller: it is tried again, and the ticks that were lost are counted.
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wattline.core.decision import Decision
from wattline.core.errors import InputError
from wattline.core.snapshot import Snapshot
from wattline.core.state import State
from wattline.recording.codec import Header, decision_to_json, header_to_json, snapshot_to_json
from wattline.recording.orders import Carried, carried_to_json

log = logging.getLogger(__name__)

LEAST_SEGMENT_BYTES = 64 << 10
_NAME = re.compile(r"segment-(\d{8})\.jsonl\.gz", re.ASCII)
_GZIP = 31  # zlib's window bits for the gzip format
_LEVEL = 3
_CHUNK = 1 << 16
_PIECE = 1 << 20
MOST_LINE_BYTES = 64 << 20
"""More than a tick of 100,000 GPUs takes. A few packed kilobytes may hold gigabytes."""


def segment_files(folder: Path) -> list[Path]:
    """The segments of a folder, oldest first."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def segment_lines(path: Path, note: Callable[[str], None]) -> Iterator[tuple[int, bytes]]:
    """Whole lines of a segment with their numbers; `note` is told where and why it ends early."""
    decoder = zlib.decompressobj(_GZIP)
    rest, number = b"", 0
    try:
        with path.open("rb") as file:
            while not decoder.eof and (chunk := file.read(_CHUNK)):
                for text, why in _decoded(decoder, chunk):
                    rest += text
                    *lines, rest = rest.split(b"\n")
                    for line in lines:
                        number += 1
                        yield number, line + b"\n"
                    if len(rest) > MOST_LINE_BYTES:
                        why = f"a line of more than {MOST_LINE_BYTES} bytes"
                    if why is not None:
                        note(f"{path.name}: cannot be read after line {number}: {why}")
                        return
    except FileNotFoundError:
        note(f"{path.name}: was deleted meanwhile")
        return
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "make it readable") from error
    if not decoder.eof or rest:
        note(f"{path.name}: is not closed; it was read up to line {number}")


def _decoded(decoder: zlib._Decompress, chunk: bytes) -> Iterator[tuple[bytes, str | None]]:
    """What the chunk holds, in pieces, up to the first byte that cannot be read, and why."""
    text = b""
    while chunk or len(text) == _PIECE:
        before = decoder.copy()
        try:
            text = decoder.decompress(chunk, _PIECE)
        except zlib.error:
            yield _readable(before, chunk)
            return
        chunk = decoder.unconsumed_tail
        yield text, None


def _readable(decoder: zlib._Decompress, chunk: bytes) -> tuple[bytes, str]:
    """What comes before the byte that cannot be read, and why that cannot."""
    parts = []
    for index in range(len(chunk)):
        try:
            parts.append(decoder.decompress(chunk[index : index + 1]))
        except zlib.error as error:
            return b"".join(parts), str(error)
    return b"".join(parts), "not compressed data"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderStatus:
    """How the recording goes.

    why: None while it goes well, else why nothing is recorded now. lost_ticks: that were not
    recorded since the start. bytes_held: of all segments. segment: name of the newest.
    """

    why: str | None
    lost_ticks: int
    bytes_held: int
    segment: str | None


class FlightRecorder:
    """Appends ticks to the folder's newest segment. Not for several threads.

    header: what the next segment begins with. retry_s: pause after a write that failed. now: a
    monotonic clock.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        *,
        segment_bytes: int,
        total_bytes: int,
        retry_s: float,
        now: Callable[[], float],
    ) -> None:
        """InputError for sizes that cannot work. The folder is made with the first tick."""
        if not LEAST_SEGMENT_BYTES <= segment_bytes <= total_bytes // 2:
            remedy = f"a segment has at least {LEAST_SEGMENT_BYTES} bytes, and two fit the total"
            raise InputError("recorder", (segment_bytes, total_bytes), remedy)
        self._folder = folder
        self._header = header
        self._segment_bytes = segment_bytes
        self._total_bytes = total_bytes
        self._retry_s = retry_s
        self._now = now
        self._file: int | None = None
        self._path: Path | None = None
        self._size = 0
        self._older_bytes = 0
        self._encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._previous: State | None = None
        self._why: str | None = None
        self._retry_at_s = float("-inf")
        self._lost = 0

    @property
    def status(self) -> RecorderStatus:
        """How it goes now."""
        return RecorderStatus(
            why=self._why,
            lost_ticks=self._lost,
            bytes_held=self._older_bytes + self._size,
            segment=None if self._path is None else self._path.name,
        )

    def begin(self, header: Header) -> None:
        """Other settings from the next tick on: a new segment."""
        self._header = header
        self._finish()

    def append(
        self, snapshot: Snapshot, decision: Decision, carried: Carried | None = None
    ) -> bool:
        """Record one tick; False when it could not be, which `status` explains."""
        if self._why is not None and self._now() < self._retry_at_s:
            self._lost += 1
            return False
        try:
            # A state that begins anew in the middle would be read as one that goes on.
            begins = snapshot.state is None and self._previous is not None
            if self._file is not None and (begins or self._size >= self._segment_bytes):
                self._finish()
            if self._file is None:
                self._open()
            follows = snapshot.state is not None and snapshot.state is self._previous
            stored = replace(snapshot, state=None) if follows else snapshot
            lines = [snapshot_to_json(stored), decision_to_json(decision)]
            if carried is not None:
                lines.append(carried_to_json(carried))
            self._write(b"".join(line + b"\n" for line in lines))
        except OSError as error:
            self._fail(error)
            return False
        self._previous = decision.next_state
        if self._why is not None:
            log.warning("recording again", extra={"lost_ticks": self._lost})
            self._why = None
        return True

    def close(self) -> None:
        """End the newest segment properly."""
        self._finish()

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        present = segment_files(self._folder)
        room = self._total_bytes - self._segment_bytes
        sizes = [path.stat().st_size for path in present]
        while present and sum(sizes) > room:
            present.pop(0).unlink(missing_ok=True)
            sizes.pop(0)
        newest = int(present[-1].name[8:16]) if present else 0
        path = self._folder / f"segment-{newest + 1:08d}.jsonl.gz"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._path, self._size, self._older_bytes = path, 0, sum(sizes)
        self._encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._previous = None
        self._write(header_to_json(self._header) + b"\n")

    def _write(self, content: bytes, mode: int = zlib.Z_SYNC_FLUSH) -> None:
        assert self._file is not None
        data = self._encoder.compress(content) + self._encoder.flush(mode)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        self._size += len(data)

    def _fail(self, error: OSError) -> None:
        """Leave the segment as it was before the tick, and pause."""
        self._lost += 1
        self._retry_at_s = self._now() + self._retry_s
        why = f"{self._folder}: {error.strerror or error}"
        if self._why is None:
            log.error("nothing is recorded until this is mended", extra={"why": why})
        self._why = why
        if self._file is None:
            return
        with suppress(OSError):  # what is left over ends the segment early, which readers take
            os.ftruncate(self._file, self._size)
        os.close(self._file)
        self._file = None
        if self._size == 0 and self._path is not None:
            self._path.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._file is None:
            return
        try:
            self._write(b"", zlib.Z_FINISH)
        except OSError as error:
            self._fail(error)
            return
        os.close(self._file)
        self._file = None
