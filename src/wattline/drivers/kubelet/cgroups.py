"""Pod UID of a process, read from its cgroup file.

What the kubelet names a pod's cgroup, below whatever the node put in front of it:

- systemd driver: `kubepods[-burstable|-besteffort]-pod<uid with underscores>.slice`, with the names
  of parent slices in front (kind: `kubelet-kubepods-...`), and `:runtime:id` behind where the
  container runtime was told of another driver than the kubelet;
- cgroupfs driver: `kubepods/[burstable/|besteffort/]pod<uid>`;
- seen from a private cgroup namespace, the common part is replaced by `..`: `/../../pod<uid>`.

A UID is a UUID, the shorter 8-4-4-4-4 of Dynamo's test data, or 32 hex digits for a static pod.
The outermost pod of the first line that has one is the answer: what a container calls its own
cgroups further down cannot make it another pod. Whatever has not exactly these forms is no pod.
"""

from __future__ import annotations

import re
from pathlib import Path

_MAX_BYTES = 64 * 1024
"""Longer than any real file: 14 hierarchies of at most 4096 bytes."""

_HEX = "[0-9a-fA-F]"
_DASHED = rf"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-(?:{_HEX}{{12}}|{_HEX}{{4}})"
_UNDERSCORED = rf"{_HEX}{{8}}(?:_{_HEX}{{4}}){{3}}_(?:{_HEX}{{12}}|{_HEX}{{4}})"
_STATIC = rf"{_HEX}{{32}}"

_SYSTEMD = re.compile(
    rf"(?:[^/:]+-)?kubepods(?:-burstable|-besteffort)?-pod({_UNDERSCORED}|{_STATIC})\.slice(?::.+)?"
)
_CGROUPFS = re.compile(rf"pod({_DASHED}|{_STATIC})")
_QOS = frozenset({"burstable", "besteffort"})


def pod_uid(content: str) -> str | None:
    """UID of the pod that a `/proc/<pid>/cgroup` file names; None: the process is in no pod."""
    for line in content.split("\n"):  # the one character that the kernel keeps out of names
        fields = line.split(":", 2)
        if len(fields) == 3 and fields[2].startswith("/"):
            uid = _uid_of_path(fields[2])
            if uid is not None:
                return uid
    return None


def read_pod_uid(proc_root: Path, pid: int) -> str | None:
    """UID of the pod of a process below `proc_root`; None: in no pod, or it has ended.

    Raises OSError when there is a process whose file may not be read.
    """
    try:
        with (proc_root / str(pid) / "cgroup").open("rb") as file:
            content = file.read(_MAX_BYTES)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return pod_uid(content.decode("utf-8", "replace"))


def _uid_of_path(path: str) -> str | None:
    parts = path.split("/")[1:]
    for index, part in enumerate(parts):
        systemd = _SYSTEMD.fullmatch(part)
        if systemd:
            return systemd[1].replace("_", "-")
        cgroupfs = _CGROUPFS.fullmatch(part)
        if cgroupfs and _holds_pods(parts[:index]):
            return cgroupfs[1]
    return None


def _holds_pods(parents: list[str]) -> bool:
    """True for the folders in which the kubelet's cgroupfs driver makes those of pods."""
    if parents and parents[-1] in _QOS:
        parents = parents[:-1]
    if not parents:
        return False
    # One `..` leads from a container to its own pod, so other pods are two or more levels up.
    return parents[-1] == "kubepods" or (len(parents) >= 2 and set(parents) == {".."})
