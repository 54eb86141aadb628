"""An agent over simulated GPUs, in a thread of the test, and a coordinator's pen."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattline.agent.grant_source import FileGrantSource
from wattline.agent.loop import Agent, lease_clock
from wattline.agent.settings import AgentSettings
from wattline.agent.snapshot import AgentSnapshot, GpuView, Mode
from wattline.core.errors import WattlineError
from wattline.drivers.gpu.simulated import SimulatedDriver, SimulatedGpu, SimulatedNode
from wattline.drivers.grant_files import (
    GpuGrant,
    GrantFile,
    NodeReport,
    decode_report,
    write_grants,
)
from wattline.drivers.pods import OwnerMethod, Ownership, Pod, PodName, SourceError
from wattline.drivers.trusted_files import replace_file
from wattline.grants.messages import Adopt, Grant

DEADLINE_S = 20.0
H100 = "NVIDIA H100 80GB HBM3"


def assert_eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """The condition's first true value; fails loudly when it never comes."""
    end_s = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end_s, f"never: {what}"
        time.sleep(0.002)
    return value


class Disk:
    """The journal's way to the disk, which a test may block."""

    def __init__(self) -> None:
        self.full = False
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, path: Path, content: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        assert self.answers.wait(DEADLINE_S)
        replace_file(path, content)


class Listings:
    """Pods and owners, as a test says."""

    def __init__(self) -> None:
        self.list: list[Pod] = []
        self.held: dict[str, set[str]] = {}
        self.pods_fail = False
        self.owners_fail = False
        self.untold: dict[str, str] = {}
        self.unresolved: tuple[str, ...] = ()
        self.out_of_step: str | None = None
        self.looks = 0

    def start(self) -> None:
        """Nothing runs."""

    def stop(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is open."""

    def pods(self) -> Sequence[Pod]:
        if self.pods_fail:
            raise SourceError("pods: told to fail")
        return tuple(self.list)

    def age_s(self) -> float | None:
        return 0.0

    def failures(self) -> int:
        return int(self.pods_fail)

    def trouble(self) -> str | None:
        return self.out_of_step

    def owners(self) -> Ownership:
        self.looks += 1
        if self.owners_fail:
            raise SourceError("owners: told to fail")
        held = {
            gpu: frozenset(PodName("default", name) for name in names)
            for gpu, names in self.held.items()
            if names
        }
        told = {gpu: pods for gpu, pods in held.items() if gpu not in self.untold}
        return Ownership(OwnerMethod.POD_RESOURCES, told, self.unresolved, untold=dict(self.untold))

    def put(self, name: str, limit: str | None, *gpus: str) -> None:
        """A pod with GPUs."""
        self.list.append(Pod("default", name, f"uid-{name}", limit))
        for gpu in gpus:
            self.held.setdefault(gpu, set()).add(name)

    def take(self, name: str) -> None:
        """The pod has gone."""
        self.list = [pod for pod in self.list if pod.name != name]
        for names in self.held.values():
            names.discard(name)


class CountingDriver(SimulatedDriver):
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@dataclass
class Bench:
    """One node: simulated GPUs, directories, and at most one agent at a time."""

    folder: Path
    gpus: int = 2
    settings: dict[str, Any] = field(default_factory=dict)
    disk: Disk = field(default_factory=Disk)
    listings: Listings = field(default_factory=Listings)
    sequence: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    agent: Agent | None = None
    error: WattlineError | None = None

    def __post_init__(self) -> None:
        self.node = SimulatedNode([H100] * self.gpus)
        self.grants = self.folder / "grants"
        self.grants.mkdir(mode=0o755)
        self.grants.chmod(0o755)
        self.state = self.folder / "state"
        self.brake_file = self.folder / "brake"
        self._thread: threading.Thread | None = None

    @property
    def uuids(self) -> list[str]:
        return sorted(gpu.uuid for gpu in self.node.gpus)

    def gpu(self, index: int) -> SimulatedGpu:
        return self.node.gpu(self.uuids[index])

    def limits(self) -> list[float]:
        return [self.node.gpu(uuid).requested_w for uuid in self.uuids]

    def start(self, **changes: Any) -> Agent:
        values: dict[str, Any] = {
            "node": "n1",
            "state_dir": self.state,
            "grants": self.grants,
            "brake_file": self.brake_file,
            "readback_s": 0.05,
            "grants_poll_s": 0.01,
            "reconcile_s": 0.2,
            "hung_s": 0.5,
            **self.settings,
            **changes,
        }
        settings = AgentSettings(**values)
        annotated = settings.mode is Mode.ANNOTATIONS
        source = FileGrantSource(
            None if annotated else self.grants,
            node="n1",
            brake_file=self.brake_file,
            poll_s=settings.grants_poll_s,
            now=lease_clock,
        )
        self.driver = CountingDriver(self.node)
        agent = Agent(
            settings,
            self.driver,
            grants=source,
            pods=self.listings if annotated else None,
            owners=self.listings if annotated else None,
            replace=self.disk,
        )
        self.agent = agent
        self._thread = threading.Thread(target=self._run, args=(agent,), daemon=True)
        self._thread.start()
        assert_eventually(lambda: agent.snapshot is not None or self.error, "a first picture")
        return agent

    def _run(self, agent: Agent) -> None:
        try:
            agent.run()
        except WattlineError as error:
            self.error = error

    def stop(self) -> None:
        if self.agent is not None and self._thread is not None:
            self.agent.stop()
            self._thread.join(DEADLINE_S)
            assert not self._thread.is_alive(), "the agent did not stop"
        self.agent = None

    def crash(self) -> None:
        """End the agent as SIGKILL would: limits and state directory stay as they are now."""
        limits = {uuid: self.node.gpu(uuid).requested_w for uuid in self.uuids}
        kept = self.folder / "kept"
        shutil.copytree(self.state, kept, ignore=shutil.ignore_patterns(".*"))
        self.stop()
        shutil.rmtree(self.state)
        kept.rename(self.state)
        for uuid, watts in limits.items():
            self.node.rival_write(uuid, watts)

    def picture(self) -> AgentSnapshot:
        assert self.agent is not None
        snapshot = self.agent.snapshot
        assert snapshot is not None
        return snapshot

    def view(self, index: int) -> GpuView:
        return next(view for view in self.picture().gpus if view.uuid == self.uuids[index])

    def known(self) -> None:
        """Wait until every GPU has been read."""
        assert_eventually(
            lambda: (
                len(self.picture().gpus) == len(self.uuids)
                and all(view.held_w is not None for view in self.picture().gpus)
            ),
            "all GPUs read",
        )

    def report(self) -> NodeReport:
        content = (self.state / "report.json").read_bytes()
        return decode_report(content, node="n1", where="report.json")

    def grant(self, *watts: float | None, **changes: Any) -> int:
        """Grant watts to the GPUs in order (None: no grant); the sequence used."""
        sequence = next(self.sequence)
        values: dict[str, Any] = {
            "incarnation": self.picture().incarnation,
            "epoch": 1,
            "sequence": sequence,
            "brake_w": 250.0,
            "lease_s": 600.0,
            **changes,
        }
        restore = values.pop("restore", ())
        clock_mhz = values.pop("clock_mhz", None)
        uuids = values.pop("uuids", self.uuids)
        grants = tuple(
            GpuGrant(grant=Grant(gpu=uuid, watts=each, **values), clock_mhz=clock_mhz)
            for uuid, each in zip(uuids, watts, strict=False)
            if each is not None
        )
        self.write(
            GrantFile(node="n1", epoch=values["epoch"], grants=grants, restore=tuple(restore))
        )
        return sequence

    def adopt(self, epoch: int) -> int:
        """Ask every GPU to take up an epoch; the sequence used."""
        sequence = next(self.sequence)
        incarnation = self.picture().incarnation
        adopt = tuple(
            Adopt(gpu=uuid, incarnation=incarnation, epoch=epoch, sequence=sequence)
            for uuid in self.uuids
        )
        self.write(GrantFile(node="n1", epoch=epoch, adopt=adopt))
        return sequence

    def write(self, grants: GrantFile) -> None:
        write_grants(self.grants / "n1.json", grants)

    def granted(self, *watts: float, **changes: Any) -> None:
        """Grant, and wait until it is enforced and reported."""
        sequence = self.grant(*watts, **changes)
        self.acted(sequence)
        assert self.limits()[: len(watts)] == list(watts)

    def acted(self, sequence: int) -> None:
        def done() -> bool:
            said = [entry.report for entry in self.report().gpus if entry.report is not None]
            return bool(said) and all(
                report.sequence == sequence and report.enforced_w == report.held_w
                for report in said
            )

        assert_eventually(done, f"a report of sequence {sequence}")


@contextmanager
def bench(folder: Path, **changes: Any) -> Iterator[Bench]:
    """A node whose agent is stopped at the end."""
    made = Bench(folder, **changes)
    try:
        yield made
    finally:
        for uuid in made.uuids:
            with made.node.changing(uuid) as gpu:
                gpu.delays_s.clear()
        made.disk.answers.set()
        made.stop()
