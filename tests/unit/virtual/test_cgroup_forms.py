"""The cgroup trees of the virtual node, read by the agent's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattline.drivers.kubelet.cgroups import pod_uid, read_pod_uid
from wattline.virtual.cgroups import (
    CgroupForm,
    all_forms,
    host_cgroup,
    pod_cgroup,
    remove_process,
    write_process,
)

UID = "12345678-1234-1234-1234-123456789abc"


@pytest.mark.parametrize("form", list(all_forms()), ids=str)
def test_every_form_names_its_pod(form: CgroupForm) -> None:
    assert pod_uid(pod_cgroup(UID, form)) == UID


def test_the_forms_are_many_and_differ() -> None:
    texts = [pod_cgroup(UID, form) for form in all_forms()]
    assert len(texts) == 126
    # docker and containerd name cgroupfs containers alike: only their ids stand there.
    assert len(set(texts)) >= 100


@pytest.mark.parametrize("version", [1, 2])
def test_a_process_of_the_host_is_in_no_pod(version: int) -> None:
    text = host_cgroup(version=1 if version == 1 else 2)
    assert "kubelet.service" in text
    assert pod_uid(text) is None


def test_known_texts() -> None:
    """As Dynamo's power agent has them in its tests (cgroup parser)."""
    guaranteed = pod_cgroup(UID, CgroupForm(1, "systemd"))
    inside = f"/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-"
    assert guaranteed.splitlines()[0].startswith(f"11:devices:{inside}")
    burstable = pod_cgroup(UID, CgroupForm(2, "cgroupfs", "burstable"))
    assert burstable.startswith(f"0::/kubepods/burstable/pod{UID}/")


def test_processes_come_and_go(tmp_path: Path) -> None:
    write_process(tmp_path, 4711, pod_cgroup(UID, CgroupForm()))
    assert read_pod_uid(tmp_path, 4711) == UID
    remove_process(tmp_path, 4711)
    assert list(tmp_path.iterdir()) == []
