"""The coordinator's durable log: what was granted is on disk before anybody can see it.

One file of lines, appended only. A line is the CRC-32 of its text in eight hex digits, a blank and
a JSON object {"epoch": n, "records": [...]}: one append is one line, one write and one fsync, so a
crash can tear the last line only, and a line that was torn was never sent. Anything else that does
not check is damage, and damage is refused: a grant that is forgotten would be granted twice.

Two coordinators cannot both write: an exclusive lock keeps the second one out on one machine, and
every append first compares the file with what this writer left there (same file, same length,
same epoch), so that one who wrote past the lock is noticed before anything is sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError, WattlineError

FORMAT = "wattline-grant-log-1"

JsonRecord = Mapping[str, Any]


class GrantLogError(WattlineError):
    """The log could not be written: what was to be recorded must not be sent."""


class FencedError(GrantLogError):
    """Another coordinator has written to the log: this one must stop."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What the log held when it was opened.

    epoch: the newest epoch in it, 0 for a new log. records: everything recorded, oldest first.
    torn_bytes: length of an unfinished last line that was cut off; it was never sent.
    """

    epoch: int
    records: tuple[JsonRecord, ...]
    torn_bytes: int


class GrantLog:
    """An open log. `replay` is what it held; `epoch` is the one under which appends are taken.

    Raises InputError for a log that is damaged or of another format, FencedError while another
    process has it open, OSError for what the file system refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._broken: str | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            os.close(self._lock)
            raise
        try:
            content = _read_all(self._file)
            kept, lines = _parsed(path, content)
            self.replay = _replayed(path, lines, len(content) - kept)
            self.epoch = self.replay.epoch
            self._size = kept
            self._finish_tail(content, kept)
        except BaseException:
            self.close()
            raise

    def _finish_tail(self, content: bytes, kept: int) -> None:
        """Cut a torn line off, or end a whole one that lacks its line feed."""
        if kept < len(content):
            os.ftruncate(self._file, kept)
            os.fsync(self._file)
        elif content and not content.endswith(b"\n"):
            self._write(b"\n")
        if not content:
            _sync_directory(self._path.parent)

    def open_epoch(self, epoch: int, records: Sequence[JsonRecord] = ()) -> None:
        """Begin `epoch`, durably; FencedError unless it is newer than every epoch in the file."""
        if epoch <= self.epoch:
            raise FencedError(
                f"{self._path}: holds epoch {self.epoch}: epoch {epoch} is not newer: "
                "stop this coordinator and start it anew"
            )
        self._append(epoch, records)
        self.epoch = epoch

    def append(self, records: Sequence[JsonRecord], *, epoch: int) -> None:
        """Put `records` on disk; once it returns they may be sent.

        FencedError when the file is no longer as this writer left it, GrantLogError when the disk
        does not take them: then nothing was recorded.
        """
        if epoch != self.epoch:
            raise FencedError(
                f"{self._path}: holds epoch {self.epoch}, not {epoch}: stop this coordinator"
            )
        if records:
            self._append(epoch, records)

    def compact(self, records: Sequence[JsonRecord]) -> None:
        """Replace the whole file by `records` under the present epoch, in one step."""
        self._check_ours()
        fresh = self._path.with_name(self._path.name + ".new")
        text = _line(self.epoch, records)
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_whole(file, text)
            os.fsync(file)
            fresh.replace(self._path)
        except OSError as error:
            os.close(file)
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise GrantLogError(f"{self._path}: cannot be compacted: {error.strerror}") from error
        os.close(self._file)
        self._file, self._size = file, len(text)
        try:
            _sync_directory(self._path.parent)
        except OSError as error:
            self._broken = f"its directory could not be synced: {error.strerror}"
            raise GrantLogError(f"{self._path}: {self._broken}") from error

    @property
    def size_bytes(self) -> int:
        """Length of the file: what a caller weighs before it compacts."""
        return self._size

    def close(self) -> None:
        """Let go of the file and of the lock. What was appended stays."""
        os.close(self._file)
        os.close(self._lock)

    def _append(self, epoch: int, records: Sequence[JsonRecord]) -> None:
        self._check_ours()
        self._write(_line(epoch, records))

    def _write(self, text: bytes) -> None:
        try:
            os.lseek(self._file, self._size, os.SEEK_SET)
            _write_whole(self._file, text)
        except OSError as error:
            self._take_back(error)
            raise GrantLogError(f"{self._path}: cannot be written: {error.strerror}") from error
        try:
            os.fsync(self._file)
        except OSError as error:
            # The kernel may have dropped the pages: only a reader after a new start can tell.
            self._broken = f"fsync failed: {error.strerror}"
            raise GrantLogError(f"{self._path}: {self._broken}") from error
        self._size += len(text)

    def _take_back(self, error: OSError) -> None:
        """Cut off what part of a line got onto a full disk."""
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self._broken = f"a part of a line is in it after: {error.strerror}"

    def _check_ours(self) -> None:
        if self._broken is not None:
            raise GrantLogError(f"{self._path}: {self._broken}: start the coordinator anew")
        ours = os.fstat(self._file)
        try:
            there = self._path.stat()
        except FileNotFoundError as error:
            raise FencedError(f"{self._path}: has been removed: stop this coordinator") from error
        if (there.st_dev, there.st_ino, there.st_size) != (ours.st_dev, ours.st_ino, self._size):
            raise FencedError(f"{self._path}: another coordinator wrote to it: stop this one")


def _locked(path: Path) -> int:
    # A file of its own, because compaction replaces the log and a lock would go with the old one.
    lock = os.open(
        path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise FencedError(
            f"{path}: another coordinator has it open: stop that one first"
        ) from error
    return lock


def _read_all(file: int) -> bytes:
    parts = []
    while part := os.read(file, 2**20):
        parts.append(part)
    return b"".join(parts)


def _write_whole(file: int, text: bytes) -> None:
    view = memoryview(text)
    while view:
        view = view[os.write(file, view) :]


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(epoch: int, records: Sequence[JsonRecord]) -> bytes:
    content = {"format": FORMAT, "epoch": epoch, "records": list(records)}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(path: Path, content: bytes) -> tuple[int, list[dict[str, Any]]]:
    """Return how many bytes are good, and the lines in them."""
    lines: list[dict[str, Any]] = []
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        line = _checked(content[start:] if end < 0 else content[start:end])
        if line is None:
            if _is_torn(content, start, end):
                break
            raise InputError(
                f"{path}, byte {start}",
                content[start : start + 60],
                "a line in the middle does not match its checksum: set the file aside and start "
                "without it: every GPU is then booked at its largest limit until it reports",
            )
        lines.append(line)
        start = len(content) if end < 0 else end + 1
    return start, lines


def _is_torn(content: bytes, start: int, end: int) -> bool:
    """Tell an unfinished last write from damage: no line feed yet, or blocks never filled in."""
    return end < 0 or not content[start:].strip(b"\0")


def _checked(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    try:
        if len(checksum) != 8 or int(checksum, 16) != zlib.crc32(text):
            return None
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _replayed(path: Path, lines: Sequence[Mapping[str, Any]], torn_bytes: int) -> Replay:
    epoch = 0
    records: list[JsonRecord] = []
    for number, line in enumerate(lines, start=1):
        if line.get("format") != FORMAT:
            raise InputError(
                f"{path}, line {number}",
                line.get("format"),
                f"this version of Wattline reads {FORMAT}: use the version that wrote the log",
            )
        found = line.get("epoch")
        entries = line.get("records")
        if not isinstance(found, int) or found < epoch or not isinstance(entries, list):
            raise InputError(
                f"{path}, line {number}", found, "epochs must rise: the log is not one writer's"
            )
        epoch = found
        records.extend(entries)
    return Replay(epoch, tuple(records), torn_bytes)
