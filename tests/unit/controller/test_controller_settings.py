"""The controller's file: what is refused and how, the week's schedule, what a reload may change."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from controller_world import CONFIG, UUIDS
from hypothesis import given
from hypothesis import strategies as st

from wattline.catalog.yaml_files import parse
from wattline.controller.budget import BudgetDesk, Override, window_at
from wattline.controller.settings import (
    BudgetSpec,
    ControllerSettings,
    address_of,
    changed_keys,
    fixed_keys,
    is_loopback,
    read_settings,
)
from wattline.controller.site import build_site
from wattline.core.errors import InputError, WattlineError


def document(**changes: Any) -> dict[str, Any]:
    text = CONFIG.format(folder="/x", prefill=", ".join(UUIDS[:2]), decode=", ".join(UUIDS[2:]))
    plain: dict[str, Any] = yaml.safe_load(text)
    return plain | changes


def settings(**changes: Any) -> ControllerSettings:
    return parse(ControllerSettings, yaml.safe_dump(document(**changes)), "c.yaml")


def node(**changes: Any) -> dict[str, Any]:
    first: dict[str, Any] = document()["nodes"][0]
    return first | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stat_dir": "/x"}, "did you mean state_dir"),
        ({"budget": {"total_w": -1}}, "budget.total_w"),
        ({"budget": {"total_w": 2000, "timezone": "Mars/Base"}}, "as Europe/Berlin"),
        ({"budget": {"total_w": 2000, "schedule": [{"start": "25:00", "end": "06:00"}]}}, "start"),
        ({"listen": "nowhere"}, "HOST:PORT"),
        ({"listen": "0.0.0.0:9480"}, "needs token_file"),
        ({"nodes": [node(report_url="http://n1/report")]}, "exactly one of report_file"),
        ({"nodes": [node(gpus={"prefill": list(UUIDS[:2])})]}, "the nodes name 0"),
        ({"nodes": [node(gpus={"none": list(UUIDS)})]}, "none is not one of prefill, decode"),
        ({"nodes": [node(), node()]}, "node n1 is there twice"),
        ({"nodes": [node(), node(name="n2")]}, "is there twice"),
        ({"sources": {"frontends": {"caht": ["http://a"]}}}, "caht is not one of chat"),
        ({"sources": {"frontends": {"chat": ["file:///etc/passwd"]}}}, "sources.frontends"),
        ({"actuation": {"replicas": "supervisor"}}, "actuation.workers.prefill is needed"),
        ({"actuation": {"admission": "auto"}}, "actuation.admission"),
        ({"recorder": {"segment_mib": 8.0, "total_mib": 9.0}}, "two segments"),
        ({"decision": {"headroom": 0.5}}, "decision.headroom"),
        ({"tick_s": 0.0}, "tick_s"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        settings(**changes)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": {"total_w": 800}}, "budget.total_w"),
        (
            {
                "budget": {
                    "total_w": 2000,
                    "schedule": [{"start": "22:00", "end": "06:00", "total_w": 10}],
                }
            },
            r"schedule\[0\]",
        ),
        ({"actuation": {"expiry_w": 100}}, "200 to 700"),
        ({"actuation": {"brake_w": 900}}, "200 to 700"),
    ],
)
def test_watts_that_no_fleet_can_keep_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_site(settings(**changes), Path("c.yaml"))


@given(st.binary(max_size=200))
def test_no_bytes_end_in_anything_but_one_line(content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        parse(ControllerSettings, content, "c.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="readable file"):
        read_settings(tmp_path / "none.yaml")


def test_a_folder_of_grants_takes_the_nodes_name() -> None:
    assert settings().nodes[0].grants_path == Path("/x/grants/n1.json")
    given = settings(nodes=[node(grants="/x/one.json")])
    assert given.nodes[0].grants_path == Path("/x/one.json")


def test_without_a_supervisor_all_replicas_are_planned() -> None:
    fleet = build_site(settings(), Path("c.yaml")).fleet
    assert [(pool.min_replicas, pool.max_replicas) for pool in fleet.pools] == [(2, 2), (2, 2)]


def test_changes_are_named_as_deep_as_they_go() -> None:
    old = settings()
    new = settings(
        budget={"total_w": 1900},
        decision={"headroom": 1.2},
        actuation={"admission": "inherit", "caps": "none"},
        nodes=[node(grants="/y")],
    )
    changed = changed_keys(old, new)
    assert changed == [
        "nodes",
        "budget.total_w",
        "actuation.caps",
        "actuation.admission",
        "decision.headroom",
    ]
    assert fixed_keys(changed) == ["nodes", "actuation.caps"]


NIGHT = BudgetSpec.model_validate(
    {
        "total_w": 3000.0,
        "timezone": "Europe/Berlin",
        "schedule": [
            {"days": ["fri"], "start": "22:00", "end": "06:00", "total_w": 5000.0},
            {"days": ["sat", "sun"], "start": "00:00", "end": "00:00", "total_w": 4000.0},
        ],
    }
)


@pytest.mark.parametrize(
    ("utc", "total_w"),
    [
        ("2026-07-03 19:59", None),  # Friday, 21:59 in Berlin
        ("2026-07-03 20:00", 5000.0),
        ("2026-07-04 03:59", 5000.0),  # Saturday: Friday's window goes on
        ("2026-07-04 04:00", 4000.0),
        ("2026-07-05 21:59", 4000.0),
        ("2026-07-05 22:00", None),  # Monday in Berlin
        ("2026-12-04 20:59", None),  # winter time
        ("2026-12-04 21:00", 5000.0),
    ],
)
def test_windows_follow_the_local_week(utc: str, total_w: float | None) -> None:
    at_s = datetime.strptime(utc, "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()
    window = window_at(NIGHT, at_s)
    assert (None if window is None else window.total_w) == total_w


def test_versions_never_fall(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    spec = BudgetSpec.model_validate({"total_w": 3000.0})
    desk = BudgetDesk(spec, path, 800.0)
    first = desk.now(0.0)
    assert desk.now(1.0) == first
    desk.set(Override(total_w=2000.0, by="a", why="b", since_s=1.0))
    second = desk.now(2.0)
    assert second.budget.version > first.budget.version
    again = BudgetDesk(spec, path, 800.0)
    third = again.now(3.0)
    assert third.budget.total_w == 2000.0
    assert third.budget.version > second.budget.version
    again.above(1000)
    assert again.now(4.0).budget.version == 1001


@pytest.mark.parametrize("content", ["{", "[]", '{"version": -1}', '{"version": "x"}'])
def test_a_damaged_budget_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "budget.json"
    path.write_text(content)
    with pytest.raises(WattlineError):
        BudgetDesk(BudgetSpec.model_validate({"total_w": 3000.0}), path, 800.0)


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("host:65535", ("host", 65535))],
)
def test_addresses(listen: str, address: tuple[str, int]) -> None:
    assert address_of(listen) == address


@pytest.mark.parametrize("listen", ["", "host", ":80", "host:", "host:65536", "host:x", "h:1 "])
def test_no_addresses(listen: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        address_of(listen)


def test_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "example.org")] == [False] * 3
