import json
from pathlib import Path
from typing import Any

import pytest
from agent_fixtures import Bench, assert_eventually, bench

from wattline.agent.loop import lease_clock
from wattline.agent.metrics import exposition
from wattline.agent.snapshot import Mode, Reason
from wattline.drivers.gpu.device import GpuFault

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS = json.loads((FOLDER / "power_agent_give_back.json").read_text())
APPLY = json.loads((FOLDER / "power_agent_apply.json").read_text())["cases"]
ANNOTATED: dict[str, Any] = {"mode": Mode.ANNOTATIONS, "grants": None, "safe_default_w": 500.0}


def settled(node: Bench) -> None:
    """Wait until the newest pods and owners have been decided about and carried out."""
    node.known()
    looked = node.listings.looks
    assert_eventually(lambda: node.listings.looks > looked + 1, "two more looks")
    made_s = node.picture().made_s
    assert_eventually(lambda: node.picture().made_s > made_s, "a newer picture")


def writes(node: Bench) -> list[list[float]]:
    return [node.node.gpu(uuid).writes for uuid in node.uuids]


@pytest.mark.parametrize("case", APPLY, ids=lambda case: case["name"])
def test_a_limit_is_written_and_shown(tmp_path: Path, case: dict[str, Any]) -> None:
    with bench(tmp_path, gpus=3, settings=ANNOTATED) as node:
        index = case["index"]
        node.listings.put("w", case["limit"], node.uuids[index])
        if case.get("write_fails"):
            node.node.fail(node.uuids[index], GpuFault.UNKNOWN, "write_limit")
        node.start()
        settled(node)
        assert writes(node) == [case["writes_w"] if each == index else [] for each in range(3)]
        gauge = f'dynamo_power_agent_applied_limit_watts{{gpu="{index}"}} {case["limit_w"]:.1f}'
        page = exposition(node.picture, lease_clock)().decode().splitlines()
        assert [line for line in page if line.startswith("dynamo_power_agent_applied")] == [gauge]
        failures = node.picture().counters.get("dynamo_power_agent_apply_failures_total", 0)
        assert failures >= case["failures"]
        assert bool(failures) is bool(case["failures"])


@pytest.mark.parametrize("case", VECTORS["shutdown"], ids=lambda case: case["name"])
def test_shutdown_gives_back_what_is_ours(tmp_path: Path, case: dict[str, Any]) -> None:
    with bench(tmp_path, gpus=3, settings=ANNOTATED) as node:
        for index in case["managed"]:
            node.listings.put(f"w{index}", "480", node.uuids[index])
        node.start()
        settled(node)
        assert_eventually(
            lambda: [bool(each) for each in writes(node)].count(True) == len(case["managed"])
        )
        for index in case["unreachable"]:
            node.node.fail(node.uuids[index], GpuFault.LOST)
        node.stop()
        expected = [
            700.0 if index not in case["unreachable"] else 480.0 for index in range(node.gpus)
        ]
        assert node.limits() == expected
        assert node.driver.closed == 1
        for index in set(range(node.gpus)) - set(case["managed"]):
            assert writes(node)[index] == []


@pytest.mark.parametrize("case", VECTORS["start"], ids=lambda case: case["name"])
def test_what_an_earlier_run_left(tmp_path: Path, case: dict[str, Any]) -> None:
    with bench(tmp_path, gpus=1, settings=ANNOTATED) as node:
        uuid = node.uuids[0]
        if case["ours"]:
            node.listings.put("before", "400", uuid)
            node.start()
            assert_eventually(lambda: node.limits() == [400.0], "capped by an earlier run")
            node.crash()
            node.listings.take("before")
        node.node.rival_write(uuid, case["current_w"])
        node.gpu(0).writes.clear()
        for name, limit in case["pods"].items():
            node.listings.put(name, limit, uuid)
        node.start()
        settled(node)
        assert writes(node) == [case["writes_w"]]
        assert (node.view(0).wanted_w is not None) is case["still_ours"]


@pytest.mark.parametrize("case", VECTORS["change"], ids=lambda case: case["name"])
def test_what_a_change_of_pods_does(tmp_path: Path, case: dict[str, Any]) -> None:
    with bench(tmp_path, gpus=1, settings=ANNOTATED) as node:
        uuid = node.uuids[0]
        for name, limit in case["before"].items():
            node.listings.put(name, limit, uuid)
        agent = node.start()
        settled(node)
        node.gpu(0).writes.clear()
        for name in case["before"]:
            node.listings.take(name)
        for name, limit in case["after"].items():
            node.listings.put(name, limit, uuid)
        if case.get("write_fails"):
            node.node.fail(uuid, GpuFault.UNKNOWN, "write_limit")
        agent.pods_changed()
        settled(node)
        if case.get("write_fails"):
            assert node.view(0).wanted_w is not None
            node.node.fail(uuid, None, "write_limit")
        assert_eventually(lambda: node.limits() == [case["limit_w"]], "the limit")
        assert_eventually(
            lambda: (node.view(0).wanted_w is not None) is case["still_ours"], "whose it is"
        )
        assert writes(node) == [case["writes_w"]]


@pytest.mark.parametrize("which", ["pods_fail", "owners_fail"])
def test_a_failed_listing_freezes_every_limit(tmp_path: Path, which: str) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        node.listings.put("w", "480", node.uuids[0])
        agent = node.start()
        assert_eventually(lambda: node.limits() == [480.0, 700.0], "capped")
        setattr(node.listings, which, True)
        node.listings.take("w")
        node.listings.put("by", None, node.uuids[0])
        agent.pods_changed()
        assert_eventually(lambda: node.view(0).reason is Reason.FROZEN, "frozen")
        settled(node)
        assert node.limits() == [480.0, 700.0]
        assert agent.snapshot is not None
        assert agent.snapshot.not_ready != ()
        setattr(node.listings, which, False)
        assert_eventually(lambda: node.limits() == [700.0, 700.0], "released when it works again")


def test_a_gpu_whose_owners_cannot_be_told_is_frozen_alone(tmp_path: Path) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        first, second = node.uuids
        node.listings.put("w0", "480", first)
        node.listings.put("w1", "480", second)
        agent = node.start()
        assert_eventually(lambda: node.limits() == [480.0, 480.0], "capped")
        node.listings.untold = {first: "its process list failed"}
        for name, uuid in (("w0", first), ("w1", second)):
            node.listings.take(name)
            node.listings.put(f"{name}-plain", None, uuid)
        agent.pods_changed()
        assert_eventually(lambda: node.limits() == [480.0, 700.0], "the other one released")
        assert_eventually(lambda: node.view(0).reason is Reason.FROZEN, "frozen")
        assert node.view(0).owners == ("default/w0",)
        [why] = node.picture().not_ready
        assert why == f"owners of GPU {first} cannot be told: its process list failed"
        node.listings.untold = {}
        agent.pods_changed()
        assert_eventually(lambda: node.limits() == [700.0, 700.0], "released once it is told")
        assert_eventually(lambda: node.picture().not_ready == (), "ready")


def test_nothing_is_given_back_while_a_device_cannot_be_told(tmp_path: Path) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        node.listings.put("w", "480", node.uuids[0])
        agent = node.start()
        assert_eventually(lambda: node.limits() == [480.0, 700.0], "capped")
        node.listings.unresolved = ("nvidia.com/mig-1g MIG-x of default/m: GPU is lost",)
        node.listings.take("w")
        node.listings.put("plain", None, node.uuids[0])
        node.listings.put("v", "350", node.uuids[1])
        agent.pods_changed()
        assert_eventually(lambda: node.limits() == [480.0, 350.0], "others are still obeyed")
        assert_eventually(lambda: node.view(0).reason is Reason.FROZEN, "frozen")
        assert "MIG-x" in node.view(0).notes[0]
        [why] = node.picture().not_ready
        assert "MIG-x of default/m: GPU is lost" in why
        node.listings.unresolved = ()
        agent.pods_changed()
        assert_eventually(lambda: node.limits() == [700.0, 350.0], "given back once it is told")


def test_what_an_earlier_run_left_is_kept_while_a_device_cannot_be_told(tmp_path: Path) -> None:
    with bench(tmp_path, gpus=1, settings=ANNOTATED) as node:
        node.listings.put("w", "480", node.uuids[0])
        node.start()
        assert_eventually(lambda: node.limits() == [480.0], "capped")
        node.crash()
        node.listings.take("w")
        node.listings.unresolved = ("nvidia.com/mig-1g MIG-x of default/m: GPU is lost",)
        agent = node.start()
        settled(node)
        assert node.limits() == [480.0]
        node.listings.unresolved = ()
        agent.pods_changed()
        assert_eventually(lambda: node.limits() == [700.0], "nobody came back")


def test_pods_that_are_out_of_step_are_said_with_their_age(tmp_path: Path) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        node.start()
        settled(node)
        node.listings.out_of_step = "no connection"
        why = "pods cannot be listed (last good 0 s ago): no connection"
        assert_eventually(lambda: node.picture().not_ready == (why,), "said")
        node.listings.out_of_step = None
        assert_eventually(lambda: node.picture().not_ready == (), "ready again")


def test_an_empty_node_is_ready_and_writes_nothing(tmp_path: Path) -> None:
    with bench(tmp_path, gpus=4, settings=ANNOTATED) as node:
        node.start()
        settled(node)
        assert_eventually(lambda: node.picture().not_ready == (), "ready")
        assert writes(node) == [[], [], [], []]


def test_a_rival_is_repaired_in_this_mode_too(tmp_path: Path) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        node.listings.put("w", "480", node.uuids[0])
        node.start()
        assert_eventually(lambda: node.limits()[0] == 480.0, "capped")
        node.node.rival_write(node.uuids[0], 650.0)
        assert_eventually(lambda: node.limits()[0] == 480.0, "repaired")
        assert_eventually(lambda: node.view(0).repairs == 1, "counted")


def test_a_full_disk_stops_new_limits_that_could_not_be_given_back(tmp_path: Path) -> None:
    with bench(tmp_path, settings=ANNOTATED) as node:
        node.disk.full = True
        node.listings.put("w", "480", node.uuids[0])
        node.start()
        settled(node)
        assert_eventually(lambda: "no new limits" in node.picture().journal, "told")
        assert writes(node)[0] == []
        node.disk.full = False
        assert_eventually(lambda: node.limits()[0] == 480.0, "capped once it can be journalled")


def test_a_gpu_that_comes_later_is_decided_about(tmp_path: Path) -> None:
    with bench(tmp_path, gpus=1, settings=ANNOTATED) as node:
        node.start()
        settled(node)
        node.listings.put("w", "480", "GPU-late")
        node.node.add("NVIDIA H100 80GB HBM3", "GPU-late")
        assert_eventually(lambda: node.node.gpu("GPU-late").requested_w == 480.0, "capped")
