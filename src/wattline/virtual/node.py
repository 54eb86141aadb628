"""A virtual node in a folder: GPUs behind the virtual NVML, and the files that an agent reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import NAMESPACE_URL, uuid5

from wattline.virtual.cgroups import CgroupForm, pod_cgroup, remove_process, write_process
from wattline.virtual.gpus import VirtualGpus, VirtualProcess
from wattline.virtual.kubelet import KubeletServer
from wattline.virtual.podresources import Claim, Device
from wattline.virtual.pods import NodePods, VirtualPod
from wattline.virtual.products import profile

GPUS_VARIABLE = "WATTLINE_VIRTUAL_GPUS"


class VirtualNode:
    """Makes everything below `folder` and lets go of it at the end. A context manager.

    `env` is what a process needs to see these GPUs through an unmodified NVML binding.
    """

    def __init__(
        self,
        folder: Path,
        products: Sequence[str] | None = None,
        *,
        persistence: bool = True,
        settle_s: float | None = None,
        seed: int = 0,
        cache: Path | None = None,
    ) -> None:
        """`products`: of each GPU, eight H100 by default. `cache`: where the library is built."""
        folder = folder.absolute()
        self.folder = folder
        self.gpus_file = folder / "gpus.state"
        self.kubelet_socket = folder / "kubelet.sock"
        self.proc_root = folder / "proc"
        self.pods_file = folder / "pods.json"
        self.pods = NodePods(self.pods_file, folder / "kubelet.json")
        self.kubelet: KubeletServer | None = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        self.proc_root.mkdir(exist_ok=True)
        if self.gpus_file.exists():
            self.gpus = VirtualGpus(self.gpus_file, cache)
        else:
            self.gpus = VirtualGpus.create(
                self.gpus_file,
                profile("h100") if products is None else products,
                persistence=persistence,
                settle_s=settle_s,
                seed=seed,
                cache=cache,
            )
        self.pods.create()

    @property
    def env(self) -> dict[str, str]:
        """Variables to add to a process's environment."""
        paths = [str(self.gpus.library.parent)]
        if inherited := os.environ.get("LD_LIBRARY_PATH"):
            paths.append(inherited)
        return {GPUS_VARIABLE: str(self.gpus_file), "LD_LIBRARY_PATH": os.pathsep.join(paths)}

    def start_kubelet(self) -> KubeletServer:
        """Serve PodResources on `kubelet_socket` until `close`."""
        if self.kubelet is None:
            self.kubelet = KubeletServer(self.kubelet_socket, self.pods, self._allocatable)
        self.kubelet.start()
        return self.kubelet

    def add_pod(
        self,
        name: str,
        gpus: Sequence[str | int] = (),
        *,
        limit: str | None = None,
        namespace: str = "default",
        uid: str | None = None,
        device_ids: Sequence[str] = (),
        claims: Sequence[Claim] = (),
    ) -> VirtualPod:
        """Bind a pod that holds GPUs, other devices by id, or claims; the kubelet lists it."""
        uuids = self.gpus.uuids()
        ids = [gpu if isinstance(gpu, str) else uuids[gpu] for gpu in gpus]
        pod = VirtualPod(
            name=name,
            namespace=namespace,
            uid=uid or str(uuid5(NAMESPACE_URL, f"{self.folder}/{namespace}/{name}")),
            limit=limit,
            devices=tuple(Device(i) for i in [*ids, *device_ids]),
            claims=tuple(claims),
        )
        self.pods.add(pod)
        return pod

    def remove_pod(self, name: str, namespace: str = "default") -> None:
        """The pod ends: gone from the API server's list and from the kubelet's."""
        self.pods.remove(namespace, name)

    def add_process(
        self, gpu: str | int, pid: int, pod_uid: str, form: CgroupForm | None = None
    ) -> None:
        """A process of the pod computes on the GPU: NVML lists it, the proc root has its cgroup."""
        write_process(self.proc_root, pid, pod_cgroup(pod_uid, form or CgroupForm()))
        self.gpus.set_processes(gpu, [*self.gpus.processes(gpu), VirtualProcess(pid)])

    def remove_process(self, gpu: str | int, pid: int) -> None:
        """The process ends."""
        self.gpus.set_processes(gpu, [p for p in self.gpus.processes(gpu) if p.pid != pid])
        remove_process(self.proc_root, pid)

    def close(self) -> None:
        """Stop what serves and let go; the files stay for whoever looks."""
        if self.kubelet is not None:
            self.kubelet.stop()
        self.gpus.close()

    def _allocatable(self) -> list[Device]:
        return [Device(uuid) for uuid in self.gpus.uuids()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
