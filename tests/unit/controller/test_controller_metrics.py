"""The controller's metrics: one catalogue, what is on the page, what the reference says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from controller_world import World
from prometheus_client.parser import text_string_to_metric_families

from wattline.agent.metric_catalogue import CATALOGUE as AGENT_CATALOGUE
from wattline.controller.metric_catalogue import CATALOGUE, DYNAMO, NOT_EXPORTED
from wattline.controller.metrics import exposition
from wattline.controller.model_alternatives import Alternative
from wattline.controller.models_view import DISABLED_REASONS, DeploymentModels, ModelsView
from wattline.controller.view import TickView
from wattline.core.calibration.factors import Factors
from wattline.core.calibration.state import DeploymentCalibration, Pegged, RoleCalibration
from wattline.core.fleet import Role

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "dynamo_power_metrics.json").read_text())
Page = dict[str, dict[tuple[tuple[str, str], ...], float]]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.start()
    yield world
    world.stop()


def view_of(world: World) -> TickView:
    world.run(3)
    view = world.assembly.controller.view
    assert view is not None
    return view


def page_of(world: World, view: TickView | None) -> Page:
    text = exposition(lambda: view, world.assembly.controller.parts.site.fleet)().decode()
    page: Page = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                key = tuple(sorted(sample.labels.items()))
                page.setdefault(sample.name, {})[key] = sample.value
    return page


def with_calibration(view: TickView, *deployments: DeploymentCalibration) -> TickView:
    assert view.decision is not None
    assert view.decision.next_state is not None
    state = replace(view.decision.next_state, calibration=deployments)
    return replace(view, decision=replace(view.decision, next_state=state))


CALIBRATION = DeploymentCalibration(
    roles=(
        RoleCalibration(
            role=Role.PREFILL,
            factors=Factors(ttft=1.4, power=0.8),
            in_force=Factors(ttft=1.4),
            windows=7,
            pegged=Pegged(ttft=2),
        ),
        RoleCalibration(
            role=Role.DECODE,
            factors=Factors(itl=1.2, power=2.0),
            in_force=Factors(itl=1.2, power=2.0),
            pegged=Pegged(power=3),
        ),
    )
)
SWEPT = DeploymentModels(
    name="chat",
    configured=True,
    source="aic",
    consecutive_failures=2,
    exceptions=3,
    sweeps=5,
    regressions=1,
    disabled_reason="startup_exception",
    clamped_decode=4,
    age_s=12.0,
    alternatives=(Alternative(pool="decode", gpus_per_replica=2, speedup=1.25),),
)


def test_every_published_name_is_there_with_its_labels() -> None:
    ours = {metric.name: metric for metric in CATALOGUE}
    for name, (kind, labels) in VECTORS["planner"].items():
        if name in NOT_EXPORTED:
            assert name not in ours
            continue
        assert ours[name].kind == kind
        assert set(labels) <= set(ours[name].labels)
        more = set(ours[name].labels) - set(labels)
        assert not more or "label" in ours[name].differs, "an added label is told"
    assert {metric.name for metric in DYNAMO} | set(NOT_EXPORTED) == set(VECTORS["planner"])
    agents = {metric.name: metric for metric in AGENT_CATALOGUE}
    for name, (kind, labels) in VECTORS["agent"].items():
        assert agents[name].kind == kind
        assert set(labels) == set(agents[name].labels)


def test_the_page_keeps_to_the_catalogue(world: World) -> None:
    view = with_calibration(view_of(world), CALIBRATION)
    view = replace(view, models=ModelsView(deployments=(SWEPT,)))
    page = page_of(world, view)
    named = {metric.name: metric for metric in CATALOGUE}
    for name, samples in page.items():
        if name.startswith(("process_", "python_")):
            continue
        assert name in named
        for labels in samples:
            assert {label for label, _ in labels} == set(named[name].labels)


def test_the_reference_has_every_metric_once() -> None:
    text = (ROOT / "docs" / "reference" / "controller.md").read_text(encoding="utf-8")
    table = text.partition("## Metrics")[2].partition("### What is different")[0]
    rows = re.findall(r"^\| `([a-z_0-9]+)` \| (gauge|counter) \|", table, re.MULTILINE)
    assert rows == [(metric.name, metric.kind.value) for metric in CATALOGUE]
    assert len({name for name, _ in rows}) == len(rows)
    different = text.partition("### What is different")[2]
    for metric in DYNAMO:
        assert (f"`{metric.name}`" in different) == bool(metric.differs)
    assert all(f"`{name}`" in different for name in NOT_EXPORTED)


def test_before_the_first_tick_there_is_nothing(world: World) -> None:
    page = page_of(world, None)
    assert not [name for name in page if not name.startswith(("process_", "python_"))]


def test_what_is_not_known_is_absent_and_not_zero(world: World) -> None:
    view = view_of(world)
    page = page_of(world, with_calibration(view))
    aic = [name for name in page if name.startswith("dynamo_aic_")]
    assert not aic, "neither calibration nor sweeps"
    assert "wattline_controller_prometheus_up" not in page
    assert not [name for name in page if "calibration" in name or "drift" in name]
    # Admission is off: no threshold was decided for anybody.
    assert not [name for name in page if "theta" in name]
    blind = replace(view.snapshot, gpus=replace(view.snapshot.gpus, draw_w=(None,) * 4))
    assert "wattline_controller_draw_watts" not in page_of(world, replace(view, snapshot=blind))


def value(page: Page, name: str, **labels: str) -> float:
    return page[name][tuple(sorted(labels.items()))]


def test_calibration_is_told_in_both_names(world: World) -> None:
    page = page_of(world, with_calibration(view_of(world), CALIBRATION))
    assert value(page, "dynamo_aic_c_ttft") == 1.4
    assert value(page, "dynamo_aic_c_itl") == 1.2
    assert value(page, "dynamo_aic_c_power", component="prefill") == 0.8
    assert value(page, "dynamo_aic_c_power", component="decode") == 2.0
    pegged = page["dynamo_aic_correction_pegged_total"]
    assert {dict(labels)["coefficient"]: count for labels, count in pegged.items()} == {
        "ttft": 2.0,
        "itl": 0.0,
        "power_prefill": 0.0,
        "power_decode": 3.0,
    }
    factor = "wattline_controller_calibration_factor"
    assert value(page, factor, deployment="chat", role="decode", kind="power") == 2.0
    assert len(page[factor]) == 4, "a role has no factor of the other's latency"
    in_force = "wattline_controller_calibration_factor_in_force"
    assert value(page, in_force, deployment="chat", role="prefill", kind="power") == 1.0
    windows = "wattline_controller_calibration_windows_total"
    assert value(page, windows, deployment="chat", role="prefill") == 7.0


def test_aggregated_workers_have_their_own_component(world: World) -> None:
    role = RoleCalibration(role=Role.AGGREGATED, factors=Factors(ttft=1.1, itl=1.2, power=1.3))
    page = page_of(world, with_calibration(view_of(world), DeploymentCalibration(roles=(role,))))
    assert value(page, "dynamo_aic_c_ttft") == 1.1
    assert value(page, "dynamo_aic_c_itl") == 1.2
    assert value(page, "dynamo_aic_c_power", component="agg") == 1.3
    assert value(page, "dynamo_aic_correction_pegged_total", coefficient="power_agg") == 0.0


def test_sweeps_are_told(world: World) -> None:
    view = replace(view_of(world), models=ModelsView(deployments=(SWEPT,)))
    page = page_of(world, view)
    assert value(page, "dynamo_aic_consecutive_failures") == 2.0
    assert value(page, "dynamo_aic_optimizer_exceptions_total") == 3.0
    assert value(page, "dynamo_aic_throughput_regression_total") == 1.0
    assert value(page, "dynamo_aic_power_w_clamped_total", side="decode") == 4.0
    assert value(page, "dynamo_aic_advisory_alternative_tp_speedup") == 1.25
    reasons = page["dynamo_aic_optimizer_disabled_reason"]
    assert {dict(labels)["reason"]: on for labels, on in reasons.items()} == {
        reason: float(reason == "startup_exception") for reason in DISABLED_REASONS
    }
    assert value(page, "wattline_controller_models_sweeps_total", deployment="chat") == 5.0


def test_thresholds_are_told_as_a_share_too(tmp_path: Path) -> None:
    world = World(tmp_path, actuation={"admission": "inherit"})
    world.start()
    view = view_of(world)
    page = page_of(world, view)
    assert view.decision is not None
    tokens = view.decision.admission[0].active_prefill_tokens
    assert tokens is not None
    batch = view.batch_tokens[0]
    assert batch == 8192
    share = value(page, "dynamo_planner_admission_implied_theta_prefill_frac", deployment="chat")
    assert share == pytest.approx(tokens / batch)
    untold = "dynamo_planner_admission_max_batched_tokens_unavailable_total"
    assert value(page, untold) == 0.0
    empty: Any = replace(view.decision.admission[0], active_prefill_tokens=None)
    desk = world.assembly.controller.parts.admission
    assert desk.untold(replace(view.decision, admission=(empty,))) == 1
    world.stop()
