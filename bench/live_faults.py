"""Faults on a whole live deployment of real processes, under load, one after another.

    python bench/live_faults.py                          # all of them, some eight minutes
    python bench/live_faults.py --only cut --only worker-killed
    python bench/live_faults.py --sabotage secret        # show that it can fail
    python bench/live_faults.py --json FILE --keep FOLDER

Two Dynamo frontends, four workers, two virtual nodes with their agents, the controller and
Prometheus run as processes; a steady load is sent to both frontends. Each fault begins at rest. An
observer reads every change of every limit from the registers' own log and charges watt-seconds
above the budget less its guard band to a cut or, if that does not explain them, to us. Exit code 1
unless ours is 0, all recovered, and each fault was named by the controller where it should be;
3 where Dynamo's environment is not built. `planner` is a smaller stack beside Dynamo's own planner,
whose plugin answers from the controller's plan.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from live_faults_cases import CASES, recording_replays
from live_faults_planner import planner_faults
from live_faults_run import FaultStack, Harness, Load, Outcome, spec, summary
from wattline.live import environment

PLANNER = "planner"
SECONDS_EACH = 60.0
"""For so long per fault the load lasts; it is ended with the last fault."""


def carry_out(
    names: list[str], folder: Path, found: environment.Environment, sabotage: str | None = None
) -> list[Outcome]:
    """The faults of these names on one stack in `folder`."""
    with FaultStack(folder / "stack", spec(), found) as stack:
        stack.ready()
        run = Harness(stack, Load(stack, SECONDS_EACH * (len(names) + 1)), sabotage)
        try:
            for name in names:
                print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
                outcome = CASES[name](run)
                said = "; ".join(outcome.failures) or f"recovered in {outcome.recover_s:.1f} s"
                print(said, file=sys.stderr, flush=True)
            run.finish()
            run.outcomes[-1].failures += recording_replays(run)
        finally:
            run.close()
    return run.outcomes


def table(outcomes: list[Outcome]) -> str:
    """One line per fault."""
    head = (
        f"{'fault':28} {'ours W·s':>8} {'cut W·s':>8} {'cut s':>6} {'lost':>9} {'shed':>5} "
        f"{'recovered s':>11} {'pause s':>8}"
    )
    lines = [head]
    for each in outcomes:
        recovered = "never" if each.recover_s is None else f"{each.recover_s:.1f}"
        lost = f"{each.lost} of {each.sent}"
        lines.append(
            f"{each.fault:28} {each.ours_ws:8.1f} {each.cut_ws:8.1f} {each.cut_s:6.2f} {lost:>9} "
            f"{each.shed:5} {recovered:>11} {each.pause_s:8.1f}"
        )
        lines += [f"    {failure}" for failure in each.failures]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [*CASES, PLANNER]
    parser.add_argument("--only", action="append", choices=names, help="may be repeated")
    parser.add_argument(
        "--sabotage",
        choices=("secret",),
        help="raise limits in a cut and tell nobody; exit code 1 is then the right one",
    )
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--keep", type=Path, help="keep logs and states in this new folder")
    options = parser.parse_args()
    found = environment.find()
    if found is None:
        print("Dynamo is not built: `python -m wattline.live.environment`", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended
    folder = Path(tempfile.mkdtemp(prefix="live-faults-")) if options.keep is None else options.keep
    folder = folder.absolute()
    try:
        folder.mkdir(exist_ok=True)
        wanted = options.only or names
        cases = [name for name in wanted if name != PLANNER]
        outcomes = carry_out(cases, folder, found, options.sabotage) if cases else []
        if PLANNER in wanted:
            outcomes += planner_faults(folder)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    figures = summary(outcomes)
    print(table(outcomes))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
