"""The demonstration on one virtual node: a real agent, a coordinator, a cut, a rival, a brake.

Everything in it is a process of its own or a register, and what is said about limits is read by the
observer from the registers themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattline.core.errors import WattlineError
from wattline.drivers.trusted_files import replace_file
from wattline.virtual.coordinator import BRAKE_DEADLINE_S
from wattline.virtual.gpus import Cause
from wattline.virtual.judge import Known, Verdict, judge
from wattline.virtual.node import VirtualNode
from wattline.virtual.observer import Change, Observer

NODE = "gpu-node-1"
GPUS = 8
GUARD_W = 100.0
FIRST_BUDGET_W = 3700.0
CUT_BUDGET_W = 2700.0
ORIGINAL_W = 650.0
PERIOD_S = 5.0
SETTLE_S = 2.0
NOTICE_S = 3.0
STEP_S = 0.1
FRAME_S = 0.2
_AGENT = (sys.executable, "-c", "from wattline.cli.main import main; main()", "agent", "run")
_COORDINATOR = (sys.executable, "-m", "wattline.virtual.coordinator")


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU as shown: what is granted, what its register enforces, what it draws."""

    index: int
    granted_w: float | None
    enforced_w: float
    draw_w: float
    max_w: float


@dataclass(frozen=True, slots=True)
class Frame:
    """What there is to be seen at one moment."""

    at_s: float
    title: str
    rows: tuple[GpuRow, ...]
    budget_w: float
    booked_w: float | None
    braked: bool


@dataclass(slots=True)
class Outcome:
    """How it ended. `passed`: the exit code."""

    verdict: Verdict
    restored: int
    settled_w: float
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        self.passed = self.verdict.ours_watt_seconds == 0 and self.restored == GPUS


class View:
    """Where it is shown."""

    def frame(self, frame: Frame) -> None:
        """Show the table anew."""

    def event(self, at_s: float, text: str) -> None:
        """Say what happened."""


class Demo:
    """One run in a folder of its own; `close` leaves no process behind."""

    def __init__(self, folder: Path, view: View, seed: int = 7) -> None:
        self._folder = folder
        self._view = view
        self._node = VirtualNode(folder / "node", seed=seed)
        self._gpus = self._node.gpus
        self._uuids = self._gpus.uuids()
        for index, uuid in enumerate(self._uuids):
            self._gpus.write_limit(uuid, ORIGINAL_W)
            self._gpus.set_load(uuid, 690.0 if index < GPUS // 2 else 520.0)
        self._state_dir = folder / "agent"
        self._state_dir.mkdir(mode=0o700)
        (folder / "grants").mkdir()
        self._brake_file = folder / "brake"
        self._restore_file = folder / "restore"
        self._status_file = folder / "status.json"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._known = Known()
        self._version = 0
        self._budget_w = 0.0
        self._title = ""
        self._start_s = time.monotonic()
        self._frame_s = 0.0
        self._observer: Observer | None = None
        self._seed = seed

    # Processes

    def _start(self, name: str, command: Sequence[str], env: dict[str, str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, and we end them in order
            )
        self._processes[name] = process

    def _start_agent(self) -> None:
        settings = {
            "NODE": NODE,
            "MODE": "grants",
            "GRANTS": str(self._folder / "grants"),
            "STATE_DIR": str(self._state_dir),
            "BRAKE_FILE": str(self._brake_file),
            "LISTEN": "127.0.0.1:0",
        }
        env = {f"WATTLINE_AGENT_{name}": value for name, value in settings.items()}
        self._start("agent", _AGENT, self._node.env | env)
        self._known.agents.add(self._processes["agent"].pid)

    def _start_coordinator(self) -> None:
        gpus = {uuid: self._gpus.state(uuid) for uuid in self._uuids}
        spec = {
            "nodes": [
                {
                    "name": NODE,
                    "report": str(self._state_dir / "report.json"),
                    "gpus": {
                        uuid: [state.min_w, state.max_w, state.default_w]
                        for uuid, state in gpus.items()
                    },
                }
            ],
            "grants_dir": str(self._folder / "grants"),
            "budget": str(self._folder / "budget.json"),
            "log": str(self._folder / "grants.log"),
            "status": str(self._status_file),
            "restore": str(self._restore_file),
            "seed": self._seed,
            "period_s": PERIOD_S,
            "settle_s": SETTLE_S,
            "lease_s": 30.0,
            "brake_w": 200.0,
        }
        path = self._folder / "spec.json"
        path.write_text(json.dumps(spec))
        self._start("coordinator", (*_COORDINATOR, str(path)), {})

    def _check_processes(self) -> None:
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                log = (self._folder / f"{name}.log").read_text(errors="replace")
                lines = log.strip().splitlines() or ["(it said nothing)"]
                raise WattlineError(f"the {name} ended with exit code {code}: {lines[-1]}")

    def close(self) -> None:
        """End what still runs, and let go of the node."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        self._node.close()

    # What is shown

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._start_s

    def _say(self, text: str) -> None:
        self._view.event(self._now_s, text)

    def _status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._status_file.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def _show(self) -> None:
        said = self._status()
        granted = said.get("gpus", {})
        rows = []
        for index, uuid in enumerate(self._uuids):
            state = self._gpus.state(uuid)
            granted_w = granted.get(uuid, {}).get("granted_w")
            rows.append(GpuRow(index, granted_w, state.enforced_w, state.draw_w, state.max_w))
        self._view.frame(
            Frame(
                self._now_s,
                self._title,
                tuple(rows),
                self._budget_w,
                said.get("booked_w"),
                self._brake_file.exists(),
            )
        )

    def _pump(self, seconds: float) -> None:
        """Let so much time pass, and show it."""
        end_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < end_s:
            self._check_processes()
            if now_s - self._frame_s >= FRAME_S:
                self._frame_s = now_s
                self._show()
            time.sleep(min(STEP_S, max(0.0, end_s - now_s)))

    def _pump_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end_s:
                raise WattlineError(f"after {timeout_s:g} s: {what} has not come about")
            self._pump(STEP_S)

    # What happens

    @property
    def _enforced_w(self) -> float:
        return sum(self._gpus.enforced_mw(uuid) for uuid in self._uuids) / 1000

    def _set_budget(self, watts: float, lead_s: float = 0.0) -> None:
        now_s = time.monotonic()
        self._version += 1
        judged_s = now_s
        if watts < self._budget_w:
            judged_s += max(lead_s, BRAKE_DEADLINE_S)
        self._budget_w = watts
        self._known.budgets.append((judged_s, round(watts * 1000)))
        content = {
            "version": self._version,
            "watts": watts,
            "guard_w": GUARD_W,
            "effective_s": now_s + lead_s,
        }
        replace_file(self._folder / "budget.json", json.dumps(content).encode(), durable=False)

    def _after(self, at_s: float) -> list[Change]:
        """Changes of limits that the observer has seen since `at_s`."""
        assert self._observer is not None
        return [each for each in list(self._observer.changes) if each.at_s >= at_s]

    def run(self) -> Outcome:
        """All of it, in about half a minute. WattlineError when a process ends early."""
        self._begin()
        self._title = f"the plan moves watts between two halves every {PERIOD_S:.0f} s"
        self._pump(10.0)
        self._cut()
        self._pump(3.5)
        self._rival()
        self._brake()
        return self._end()

    def _begin(self) -> None:
        self._title = "starting"
        found_w = self._enforced_w
        self._set_budget(FIRST_BUDGET_W)
        self._say(
            f"{GPUS} virtual H100 at {found_w:.0f} W, budget {FIRST_BUDGET_W:.0f} W, "
            f"guard band {GUARD_W:.0f} W"
        )
        self._start_agent()
        self._start_coordinator()

        def under() -> bool:
            proven = self._status().get("proven") == GPUS
            drawn_w = sum(self._gpus.state(uuid).draw_w for uuid in self._uuids)
            return proven and max(self._enforced_w, drawn_w) + GUARD_W <= self._budget_w

        self._pump_until(under, 30.0, "a fleet under its budget")
        self._observer = Observer({NODE: self._node.gpus_file})
        self._known.budgets = [(self._observer.start_s, round(self._budget_w * 1000))]
        self._observer.start()
        self._say(f"agent and coordinator up, {self._enforced_w:.0f} W enforced: observed now")

    def _until_used(self) -> None:
        usable_w = self._budget_w - GUARD_W
        self._pump_until(lambda: self._enforced_w > 0.95 * usable_w, 15.0, "a used budget")

    def _cut(self) -> None:
        self._until_used()
        self._title = f"the budget is cut to {CUT_BUDGET_W:.0f} W, in force in {NOTICE_S:.0f} s"
        self._say(
            f"CUT  budget {self._budget_w:.0f} W to {CUT_BUDGET_W:.0f} W, "
            f"in force in {NOTICE_S:.0f} s"
        )
        start_s = time.monotonic()
        self._set_budget(CUT_BUDGET_W, lead_s=NOTICE_S)
        self._pump_until(lambda: self._enforced_w + GUARD_W <= CUT_BUDGET_W, 10.0, "the cut")
        last_s = max((each.at_s for each in self._after(start_s)), default=start_s)
        self._say(f"     limits are under it {_ms(last_s - start_s)} after the announcement")

    def _rival(self) -> None:
        uuid = self._uuids[3]
        self._until_used()
        self._title = "another writer raises GPU 3 to 700 W"
        start_s = time.monotonic()
        before_w = self._gpus.enforced_mw(uuid) / 1000
        self._gpus.write_limit(uuid, 700.0, Cause.RIVAL)
        self._known.told.append(("rival writer", NODE, (start_s, time.monotonic())))
        self._say(f"RIVAL  another writer raises GPU 3 from {before_w:.0f} W to 700 W")
        self._pump_until(
            lambda: self._gpus.enforced_mw(uuid) < 700_000, 10.0, "the repair of a rival's limit"
        )
        mended = next(
            each for each in self._after(start_s) if each.gpu == uuid and each.cause == "nvml"
        )
        self._say(
            f"     the agent wrote {mended.enforced_mw / 1000:.0f} W again "
            f"{mended.at_s - start_s:.2f} s later: exposure, not ours"
        )
        self._pump(3.0)

    def _brake(self) -> None:
        self._title = "brake: every GPU to 200 W at once, then the plan climbs back"
        start_s = time.monotonic()
        content = json.dumps({"budget_version": self._version}).encode()
        replace_file(self._brake_file, content, durable=False)
        self._say("BRAKE  the brake file is there")
        self._pump_until(
            lambda: all(self._gpus.enforced_mw(uuid) <= 200_000 for uuid in self._uuids),
            10.0,
            "the brake",
        )
        braked_s = max((each.at_s for each in self._after(start_s)), default=start_s)
        self._say(f"     {GPUS} GPUs at 200 W or below {_ms(braked_s - start_s)} later")
        self._pump(2.0)
        released_s = time.monotonic()
        self._brake_file.unlink()
        self._say("     the brake is released")
        usable_w = CUT_BUDGET_W - GUARD_W
        self._pump_until(lambda: self._enforced_w > 0.9 * usable_w, 15.0, "the climb back")
        self._say(
            f"     back at {self._enforced_w:.0f} W after {time.monotonic() - released_s:.1f} s"
        )
        self._pump(2.5)

    def _end(self) -> Outcome:
        assert self._observer is not None
        self._title = "every original limit is given back, by grants that book it"
        self._say(f"RELEASE  budget {GPUS * 700 + GUARD_W:.0f} W: originals are granted")
        settled_w = self._enforced_w
        self._set_budget(GPUS * 700 + GUARD_W)
        self._restore_file.touch()

        def back() -> int:
            return sum(self._gpus.enforced_mw(uuid) == ORIGINAL_W * 1000 for uuid in self._uuids)

        with contextlib.suppress(WattlineError):  # the count below is the answer
            self._pump_until(lambda: back() == GPUS, 10.0, "the restore")
        self._say(f"     {back()} of {GPUS} GPUs at their original {ORIGINAL_W:.0f} W")
        self._pump(0.5)
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(15.0)
        self._processes.clear()
        self._observer.stop()
        observer = self._observer
        verdict = judge(
            observer.changes,
            self._known,
            observer.start_mw,
            observer.start_s,
            time.monotonic(),
            round(GUARD_W * 1000),
        )
        self._show()
        return Outcome(verdict, back(), settled_w)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def verdict_lines(outcome: Outcome) -> list[str]:
    """What came of it, for people."""
    verdict = outcome.verdict
    lines = [
        f"limits above the budget by our doing: {verdict.ours_watt_seconds:.1f} W·s, "
        f"of {verdict.changes} changes of limits",
    ]
    for each in verdict.exposures:
        lines.append(
            f"exposure by {each.kind}: {each.watt_seconds:.0f} W·s, at most {each.peak_w:.0f} W, "
            f"for {each.over_s:.2f} s"
        )
    if not verdict.exposures:
        lines.append("exposure by outside events: none above the budget")
    lines.append(f"original limits given back: {outcome.restored} of {GPUS}")
    lines.append("OK: the budget held" if outcome.passed else "FAILED: see above")
    return lines
