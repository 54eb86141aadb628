"""Runs one cell of a campaign from start to end, and says what came of it."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import faults_agent
import faults_annotated
import faults_gpu
import faults_grants
from faults_annotated import AnnotatedCell
from faults_base import Cell, CellNode, CellSettings
from faults_cell import GrantsCell
from wattline.virtual.judge import Verdict, judge

C = TypeVar("C", bound=Cell)
Injections = dict[str, tuple[float, Callable[[CellNode], str | None]]]
"""Per kind of fault: its weight, and what injects it into a node (None: not at present)."""

REST_S = 40.0
"""Within so long after the last fault everything must be at rest again, and given back if asked."""


@dataclass(slots=True)
class CellResult:
    """What came of one cell. `failures`: what must not be; empty is a pass."""

    seed: int
    mode: str = "grants"
    changes: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    told: list[tuple[float, str, str, str]] = field(default_factory=list)
    """(seconds since the start, node, kind, detail) of each fault."""
    verdict: Verdict | None = None
    failures: list[str] = field(default_factory=list)
    observed_s: float = 0.0
    samples: int = 0
    longest_gap_s: float = 0.0
    agent_starts: int = 0
    coordinator_starts: int = 0
    rest_s: float | None = None
    originals: int = 0
    """GPUs whose original limit was in force at the end."""
    originals_as_found: int = 0
    """The same, of agents whose journal was damaged: what they found after that."""
    gpus: int = 0
    disk: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def run_cell(settings: CellSettings, progress: Callable[[int], None]) -> CellResult:
    """Inject `settings.faults` faults; `progress` hears of each."""
    result = CellResult(settings.seed, settings.mode, gpus=settings.nodes * settings.gpus)
    if settings.mode == "grants":
        under_grants = GrantsCell(settings)
        faults = {
            **_bound(under_grants, faults_agent.KINDS),
            **_bound(under_grants, faults_gpu.KINDS),
            **_bound(under_grants, faults_grants.KINDS),
        }
        with contextlib.closing(under_grants):
            _inject(under_grants, faults, result, progress)
            _finish_grants(under_grants, result)
    else:
        annotated = AnnotatedCell(settings)
        faults = {
            **_bound(annotated, faults_agent.KINDS),
            **_bound(annotated, faults_gpu.KINDS),
            **_bound(annotated, faults_annotated.KINDS),
        }
        with contextlib.closing(annotated):
            _inject(annotated, faults, result, progress)
            _finish_annotated(annotated, result)
    return result


def _bound(
    cell: C, kinds: Mapping[str, tuple[float, Callable[[C, CellNode], str | None]]]
) -> Injections:
    return {name: (weight, partial(fault, cell)) for name, (weight, fault) in kinds.items()}


def _inject(
    cell: Cell, faults: Injections, result: CellResult, progress: Callable[[int], None]
) -> None:
    cell.begin()
    assert cell.observer is not None
    result.disk = "tmpfs" if cell.nodes[0].disk.mounted else "file-size limit"
    choice = random.Random(cell.settings.seed)
    names = list(faults)
    weights = [faults[name][0] for name in names]
    done = 0
    if cell.settings.sabotage == "secret":
        cell.later(1.0, cell.raise_in_secret)
    while done < cell.settings.faults:
        name = choice.choices(names, weights)[0]
        node = choice.choice(cell.nodes)
        at_s = time.monotonic() - cell.observer.start_s
        detail = faults[name][1](node)
        if detail is None:
            cell.pump(0.02)
            continue
        done += 1
        result.faults[name] = result.faults.get(name, 0) + 1
        result.told.append((round(at_s, 3), node.name, name, detail))
        progress(done)
        cell.pump(choice.expovariate(1.0 / cell.settings.pause_s))


def _heal(cell: Cell, result: CellResult, state: Callable[[], object]) -> None:
    """End all faults, and see that everything comes to rest."""
    cell.heal()
    healed_s = time.monotonic()
    if cell.pump_until(cell.at_rest, REST_S):
        result.rest_s = time.monotonic() - healed_s
    else:
        result.failures.append(f"not at rest {REST_S:g} s after the last fault: {state()}")


def _end_observation(cell: Cell, result: CellResult, end_s: float) -> None:
    observer = cell.observer
    assert observer is not None
    observer.stop()
    result.observed_s = end_s - observer.start_s
    result.samples, result.longest_gap_s = observer.samples, observer.longest_gap_s
    result.agent_starts = sum(node.agent.starts for node in cell.nodes)
    result.failures += cell.unexpected
    result.failures += [line for node in cell.nodes for line in node.agent.unexpected]


def _finish_annotated(cell: AnnotatedCell, result: CellResult) -> None:
    """Heal, wait for rest, take all pods away, end the agents: originals must be back."""
    _heal(cell, result, cell.wrong)
    cell.remove_pods()
    assert cell.observer is not None
    others = {each.gpu for each in cell.observer.changes if each.pid not in cell.known.agents}
    for node in cell.nodes:
        facts = node.agent.facts()
        code = node.agent.end()
        if code != 0:
            result.failures.append(f"agent of {node.name} ended with {code} at the end")
        for uuid in node.uuids:
            wanted_w = node.original_w[uuid]
            enforced_w = node.virtual.gpus.enforced_mw(uuid) / 1000
            if uuid in others or node.journal_lost:
                # What another writer left there while the agent did not manage the GPU, or what
                # was found after the journal was lost, is the original then; none: not managed.
                original_w = facts.get(uuid, {}).get("original_w")
                wanted_w = enforced_w if original_w is None else original_w
            if enforced_w != wanted_w:
                result.failures.append(f"{uuid} at {enforced_w} W after shutdown, not {wanted_w}")
            elif wanted_w == node.original_w[uuid]:
                result.originals += 1
            else:
                result.originals_as_found += 1
    _end_observation(cell, result, time.monotonic())
    result.changes = len(cell.observer.changes)
    result.failures += [
        f"{change.gpu} was written, and no pod on it had ever opted in: {change}"
        for change in cell.observer.changes
        if change.gpu in cell.left_alone and change.pid in cell.known.agents
    ]


def _finish_grants(cell: GrantsCell, result: CellResult) -> None:
    """Heal, wait for rest, give everything back, end everything, judge."""
    _heal(cell, result, cell.status)
    end_s = time.monotonic()
    _give_back(cell, result)
    _end_agents(cell, result)
    _end_observation(cell, result, end_s)
    observer = cell.observer
    assert observer is not None
    for node in cell.nodes:
        cell.end_unmanaged(node)
    for place in (cell.coordinator_hindered, *(node.agent.hindered for node in cell.nodes)):
        place.end_all()
    changes = [change for change in observer.changes if change.at_s <= end_s]
    guard_mw = round(cell.settings.guard_w * 1000)
    verdict = judge(changes, cell.known, observer.start_mw, observer.start_s, end_s, guard_mw)
    result.verdict = verdict
    result.changes = verdict.changes
    result.coordinator_starts = cell.coordinator.starts
    if verdict.ours_watt_seconds > 0:
        result.failures.append(
            f"{verdict.ours_watt_seconds:.1f} W·s above the budget by us: {verdict.ours[:3]}"
        )
    result.failures += [
        f"exposure by {each.kind} on {each.node} at {each.start_s:.1f} s was repaired late: "
        f"{each.able_s:.2f} s of {each.over_s:.2f} s with nothing in the way"
        for each in verdict.exposures
        if each.able_s > each.stated_s * cell.settings.patience
    ]


def _give_back(cell: GrantsCell, result: CellResult) -> None:
    """Every GPU gets its original limit by a grant that books it.

    A journal that was lost took the true original with it: its agent can only give back what it
    found when it wrote first after that, and says so.
    """
    cell.release()

    def missing() -> dict[str, tuple[float, str]]:
        left = {}
        for node in cell.nodes:
            facts = node.agent.facts()
            for uuid in node.uuids:
                enforced_w = node.virtual.gpus.enforced_mw(uuid) / 1000
                said = facts.get(uuid, {})
                back = node.journal_lost or enforced_w == node.original_w[uuid]
                if said.get("reason") != "restored" or not back:
                    left[uuid] = (enforced_w, str(said.get("reason")))
        return left

    cell.pump_until(lambda: not missing(), REST_S)
    cell.pump(0.5)
    for node in cell.nodes:
        back = len(set(node.uuids) - set(missing()))
        if node.journal_lost:
            result.originals_as_found += back
        else:
            result.originals += back
    if missing():
        result.failures.append(f"not given back (enforced, why): {missing()}")


def _end_agents(cell: GrantsCell, result: CellResult) -> None:
    before = {
        uuid: node.virtual.gpus.enforced_mw(uuid) for node in cell.nodes for uuid in node.uuids
    }
    for node in cell.nodes:
        code = node.agent.end()
        if code != 0:
            result.failures.append(f"agent of {node.name} ended with {code} at the end")
        for uuid in node.uuids:
            if node.virtual.gpus.enforced_mw(uuid) != before[uuid]:
                result.failures.append(f"{uuid}: its limit changed when its agent ended")
