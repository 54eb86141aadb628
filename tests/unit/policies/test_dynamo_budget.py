"""The clamp of Dynamo's planner against golden vectors of the release, and its invariants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.errors import InfeasibleError
from wattline.sim.policies.dynamo_boundary import (
    BoundaryConfig,
    Workers,
    clamp_gpu_pair,
    final_budget,
    final_targets,
)
from wattline.sim.policies.dynamo_budget import (
    Roles,
    apply_power_budget,
    minimum_fits,
    peak_watts,
    project_watts,
    shrink_pair,
)

VECTORS = Path(__file__).parents[2] / "vectors"
CLAMP = json.loads((VECTORS / "dynamo_clamp.json").read_text())
BOUNDARY = json.loads((VECTORS / "dynamo_boundary.json").read_text())


def roles_of(watts: list[int | None], minimum: list[int] | None = None) -> Roles:
    least = minimum or [1, 1]
    return Roles(
        prefill_watts=watts[0], decode_watts=watts[1], prefill_min=least[0], decode_min=least[1]
    )


@pytest.mark.parametrize("row", CLAMP["apply_power_budget"], ids=str)
def test_clamp_gives_the_golden_result(row: list[Any]) -> None:
    proposed, current, watts, budget_w, targets, reason = row
    result = apply_power_budget(tuple(proposed), tuple(current), roles_of(watts), budget_w)
    assert result == (tuple(targets), reason)


@pytest.mark.parametrize(("counts", "watts", "expected"), CLAMP["project_watts"], ids=str)
def test_projection(counts: list[Any], watts: list[Any], expected: int) -> None:
    assert project_watts((counts[0], counts[1]), roles_of(watts)) == expected


@pytest.mark.parametrize(("budget_w", "minimum", "watts", "fits"), CLAMP["minimum_fits"], ids=str)
def test_minimum_footprint(budget_w: int, minimum: list[int], watts: list[Any], fits: bool) -> None:
    assert minimum_fits(budget_w, roles_of(watts, minimum)) is fits


@pytest.mark.parametrize(("current", "proposed", "watts", "peak"), CLAMP["peak_watts"], ids=str)
def test_peak(current: list[Any], proposed: list[Any], watts: list[Any], peak: int) -> None:
    moving = peak_watts((current[0], current[1]), (proposed[0], proposed[1]), roles_of(watts))
    assert moving == peak


@pytest.mark.parametrize(("proposed", "watts", "budget_w", "expected"), CLAMP["shrink_pair"])
def test_shrink(proposed: list[int], watts: list[Any], budget_w: int, expected: Any) -> None:
    pair = (proposed[0], proposed[1])
    if expected == "infeasible":
        with pytest.raises(InfeasibleError, match="minimum footprint"):
            shrink_pair(pair, roles_of(watts), budget_w)
    else:
        assert shrink_pair(pair, roles_of(watts), budget_w) == tuple(expected)


@pytest.mark.parametrize(("proposed", "gpus", "max_gpus", "expected"), CLAMP["clamp_gpu_pair"])
def test_gpu_ceiling_keeps_the_fault_of_the_release(
    proposed: list[int], gpus: list[int], max_gpus: int, expected: list[int]
) -> None:
    clamped = clamp_gpu_pair((proposed[0], proposed[1]), (gpus[0], gpus[1]), max_gpus, (1, 1))
    assert clamped == tuple(expected)


def config_of(case: dict[str, Any]) -> BoundaryConfig:
    return BoundaryConfig(
        mode=case.get("mode", "disagg"),
        roles=roles_of(case["watts"], case.get("minimum")),
        power_budget_w=case["budget_w"],
        min_gpu_budget=case.get("min_gpus", -1),
        max_gpu_budget=case.get("max_gpus", -1),
    )


def workers_of(case: dict[str, Any]) -> Workers:
    return Workers(
        ready=tuple(case["ready"]),
        expected=tuple(case["expected"]),
        scaling=case.get("scaling", False),
    )


@pytest.mark.parametrize("case", BOUNDARY["final_budget"], ids=lambda c: c["case"])
def test_final_budget(case: dict[str, Any]) -> None:
    result = final_budget(tuple(case["proposed"]), workers_of(case), config_of(case))
    assert result.targets == tuple(case["targets"])
    assert result.reason == case["reason"]


@pytest.mark.parametrize("case", BOUNDARY["final_targets"], ids=lambda c: c["case"])
def test_final_targets(case: dict[str, Any]) -> None:
    result = final_targets(
        tuple(case["merged"]), tuple(case["asked"]), workers_of(case), config_of(case)
    )
    assert result.targets == tuple(case["written"])


def test_each_rollout_starts_one_hold() -> None:
    rollouts = BOUNDARY["rollouts"]
    config = config_of(rollouts)
    warnings, holding = 0, False
    for step in rollouts["steps"]:
        result = final_budget(tuple(step["proposed"]), workers_of(step), config)
        assert result.targets == tuple(step["targets"])
        assert result.holding is step["holding"]
        warnings += result.holding and not holding
        holding = result.holding
    assert warnings == rollouts["warnings"]


counts = st.integers(0, 12)
watts = st.integers(1, 3000)


@settings(max_examples=300, derandomize=True)
@given(counts, counts, counts, counts, watts, watts, st.integers(1, 60_000))
def test_clamp_never_raises_a_proposal_and_never_grows_over_the_budget(
    p: int, d: int, ready_p: int, ready_d: int, prefill_w: int, decode_w: int, budget_w: int
) -> None:
    roles = roles_of([prefill_w, decode_w])
    current = (ready_p, ready_d)
    if not minimum_fits(budget_w, roles):
        return
    (new_p, new_d), _ = apply_power_budget((p, d), current, roles, budget_w)
    assert new_p is not None
    assert new_d is not None
    assert new_p <= max(p, ready_p)
    assert new_d <= max(d, ready_d)
    if project_watts(current, roles) <= budget_w:
        assert peak_watts(current, (new_p, new_d), roles) <= budget_w
    elif new_p > ready_p or new_d > ready_d:
        assert project_watts((new_p, new_d), roles) <= budget_w


@settings(max_examples=200, derandomize=True)
@given(counts, counts, counts, watts, watts, st.integers(1, 60_000), st.integers(0, 20_000))
def test_more_budget_never_gives_fewer_replicas_once_the_minimum_fits(
    p: int, ready_p: int, ready_d: int, prefill_w: int, decode_w: int, spare_w: int, more_w: int
) -> None:
    roles = roles_of([prefill_w, decode_w])
    budget_w = prefill_w + ready_d * decode_w + spare_w
    (tight, _), _ = apply_power_budget((p, None), (ready_p, ready_d), roles, budget_w)
    (loose, _), _ = apply_power_budget((p, None), (ready_p, ready_d), roles, budget_w + more_w)
    assert tight is not None
    assert loose is not None
    assert loose >= tight
