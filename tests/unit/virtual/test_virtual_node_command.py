"""`wattline virtual-node`, command by command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wattline.cli.virtual_node import virtual_node
from wattline.core.errors import InputError
from wattline.drivers.kubelet.cgroups import read_pod_uid
from wattline.drivers.pods_file import PodsFile
from wattline.virtual.gpus import Cause, Group
from wattline.virtual.node import VirtualNode
from wattline.virtual.pods import KubeletFault


def run(*arguments: object) -> str:
    result = CliRunner().invoke(virtual_node, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run("create", tmp_path / "node", "--profile", "mixed", "--settle", "0")
    return tmp_path / "node"


def shown(folder: Path) -> list[dict[str, Any]]:
    gpus: list[dict[str, Any]] = json.loads(run("show", folder, "--json"))["gpus"]
    return gpus


def test_a_new_node_has_the_profiles_gpus(folder: Path) -> None:
    products = [gpu["product"] for gpu in shown(folder)]
    assert products == ["NVIDIA H100 80GB HBM3"] * 4 + ["NVIDIA H200"] * 2 + ["NVIDIA B200"] * 2
    assert [gpu["enforced_w"] for gpu in shown(folder)] == [700.0] * 6 + [1000.0] * 2


def test_a_node_is_made_once(folder: Path) -> None:
    with pytest.raises(InputError, match="one already"):
        run("create", folder)


def test_what_is_not_there_is_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="create"):
        run("show", tmp_path)
    with pytest.raises(InputError, match="8 GPUs"):
        run("load", folder, 8, 500)
    with pytest.raises(InputError, match="no GPU of the node"):
        run("load", folder, "GPU-1", 500)
    with pytest.raises(InputError, match="no such pod"):
        run("pod", "remove", folder, "a")
    with pytest.raises(InputError, match="name each of 0 to 7 once"):
        run("renumber", folder, 0, 1, 1, 3, 4, 5, 6, 7)


def test_the_table_is_for_people(folder: Path) -> None:
    run("load", folder, "all", 650)
    run("clamp", folder, 0, "--ceiling", 400)
    run("lose", folder, 1)
    run("pod", "add", folder, "vllm-0", "--gpu", 2, "--limit", 400)
    lines = run("show", folder).splitlines()
    assert "400 W" in lines[1]
    assert "capped" in lines[1]
    assert "lost (Xid 79)" in lines[2]
    assert lines[3].endswith("vllm-0")
    assert lines[-1] == "NVML clients: none"


def test_faults_are_set_and_cleared(folder: Path) -> None:
    run("fault", folder, 0, "--calls", "limit-write", "--code", "no-permission", "--count", 3)
    run("fault", folder, "node", "--calls", "session", "--delay-ms", 5, "--code", "success")
    run("hide-fields", folder, 0, 190, 192)
    run("clamp", folder, 0, "--ceiling", 400)
    run("rival", folder, 1, 500, "--every", 1000)
    assert [gpu["enforced_w"] for gpu in shown(folder)[:3]] == [400.0, 500.0, 700.0]
    run("clear", folder)
    assert [gpu["enforced_w"] for gpu in shown(folder)[:3]] == [700.0, 500.0, 700.0]


def test_a_reload_brings_the_defaults_back(folder: Path) -> None:
    run("rival", folder, "all", 300)
    assert {gpu["enforced_w"] for gpu in shown(folder)} == {300.0}
    run("reload", folder)
    assert [gpu["enforced_w"] for gpu in shown(folder)] == [700.0] * 6 + [1000.0] * 2
    assert "300 -> 700 W reload" in run("log", folder)


def test_gpus_are_renumbered_split_added_and_removed(folder: Path) -> None:
    first = shown(folder)[0]["uuid"]
    run("renumber", folder, 7, 1, 2, 3, 4, 5, 6, 0)
    assert shown(folder)[7]["uuid"] == first
    assert len(run("split", folder, first, 3).splitlines()) == 3
    assert shown(folder)[7]["mig"] is True
    added = run("add", folder, "h200").strip()
    run("remove", folder, first)
    assert [gpu["uuid"] for gpu in shown(folder)][-1] == added
    run("remove", folder, first, "--back")
    assert shown(folder)[8]["uuid"] == first


def test_pods_and_processes_come_and_go(folder: Path) -> None:
    uid = run("pod", "add", folder, "a", "--gpu", 0, "--device", "GPU-x::1", "--limit", 400).strip()
    listed = json.loads(run("show", folder, "--json"))["pods"]
    assert [device["id"] for device in listed[0]["devices"]] == [
        shown(folder)[0]["uuid"],
        "GPU-x::1",
    ]
    run("process", folder, 0, 4711, "--pod", uid)
    assert read_pod_uid(folder / "proc", 4711) == uid
    run("process", folder, 0, 4711, "--end")
    assert read_pod_uid(folder / "proc", 4711) is None
    run("pod", "remove", folder, "a")
    assert json.loads(run("show", folder, "--json"))["pods"] == []


def test_a_claim_is_named_by_pool_and_device(folder: Path) -> None:
    run("pod", "add", folder, "a", "--claim", "node-1/gpu-3")
    (listed,) = json.loads(run("show", folder, "--json"))["pods"]
    assert [(c["pool"], c["device"]) for c in listed["claims"]] == [("node-1", "gpu-3")]
    with pytest.raises(InputError, match="POOL/DEVICE"):
        run("pod", "add", folder, "b", "--claim", "gpu-3")


def test_the_agent_reads_the_pods_file(folder: Path) -> None:
    uid = run("pod", "add", folder, "a", "--gpu", 0, "--limit", 400).strip()
    run("pod", "add", folder, "b", "--gpu", 1)
    source = PodsFile(folder / "pods.json")
    source.start()
    source.stop()
    first, second = source.pods()
    assert (first.name, first.uid, first.limit) == ("a", uid, "400")
    assert second.limit is None


def test_the_kubelets_fault_is_kept_in_the_node(folder: Path) -> None:
    run("kubelet", folder, "--fault", "error:INTERNAL")
    with VirtualNode(folder) as node:
        assert node.pods.fault() == KubeletFault(kind="error", code="INTERNAL")


def test_the_environment_names_library_and_state(folder: Path) -> None:
    text = run("env", folder)
    assert f"export WATTLINE_VIRTUAL_GPUS={folder / 'gpus.state'}\n" in text
    with VirtualNode(folder) as node:
        assert f"export LD_LIBRARY_PATH={node.gpus.library.parent}" in text


def test_a_node_that_is_opened_again_is_the_same(folder: Path) -> None:
    run("load", folder, 0, 555)
    with VirtualNode(folder) as node:
        assert node.gpus.state(0).load_w == 555.0
        assert node.gpus.changes(0)[0][-1].cause is Cause.CONTROL
        assert node.gpus.calls(0, Group.LIMIT_WRITE) == 0
