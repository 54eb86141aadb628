"""Owners by processes, and when they are told that way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.kubelet.devices import GpuResolver
from wattline.drivers.kubelet.pod_resources import PodResources
from wattline.drivers.kubelet.processes import ProcessOwners, host_proc_root
from wattline.drivers.kubelet.select import OwnersByKubelet
from wattline.drivers.pods import OwnerMethod, SourceError
from wattline.virtual.cgroups import CgroupForm, host_cgroup, pod_cgroup, write_process

GPU_A, GPU_B = (
    "GPU-aaaaaaaa-0000-4000-8000-000000000000",
    "GPU-bbbbbbbb-0000-4000-8000-000000000000",
)
UID = "12345678-1234-1234-1234-123456789abc"
OTHER_UID = "87654321-1234-1234-1234-123456789abc"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    for pid, uid in ((10, UID), (11, UID), (12, OTHER_UID)):
        write_process(proc, pid, pod_cgroup(uid, CgroupForm()))
    write_process(proc, 20, host_cgroup())
    return proc


def select(socket: Path, proc: Path, pids: Mapping[str, list[int]]) -> OwnersByKubelet:
    listed = PodResources(GpuResolver(), socket)
    return OwnersByKubelet(socket, listed, ProcessOwners(lambda: pids, proc))


def test_processes_of_a_pod_count_once(proc: Path) -> None:
    owners = ProcessOwners(lambda: {GPU_A: [10, 11, 11], GPU_B: [12, 10]}, proc).owners()
    assert owners.method is OwnerMethod.PROCESSES
    assert owners.pods == {GPU_A: frozenset({UID}), GPU_B: frozenset({UID, OTHER_UID})}
    assert (owners.unresolved, owners.untold) == ((), {})


def test_host_processes_and_ended_ones_own_nothing(proc: Path) -> None:
    assert ProcessOwners(lambda: {GPU_A: [20], GPU_B: [99], "GPU-c": []}, proc).owners().pods == {}


def test_a_process_that_may_not_be_read_leaves_its_gpu_untold(proc: Path) -> None:
    (proc / "30" / "cgroup").mkdir(parents=True)
    owners = ProcessOwners(lambda: {GPU_A: [10, 30], GPU_B: [12]}, proc).owners()
    assert owners.pods[GPU_B] == frozenset({OTHER_UID})
    assert list(owners.untold) == [GPU_A]
    assert "process 30" in owners.untold[GPU_A]


def test_a_gpu_whose_list_fails_leaves_the_others_told(proc: Path) -> None:
    failed = GpuError(GpuFault.LOST, "processes of GPU-a: GPU is lost")
    owners = ProcessOwners(lambda: {GPU_A: failed, GPU_B: [12]}, proc).owners()
    assert owners.pods == {GPU_B: frozenset({OTHER_UID})}
    assert owners.untold == {GPU_A: "processes of GPU-a: GPU is lost"}


def test_processes_that_nvml_does_not_tell_are_an_error(proc: Path) -> None:
    def fail() -> dict[str, list[int]]:
        raise GpuError(GpuFault.NO_PERMISSION, "processes of GPU-a: insufficient permissions")

    with pytest.raises(SourceError, match="insufficient permissions"):
        ProcessOwners(fail, proc).owners()


def a_proc(folder: Path, pid_namespace: str) -> Path:
    (folder / "42" / "ns").mkdir(parents=True)
    (folder / "42" / "ns" / "pid").symlink_to(pid_namespace)
    (folder / "self").symlink_to("42")
    return folder


def test_the_hosts_proc_is_preferred(tmp_path: Path) -> None:
    host = a_proc(tmp_path / "host", "pid:[4026531836]")
    own = a_proc(tmp_path / "own", "pid:[4026531836]")
    assert host_proc_root(host, own) == host


def test_our_own_proc_will_do_with_the_hosts_process_ids(tmp_path: Path) -> None:
    own = a_proc(tmp_path / "own", "pid:[4026531836]")
    assert host_proc_root(tmp_path / "none", own) == own


def test_our_own_process_ids_are_never_taken_for_the_hosts(tmp_path: Path) -> None:
    own = a_proc(tmp_path / "own", "pid:[4026532999]")
    with pytest.raises(SourceError, match="hostPID"):
        host_proc_root(tmp_path / "none", own)


def test_processes_are_asked_only_where_there_is_no_socket(tmp_path: Path, proc: Path) -> None:
    source = select(tmp_path / "kubelet.sock", proc, {GPU_A: [10]})
    assert source.owners().pods == {GPU_A: frozenset({UID})}
    assert source.method is OwnerMethod.PROCESSES
    assert "no socket" in source.reason


def test_a_socket_that_is_there_and_fails_is_an_error(tmp_path: Path, proc: Path) -> None:
    socket = tmp_path / "kubelet.sock"
    socket.touch()
    source = select(socket, proc, {GPU_A: [10]})
    assert source.method is OwnerMethod.POD_RESOURCES
    with pytest.raises(SourceError, match="UNAVAILABLE"):
        source.owners()
    source.close()


def test_a_socket_that_has_gone_is_no_reason_to_fall_back(tmp_path: Path, proc: Path) -> None:
    socket = tmp_path / "kubelet.sock"
    source = select(socket, proc, {GPU_A: [10]})
    assert source.owners().method is OwnerMethod.PROCESSES
    socket.touch()
    assert source.method is OwnerMethod.POD_RESOURCES
    socket.unlink()
    with pytest.raises(SourceError):
        source.owners()
    source.close()


def test_a_folder_that_cannot_be_looked_into_may_have_the_socket(
    tmp_path: Path, proc: Path
) -> None:
    looping = tmp_path / "loop"
    looping.symlink_to(looping)
    source = select(looping / "kubelet.sock", proc, {GPU_A: [10]})
    assert source.method is OwnerMethod.POD_RESOURCES
