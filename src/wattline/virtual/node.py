"""A virtual node in a folder: GPUs behind the virtual NVML, and the files that an agent reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from wattline.virtual.gpus import VirtualGpus
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
        self.folder = folder
        self.gpus_file = folder / "gpus.state"
        self.kubelet_socket = folder / "kubelet.sock"
        self.proc_root = folder / "proc"
        self.pods_file = folder / "pods.json"
        folder.mkdir(parents=True, exist_ok=True)
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

    @property
    def env(self) -> dict[str, str]:
        """Variables to add to a process's environment."""
        paths = [str(self.gpus.library.parent)]
        if inherited := os.environ.get("LD_LIBRARY_PATH"):
            paths.append(inherited)
        return {GPUS_VARIABLE: str(self.gpus_file), "LD_LIBRARY_PATH": os.pathsep.join(paths)}

    def close(self) -> None:
        """Stop what serves and let go; the files stay for whoever looks."""
        self.gpus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
