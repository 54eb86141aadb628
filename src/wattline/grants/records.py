"""What a coordinator's log holds: plain values, appended before anything of them is sent.

A log is a list of records. Two coordinators may share one: an append is accepted only under the
newest epoch of the log (a compare-and-swap), and opening a newer epoch is itself an append, so from
then on the older coordinator can make nothing durable, and therefore send nothing new
(rules DURABLE_BEFORE_SENT and EPOCH_FENCES). A coordinator that takes over first appends `Opened`
and reads the log after that: what the older one appended in between would be missed. At every
prefix of the log the bounds that it proves are bounds on what its nodes may hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic

from wattline.grants.messages import Gpu


@dataclass(frozen=True, slots=True)
class Opened:
    """A coordinator has opened `epoch`; every record of an older epoch that follows is refused."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Granted(Generic[Gpu]):
    """A grant is about to be sent; `booked_mw` is the booking of its GPU with it."""

    epoch: int
    gpu: Gpu
    incarnation: int
    sequence: int
    watts_mw: int
    booked_mw: int


@dataclass(frozen=True, slots=True)
class Lowered(Generic[Gpu]):
    """An answer has proven a smaller bound: from here on no more than `booked_mw` may be held."""

    epoch: int
    gpu: Gpu
    booked_mw: int


@dataclass(frozen=True, slots=True)
class Released(Generic[Gpu]):
    """Somebody attested that a GPU is powered off or gone: nothing is booked for it."""

    epoch: int
    gpu: Gpu
    by: str
    why: str


@dataclass(frozen=True, slots=True)
class Compacted(Generic[Gpu]):
    """Stands for everything before it: the bookings of all GPUs."""

    epoch: int
    booked_mw: tuple[tuple[Gpu, int], ...]


Record = Opened | Granted[Gpu] | Lowered[Gpu] | Released[Gpu] | Compacted[Gpu]


@dataclass(frozen=True, slots=True)
class LogState(Generic[Gpu]):
    """What a log says: its newest epoch (0: it is empty), and a bound per GPU in milliwatts."""

    epoch: int
    booked_mw: dict[Gpu, int]


def read_log(records: Iterable[Record[Gpu]]) -> LogState[Gpu]:
    """Return what `records` prove, in the order in which they were appended."""
    epoch = 0
    booked_mw: dict[Gpu, int] = {}
    for record in records:
        if not may_append(epoch, record):
            continue  # written by a coordinator that had been overtaken
        epoch = record.epoch
        if isinstance(record, Compacted):
            booked_mw = dict(record.booked_mw)
        elif isinstance(record, Released):
            booked_mw[record.gpu] = 0
        elif isinstance(record, Granted | Lowered):
            booked_mw[record.gpu] = record.booked_mw
    return LogState(epoch, booked_mw)


def may_append(newest_epoch: int, record: Record[Gpu]) -> bool:
    """Rule EPOCH_FENCES: a newer epoch is opened once; anything else is of the newest epoch.

    A compacted log begins with what it was compacted to.
    """
    if isinstance(record, Opened) or (isinstance(record, Compacted) and newest_epoch == 0):
        return record.epoch > newest_epoch
    return record.epoch == newest_epoch


def next_epoch(log_epoch: int, seen_epoch: int = 0) -> int:
    """Return the epoch to open: above the log's and above any that a report has shown."""
    return max(log_epoch, seen_epoch) + 1
