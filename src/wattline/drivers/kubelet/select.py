"""Which way of telling owners a node gets: PodResources, or processes where there is no socket."""

from __future__ import annotations

from pathlib import Path

from wattline.drivers.kubelet.pod_resources import PodResources
from wattline.drivers.kubelet.processes import ProcessOwners
from wattline.drivers.pods import OwnerMethod, Ownership


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
