"""Scenario files: the built-in ones, what is refused and how, and what is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.catalog.yaml_files import parse
from wattline.core.errors import InputError
from wattline.sim import scenario_build as build
from wattline.sim.faults import FAULT_TYPES
from wattline.sim.plant.config import Routing
from wattline.sim.scenario import Scenario, builtin_names, builtin_text, folder_of, load
from wattline.sim.scenario_docs import reference
from wattline.sim.traces import make_trace, write_trace

REQUIRED = {
    "demo",
    "azure-conv-h200",
    "mooncake-h200",
    "mix-shift-h200",
    "mixed-h100-b200",
    "agg-8b-l40s",
    "budget-cut-at-noon",
    "flash-crowd",
    "day-energy",
    "faults",
}
MINIMAL = """\
name: small
description: One pool.
duration_s: 60
deployments:
  - name: chat
    model: Llama-3.1-8B
    slo: {ttft_s: 1.0, itl_s: 0.05}
    pools:
      - {name: all, role: aggregated, gpu: L40S, gpus: 4}
traffic:
  - {kind: constant, rate_rps: 2, input_tokens: 100, output_tokens: 10}
budget:
  total_percent: 80
"""


def read(text: str | bytes) -> Scenario:
    return parse(Scenario, text, "mine.yaml")


def refusal(text: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_fault(fault: str) -> Scenario:
    return read(MINIMAL + f"faults:\n  - {fault}\n")


def test_required_scenarios_ship_and_demo_comes_first() -> None:
    assert set(builtin_names()) >= REQUIRED
    assert builtin_names()[0] == "demo"


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_builtin_scenarios_load_and_can_be_built(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    fleet = build.to_fleet(scenario)
    engines = build.to_engines(scenario, fleet)
    assert len(engines) == len(fleet.pools)
    build.check_targets(scenario, fleet)
    budget_w = build.first_budget_w(scenario, fleet.max_limit_w)
    floor_w = sum(pool.gpus * fleet.product_of(pool).min_limit_w for pool in fleet.pools)
    lowest_w = min(
        [
            budget_w,
            *(
                change.total_w
                for change in build.budget_changes(
                    scenario, start_w=budget_w, max_limit_w=fleet.max_limit_w
                )
            ),
        ]
    )
    # Even after its cuts a budget holds every GPU at its lowest limit.
    assert lowest_w * (1.0 - scenario.budget.guard_percent / 100.0) >= floor_w
    until_s = min(scenario.duration_s, 600.0)
    assert len(build.build_traffic(scenario, until_s=until_s)) > 100


def test_scenarios_have_their_stated_targets() -> None:
    azure, mooncake, small = (load(n) for n in ("azure-conv-h200", "mooncake-h200", "agg-8b-l40s"))
    assert [(p.role, p.gpus) for p in azure.pools] == [("prefill", 16), ("decode", 16)]
    assert [(p.role, p.gpus) for p in mooncake.pools] == [("prefill", 20), ("decode", 12)]
    targets = [(s.deployments[0].slo.ttft_s, s.deployments[0].slo.itl_s) for s in (azure, mooncake)]
    assert targets == [(1.0, 0.05), (10.0, 0.05)]
    assert (small.deployments[0].slo.ttft_s, small.deployments[0].slo.itl_s) == (1.0, 0.06)
    day = load("day-energy")
    assert (day.duration_s, day.objective) == (86_400, "energy")
    kinds = {fault.kind for fault in load("faults").faults}
    assert kinds == {fault.model_fields["kind"].annotation.__args__[0] for fault in FAULT_TYPES}  # type: ignore[union-attr]


def test_reference_page_is_rendered_from_the_schema() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "scenario.md"
    assert page.read_text(encoding="utf-8") == reference(), (
        "render it anew: python -m wattline.sim.scenario_docs > docs/reference/scenario.md"
    )


def test_every_key_is_documented() -> None:
    undocumented = [line for line in reference().splitlines() if line.endswith("|  |")]
    assert undocumented == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("duration_s", "durations", "mine.yaml:3: durations: 60: unknown key; did you mean dura"),
        ("itl_s: 0.05", "itl: 0.05", "mine.yaml:7: deployments[0].slo.itl: 0.05: unknown key; did"),
        ("kind: constant", "kind: constnat", "did you mean constant?"),
        ("kind: constant, ", "", "traffic[0]"),
        ("role: aggregated", "role: agg", "deployments[0].pools[0].role: 'agg'"),
        ("gpus: 4", "gpus: 4.5", "mine.yaml:9: deployments[0].pools[0].gpus: 4.5"),
        ("gpus: 4", "gpus: '4'", "gpus: '4'"),
        ("gpus: 4", "gpus: -1", "gpus: -1"),
        ("gpus: 4", "gpus: 1e9", "gpus: 1000000000.0"),
        ("gpus: 4", "gpus: yes", "gpus: 'yes'"),
        ("gpus: 4", "gpus: true", "gpus: True"),
        ("gpus: 4", "gpus: 1:30", "gpus: '1:30'"),
        ("gpus: 4", "gpus: 010", "gpus: '010'"),
        (
            "gpus: 4",
            "gpus:",
            "mine.yaml:9: deployments[0].pools[0].gpus: '': give a value",
        ),
        ("gpus: 4", "gpus: 4, gpus: 5", "twice"),
        ("gpus: 4}", "gpus: 4, min_replicas: 9}", "min_replicas is more than"),
        ("gpus: 4}", "gpus: 4, gpus_per_replica: 3}", "multiple of gpus_per_replica"),
        ("total_percent: 80", "total_percent: .nan", "'.nan': must be a finite number"),
        ("total_percent: 80", "total_percent: 0", "total_percent: 0"),
        ("total_percent: 80", "total_percent: 80\n  total_w: 5", "exactly one of total_w"),
        ("total_percent: 80", "total_percent: 80\n  rise_w_per_s: null", "leave the key out"),
        ("role: aggregated", "role: decode", "all aggregated, or prefill and decode"),
        ("name: chat", "name: &a chat", ""),
        ("duration_s: 60", "duration_s: !!python/object:os.system 60", "tags are not used"),
        ("duration_s: 60", "duration_s: 60\nobjective: off", "objective: 'off'"),
        ("  - {kind: constant", "  - {deployment: chart, kind: constant", "did you mean chat?"),
        ("name: small", "name: small\n\tx: 1", "not valid YAML"),
        (MINIMAL, "- 1", "mine.yaml:1"),
        (MINIMAL, "", "empty"),
        (MINIMAL, "[" * 5_000, "mine.yaml"),
        (MINIMAL, "{a: " * 30, "mine.yaml"),
        (MINIMAL, "a: " + "x" * (1 << 20), "at most 1 MiB"),
        ("One pool.", "bell\a", "not valid YAML"),
    ],
)
def test_bad_files_are_one_line_with_field_value_and_remedy(
    old: str, new: str, expected: str
) -> None:
    assert old in MINIMAL
    text = MINIMAL.replace(old, new, 1)
    if not expected:
        assert read(text).deployments[0].name == "chat"
        return
    message = refusal(text)
    assert expected in message
    assert message.startswith("mine.yaml")


def test_missing_keys_and_bad_bytes_are_named() -> None:
    without = MINIMAL.replace("duration_s: 60\n", "")
    assert "mine.yaml:1: duration_s: 'missing': this key is required" in refusal(without)
    assert "UTF-8" in refusal(MINIMAL.encode() + b"# \xff\n")
    alias = MINIMAL.replace("name: chat", "name: &a chat").replace("name: all", "name: *a")
    assert "an alias" in refusal(alias)


def test_names_must_be_unique_and_meet() -> None:
    twice = MINIMAL.replace(
        "gpus: 4}", "gpus: 4}\n      - {name: all, role: aggregated, gpu: L40S, gpus: 1}"
    )
    assert "two pools are called all" in refusal(twice)
    message = refusal(MINIMAL + "faults: [{kind: node_lost, at_s: 1, target: {pool: al}}]\n")
    assert "did you mean all?" in message


def test_unknown_names_of_the_catalog_say_where_they_stand(tmp_path: Path) -> None:
    for old, new, field in (
        ("gpu: L40S", "gpu: L40Z", "pool all, gpu"),
        ("Llama-3.1-8B", "Llama-9", "deployment chat"),
    ):
        path = tmp_path / "mine.yaml"
        path.write_text(MINIMAL.replace(old, new))
        scenario = load(str(path))
        with pytest.raises(InputError, match=field):
            build.to_engines(scenario, build.to_fleet(scenario))


def test_loading_by_name_and_by_path(tmp_path: Path) -> None:
    assert load("demo").name == "demo"
    with pytest.raises(InputError, match="did you mean demo"):
        load("dem")
    with pytest.raises(InputError, match="No such file"):
        load(str(tmp_path / "none.yaml"))
    path = tmp_path / "mine.yaml"
    path.write_text(builtin_text("demo"))
    assert load(str(path)) == load("demo")
    assert folder_of(str(path)) == tmp_path


def test_a_trace_in_the_scenario_is_found_beside_it(tmp_path: Path) -> None:
    trace = build.build_traffic(read(MINIMAL))
    write_trace(tmp_path / "t.jsonl", trace)
    text = MINIMAL.replace(
        "kind: constant, rate_rps: 2, input_tokens: 100, output_tokens: 10",
        "kind: trace, path: t.jsonl, from_s: 10, until_s: 50, scale_load: 2",
    )
    built = build.build_traffic(read(text), folder=tmp_path)
    assert list(built) == list(trace.cut(10.0, 50.0).scaled(2.0))


def test_scaling_generated_traffic_keeps_its_clock() -> None:
    scenario = load("mix-shift-h200")
    once, twice = (build.build_traffic(scenario, scale_load=x) for x in (0.1, 0.2))
    assert once.duration_s == twice.duration_s == scenario.duration_s
    assert len(twice) == pytest.approx(2 * len(once), rel=0.03)


def test_a_trace_for_deployments_that_are_not_there_is_refused(tmp_path: Path) -> None:
    one = np.array([1])
    trace = make_trace(
        np.array([0.0]), one, one, duration_s=1.0, source="t", deployment=np.array([3])
    )
    write_trace(tmp_path / "t.jsonl", trace)
    with pytest.raises(InputError, match="deployments 0 to 0"):
        build.build_traffic(read(MINIMAL), trace=tmp_path / "t.jsonl")


def test_absurd_volumes_are_refused_before_they_are_made() -> None:
    scenario = read(
        MINIMAL.replace("duration_s: 60", "duration_s: 1e7").replace("rate_rps: 2", "rate_rps: 1e5")
    )
    with pytest.raises(InputError, match="at most 20,000,000"):
        build.build_traffic(scenario)


def test_streams_of_two_deployments_are_told_apart() -> None:
    traffic = build.build_traffic(load("mixed-h100-b200"), until_s=60.0)
    assert traffic.mix(0).mean_input_tokens == pytest.approx(1155.0, rel=0.1)
    assert traffic.mix(1).mean_input_tokens == pytest.approx(2500.0, rel=0.1)


def test_budget_changes_in_order_with_notice_and_restoration() -> None:
    scenario = read(
        MINIMAL
        + """\
  schedule: [{at_s: 5, to_percent: 50}]
faults:
  - {kind: budget_restore, at_s: 50}
  - {kind: budget_cut, at_s: 10, notice_s: 3, duration_s: 7, to_fraction: 0.5}
  - {kind: budget_cut, at_s: 30, to_w: 123}
"""
    )
    changes = build.budget_changes(scenario, start_w=1000.0, max_limit_w=1400.0)
    assert [(c.announced_s, c.effective_s, c.total_w, c.cause) for c in changes] == [
        (5.0, 5.0, 700.0, "schedule"),
        (10.0, 13.0, 500.0, "cut"),
        (20.0, 20.0, 1000.0, "restored"),
        (30.0, 30.0, 123.0, "cut"),
        (50.0, 50.0, 1000.0, "restored"),
    ]
    assert build.first_budget_w(scenario, 1400.0) == 1120.0


def test_plant_options_reach_the_plant() -> None:
    scenario = read(
        MINIMAL
        + """\
plant:
  routing: kv_aware
  network_gbytes_per_s: 12.5
  exponent_factor: 1.3
  limiter: {noise: 0, settle_s: 0.5}
"""
    )
    config = build.to_plant_config(scenario)
    assert config.routing is Routing.KV_AWARE
    assert config.kv_bytes_per_s_per_gpu == 12.5e9
    assert config.noise.sample_sigma == 0.0
    fleet = build.to_fleet(scenario)
    assert fleet.products[0].settle_s == 0.5
    engines = build.to_engines(scenario, fleet)
    plant = build.plant_engines(scenario, engines)
    assert plant[0].response.gamma == pytest.approx(1.3 * engines[0].response.gamma)
    assert build.plant_engines(read(MINIMAL), engines) is engines


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(10**20), 10**20),
        st.floats(),
        st.text(max_size=5),
        st.none(),
        st.sampled_from(["constant", "aggregated", "node_lost", "roofline"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["kind", "at_s", "name", "x"]), inner, max_size=2),
    ),
    max_leaves=4,
)


def paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [at]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        found += paths(inner, (*at, key))
    return found


FULL = yaml.safe_load(builtin_text("faults"))


@given(data=st.data())
@settings(max_examples=100, derandomize=True, deadline=None)
def test_any_value_in_any_place_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    mutated = yaml.safe_load(builtin_text("faults"))
    path = data.draw(st.sampled_from(paths(FULL)[1:]))
    holder = mutated
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = data.draw(VALUES)
    text = yaml.safe_dump(mutated, allow_unicode=True)
    try:
        said = read(text).name
    except InputError as error:
        said = str(error)
    assert "\n" not in said


@given(text=st.one_of(st.text(max_size=60), st.binary(max_size=60)))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_text_is_refused_in_one_line(text: str | bytes) -> None:
    assert refusal(text)
