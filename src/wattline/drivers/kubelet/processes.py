"""Owners of GPUs by their processes: the fallback for a node without the PodResources socket.

It sees a pod only once that computes on a GPU, asks NVML for process lists (milliseconds under the
driver's global lock) and needs the host's process ids. A process that ends while we look, and whose
id another takes at once, can be told wrong for one listing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from wattline.core.errors import WattlineError
from wattline.drivers.kubelet.cgroups import read_pod_uid
from wattline.drivers.pods import OwnerMethod, Ownership, SourceError

HOST_PROC = Path("/host/proc")
OWN_PROC = Path("/proc")

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""`PROC_PID_INIT_INO` of the kernel, include/linux/proc_ns.h."""


class ProcessOwners:
    """NVML's processes and their cgroups as an `OwnerSource`.

    pids: host's ids of the processes that compute on each GPU, by GPU UUID, or why those of one GPU
    cannot be told; may raise WattlineError. proc_root: where the host's `/proc` is seen; None or
    `/proc`: `/host/proc` if there is one, else our own, which will do only with `hostPID`.
    """

    def __init__(
        self,
        pids: Callable[[], Mapping[str, Collection[int] | WattlineError]],
        proc_root: Path | None = None,
    ) -> None:
        self._pids = pids
        self._proc_root = None if proc_root == OWN_PROC else proc_root

    def owners(self) -> Ownership:
        """Ask NVML and `/proc` now. SourceError: either cannot be read at all.

        A GPU whose list fails, or a process of which cannot be looked up, is `untold`.
        """
        root = self._proc_root or host_proc_root()
        try:
            pids_by_gpu = self._pids()
        except WattlineError as error:
            raise SourceError(f"processes of the GPUs: {error}") from error
        pods: dict[str, frozenset[str]] = {}
        untold: dict[str, str] = {}
        for gpu, pids in pids_by_gpu.items():
            if isinstance(pids, WattlineError):
                untold[gpu] = str(pids)
                continue
            uids: set[str] = set()
            for pid in sorted(set(pids)):
                try:
                    uid = read_pod_uid(root, pid)
                except OSError as error:
                    untold[gpu] = f"process {pid}: {error.strerror or error}"
                else:
                    if uid is not None:
                        uids.add(uid)
            if uids:
                pods[gpu] = frozenset(uids)
        return Ownership(OwnerMethod.PROCESSES, pods, untold=untold)

    def close(self) -> None:
        """Nothing is held open."""


def host_proc_root(host: Path = HOST_PROC, own: Path = OWN_PROC) -> Path:
    """Where the host's processes are seen.

    SourceError where only our own container's are: there the host's process ids mean other
    processes, and a pod would be named that has nothing to do with the GPU.
    """
    if (host / "self").is_symlink():
        return host
    try:
        namespace = str((own / "self" / "ns" / "pid").readlink())
    except OSError as error:
        raise SourceError(f"{own}/self/ns/pid: {error.strerror or error}") from error
    if namespace != _INITIAL_PID_NAMESPACE:
        raise SourceError(
            f"{own} shows this container's processes and not the host's: mount the host's /proc at "
            f"{host}, or set hostPID"
        )
    return own
