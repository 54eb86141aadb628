"""Answers cases with the release's own functions; run by `dynamo_clamp.py` in its environment.

Reads a JSON list of cases from standard input, writes a JSON list of answers to standard output.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from typing import Any

INFEASIBLE = "infeasible"


def answer(budget: Any, case: dict[str, Any]) -> dict[str, Any]:
    return _gpus(budget, case) if case["kind"] == "gpu" else _power(budget, case)


def _power(budget: Any, case: dict[str, Any]) -> dict[str, Any]:
    proposed, current, watts = case["proposed"], case["current"], case["watts"]
    least, limit = case["minimum"], case["budget"]
    try:
        clamped: Any = list(
            budget.apply_power_budget(*proposed, *current, *watts, limit, least[0], least[1])
        )
    except RuntimeError:
        clamped = INFEASIBLE
    found = {
        "apply_power_budget": clamped,
        "project_watts": budget.project_watts(*proposed, *watts),
        "peak_parallel_watts": budget.peak_parallel_watts(*current, *proposed, *watts),
        "minimum_power_footprint_fits": budget.minimum_power_footprint_fits(
            limit, least[0], *watts, least[1]
        ),
    }
    if None not in watts and None not in proposed:
        try:
            found["_shrink_pair"] = list(budget._shrink_pair(*proposed, *watts, limit, *least))
        except RuntimeError:
            found["_shrink_pair"] = INFEASIBLE
    return found


def _gpus(budget: Any, case: dict[str, Any]) -> dict[str, Any]:
    proposed, gpus, least = case["proposed"], case["gpus"], case["minimum"]
    low, high = case["band"]
    return {
        "proportional_clamp_pair": list(
            budget.proportional_clamp_pair(*proposed, *gpus, -1, high, *least)
        ),
        "proportional_clamp_single": budget.proportional_clamp_single(
            proposed[0], gpus[0], low, high, least[0]
        ),
        "fit_directional_budget_pair": list(
            budget.fit_directional_budget_pair(*case["current"], *proposed, *gpus, -1, high, *least)
        ),
    }


def main() -> None:
    budget = importlib.import_module("dynamo.planner.core.budget")
    logging.disable(logging.CRITICAL)
    cases = json.load(sys.stdin)
    json.dump([answer(budget, case) for case in cases], sys.stdout)


if __name__ == "__main__":
    main()
