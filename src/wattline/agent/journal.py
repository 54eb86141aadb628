"""What must outlive the agent: original limits, what is held, and what a person has ordered.

One file, replaced atomically and flushed before anything that it tells of is written to a GPU, with
a version and a checksum. Loading never fails: a journal that cannot be understood is set aside.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from wattline.core.errors import InputError, WattlineError
from wattline.drivers.trusted_files import read_trusted, replace_file, sync_folder

T = TypeVar("T")

JOURNAL_VERSION = 1
_MOST_BYTES = 4 << 20
_MOST_SET_ASIDE = 20


class JournalError(WattlineError):
    """The journal could not be brought to the disk: nothing may be written that relies on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRecord:
    """What must be remembered of one GPU.

    original_w: the limit found before our first write. ours_w: the limits that we asked for last,
    newest first, of which any may be in force; empty: the GPU's limit is not ours. held_w: the
    largest limit that we may write by ourselves. brake_w, lease_s, expiry_w: of the newest grant;
    a brake may write brake_w before the journal can tell. clock_mhz: the clock ceiling that we set.
    pinned_w: an operator's pin. let_go: a person gave the GPU back until they resume.
    """

    original_w: float | None = None
    ours_w: tuple[float, ...] = ()
    held_w: float | None = None
    brake_w: float | None = None
    lease_s: float | None = None
    expiry_w: float | None = None
    clock_mhz: int | None = None
    pinned_w: float | None = None
    let_go: bool = False

    def may_be_ours(self, enforced_w: float) -> bool:
        """Whether we may have written the limit that is found in force."""
        if self.ours_w:
            return enforced_w in self.ours_w or enforced_w == self.brake_w
        return enforced_w == self.brake_w and enforced_w != self.original_w


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalState:
    """All that the journal holds. `operator_hold`: who and why; `braked`: not yet released."""

    incarnation: int = 0
    epoch: int = 0
    budget_version: int | None = None
    operator_hold: str | None = None
    braked: bool = False
    gpus: Mapping[str, GpuRecord] = field(default_factory=dict)


class Journal:
    """The journal of one state directory.

    Beside it lies one byte that can be overwritten in place on a full disk: it says that a limit
    was lowered for safety which the journal does not know to be ours.

    `replace(path, content)` brings content to the disk; a test may give one that fails.
    """

    def __init__(
        self, state_dir: Path, *, replace: Callable[[Path, bytes], None] = replace_file
    ) -> None:
        self._path = state_dir / "journal.json"
        self._replace = replace
        self._written = JournalState()
        self.problem: str | None = None
        """What is wrong with it, in words; None: nothing."""
        self._mark = state_dir / "unjournalled"
        self._marked = False
        self.unjournalled = False
        """Whether an earlier run lowered limits that the journal does not know to be ours."""
        self.set_aside: str | None = None
        """What was found instead of a journal at the start, and where it is now."""

    @property
    def state(self) -> JournalState:
        """What is on the disk."""
        return self._written

    def load(self) -> JournalState:
        """What the disk has; empty where there is none or it cannot be understood."""
        try:
            self._written = decode(read_trusted(self._path, max_bytes=_MOST_BYTES))
        except FileNotFoundError:
            self._written = JournalState()
        except (InputError, OSError) as error:
            self.set_aside = self._put_away(str(error))
            self._written = JournalState()
        self._load_mark()
        return self._written

    def commit(self, state: JournalState) -> None:
        """Bring `state` to the disk before it returns; does nothing when it is there already.

        Raises JournalError; the disk then has the state of before, and `problem` says why.
        """
        if state == self._written and self.problem is None:
            return
        try:
            self._replace(self._path, encode(state))
        except OSError as error:
            self.problem = f"cannot be written: {error.strerror or error}"
            raise JournalError(f"{self._path}: {self.problem}: free the disk") from error
        self._written = state
        self.problem = None
        if self._marked and self._set_mark(b"0"):
            self._marked = False

    def mark_unjournalled(self) -> bool:
        """Say that limits are lowered that the journal does not know of; False: not even that."""
        self._marked = self._marked or self._set_mark(b"1")
        return self._marked

    def _load_mark(self) -> None:
        try:
            self.unjournalled = self._marked = self._mark.read_bytes() == b"1"
        except FileNotFoundError:
            try:
                self._replace(self._mark, b"0")  # while there is room for it
            except OSError as error:
                self.problem = f"cannot be written: {error.strerror or error}"
        except OSError as error:
            self.problem = f"cannot be read: {error.strerror or error}"

    def _set_mark(self, mark: bytes) -> bool:
        try:
            descriptor = os.open(self._mark, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.pwrite(descriptor, mark, 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.problem = f"cannot be written: {error.strerror or error}"
            return False
        return True

    def _put_away(self, why: str) -> str:
        """Keep a file that cannot be understood, under a number, for a person to look at."""
        for number in range(1, _MOST_SET_ASIDE + 1):
            aside = self._path.with_name(f"{self._path.name}.corrupt-{number}")
            if aside.exists() and number < _MOST_SET_ASIDE:
                continue
            try:
                os.rename(self._path, aside)
                sync_folder(self._path.parent)
            except OSError as error:
                return f"{why}; could not be set aside: {error.strerror or error}"
            return f"{why}; set aside as {aside.name}"
        raise AssertionError("the last number is always used")


def encode(state: JournalState) -> bytes:
    """The journal as a file: a version, a checksum over the body's exact text, and the body."""
    body = json.dumps(asdict(state), sort_keys=True, allow_nan=False)
    head = {"version": JOURNAL_VERSION, "sha256": hashlib.sha256(body.encode()).hexdigest()}
    return f"{json.dumps(head)}\n{body}\n".encode()


def decode(content: bytes) -> JournalState:
    """The state in a journal's file; InputError when it cannot be trusted."""
    where = "journal"
    try:
        head_line, body_line, rest = content.decode("utf-8").split("\n", 2)
        head, body = json.loads(head_line), json.loads(body_line)
    except (ValueError, RecursionError):
        raise InputError(where, content[:60], "torn or no journal of this agent") from None
    if not isinstance(head, dict) or head.get("version") != JOURNAL_VERSION:
        raise InputError(where, head, f"not of version {JOURNAL_VERSION}")
    if rest or head.get("sha256") != hashlib.sha256(body_line.encode()).hexdigest():
        raise InputError(where, head.get("sha256"), "its checksum does not fit its content")
    try:
        return _state(body)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(where, str(error), "a value that cannot be meant") from None


def _state(body: Any) -> JournalState:
    return JournalState(
        incarnation=_typed(body["incarnation"], int),
        epoch=_typed(body["epoch"], int),
        budget_version=_typed_or_none(body["budget_version"], int),
        operator_hold=_typed_or_none(body["operator_hold"], str),
        braked=_typed(body["braked"], bool),
        gpus={str(uuid): _record(entry) for uuid, entry in body["gpus"].items()},
    )


def _record(entry: Any) -> GpuRecord:
    return GpuRecord(
        original_w=_number(entry["original_w"]),
        ours_w=tuple(watts for each in entry["ours_w"] if (watts := _number(each)) is not None),
        held_w=_number(entry["held_w"]),
        brake_w=_number(entry["brake_w"]),
        lease_s=_number(entry["lease_s"]),
        expiry_w=_number(entry["expiry_w"]),
        clock_mhz=_typed_or_none(entry["clock_mhz"], int),
        pinned_w=_number(entry["pinned_w"]),
        let_go=_typed(entry["let_go"], bool),
    )


def _typed(found: Any, kind: type[T]) -> T:
    if not isinstance(found, kind):
        raise TypeError(f"{type(found).__name__} is no {kind.__name__}")
    return found


def _typed_or_none(found: Any, kind: type[T]) -> T | None:
    return None if found is None else _typed(found, kind)


def _number(found: Any) -> float | None:
    if found is None:
        return None
    number = float(found)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{found!r} is no quantity")
    return number
