"""A small coordinator over files: for demonstrations, fault campaigns and tests.

    python -m wattline.virtual.coordinator SPEC.json

It runs the grant protocol's coordinator on a durable log, writes one grant file per node, reads the
nodes' report files, and shares the budget out by a plan that moves every few seconds. Kill it at
any time: a restart goes on from its log, or without a log from what the nodes report.

The spec: nodes [{name, report, gpus {UUID: [min_w, max_w, default_w]}}], grants_dir, budget, log,
status, restore (paths), seed, period_s, settle_s, lease_s, brake_w. The budget is a file of its own
{version, watts, guard_w, effective_s on this machine's monotonic clock}, replaced when it changes.
While the file `restore` exists, the plan is to give every GPU its original limit back.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from wattline.core.errors import InputError, WattlineError
from wattline.drivers.grant_files import (
    GpuGrant,
    GrantFile,
    NodeReport,
    decode_report,
    encode_grants,
)
from wattline.drivers.grant_log import FencedError, GrantLog
from wattline.drivers.grant_records import decode_records, encode_record
from wattline.drivers.json_fields import parse
from wattline.drivers.trusted_files import read_trusted, replace_file
from wattline.grants.answers import Terms
from wattline.grants.book import GpuLimits
from wattline.grants.coordinator import Coordinator
from wattline.grants.ledger import Ledger
from wattline.grants.messages import Adopt, Grant, Message
from wattline.grants.records import Opened, read_log
from wattline.virtual.plan import targets_w

TICK_S = 0.03
STATUS_S = 0.2
SILENT_S = 3.0
"""A node that has not reported for so long is planned around: its booking stays as it is."""
BRAKE_DEADLINE_S = 0.5
"""A cut is judged from its announcement plus this, if that is later than its effective time."""
COMPACT_BYTES = 1 << 20
_MOST_BYTES = 4 << 20
_TOKEN_BITS = 20


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node: where its report is, and which GPUs it has by the fleet's inventory."""

    name: str
    report: Path
    gpus: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a coordinator is told."""

    nodes: tuple[NodeSpec, ...]
    grants_dir: Path
    budget: Path
    log: Path
    status: Path
    restore: Path
    seed: int
    period_s: float
    settle_s: float
    lease_s: float
    brake_w: float


def read_spec(path: Path) -> Spec:
    """The spec in a file; InputError for one that cannot be used."""
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        nodes = tuple(
            NodeSpec(
                entry["name"],
                Path(entry["report"]),
                {gpu: (low, high, default) for gpu, (low, high, default) in entry["gpus"].items()},
            )
            for entry in raw["nodes"]
        )
        return Spec(
            nodes=nodes,
            grants_dir=Path(raw["grants_dir"]),
            budget=Path(raw["budget"]),
            log=Path(raw["log"]),
            status=Path(raw["status"]),
            restore=Path(raw["restore"]),
            seed=int(raw["seed"]),
            period_s=float(raw["period_s"]),
            settle_s=float(raw["settle_s"]),
            lease_s=float(raw["lease_s"]),
            brake_w=float(raw["brake_w"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(path), str(error), "see wattline.virtual.coordinator") from None


@dataclass(frozen=True, slots=True)
class _Budget:
    version: int
    watts: float
    guard_w: float
    effective_s: float | None


@dataclass(slots=True)
class _NodeState:
    """What is known of a node, and what lies in its grant file."""

    spec: NodeSpec
    seen: tuple[int, int] | None = None
    heard_s: float | None = None
    newest: tuple[int, int] | None = None
    outbox: dict[str, Message[str]] = field(default_factory=dict)
    originals_w: dict[str, float] = field(default_factory=dict)
    unsent: bool = False


class FileCoordinator:
    """The coordinator's process: built from a spec, it goes on from its log."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._nodes = [_NodeState(node) for node in spec.nodes]
        self._node_of = {gpu: node for node in self._nodes for gpu in node.spec.gpus}
        self._ranges = {
            gpu: (low, high) for node in spec.nodes for gpu, (low, high, _) in node.gpus.items()
        }
        self._budget_seen: tuple[int, int] | None = None
        budget = self._read_budget()
        if budget is None:
            raise InputError(str(spec.budget), "nothing", "write the budget first")
        self._budget = budget
        self._log = GrantLog(spec.log)
        self._machine = self._open(budget)
        self._targets_w: dict[str, float] = {}
        self._status_s = 0.0

    def _open(self, budget: _Budget) -> Coordinator[str]:
        """Open an epoch that nobody has used, then read what the log proves."""
        where = str(self._spec.log)
        epoch = new_epoch(max(self._log.epoch, self._newest_reported_epoch()))
        self._log.open_epoch(epoch, [encode_record(Opened(epoch))])
        past = read_log(decode_records(self._log.replay.records, where))
        say(
            f"epoch {epoch}: log has {len(self._log.replay.records)} records, "
            f"bounds of {len(past.booked_mw)} GPUs, {self._log.replay.torn_bytes} bytes torn"
        )
        limits = {
            gpu: GpuLimits(low, high, self._spec.settle_s, default, node.name)
            for node in self._spec.nodes
            for gpu, (low, high, default) in node.gpus.items()
        }
        ledger = Ledger(
            limits,
            budget.watts,
            budget.guard_w,
            epoch=epoch,
            booked_mw=past.booked_mw,
            silent_after_s=SILENT_S,
        )
        terms = Terms(lease_s=self._spec.lease_s, brake_w=self._spec.brake_w)
        return Coordinator(ledger, terms=terms, budget_version=budget.version)

    def _newest_reported_epoch(self) -> int:
        epochs = [0]
        for node in self._nodes:
            report = self._read_report(node)
            if report is not None:
                epochs += [gpu.report.epoch for gpu in report.gpus if gpu.report is not None]
            node.seen = None
        return max(epochs)

    def run(self) -> None:
        """Until a signal; WattlineError when it must not go on (fenced off, log not writable)."""
        while True:
            self.step(time.monotonic())
            time.sleep(TICK_S)

    def step(self, now_s: float) -> None:
        """Hear, plan, make durable, send, say."""
        machine = self._machine
        budget = self._read_budget()
        if budget is not None and budget.version > self._budget.version:
            self._take_budget(budget, now_s)
        for node in self._nodes:
            self._hear(node, now_s)
        if machine.fenced_by is not None:
            raise FencedError(f"fenced off by epoch {machine.fenced_by}: another coordinator")
        self._targets_w = self._plan(now_s)
        machine.pursue(self._targets_w, now_s)
        machine.due(now_s)
        self._send()
        if now_s - self._status_s >= STATUS_S:
            self._status_s = now_s
            self._write(self._spec.status, json.dumps(self.status(now_s)).encode())

    def _take_budget(self, budget: _Budget, now_s: float) -> None:
        judged_s = now_s + BRAKE_DEADLINE_S
        if budget.effective_s is not None:
            judged_s = max(judged_s, budget.effective_s)
        cut = budget.watts < self._budget.watts
        self._budget = budget
        self._machine.set_budget(
            budget.watts,
            budget.guard_w,
            now_s,
            version=budget.version,
            effective_s=judged_s if cut else None,
        )
        say(f"budget {budget.watts:g} W, version {budget.version}")

    # Hearing

    def _hear(self, node: _NodeState, now_s: float) -> None:
        report = self._read_report(node)
        if report is None:
            return
        number = (report.incarnation, report.report_sequence)
        if number != node.newest:
            node.newest, node.heard_s = number, now_s
        for entry in report.gpus:
            if entry.facts.original_w is not None:
                node.originals_w[entry.gpu] = entry.facts.original_w
            if entry.report is not None and entry.gpu in node.spec.gpus:
                self._machine.on_report(entry.report, now_s)

    def _read_report(self, node: _NodeState) -> NodeReport | None:
        """The node's report if it has changed; a report that cannot be read says nothing."""
        path = node.spec.report
        try:
            found = path.stat()
            if (found.st_ino, found.st_mtime_ns) == node.seen:
                return None
            node.seen = (found.st_ino, found.st_mtime_ns)
            content = read_trusted(path, max_bytes=_MOST_BYTES)
            return decode_report(content, node=node.spec.name, where=str(path))
        except FileNotFoundError:
            return None
        except (InputError, OSError) as error:
            say(f"report of {node.spec.name} refused: {error}")
            return None

    def _read_budget(self) -> _Budget | None:
        path = self._spec.budget
        try:
            found = path.stat()
            if (found.st_ino, found.st_mtime_ns) == self._budget_seen:
                return None
            self._budget_seen = (found.st_ino, found.st_mtime_ns)
            fields = parse(read_trusted(path, max_bytes=_MOST_BYTES), str(path))
            return _Budget(
                fields.count("version"),
                fields.watts("watts"),
                fields.watts("guard_w"),
                fields.number_or_none("effective_s", 1e12),
            )
        except FileNotFoundError:
            return None
        except (InputError, OSError) as error:
            say(f"budget refused: {error}")
            return None

    # Planning

    def _plan(self, now_s: float) -> dict[str, float]:
        """Share what is usable among the GPUs that listen; the others keep what is booked.

        A GPU found above its leave keeps its grant, which its node enforces again. Without one its
        node writes nothing of its own accord: then its lowest limit is granted.
        """
        ledger = self._machine.ledger
        above = ledger.found_above_w
        listening: dict[str, tuple[float, float]] = {}
        mend: dict[str, float] = {}
        left_w = ledger.usable_w
        for gpu, limits in self._ranges.items():
            heard_s = self._node_of[gpu].heard_s
            silent = heard_s is None or now_s - heard_s > SILENT_S
            if silent or gpu in above:
                left_w -= ledger.booked_w(gpu)
                if not silent and ledger.granted_w(gpu) is None:
                    mend[gpu] = limits[0]
            else:
                listening[gpu] = limits
        if self._spec.restore.exists():
            return mend | {
                gpu: watts
                for gpu in listening
                if (watts := self._node_of[gpu].originals_w.get(gpu)) is not None
            }
        period = int(now_s / self._spec.period_s)
        return mend | targets_w(left_w, listening, period, self._spec.seed)

    # Sending

    def _send(self) -> None:
        step = self._machine.take()
        self._log.append([encode_record(r) for r in step.records], epoch=self._machine.epoch)
        for message in step.messages:
            node = self._node_of[message.gpu]
            node.outbox[message.gpu] = message
            node.unsent = True
        restoring = self._spec.restore.exists()
        for node in self._nodes:
            if node.unsent:
                content = encode_grants(self._grant_file(node, restoring))
                path = self._spec.grants_dir / f"{node.spec.name}.json"
                node.unsent = not self._write(path, content)
        if self._log.size_bytes > COMPACT_BYTES:
            compacted = (Opened(self._machine.epoch), self._machine.compacted())
            self._log.compact([encode_record(record) for record in compacted])

    def _grant_file(self, node: _NodeState, restoring: bool) -> GrantFile:
        messages: Sequence[Message[str]] = tuple(node.outbox.values())
        return GrantFile(
            node=node.spec.name,
            epoch=self._machine.epoch,
            budget_version=self._budget.version,
            grants=tuple(GpuGrant(grant=each) for each in messages if isinstance(each, Grant)),
            adopt=tuple(each for each in messages if isinstance(each, Adopt)),
            restore=tuple(node.spec.gpus) if restoring else (),
        )

    def _write(self, path: Path, content: bytes) -> bool:
        """Replace a file; False when the disk refuses, to be tried again with the next tick."""
        try:
            # What must be durable is in the log; a message that is lost is sent again.
            replace_file(path, content, durable=False, mode=0o644)
        except OSError as error:
            say(f"{path} not written: {error.strerror}")
            return False
        return True

    def status(self, now_s: float) -> dict[str, Any]:
        """The books as plain JSON."""
        ledger = self._machine.ledger
        return {
            "now_s": now_s,
            "epoch": self._machine.epoch,
            "budget_version": self._budget.version,
            "budget_w": self._budget.watts,
            "guard_w": self._budget.guard_w,
            "usable_w": ledger.usable_w,
            "booked_w": ledger.total_booked_w,
            "free_w": ledger.free_w,
            "exposure_w": ledger.exposure_w,
            "exposures": [
                {"cause": each.cause.value, "watts": each.watts, "gpu": each.gpu}
                for each in ledger.exposures
            ],
            "proven": sum(ledger.book(gpu).proven for gpu in ledger.gpus),
            "restoring": self._spec.restore.exists(),
            "gpus": {
                gpu: {
                    "target_w": self._targets_w.get(gpu),
                    "granted_w": ledger.granted_w(gpu),
                    "booked_w": ledger.booked_w(gpu),
                }
                for gpu in ledger.gpus
            },
        }

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()


def new_epoch(newest: int) -> int:
    """An epoch above `newest` that a second coordinator without our log does not choose too."""
    counter = (newest >> _TOKEN_BITS) + 1
    return (counter << _TOKEN_BITS) | random.SystemRandom().getrandbits(_TOKEN_BITS)


def say(line: str) -> None:
    """One line of the coordinator's own story."""
    print(f"{time.monotonic():.3f} {line}", flush=True)


def _asked_to_end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Run from the command line: exit 0 asked to end, 1 must not go on, 2 bad input."""
    signal.signal(signal.SIGTERM, _asked_to_end)
    if len(sys.argv) != 2:
        sys.exit("usage: python -m wattline.virtual.coordinator SPEC.json")
    try:
        coordinator = FileCoordinator(read_spec(Path(sys.argv[1])))
        try:
            coordinator.run()
        finally:
            coordinator.close()
    except WattlineError as error:
        print(f"coordinator: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
