"""A campaign of random faults on real agents over virtual nodes, watched from outside.

    python bench/faults.py                         # 1,000 faults, a few minutes
    python bench/faults.py --faults 40 --jobs 2    # a short one
    python bench/faults.py --seed 7 --json FILE    # another one; also write everything as JSON

Each cell is two virtual nodes of four GPUs with real `wattline agent` processes over the virtual
NVML library, and a coordinator process that moves watts among the eight GPUs under one budget;
cells run side by side. Every fifth cell has pods with annotations instead, and no budget. An
observer in a thread of its own reads the registers' own log of changes, which misses nothing, and
charges every watt-second above the budget in force to an outside event that the injector has told
of, to a cut, or, if neither explains it, to us. Exit code 1 unless ours is 0, every exposure ended
in the stated time, every cell came to rest, and all originals were given back.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults_base import CellSettings
from faults_report import summary, table
from faults_run import CellResult, run_cell
from wattline.virtual.build import build

FAULTS_PER_CELL = 63
ANNOTATED_EVERY = 5
"""Of so many cells one has annotations instead of grants: no budget, but originals to give back."""


def _work(settings: CellSettings, answers: Any) -> None:
    """In a process of its own: run one cell and send what came of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cell ends its processes
    try:
        result = run_cell(settings, lambda done: answers.put((settings.seed, done, None)))
    except BaseException:
        result = CellResult(settings.seed, settings.mode)
        result.failures.append(traceback.format_exc())
    answers.put((settings.seed, settings.faults, result))


def _clock_shim(folder: Path) -> Path | None:
    """Build the library that moves one process's wall clock; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    shim = folder / "clock_shift.so"
    source = Path(__file__).with_name("clock_shift.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(shim), str(source)], check=True)
    return shim


def _cells(options: argparse.Namespace, folder: Path) -> list[CellSettings]:
    shim = _clock_shim(folder)
    cells: list[CellSettings] = []
    left = options.faults
    per_cell = min(FAULTS_PER_CELL, -(-options.faults // options.jobs))
    while left > 0:
        number = len(cells)
        cell_folder = folder / f"c{number}"
        cell_folder.mkdir(mode=0o755)
        annotated = options.sabotage is None and number % ANNOTATED_EVERY == ANNOTATED_EVERY - 1
        cells.append(
            CellSettings(
                folder=cell_folder,
                seed=options.seed * 1000 + number,
                faults=min(per_cell, left),
                pause_s=options.pause,
                clock_shim=shim,
                tmpfs=options.disk == "tmpfs",
                sabotage=options.sabotage,
                patience=options.patience,
                mode="annotations" if annotated else "grants",
            )
        )
        left -= per_cell
    return cells


def run(options: argparse.Namespace, folder: Path) -> list[CellResult]:
    """All cells, `jobs` at a time."""
    build()  # once, before several processes want it
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    waiting = _cells(options, folder)
    running: dict[int, Any] = {}
    done: Counter[int] = Counter()
    results: list[CellResult] = []
    start_s = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                settings = waiting.pop(0)
                process = context.Process(target=_work, args=(settings, answers))
                process.start()
                running[settings.seed] = process
            try:
                seed, count, result = answers.get(timeout=1.0)
            except queue.Empty:
                for seed, process in list(running.items()):
                    if process.exitcode not in (None, 0):
                        running.pop(seed)
                        results.append(CellResult(seed, failures=["the cell's process died"]))
                continue
            done[seed] = count
            if result is not None:
                for failure in result.failures:
                    print(f"cell {seed}: {failure}", file=sys.stderr, flush=True)
                results.append(result)
                running.pop(seed).join()
            _progress(sum(done.values()), options.faults, results, time.monotonic() - start_s)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    print(file=sys.stderr)
    return results


def _progress(done: int, faults: int, results: Sequence[CellResult], seconds: float) -> None:
    over = sum(r.verdict.ours_watt_seconds for r in results if r.verdict is not None)
    failures = sum(len(result.failures) for result in results)
    line = (
        f"{done:5d} of {faults} faults, {seconds:5.0f} s, ours {over:.1f} W·s, failures {failures}"
    )
    end = "" if sys.stderr.isatty() else "\n"
    if end and done % 50 and done != faults:
        return
    print(f"\r{line}" if not end else line, end=end, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=3, help="cells side by side")
    parser.add_argument("--pause", type=float, default=0.45, help="mean seconds between faults")
    parser.add_argument("--disk", choices=("tmpfs", "limit"), default="tmpfs")
    parser.add_argument(
        "--sabotage",
        choices=("secret", "trusting"),
        help="show that the observer can fail: raise limits and tell nobody, or run a coordinator "
        "that raises before it has verified; exit code 1 is then the right one",
    )
    parser.add_argument(
        "--patience", type=float, default=1.0, help="factor on stated times, for a slow machine"
    )
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--keep", type=Path, help="keep logs and states in this new folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cells are ended
    start_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    if options.keep is not None:
        options.keep.mkdir()
        folder.rmdir()
        folder = options.keep.resolve()
    try:
        results = run(options, folder)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    figures = summary(results, seed=options.seed, wall_s=time.monotonic() - start_s)
    print(table(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
