"""Which sources the settings lead to, and what the owners' thread looks up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wattline.agent.settings import AgentSettings
from wattline.agent.snapshot import Mode
from wattline.cli.agent_run import Lookups, open_owners, open_pods
from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuError, GpuFault, GpuProcess
from wattline.drivers.gpu.simulated import SimulatedDriver, SimulatedNode
from wattline.drivers.pods import OwnerMethod, SourceError
from wattline.drivers.pods_file import OwnersFile, PodsFile

H200 = "NVIDIA H200"


class Counted:
    """A driver that counts how often it was opened and closed."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.opened = 0
        self.closed = 0

    def __call__(self) -> SimulatedDriver:
        self.opened += 1
        outer = self

        class Driver(SimulatedDriver):
            def close(self) -> None:
                outer.closed += 1
                super().close()

        return Driver(self.node)


def _settings(folder: Path, **changes: Any) -> AgentSettings:
    values: dict[str, Any] = {"node": "n1", "driver": "simulated", "grants": folder / "grants"}
    return AgentSettings(**{**values, **changes})


def test_lookups_open_nothing_until_they_are_asked() -> None:
    counted = Counted(SimulatedNode([H200]))
    Lookups(counted).close()
    assert (counted.opened, counted.closed) == (0, 0)
    lookups = Lookups(counted)
    lookups.parents()
    lookups.pids()
    lookups.close()
    assert (counted.opened, counted.closed) == (1, 1)


def test_parts_of_gpus_are_found_by_uuid_and_index_and_looked_at_anew() -> None:
    node = SimulatedNode([H200, H200])
    first, second = (gpu.uuid for gpu in node.gpus)
    lookups = Lookups(Counted(node), fresh_s=0.0)
    assert lookups.parents() == {"0": first, "1": second}
    with node.changing(second) as gpu:
        gpu.mig_uuids = ("MIG-a", "MIG-b")
    assert lookups.parents() == {"0": first, "1": second, "MIG-a": second, "MIG-b": second}
    kept = Lookups(Counted(node), fresh_s=1e9)
    before = kept.parents()
    with node.changing(second) as gpu:
        gpu.mig_uuids = ()
    assert kept.parents() is before


def test_failures_of_lookups_are_failures_of_the_source() -> None:
    node = SimulatedNode([H200])
    lookups = Lookups(Counted(node), fresh_s=0.0)
    node.fail(node.gpus[0].uuid, GpuFault.LOST, "mig_uuids")
    with pytest.raises(SourceError, match="parts of GPUs"):
        lookups.parents()


def test_a_process_list_that_fails_is_that_gpus_failure_only() -> None:
    node = SimulatedNode([H200, H200])
    first, second = (gpu.uuid for gpu in node.gpus)
    node.fail(first, GpuFault.UNKNOWN, "processes")
    with node.changing(second) as gpu:
        gpu.processes = (GpuProcess(7),)
    pids = Lookups(Counted(node), fresh_s=0.0).pids()
    assert isinstance(pids[first], GpuError)
    assert pids[second] == [7]


def test_processes_are_the_hosts_ids_by_gpu() -> None:
    node = SimulatedNode([H200])
    with node.changing(node.gpus[0].uuid) as gpu:
        gpu.processes = (GpuProcess(7), GpuProcess(8, "MIG-a"))
    assert Lookups(Counted(node)).pids() == {node.gpus[0].uuid: [7, 8]}


def test_pods_come_from_where_the_settings_say(tmp_path: Path) -> None:
    def nothing() -> None:
        pass

    assert open_pods(_settings(tmp_path), nothing) is None
    file = open_pods(_settings(tmp_path, pods=f"file:{tmp_path / 'pods.json'}"), nothing)
    assert isinstance(file, PodsFile)
    nowhere = _settings(
        tmp_path, mode=Mode.ANNOTATIONS, safe_default_w=500.0, kubeconfig=tmp_path / "none"
    )
    with pytest.raises(InputError):
        open_pods(nowhere, nothing)


def test_owners_come_from_where_the_settings_say(tmp_path: Path) -> None:
    file = tmp_path / "owners.json"
    file.write_text(json.dumps({"gpus": {}}), encoding="utf-8")
    by_file = open_owners(_settings(tmp_path, owners=f"file:{file}"))
    assert isinstance(by_file, OwnersFile)
    assert by_file.owners().method is OwnerMethod.FILES
    (tmp_path / "proc").mkdir()
    missing = tmp_path / "kubelet.sock"
    fallback = open_owners(_settings(tmp_path, kubelet_socket=missing, proc_root=tmp_path / "proc"))
    try:
        assert fallback.owners().method is OwnerMethod.PROCESSES
        missing.touch()
        with pytest.raises(SourceError, match="PodResources"):
            fallback.owners()
    finally:
        fallback.close()
