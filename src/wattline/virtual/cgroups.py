"""What `/proc/<pid>/cgroup` says of a container's process, in every form that nodes have.

The forms: cgroup v1 or v2; the kubelet's systemd or cgroupfs driver; the pod's class of service;
the container runtime; and what a node puts around it: kind's nested prefix, a private cgroup
namespace, a runtime told of another driver than the kubelet. Names as in the kubelet's
pkg/kubelet/cm (kubepods, pod<uid>) and the runtimes' prefixes of scopes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

Version = Literal[1, 2]
Driver = Literal["systemd", "cgroupfs"]
Qos = Literal["guaranteed", "burstable", "besteffort"]
Runtime = Literal["containerd", "crio", "docker"]
Surrounding = Literal["host", "kind", "private", "mismatched"]

_SCOPE = {"containerd": "cri-containerd-", "crio": "crio-", "docker": "docker-"}
_V1_CONTROLLERS = ("devices", "memory", "cpu,cpuacct", "pids", "name=systemd")


@dataclass(frozen=True, slots=True)
class CgroupForm:
    """One way in which a node writes a process's cgroup.

    Surroundings: `kind` nests everything below the node's own container; `private` is a reader in
    a cgroup namespace of its own, which sees other pods by `..`; `mismatched` is a runtime with
    the cgroupfs driver under a kubelet with systemd's (`...slice:cri-containerd:<id>`).
    """

    version: Version = 2
    driver: Driver = "systemd"
    qos: Qos = "guaranteed"
    runtime: Runtime = "containerd"
    surrounding: Surrounding = "host"

    def __str__(self) -> str:
        return f"v{self.version}-{self.driver}-{self.qos}-{self.runtime}-{self.surrounding}"


def all_forms() -> Iterator[CgroupForm]:
    """Every form, each once, in a stable order."""
    forms = product(
        (1, 2),
        ("systemd", "cgroupfs"),
        ("guaranteed", "burstable", "besteffort"),
        ("containerd", "crio", "docker"),
        ("host", "kind", "private", "mismatched"),
    )
    for version, driver, qos, runtime, surrounding in forms:
        if surrounding == "mismatched" and driver == "cgroupfs":
            continue  # a mismatch needs systemd's slices with another runtime inside
        yield CgroupForm(version, driver, qos, runtime, surrounding)  # type: ignore[arg-type]


def pod_cgroup(uid: str, form: CgroupForm, container: str = "main") -> str:
    """Content of the file for a process in a container of the pod."""
    return _lines(_container_path(uid, form, container), form.version)


def host_cgroup(unit: str = "kubelet.service", version: Version = 2) -> str:
    """Content of the file for a process of the node itself, in no pod."""
    return _lines(f"/system.slice/{unit}", version)


def write_process(proc_root: Path, pid: int, cgroup: str) -> None:
    """Make `<proc_root>/<pid>/cgroup`."""
    folder = proc_root / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup").write_text(cgroup, encoding="utf-8")


def remove_process(proc_root: Path, pid: int) -> None:
    """Take the process away again."""
    (proc_root / str(pid) / "cgroup").unlink()
    (proc_root / str(pid)).rmdir()


def _container_path(uid: str, form: CgroupForm, container: str) -> str:
    own = hashlib.sha256(f"{uid} {container}".encode()).hexdigest()
    if form.driver == "systemd":
        pod = f"kubepods{_dashed(form.qos)}-pod{uid.replace('-', '_')}.slice"
        parents = ["kubepods.slice"]
        if form.qos != "guaranteed":
            parents.append(f"kubepods{_dashed(form.qos)}.slice")
        leaf = f"{_SCOPE[form.runtime]}{own}.scope"
    else:
        pod = f"pod{uid}"
        parents = ["kubepods"] + ([form.qos] if form.qos != "guaranteed" else [])
        leaf = f"crio-{own}" if form.runtime == "crio" else own
    if form.surrounding == "private":
        return "/" + "/".join(["..", "..", pod, leaf])
    if form.surrounding == "mismatched":
        # The runtime makes a cgroup of its own from the three parts that it was told.
        return f"/system.slice/{form.runtime}.service/{pod}:{_SCOPE[form.runtime][:-1]}:{own}"
    path = "/" + "/".join([*parents, pod, leaf])
    if form.surrounding == "kind":
        node = hashlib.sha256(b"kind node").hexdigest()
        if form.driver == "systemd":
            # kind puts the kubelet's pods in a slice below `kubelet`, so all names grow.
            path = "/kubelet.slice/" + "/".join(
                f"kubelet-{part}" if part.startswith("kubepods") else part
                for part in [*parents, pod, leaf]
            )
        else:
            path = f"/kubelet{path}"
        path = f"/docker/{node}{path}" if form.version == 1 else path
    return path


def _dashed(qos: Qos) -> str:
    return "" if qos == "guaranteed" else f"-{qos}"


def _lines(path: str, version: Version) -> str:
    if version == 2:
        return f"0::{path}\n"
    numbers = range(len(_V1_CONTROLLERS) + 6, 6, -1)
    named = zip(numbers, _V1_CONTROLLERS, strict=True)
    return "".join(f"{number}:{name}:{path}\n" for number, name in named)
