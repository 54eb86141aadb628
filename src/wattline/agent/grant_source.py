"""Where grants come from: a file, or a directory with one per node, that is replaced atomically.

The same thread looks after the brake file. Both are looked at by `stat`, which works on every file
system and through the links of Kubernetes' volumes, and the content is read only when the file has
changed. A look takes 5 microseconds; with its wake-up ten of them a second cost 0.1 % of a core.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wattline.core.errors import InputError
from wattline.drivers.grant_files import MAX_GRANT_BYTES, GrantFile, decode_grants
from wattline.drivers.json_fields import parse
from wattline.drivers.trusted_files import read_trusted

log = logging.getLogger(__name__)

_MOST_BRAKE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class GrantsRefused:
    """Grants that cannot be obeyed, and why in one line; those obeyed before stay in force."""

    why: str


@dataclass(frozen=True, slots=True)
class BrakeFile:
    """The brake file came (present) or went; `budget_version` where its content names one."""

    present: bool
    budget_version: int | None = None


@dataclass(frozen=True, slots=True)
class GrantsRead:
    """Grants, and when they were received: their leases count from then."""

    grants: GrantFile
    read_s: float


GrantEvent = GrantsRead | GrantsRefused | BrakeFile


class GrantSource(Protocol):
    """A source of grants and, with them, of the budget's brake."""

    def start(self, post: Callable[[GrantEvent], None]) -> None:
        """Begin to watch; `post` takes each event, from the source's own thread."""

    def stop(self) -> None:
        """End within a second."""

    def age_s(self) -> float | None:
        """Seconds since good grants were last seen to be in place; None: never."""

    def brake_trouble(self) -> str | None:
        """Why the brake file cannot be looked at now; None: it can, or there is none to look at."""


Signature = tuple[int, int, int, int]


class FileGrantSource:
    """Grants of `node` from `path`, looked at every `poll_s`; `path` None: the brake file only."""

    def __init__(
        self,
        path: Path | None,
        *,
        node: str,
        brake_file: Path | None,
        poll_s: float,
        now: Callable[[], float],
    ) -> None:
        self._path = path
        self._file = path
        self._node = node
        self._brake_file = brake_file
        self._poll_s = poll_s
        self._now = now
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._seen: Signature | None = None
        self._content: bytes | None = None
        self._unsettled = False
        self._refusal: str | None = None
        self._brake_seen: Signature | None = None
        self._brake_trouble: str | None = None
        self._good_s: float | None = None

    def start(self, post: Callable[[GrantEvent], None]) -> None:
        """Begin to watch."""
        self._thread = threading.Thread(target=self._run, args=(post,), name="grants", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        if self._thread is not None and self._thread.is_alive():
            os.write(self._stop_write, b".")
            self._thread.join(1.0)
            if not self._thread.is_alive():
                os.close(self._stop_read)
                os.close(self._stop_write)

    def age_s(self) -> float | None:
        """Seconds since good grants were last seen to be in place."""
        return None if self._good_s is None else self._now() - self._good_s

    def brake_trouble(self) -> str | None:
        """Why the brake file cannot be looked at now; None: it can."""
        return self._brake_trouble

    def look(self) -> list[GrantEvent]:
        """One look at both files: what has changed since the last one."""
        return self._look_at_brake() + self._look_at_grants()

    def _run(self, post: Callable[[GrantEvent], None]) -> None:
        stopped = select.poll()  # cheaper than waiting for an Event, twenty times a second
        stopped.register(self._stop_read, select.POLLIN)
        while True:
            for look in (self._look_at_brake, self._look_at_grants):
                for event in self._safely(look):
                    post(event)
            if stopped.poll(1000 * self._poll_s):
                return

    def _safely(self, look: Callable[[], list[GrantEvent]]) -> list[GrantEvent]:
        """A look that a bug cannot end: the brake depends on this thread."""
        try:
            return look()
        except Exception as error:
            log.exception("a look at the grants met a bug")
            return self._refused(f"{type(error).__name__}: {error}", forget=True)

    def _look_at_brake(self) -> list[GrantEvent]:
        if self._brake_file is None:
            return []
        try:
            seen = _signature(self._brake_file)
            if seen is None:
                os.stat(self._brake_file.parent)  # else the folder is away, and not the file
        except OSError as error:
            # A brake that cannot be looked at is not released, and nobody can call it.
            why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            if why != self._brake_trouble:
                log.error("the brake file cannot be looked at", extra={"why": why})
            self._brake_trouble = why
            return []
        self._brake_trouble = None
        if seen == self._brake_seen:
            return []
        self._brake_seen = seen
        if seen is None:
            return [BrakeFile(present=False)]
        return [BrakeFile(present=True, budget_version=_budget_version(self._brake_file))]

    def _look_at_grants(self) -> list[GrantEvent]:
        path, file = self._path, self._file
        if path is None or file is None:
            return []
        try:
            seen = _signature(file)
            if seen is None:
                file = self._file = path / f"{self._node}.json" if path.is_dir() else path
                seen = _signature(file)
        except OSError as error:
            return self._refused(f"{file}: cannot be read: {error.strerror or error}", forget=True)
        if seen is None:
            return self._refused(f"{file}: there is no such file yet", forget=True)
        if seen == self._seen and not self._unsettled:
            if self._refusal is None:
                self._good_s = self._now()
            return []
        # Two replacements within one tick of the file system's clock may look alike, so the look
        # after a change reads once more.
        changed = seen != self._seen
        self._unsettled, self._seen = changed, seen
        try:
            content = read_trusted(file, max_bytes=MAX_GRANT_BYTES)
        except FileNotFoundError:
            return self._refused(f"{file}: there is no such file yet", forget=True)
        except InputError as error:
            return self._refused(str(error), forget=True)  # a chmod mends it and shows nowhere
        except OSError as error:
            return self._refused(f"{file}: cannot be read: {error.strerror or error}", forget=True)
        if not changed and content == self._content:
            return []
        self._content = content
        try:
            grants = decode_grants(content, node=self._node, where=str(file))
        except InputError as error:
            return self._refused(str(error))
        self._refusal = None
        self._good_s = self._now()
        return [GrantsRead(grants, self._good_s)]

    def _refused(self, why: str, *, forget: bool = False) -> list[GrantEvent]:
        """Say so once per reason; `forget`: look again even if nothing changes."""
        if forget:
            self._seen = None
        if why == self._refusal:
            return []
        self._refusal = why
        return [GrantsRefused(why)]


def _signature(path: Path) -> Signature | None:
    """What changes when a file is replaced or rewritten; None: there is none, or a directory.

    OSError: it cannot be told.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _budget_version(path: Path) -> int | None:
    """The version of the budget that a brake file names; a file of any other content brakes too."""
    try:
        content = read_trusted(path, max_bytes=_MOST_BRAKE_BYTES)
        return parse(content, str(path)).count_or_none("budget_version")
    except (InputError, OSError):
        return None
