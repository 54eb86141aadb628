"""Which way of telling owners a node gets: PodResources, or processes where there is no socket."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from wattline.drivers.kubelet.devices import ClaimedGpus, GpuResolver
from wattline.drivers.kubelet.pod_resources import SOCKET, PodResources
from wattline.drivers.kubelet.processes import ProcessOwners
from wattline.drivers.kubelet.wire import ClaimedDevice
from wattline.drivers.pods import OwnerMethod, Ownership


def open_owner_source(
    *,
    pids: Callable[[], Mapping[str, Collection[int]]],
    parents: Callable[[], Mapping[str, str]] = dict,
    read_slices: Callable[[], Mapping[ClaimedDevice, str]] | None = None,
    socket: Path = SOCKET,
    proc_root: Path | None = None,
) -> OwnersByKubelet:
    """Owners of this node's GPUs.

    pids: host's process ids per GPU UUID, as NVML lists them. parents: GPU UUID per MIG UUID.
    read_slices: UUIDs of DRA devices (`drivers.kube.slices`); None: claims stay unresolved.
    Raises InputError without grpc.
    """
    claims = None if read_slices is None else ClaimedGpus(read_slices)
    listed = PodResources(GpuResolver(parents, claims), socket)
    return OwnersByKubelet(socket, listed, ProcessOwners(pids, proc_root))


class OwnersByKubelet:
    """`OwnerSource` of a node: the PodResources socket, processes only while it never existed.

    A socket that is there and fails, or that was there and has gone (the kubelet restarts), is an
    error and not a reason to fall back: processes are seen later than devices, so going back and
    forth would take limits off GPUs whose pods have not started to compute.
    """

    def __init__(self, socket: Path, listed: PodResources, by_process: ProcessOwners) -> None:
        self._socket = socket
        self._listed = listed
        self._by_process = by_process
        self._socket_seen = False

    @property
    def method(self) -> OwnerMethod:
        """How owners are told now."""
        self._socket_seen = self._socket_seen or not _is_missing(self._socket)
        return OwnerMethod.POD_RESOURCES if self._socket_seen else OwnerMethod.PROCESSES

    @property
    def reason(self) -> str:
        """Why it is this method, for the log and for `status`."""
        if self.method is OwnerMethod.POD_RESOURCES:
            return f"the kubelet's socket {self._socket} is there"
        return (
            f"no socket {self._socket}: owners are told by processes and their cgroups, which show "
            "a pod only once it computes"
        )

    def owners(self) -> Ownership:
        """Ask now, by `method`; SourceError as that method raises it."""
        if self.method is OwnerMethod.POD_RESOURCES:
            return self._listed.owners()
        return self._by_process.owners()

    def forget(self) -> None:
        """The GPUs of the node have changed."""
        self._listed.forget()

    def close(self) -> None:
        """Let go of the socket."""
        self._listed.close()
        self._by_process.close()


def _is_missing(socket: Path) -> bool:
    try:
        socket.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # it may be there: let the call to it say what is wrong
    return False
