"""The plan that the controller writes and the plugin reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plugin_cases import planned

from wattline.core.errors import InputError
from wattline.drivers.dynamo.plugin.state_file import (
    StateFile,
    StateReader,
    decode_state,
    encode_state,
    write_state,
)

PLAN = planned(6000.0, (2800.0, 1600.0), (1, 2), wanted=(3, None))


def document(**changes: Any) -> bytes:
    found = json.loads(encode_state(StateFile(PLAN, 1000.0)))
    return json.dumps({**found, **changes}).encode()


def test_a_plan_comes_through_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_state(path, PLAN, made_s=1000.0)
    assert decode_state(path.read_bytes(), where="plan") == StateFile(PLAN, 1000.0)
    assert PLAN.usable_w == 6000.0


def test_what_may_be_left_out() -> None:
    least = b'{"schema":1,"version":1,"made_s":1,"budget_w":5,"roles":{"decode":'
    state = decode_state(least + b'{"watts_per_replica_w":2}},"more":1}', where="plan")
    assert (state.plan.guard_w, state.plan.elsewhere_w) == (0.0, 0.0)
    (role,) = state.plan.roles.values()
    assert (role.min_replicas, role.wanted_replicas) == (1, None)


def test_aggregated_workers_are_decode_to_the_planner() -> None:
    plan = decode_state(document(roles={"aggregated": {"watts_per_replica_w": 5}}), where="p").plan
    assert list(plan.roles) == ["decode"]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"{", "plan:"),
        (b"[]", "plan:"),
        (document(schema=2), "plan: schema"),
        (document(version=-1), "plan: version"),
        (document(budget_w=None), "plan: budget_w"),
        (document(budget_w=float("nan")), "plan:"),
        (document(guard_w="5"), "plan: guard_w"),
        (document(roles={}), "plan: roles"),
        (document(roles={"planner": {"watts_per_replica_w": 5}}), "plan: roles"),
        (document(roles={"decode": {"watts_per_replica_w": 0}}), "watts_per_replica_w"),
        (
            document(roles={"decode": {"watts_per_replica_w": 5, "min_replicas": 10**6}}),
            "min_replicas",
        ),
        (document(roles={"decode": 5}), "plan: roles: decode"),
        (
            document(roles={k: {"watts_per_replica_w": 5} for k in ("decode", "aggregated")}),
            "aggregated alone",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(content: bytes, where: str) -> None:
    with pytest.raises(InputError, match=where):
        decode_state(content, where="plan")


@given(st.binary(max_size=80), st.integers(0, 1000))
def test_broken_files_are_refused_in_one_line(junk: bytes, at: int) -> None:
    whole = encode_state(StateFile(PLAN, 1000.0))
    place = at % len(whole)
    for content in (junk, whole[:place], whole[:place] + junk + whole[place + 1 :]):
        try:
            decode_state(content, where="plan")
        except InputError as error:
            text = str(error)
        else:
            continue
        assert "\n" not in text


class Clocks:
    """A wall clock that can be set, and one that only runs."""

    def __init__(self) -> None:
        self.wall_s = 1000.0
        self.now_s = 50.0

    def run(self, seconds: float) -> None:
        self.wall_s += seconds
        self.now_s += seconds


def reader(path: Path, clocks: Clocks) -> StateReader:
    return StateReader(path, wall=lambda: clocks.wall_s, now=lambda: clocks.now_s)


def test_the_reader_reads_what_was_replaced_and_only_that(tmp_path: Path) -> None:
    path, clocks = tmp_path / "plan.json", Clocks()
    reads = reader(path, clocks)
    assert reads.look()
    assert reads.seen is None
    assert "No such file" in (reads.fault or "")
    assert not reads.look()
    write_state(path, PLAN, made_s=998.0)
    assert reads.look()
    assert reads.fault is None
    assert reads.seen is not None
    clocks.run(3.0)
    assert reads.seen.age_s(clocks.now_s) == 5.0
    assert not reads.look()
    write_state(path, planned(1.0, version=8), made_s=1003.0)
    assert reads.look()
    assert reads.seen.plan.version == 8
    assert reads.seen.age_s(clocks.now_s) == 0.0


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
def test_a_wall_clock_that_is_set_makes_no_plan_younger_or_older(
    tmp_path: Path, set_by_s: float
) -> None:
    path, clocks = tmp_path / "plan.json", Clocks()
    write_state(path, PLAN, made_s=1000.0)
    reads = reader(path, clocks)
    reads.look()
    clocks.run(20.0)
    clocks.wall_s += set_by_s
    assert reads.seen is not None
    assert reads.seen.age_s(clocks.now_s) == 20.0
    reads.look()
    clocks.run(0.5)
    # The writer's clock is what it was at its start.
    write_state(path, planned(1.0, version=8), made_s=1020.5)
    assert reads.look()
    assert reads.fault is None
    assert reads.seen.plan.version == 8
    assert reads.seen.age_s(clocks.now_s) == 0.5


def test_an_old_file_is_old_and_one_from_the_future_is_refused(tmp_path: Path) -> None:
    path, clocks = tmp_path / "plan.json", Clocks()
    write_state(path, PLAN, made_s=1010.0)
    reads = reader(path, clocks)
    reads.look()
    assert "from the future" in (reads.fault or "")
    assert reads.seen is None
    write_state(path, PLAN, made_s=999.0)
    reads.look()
    clocks.run(30.0)
    reads.look()
    write_state(path, planned(1.0, version=6), made_s=940.0)  # a copy of an old one
    reads.look()
    assert reads.seen is not None
    assert reads.seen.age_s(clocks.now_s) == 90.0


def test_a_torn_or_foreign_file_leaves_the_old_plan_to_age(tmp_path: Path) -> None:
    path, clocks = tmp_path / "plan.json", Clocks()
    write_state(path, PLAN, made_s=1000.0)
    reads = reader(path, clocks)
    reads.look()
    path.write_bytes(b'{"schema": 1')
    assert reads.look()
    assert "no whole JSON" in (reads.fault or "")
    assert reads.seen is not None
    write_state(path, PLAN, made_s=1000.0)
    path.chmod(0o666)
    reads.look()
    assert "writable by its owner only" in (reads.fault or "")
    path.unlink()
    reads.look()
    assert "No such file" in (reads.fault or "")
    write_state(path, PLAN, made_s=1000.0)
    assert reads.look()
    assert reads.fault is None
