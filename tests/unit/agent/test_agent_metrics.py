"""The snapshot as metrics, and the page that the catalogue renders."""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from pathlib import Path

import pytest
from face_fixtures import gpu, snapshot
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import wattline.agent
from wattline.agent.metric_catalogue import (
    CATALOGUE,
    DYNAMO_COUNTERS,
    LOOP,
    Kind,
    counter_key,
    markdown,
    split_counter,
)
from wattline.agent.metrics import exposition
from wattline.agent.process_metrics import process_values
from wattline.agent.snapshot import AgentSnapshot

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "agent-metrics.md"

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _series(shown: AgentSnapshot | None) -> Series:
    text = exposition(lambda: shown, time.monotonic)().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.startswith("process_")
    }


def test_the_page_is_rendered_from_the_catalogue() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown()


def test_names_follow_the_conventions() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in CATALOGUE:
        assert re.fullmatch(r"(wattline|dynamo_power)_agent_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.name.endswith("_info") == (metric.kind is Kind.INFO)
        if metric.unit:
            assert metric.name.removesuffix("_total").endswith(f"_{metric.unit}")
        assert metric.unit in ("", "watts", "joules", "seconds", "hertz")
        assert metric.text.endswith(".")


def _counted() -> list[tuple[str, frozenset[str]]]:
    """Name and labels of every counter that the agent's code counts by a literal name."""
    found = []
    for path in sorted((Path(wattline.agent.__file__).parent).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = node.args[0]
            if called in ("add", "counter_key") and isinstance(name, ast.Constant):
                labels = frozenset(keyword.arg or "" for keyword in node.keywords)
                found.append((str(name.value), labels))
    return found


def test_everything_that_the_code_counts_is_in_the_catalogue() -> None:
    labels = {metric.name: frozenset(metric.labels) for metric in CATALOGUE}
    counted = _counted()
    assert len(counted) >= 10
    for name, found in counted:
        assert labels[name] == found
    own = {metric.name for metric in LOOP}
    assert own <= {name for name, _ in counted}


def test_every_series_is_in_the_catalogue_with_its_labels() -> None:
    labels = {metric.name: set(metric.labels) for metric in CATALOGUE}
    shown = snapshot(
        gpu(0, pinned_w=300.0, rival_w=500.0, clock_ceiling_mhz=1400), operator_hold="me: why"
    )
    series = _series(shown)
    for name, found in series:
        assert {label for label, _ in found} == labels[name]
    never = {metric.name for metric in LOOP if metric.labels}
    assert {name for name, _ in series} == set(labels) - never


def test_dynamos_names_are_there_from_the_start() -> None:
    series = _series(snapshot())
    for key in DYNAMO_COUNTERS:
        name, labels = split_counter(key)
        assert series[name, tuple(sorted(labels.items()))] == 0.0


def test_counts_of_the_snapshot_are_shown() -> None:
    key = counter_key("wattline_agent_limit_writes_total", result="ok")
    shown = snapshot(counters={key: 5, "dynamo_power_agent_apply_failures_total": 2})
    series = _series(shown)
    assert series["wattline_agent_limit_writes_total", (("result", "ok"),)] == 5.0
    assert series["dynamo_power_agent_apply_failures_total", ()] == 2.0


def test_a_counter_that_the_catalogue_does_not_know_is_not_lost() -> None:
    series = _series(snapshot(counters={"wattline_agent_new_total": 4}))
    assert series["wattline_agent_new_total", ()] == 4.0


def test_the_applied_limit_is_keyed_by_index_and_only_for_limits_of_ours() -> None:
    series = _series(
        snapshot(gpu(0), gpu(1, original_w=None, wanted_w=None), gpu(2, requested_w=None))
    )
    applied = {
        labels: value
        for (name, labels), value in series.items()
        if name == "dynamo_power_agent_applied_limit_watts"
    }
    assert applied == {(("gpu", "0"),): 400.0, (("gpu", "2"),): 400.0}


def test_what_is_not_known_has_no_series_and_is_not_zero() -> None:
    bare = gpu(
        0,
        **dict.fromkeys(
            f.name for f in dataclasses.fields(gpu()) if f.name.endswith(("_w", "_j", "_mhz"))
        ),
        persistence=None,
        mig=None,
        read_age_s=None,
    )
    series = _series(snapshot(bare, epoch=None, budget_version=None))
    names = {name for name, _ in series}
    assert not any(name.endswith(("_limit_watts", "_draw_watts", "_hertz")) for name in names)
    assert "wattline_agent_gpu_energy_joules_total" not in names
    assert "wattline_agent_gpu_persistence_mode" not in names
    assert "wattline_agent_epoch" not in names
    assert ("wattline_agent_source_age_seconds", (("source", "pods"),)) not in series
    assert ("wattline_agent_source_age_seconds", (("source", "grants"),)) in series


def test_series_of_a_gpu_end_with_it() -> None:
    shown = [snapshot(gpu(0), gpu(1))]
    render = exposition(lambda: shown[0], time.monotonic)
    assert b"GPU-1" in render()
    shown[0] = snapshot(gpu(0))
    assert b"GPU-1" not in render()
    assert b"GPU-0" in render()


def test_base_units() -> None:
    series = _series(snapshot(gpu(0, clock_ceiling_mhz=1400)))
    own = (("gpu", "GPU-0"),)
    assert series["wattline_agent_gpu_sm_clock_hertz", own] == 1.5e9
    assert series["wattline_agent_gpu_clock_ceiling_hertz", own] == 1.4e9
    assert series["wattline_agent_gpu_draw_watts", own] == 390.5
    assert series["wattline_agent_gpu_energy_joules_total", own] == 1234.5


def test_before_the_first_look_there_are_only_process_metrics() -> None:
    assert _series(None) == {}


def test_ages_go_on_while_the_loop_stands_still() -> None:
    old = snapshot(gpu(0), made_s=time.monotonic() - 100.0)
    series = _series(old)
    assert series["wattline_agent_snapshot_age_seconds", ()] >= 100.0
    assert series["wattline_agent_gpu_read_age_seconds", (("gpu", "GPU-0"),)] >= 100.5
    assert series["wattline_agent_source_age_seconds", (("source", "grants"),)] >= 100.2


WORD = st.text(max_size=10)
NUMBER = st.none() | st.floats(0.0, 1e9)


@given(product=WORD, owners=st.lists(WORD, max_size=2), throttled=WORD, watts=NUMBER, joules=NUMBER)
def test_any_snapshot_can_be_scraped(
    product: str, owners: list[str], throttled: str, watts: float | None, joules: float | None
) -> None:
    view = gpu(
        0,
        product=product,
        owners=tuple(owners),
        throttle_reasons=frozenset({throttled}),
        enforced_w=watts,
        energy_j=joules,
    )
    series = _series(snapshot(view, node=product))
    own = (("gpu", "GPU-0"),)
    assert series.get(("wattline_agent_gpu_enforced_limit_watts", own)) == watts
    assert series["wattline_agent_gpu_owner_pods", own] == len(owners)
    labels = (("gpu", "GPU-0"), ("index", "0"), ("product", product))
    assert series["wattline_agent_gpu_info", labels] == 1.0


def _process(text: str) -> dict[str, tuple[str, float]]:
    return {
        sample.name: (family.type, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("process_")
    }


def test_process_metrics_are_those_of_prometheus_own_client() -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    theirs = _process(generate_latest(registry).decode())
    ours = _process(exposition(lambda: None, time.monotonic)().decode())
    assert {name: kind for name, (kind, _) in ours.items()} == {
        name: kind for name, (kind, _) in theirs.items()
    }
    for name in ("process_start_time_seconds", "process_max_fds"):
        assert ours[name] == theirs[name]
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total"):
        assert ours[name][1] == pytest.approx(theirs[name][1], rel=0.2)


def test_what_proc_does_not_tell_is_left_out(tmp_path: Path) -> None:
    assert list(process_values(tmp_path)) == []
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").write_text("1 (a) b) S " + " ".join("7" * 40))
    names = [name for name, _ in process_values(tmp_path)]
    assert names == [
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    ]


@pytest.mark.parametrize("key", ["a{", "a{b}", 'a{b="c}', "a{b=c}", 'a{b="c"'])
def test_malformed_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="a"):
        split_counter(key)


def test_keys_are_read_back() -> None:
    assert split_counter(counter_key("x_total", a="1", b="two")) == (
        "x_total",
        {"a": "1", "b": "two"},
    )
    assert split_counter("x_total") == ("x_total", {})
