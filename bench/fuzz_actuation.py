"""Wild values through to the writes: the protocol's state alone, then a whole agent.

The agent runs on simulated GPUs that fail, reload, change places and have a rival. Every limit
that it asks a device for is recorded before the device can refuse it, and must lie in its range.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wattline.agent.commands import Brake, Command, Hold, Pin, Restore, Resume
from wattline.agent.grant_source import BrakeFile, GrantEvent, GrantsRead
from wattline.agent.loop import Agent, lease_clock
from wattline.agent.settings import AgentSettings
from wattline.agent.snapshot import Mode
from wattline.core.errors import WattlineError
from wattline.drivers.gpu.device import GpuFault
from wattline.drivers.gpu.simulated import SimulatedDevice, SimulatedDriver, SimulatedNode
from wattline.drivers.grant_files import GpuGrant, GrantFile, decode_grants, encode_grants
from wattline.drivers.pods import OwnerMethod, Ownership, Pod, PodName
from wattline.grants.messages import Adopt, Grant
from wattline.grants.node import Node
from wattline.grants.node_state import Found, Outcome

PRODUCTS = ("NVIDIA H100 80GB HBM3", "NVIDIA B200")
NODE = "node-1"
Defect = tuple[str, str]

WATTS: tuple[float, ...] = (
    *(0.0, -0.0, 1e-300, 0.0004, 199.9996, 199.9999, 200.0, 200.0004, 350.7, 699.9996, 700.0),
    *(700.0004, 700.001, 999.9999, 1000.0, 1000.0001, 1e6),
)
WILD_WATTS = (*WATTS, math.nan, math.inf, -math.inf, -1.0, 1e18, 1e308)
LEASES_S = (0.0, 1e-9, 0.5, 30.0, 1e6)


def some_watts(draw: random.Random, edges: Sequence[float] = WATTS) -> float:
    return draw.choice(edges) if draw.random() < 0.5 else draw.uniform(0.0, 1100.0)


def fuzz_protocol(cases: int, seed: int) -> tuple[int, int, list[Defect]]:
    """Cases done, cases refused, defects: a node's state under wild messages and readings."""
    draw = random.Random(f"{seed}/protocol")
    refused, defects = 0, list[Defect]()
    ranges = {"a": (200.0, 700.0), "b": (199.999, 1000.001)}
    node = fresh_node(ranges)
    now_s = 0.0
    for case in range(cases):
        if case % 500 == 499:
            ranges = {"a": (200.0, 700.0), "b": (199.999, 1000.001)}
            node = fresh_node(ranges)
        now_s += draw.choice((0.0, 0.001, 1.0, 100.0))
        gpu = draw.choice(tuple(ranges))
        told, happens = some_event(draw, node, gpu, now_s, ranges)
        try:
            if happens() in _NOT_ACTED:
                refused += 1
            for each in ranges:
                watts = node.write_due(each, now_s)
                if watts is None:
                    continue
                low, high = ranges[each]
                if not low <= watts <= high:
                    defects.append((told, f"{watts!r} W would be written, range {low} to {high}"))
                if draw.random() < 0.7:
                    node.begin_write(each, watts, now_s)
                    node.end_write(each, draw.choice((watts, None, some_watts(draw))), now_s)
        except WattlineError as error:
            refused += 1
            if "\n" in str(error):
                defects.append((told, "an error of more than one line"))
        except Exception as error:
            defects.append((told, f"{type(error).__name__}: {error}"))
    return cases, refused, defects


_NOT_ACTED: tuple[object, ...] = (*(found for found in Outcome if not found.acted), False)


def fresh_node(ranges: dict[str, tuple[float, float]]) -> Node[str]:
    found = {gpu: Found(high, low, high) for gpu, (low, high) in ranges.items()}
    return Node(found, incarnation=5)


def some_event(
    draw: random.Random,
    node: Node[str],
    gpu: str,
    now_s: float,
    ranges: dict[str, tuple[float, float]],
) -> tuple[str, Callable[[], object]]:
    """Something that happens to a node, in words and as what does it."""
    incarnation = node.incarnation + draw.choice((0, 0, 0, 0, 1, -1))
    sequence = draw.choice((node.state(gpu).sequence + 1, 0, 2**63 - 1, draw.randrange(50)))
    if sequence > 2**62:  # the end of numbers is a case of its own, and ends all others
        sequence = node.state(gpu).sequence + 1 if draw.random() < 0.99 else sequence
    epoch = node.epoch + draw.choice((0, 0, 0, 1, -1))
    watts = some_watts(draw, WILD_WATTS)
    match draw.randrange(11):
        case 10:
            low = draw.choice((100.0, 200.0, 199.999, 400.0))
            high = draw.choice((low, 500.0, 700.0, 1000.001))

            def change_range() -> None:
                node.set_range(gpu, low, high)
                ranges[gpu] = (low, high)

            return f"range {low} to {high}", change_range
        case 0 | 1 | 2 | 3 | 4:
            grant = Grant(
                gpu=draw.choice((gpu, gpu, gpu, "unknown")),
                incarnation=incarnation,
                epoch=max(0, epoch),
                sequence=sequence,
                watts=some_watts(draw),
                brake_w=some_watts(draw),
                lease_s=draw.choice(LEASES_S),
                expiry_w=draw.choice((None, some_watts(draw))),
                budget_version=draw.choice((None, draw.randrange(5))),
            )
            return str(grant), lambda: node.on_grant(grant, now_s)
        case 5:
            adopt = Adopt(gpu=gpu, incarnation=incarnation, epoch=max(0, epoch), sequence=sequence)
            return str(adopt), lambda: node.on_adopt(adopt)
        case 6:
            return f"enforced {watts}", lambda: node.on_enforced(gpu, watts, now_s)
        case 7:
            return f"pin {watts}", lambda: node.pin(gpu, watts)
        case 8:
            return f"restore {watts}", lambda: node.restore(gpu, watts)
        case _:
            happens = (node.brake, lambda: node.tick(now_s), node.resume, lambda: node.resume(gpu))
            return "brake, tick or resume", draw.choice(happens)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A limit that a device was asked for, and its range."""

    watts: float
    low_w: float
    high_w: float

    @property
    def is_out(self) -> bool:
        """Outside the range, or no number."""
        return not self.low_w <= self.watts <= self.high_w


class RecordingDevice(SimulatedDevice):
    """A device that notes what it is asked for before it looks at it."""

    attempts: list[Attempt]

    def write_limit(self, watts: float) -> None:
        """Note it, then try it."""
        product = self._node.gpu(self.identity.uuid).product
        self.attempts.append(Attempt(watts, product.min_w, product.max_w))
        super().write_limit(watts)


class RecordingDriver(SimulatedDriver):
    """Gives out recording devices."""

    def __init__(self, node: SimulatedNode) -> None:
        super().__init__(node)
        self.attempts: list[Attempt] = []

    def enumerate(self) -> Sequence[SimulatedDevice]:
        """All GPUs, as recording devices."""
        found: list[SimulatedDevice] = []
        for device in super().enumerate():
            recording = RecordingDevice(self.node, device.identity, self.node.enumeration)
            recording.attempts = self.attempts
            found.append(recording)
        return found


class Posted:
    """A source of grants that a program fills."""

    def __init__(self) -> None:
        self.post: Callable[[GrantEvent], None] = lambda event: None

    def start(self, post: Callable[[GrantEvent], None]) -> None:
        """Take the way to the agent."""
        self.post = post

    def stop(self) -> None:
        """Nothing runs."""

    def brake_trouble(self) -> str | None:
        """None: there is no brake file."""
        return None

    def age_s(self) -> float | None:
        """Always fresh."""
        return 0.0


class Listing:
    """Pods and owners that a program changes."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self.uuids = uuids
        self.texts: dict[str, str | None] = {}

    def start(self) -> None:
        """Nothing runs."""

    def stop(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is open."""

    def pods(self) -> Sequence[Pod]:
        """Pods as they are now."""
        return [Pod("ns", name, f"uid-{name}", text) for name, text in self.texts.items()]

    def age_s(self) -> float | None:
        """Always fresh."""
        return 0.0

    def failures(self) -> int:
        """None."""
        return 0

    def trouble(self) -> str | None:
        """None."""
        return None

    def owners(self) -> Ownership:
        """Pods dealt out over the GPUs."""
        names = sorted(self.texts)
        held = {
            uuid: frozenset(PodName("ns", name) for name in names[place::3])
            for place, uuid in enumerate(self.uuids)
        }
        return Ownership(OwnerMethod.FILES, {gpu: pods for gpu, pods in held.items() if pods})


def fuzz_agent(
    mode: Mode, cases: int, seed: int, folder: Path
) -> tuple[int, int, int, list[Defect]]:
    """Messages sent, messages refused, limits that devices were asked for, defects."""
    logging.disable(logging.CRITICAL)
    try:
        return run_agent(mode, cases, random.Random(f"{seed}/{mode}"), folder)
    finally:
        logging.disable(logging.NOTSET)


def run_agent(
    mode: Mode, cases: int, draw: random.Random, folder: Path
) -> tuple[int, int, int, list[Defect]]:
    hardware = SimulatedNode(PRODUCTS * 2)
    driver = RecordingDriver(hardware)
    source, listing = Posted(), Listing([gpu.uuid for gpu in hardware.gpus])
    agent = make_agent(mode, folder, driver, source, listing)
    crashes: list[str] = []
    refused = 0
    with living(agent, crashes):
        wait_until(lambda: agent.snapshot is not None or bool(crashes))
        for case in range(cases):
            if crashes:
                break
            disturb(draw, hardware)
            if mode is Mode.GRANTS:
                refused += send_grants(draw, agent, source, hardware)
            else:
                change_pods(draw, agent, listing)
            if draw.random() < 0.02:
                agent.submit(some_command(draw, listing.uuids))
            if case % 5 == 4:
                time.sleep(0.005)
        calm(hardware)
    defects = [("", crash) for crash in crashes]
    if not driver.attempts:
        defects.append(("", "the agent wrote nothing at all: nothing was tested"))
    defects += [
        (str(attempt), "a limit outside the device's range was asked for")
        for attempt in driver.attempts
        if attempt.is_out
    ]
    return cases, refused, len(driver.attempts), defects


def make_agent(
    mode: Mode, folder: Path, driver: RecordingDriver, source: Posted, listing: Listing
) -> Agent:
    settings = AgentSettings(
        node=NODE,
        mode=mode,
        state_dir=folder,
        driver="simulated",
        safe_default_w=500.0,
        readback_s=0.1,
        reconcile_s=1.0,
        hung_s=600.0,
    )
    if mode is Mode.GRANTS:
        return Agent(settings, driver, grants=source)
    return Agent(settings, driver, pods=listing, owners=listing)


@contextmanager
def living(agent: Agent, crashes: list[str]) -> Iterator[None]:
    """Let the agent run meanwhile; how it, or a thread of it, came to a bad end is noted."""

    def live() -> None:
        try:
            agent.run()
        except BaseException as error:
            crashes.append(f"the agent ended with {type(error).__name__}: {error}")

    def died(what: threading.ExceptHookArgs) -> None:
        crashes.append(f"a thread of the agent ended with {what.exc_type.__name__}")

    threading.excepthook = died
    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        yield
    finally:
        agent.stop()
        thread.join(30.0)
        threading.excepthook = threading.__excepthook__
    if thread.is_alive():
        crashes.append("the agent did not stop within 30 s")


def wait_until(reached: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not reached() and time.monotonic() < until:
        time.sleep(0.005)


def disturb(draw: random.Random, hardware: SimulatedNode) -> None:
    """Now and then something happens to the hardware."""
    uuid = draw.choice(hardware.gpus).uuid
    match draw.randrange(60):
        case 0:
            hardware.rival_write(uuid, draw.choice((100.0, 650.0, 5000.0)))
        case 1:
            hardware.clamp(uuid, draw.choice((None, 150.0, 300.0)))
        case 2:
            hardware.fail(uuid, draw.choice(list(GpuFault)), draw.choice(("*", "write_limit")))
        case 3 | 4 | 5:
            calm(hardware)
        case 6 if draw.random() < 0.2:
            hardware.reload()
        case 7 if draw.random() < 0.2:
            hardware.reenumerate(draw.sample(range(len(hardware.gpus)), len(hardware.gpus)))


def calm(hardware: SimulatedNode) -> None:
    for gpu in hardware.gpus:
        hardware.fail(gpu.uuid, None)
        hardware.fail(gpu.uuid, None, "write_limit")
        hardware.clamp(gpu.uuid, None)


def send_grants(draw: random.Random, agent: Agent, source: Posted, hardware: SimulatedNode) -> int:
    """Post one file of grants, through its codec; 1 when the codec refuses it."""
    snapshot = agent.snapshot
    incarnation = 0 if snapshot is None else snapshot.incarnation
    epoch = 1 if snapshot is None or snapshot.epoch is None else max(1, snapshot.epoch)
    send_grants_sequence[0] += 1
    grants = []
    for gpu in draw.sample(hardware.gpus, draw.randint(1, len(hardware.gpus))):
        grant = Grant(
            gpu=gpu.uuid if draw.random() < 0.97 else "GPU-unknown",
            incarnation=incarnation + draw.choice((0, 0, 0, 0, 0, 1)),
            epoch=epoch,
            sequence=send_grants_sequence[0],
            watts=some_watts(draw),
            brake_w=some_watts(draw),
            lease_s=draw.choice(LEASES_S),
            budget_version=draw.choice((None, 1, 2)),
        )
        expiry_w = draw.choice((None, min(grant.watts, some_watts(draw))))
        clock_mhz = draw.choice((None, None, 1, 1200, 100_000))
        grants.append(GpuGrant(grant=replace(grant, expiry_w=expiry_w), clock_mhz=clock_mhz))
    restore = tuple(gpu.uuid for gpu in hardware.gpus if draw.random() < 0.1)
    unique = {entry.grant.gpu: entry for entry in grants}
    file = GrantFile(node=NODE, epoch=epoch, grants=tuple(unique.values()), restore=restore)
    try:
        read = decode_grants(encode_grants(file), node=NODE, where="grants")
        source.post(GrantsRead(read, lease_clock()))
    except WattlineError:
        return 1
    if draw.random() < 0.02:
        source.post(BrakeFile(present=True, budget_version=draw.choice((None, 1, 9))))
        source.post(BrakeFile(present=False))
    return 0


send_grants_sequence = [0]
"""Sequence numbers rise over the whole run, as a coordinator's do."""


def change_pods(draw: random.Random, agent: Agent, listing: Listing) -> None:
    name = f"pod-{draw.randrange(6)}"
    texts = (
        None,
        "400",
        "0",
        "-5",
        "99999",
        "1",
        "999999999",
        "1e9",
        "\ud800",
        "two\nlines",
        "350",
    )
    with suppress(KeyError):
        if draw.random() < 0.3:
            listing.texts = {key: text for key, text in listing.texts.items() if key != name}
        else:
            listing.texts = {**listing.texts, name: draw.choice(texts)}
    agent.pods_changed()


def some_command(draw: random.Random, uuids: Sequence[str]) -> Command:
    gpu = draw.choice((*uuids, "0", "99", "nonsense"))
    return draw.choice(
        (
            Brake(by="fuzz"),
            Hold(by="fuzz", why="fuzz"),
            Pin(by="fuzz", why="fuzz", gpu=gpu, watts=some_watts(draw, WILD_WATTS)),
            Resume(by="fuzz"),
            Resume(by="fuzz", gpu=gpu),
            Restore(by="fuzz", gpu=gpu),
        )
    )
