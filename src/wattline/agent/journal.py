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
from typing import Any

from wattline.core.errors import InputError, WattlineError
from wattline.drivers.trusted_files import read_trusted, replace_file, sync_folder

JOURNAL_VERSION = 1
_MOST_BYTES = 4 << 20
_MOST_SET_ASIDE = 20


class JournalError(WattlineError):
    """The journal could not be brought to the disk: nothing may be written that relies on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRecord:
    """What must be remembered of one GPU.

    original_w: the limit found before our first write; None: never written. ours_w: limits that we
    have asked for and that may be in force: the newest, and the one before while the newest may
    not have reached the GPU. Another limit than these is somebody else's. held_w: the largest limit
    that we may write by ourselves. clock_mhz: the clock ceiling that we set. pinned_w: an
    operator's pin.
    """

    original_w: float | None = None
    ours_w: tuple[float, ...] = ()
    held_w: float | None = None
    clock_mhz: int | None = None
    pinned_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalState:
    """All that the journal holds. `operator_hold`: who and why; `braked`: not yet released."""

    incarnation: int = 0
    operator_hold: str | None = None
    braked: bool = False
    gpus: Mapping[str, GpuRecord] = field(default_factory=dict)


class Journal:
    """The journal of one state directory.

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
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(where, str(error), "a value that cannot be meant") from None


def _state(body: Any) -> JournalState:
    hold = body["operator_hold"]
    if hold is not None and not isinstance(hold, str):
        raise TypeError("operator_hold")
    if not isinstance(body["braked"], bool) or not isinstance(body["incarnation"], int):
        raise TypeError("braked or incarnation")
    return JournalState(
        incarnation=body["incarnation"],
        operator_hold=hold,
        braked=body["braked"],
        gpus={str(uuid): _record(entry) for uuid, entry in body["gpus"].items()},
    )


def _record(entry: Any) -> GpuRecord:
    clock_mhz = entry["clock_mhz"]
    if clock_mhz is not None and not isinstance(clock_mhz, int):
        raise TypeError("clock_mhz")
    return GpuRecord(
        original_w=_watts(entry["original_w"]),
        ours_w=tuple(watts for each in entry["ours_w"] if (watts := _watts(each)) is not None),
        held_w=_watts(entry["held_w"]),
        clock_mhz=clock_mhz,
        pinned_w=_watts(entry["pinned_w"]),
    )


def _watts(found: Any) -> float | None:
    if found is None:
        return None
    watts = float(found)
    if not (math.isfinite(watts) and watts >= 0):
        raise ValueError(f"{found} W")
    return watts
