"""Compare our restatement of Dynamo's budget clamps with the release itself, on random cases.

    python bench/dynamo_clamp.py                  # where ai-dynamo 1.6.1 is importable
    python bench/dynamo_clamp.py --with-dynamo    # builds .cache/dynamo-1.6.1 first (1.3 GB)
    python bench/dynamo_clamp.py --python FILE    # asks that interpreter

Prints one line per compared function and the first differences, and how often the rule of our
planner plugin answers something else than the clamp, and why. Exit code 1 if a restated function
differs, or if a difference of the plugin is none of those that are on purpose. The release runs in
a process of its own (`dynamo_clamp_worker.py`) and answers cases as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from dynamo_clamp_plugin import Why, why
from wattline.core.errors import InfeasibleError
from wattline.live.environment import RELEASE, build
from wattline.sim.policies.dynamo_boundary import clamp_gpu_pair, clamp_gpu_single
from wattline.sim.policies.dynamo_budget import (
    Roles,
    apply_power_budget,
    fit_directional,
    minimum_fits,
    peak_watts,
    project_watts,
    shrink_pair,
)

HERE = Path(__file__).resolve().parent

Case = dict[str, Any]
INFEASIBLE = "infeasible"


def random_cases(count: int, seed: int) -> list[Case]:
    """Draw cases: up to 24 replicas, one or two roles, unknown counts, tight and loose budgets."""
    draw = random.Random(seed)
    return [_power_case(draw) if index % 2 else _gpu_case(draw) for index in range(count)]


def _power_case(draw: random.Random) -> Case:
    most = draw.choice([3, 6, 12, 24])
    watts: list[int | None] = [
        draw.choice([300, 400, 700, 800, 1000, 1200, 2800, 5600, draw.randint(1, 3000)])
        for _ in range(2)
    ]
    proposed: list[int | None] = [draw.randint(0, most) for _ in range(2)]
    current: list[int | None] = [draw.randint(0, most) for _ in range(2)]
    minimum = draw.choice([[1, 1], [1, 1], [1, 1], [2, 1], [1, 3], [2, 2]])
    if draw.random() < 0.4:
        proposed[draw.randrange(2)] = None
    if draw.random() < 0.1:
        current[draw.randrange(2)] = None
    if draw.random() < 0.1:
        side = draw.randrange(2)
        watts[side] = proposed[side] = current[side] = None
    ceiling = most * sum(w or 0 for w in watts)
    return {
        "kind": "power",
        "proposed": proposed,
        "current": current,
        "watts": watts,
        "minimum": minimum,
        "budget": draw.randint(1, max(2, ceiling)),
    }


def _gpu_case(draw: random.Random) -> Case:
    minimum = draw.choice([[1, 1], [2, 1], [1, 2]])
    gpus = [draw.choice([1, 2, 4, 8]) for _ in range(2)]
    high = draw.choice([-1, draw.randint(1, 80)])
    low = draw.choice([-1, draw.randint(1, 40)])
    return {
        "kind": "gpu",
        "proposed": [draw.randint(minimum[0], 12), draw.randint(minimum[1], 12)],
        "current": [draw.randint(0, 12), draw.randint(0, 12)],
        "gpus": gpus,
        "minimum": minimum,
        "band": [min(low, high) if high >= 0 else low, high],
    }


def ours(case: Case) -> dict[str, Any]:
    """Return our answers, keyed by the name of the release's function."""
    if case["kind"] == "gpu":
        return _our_gpus(case)
    proposed, current = tuple(case["proposed"]), tuple(case["current"])
    roles = Roles(
        prefill_watts=case["watts"][0],
        decode_watts=case["watts"][1],
        prefill_min=case["minimum"][0],
        decode_min=case["minimum"][1],
    )
    try:
        targets, reason = apply_power_budget(proposed, current, roles, case["budget"])
        clamped: Any = [*targets, None if reason is None else reason.value]
    except InfeasibleError:
        clamped = INFEASIBLE
    answer = {
        "apply_power_budget": clamped,
        "project_watts": project_watts(proposed, roles),
        "peak_parallel_watts": peak_watts(current, proposed, roles),
        "minimum_power_footprint_fits": minimum_fits(case["budget"], roles),
    }
    if None not in case["watts"] and None not in proposed:
        try:
            answer["_shrink_pair"] = list(shrink_pair(proposed, roles, case["budget"]))
        except InfeasibleError:
            answer["_shrink_pair"] = INFEASIBLE
    return answer


def _our_gpus(case: Case) -> dict[str, Any]:
    proposed, gpus, minimum = tuple(case["proposed"]), tuple(case["gpus"]), tuple(case["minimum"])
    low, high = case["band"]
    answer: dict[str, Any] = {
        "proportional_clamp_pair": list(clamp_gpu_pair(proposed, gpus, high, minimum)),
        "proportional_clamp_single": clamp_gpu_single(
            proposed[0], gpus[0], (low, high), minimum[0]
        ),
    }
    current = tuple(case["current"])
    present = current[0] * gpus[0] + current[1] * gpus[1]
    if 0 <= present <= high:
        fitted = fit_directional(current, proposed, gpus, high, minimum)
        answer["fit_directional_budget_pair"] = list(fitted)
    return answer


def theirs(python: Path, cases: list[Case]) -> list[dict[str, Any]]:
    """Ask the release in its own process."""
    done = subprocess.run(
        [str(python), str(HERE / "dynamo_clamp_worker.py")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SystemExit(
            f"{python}: {lines[-1] if lines else 'no output'}: the release cannot be imported; "
            "run with --with-dynamo to build an environment for it"
        )
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--with-dynamo", action="store_true", help="build its environment first")
    parser.add_argument("--python", type=Path, help="interpreter that has the release")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the counts here")
    options = parser.parse_args()
    python = options.python or Path(sys.executable)
    if options.with_dynamo:
        python = build(planner=True).python
    cases = random_cases(options.cases, options.seed)
    compared: dict[str, int] = {}
    differing: dict[str, int] = {}
    reasons: Counter[Why] = Counter()
    for case, answers in zip(cases, theirs(python, cases), strict=True):
        mine = ours(case)
        if case["kind"] == "power" and None not in case["watts"]:
            reason = why(case, answers["apply_power_budget"])
            reasons[reason] += 1
            if reason is Why.UNEXPLAINED and reasons[reason] <= 3:
                print(f"unexplained: {case}: theirs {answers['apply_power_budget']}")
        for name in sorted(mine.keys() & answers.keys()):
            compared[name] = compared.get(name, 0) + 1
            if mine[name] != answers[name]:
                differing[name] = differing.get(name, 0) + 1
                if differing[name] <= 3:
                    print(f"differs: {name} {case}: ours {mine[name]}, theirs {answers[name]}")
    print(f"{'function of ai-dynamo ' + RELEASE:<36} {'cases':>8} {'differ':>8}")
    for name, count in compared.items():
        print(f"{name:<36} {count:>8} {differing.get(name, 0):>8}")
    print(f"{'the rule of the plugin, both roles there':<100} {'cases':>8}")
    for reason, count in reasons.most_common():
        print(f"{reason.value:<100} {count:>8}")
    if options.json is not None:
        report = {
            "release": RELEASE,
            "compared": compared,
            "differing": differing,
            "plugin": {reason.name.lower(): count for reason, count in reasons.items()},
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if differing or reasons[Why.UNEXPLAINED] else 0


if __name__ == "__main__":
    sys.exit(main())
