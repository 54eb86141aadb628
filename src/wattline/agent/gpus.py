"""What the loop knows of each GPU beside the protocol's state: the thread, readings, records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from wattline.agent.annotated import Decision
from wattline.agent.clocks import ClockCeiling
from wattline.agent.device_calls import Facts, Readings
from wattline.agent.journal import GpuRecord
from wattline.agent.lanes import Lane
from wattline.drivers.gpu.device import GpuIdentity


@dataclass(slots=True)
class Write:
    """A write that has been handed to a lane and not yet been answered. serial 0: by a brake."""

    serial: int
    watts: float


@dataclass(slots=True)
class GpuEntry:
    """One GPU of the node.

    known: its limit and range have been read, so the protocol's state has it. ours: its limit is
    ours to write and to repair. record: what the journal must say of it. sure: its newest call
    succeeded, so what is known may be reported. releasing: the original limit is being given back.
    orphan: ours by an earlier run, a brake or a pin, and no pod has been seen behind it yet.
    """

    uuid: str
    identity: GpuIdentity
    lane: Lane
    record: GpuRecord
    present: bool = True
    known: bool = False
    ours: bool = False
    sure: bool = False
    releasing: bool = False
    orphan: bool = False
    readings: Readings | None = None
    facts: Facts | None = None
    fault: str | None = None
    write_error: str | None = None
    write: Write | None = None
    clock: ClockCeiling = field(default_factory=ClockCeiling)
    decision: Decision | None = None
    remark: str | None = None


@dataclass(slots=True)
class Tally:
    """Counts since the start, by the names of the metric catalogue."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, key: str) -> None:
        """Count one."""
        self.counts[key] += 1
