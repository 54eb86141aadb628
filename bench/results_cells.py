"""The runs behind the results page: one cell per run or search, each kept once it is finished.

A cell's file is named by the digest of everything that its figures depend on: the source of the
package (commands and reports left out), the versions of Python and numpy, the trace's content and
the cell itself. So an interrupted set goes on where it stopped, and a change of the code starts
anew.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import wattline
from wattline.sim.experiment import Experiment, Traffic, prepare
from wattline.sim.fewest import FEWEST, fewest_note, find_fewest, worst_window
from wattline.sim.files import write_text
from wattline.sim.runs import HINDSIGHT, Job, jobs_for, run
from wattline.sim.scenario import load

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "results"
LEFT_OUT = ("cli", "report")
"""Folders of the package that no figure depends on."""

Outcome = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the runs of one experiment share. `load` 0 means `saturate`, `objective` "" its own."""

    scenario: str
    trace: str = ""
    until_s: float | None = None
    load: float = 1.0
    objective: str = ""
    plant: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run; `budget` "" is the scenario's own. `fewest-uncapped` is the whole search."""

    setup: Setup
    policy: str
    budget: str = ""
    pool_caps_w: tuple[float, ...] | None = None


@lru_cache(maxsize=2)
def prepared(setup: Setup) -> Experiment:
    """The experiment of a setup, built once per process while it is in use."""
    scenario = load(setup.scenario)
    changes: dict[str, Any] = {}
    if setup.plant:
        changes["plant"] = scenario.plant.model_copy(update=dict(setup.plant))
    if setup.objective:
        changes["objective"] = setup.objective
    return prepare(
        scenario.model_copy(update=changes),
        Traffic(
            trace=Path(setup.trace) if setup.trace else None,
            until_s=setup.until_s,
            scale_load=setup.load if setup.load else "saturate",
        ),
    )


def splits(setup: Setup, policy: str, budget: str) -> list[Cell]:
    """Every run of a sweep in hindsight; the policy's one run if it is none."""
    if policy not in HINDSIGHT:
        return [Cell(setup=setup, policy=policy, budget=budget)]
    experiment = prepared(setup)
    return [
        Cell(setup=setup, policy=policy, budget=budget, pool_caps_w=job.pool_caps_w)
        for job in jobs_for(experiment, policy, experiment.budget_w(budget or None))
    ]


def run_cell(cell: Cell) -> Outcome:
    """Figures of one cell, without wall time: they are the same wherever it runs."""
    experiment = prepared(cell.setup)
    budget_w = experiment.budget_w(cell.budget or None)
    note, replicas = "", None
    if cell.policy == FEWEST:
        found = find_fewest(experiment, budget_w, workers=1)
        finished, replicas = found.run, list(found.replicas)
        note = fewest_note(experiment, found)
    else:
        finished = run(experiment, Job(cell.policy, budget_w, cell.pool_caps_w))
    figures = asdict(finished.result)
    del figures["wall_s"]
    return {
        "cell": asdict(cell),
        "result": figures,
        "worst_window": worst_window(finished),
        "replicas": replicas,
        "note": note,
        "load_factor": experiment.load_factor,
        "duration_s": experiment.duration_s,
    }


@cache
def source_digest() -> str:
    """Digest of the code and data that figures depend on."""
    digest = hashlib.sha256(f"{platform.python_version()} {np.__version__}".encode())
    package = Path(wattline.__file__).parent
    for path in sorted(package.rglob("*")):
        place = path.relative_to(package)
        if path.suffix in {".py", ".yaml", ".json", ".csv", ".gz"} and not (
            set(place.parts[:-1]) & set(LEFT_OUT)
        ):
            digest.update(f"{place}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _place(kind: str, document: Any, trace: str) -> Path:
    parts = [source_digest(), kind, json.dumps(document, sort_keys=True)]
    if trace:
        parts.append(_file_digest(trace))
    return CACHE / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32] + ".json")


class Store:
    """Finished cells on disk."""

    def _path(self, cell: Cell) -> Path:
        named = replace(cell, setup=replace(cell.setup, trace=Path(cell.setup.trace).name))
        return _place("cell", asdict(named), cell.setup.trace)

    def get(self, cell: Cell) -> Outcome | None:
        """A finished cell, or None."""
        path = self._path(cell)
        if not path.exists():
            return None
        outcome: Outcome = json.loads(path.read_text(encoding="utf-8"))
        return outcome

    def best(self, cells: Sequence[Cell]) -> Outcome | None:
        """The outcome with the highest goodput, of equal ones the fewest joules; None if any lacks.

        The choice of `wattline.sim.runs.best`.
        """
        outcomes = [outcome for cell in cells if (outcome := self.get(cell)) is not None]
        if len(outcomes) < len(cells):
            return None
        return max(
            outcomes,
            key=lambda one: (one["result"]["goodput_rps"], -one["result"]["energy_j"]),
        )

    def fill(self, cells: Sequence[Cell], workers: int) -> None:
        """Run the cells that are missing, in order, over `workers` processes."""
        CACHE.mkdir(parents=True, exist_ok=True)
        missing = [cell for cell in dict.fromkeys(cells) if not self._path(cell).exists()]
        if not missing:
            return
        started = time.monotonic()
        context = get_context("forkserver")
        with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
            waiting: dict[Future[Outcome], Cell] = {
                pool.submit(run_cell, cell): cell for cell in missing
            }
            try:
                for count, future in enumerate(as_completed(waiting), start=1):
                    cell = waiting[future]
                    write_text(self._path(cell), json.dumps(future.result()) + "\n")
                    print(
                        f"{count}/{len(missing)} {time.monotonic() - started:.0f} s: "
                        f"{cell.setup.scenario} {cell.policy} {cell.budget}",
                        file=sys.stderr,
                    )
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def timed(self, name: str, trace: str) -> Path:
        """Where a measured time is kept."""
        return _place("time", name, trace)
