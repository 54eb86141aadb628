"""Another writer of power limits, in a process of its own, through the real NVML binding.

python bench/faults_rival.py    # reads lines `UUID WATTS`, answers each with `ok` or the error
"""

from __future__ import annotations

import os
import subprocess
import sys

from wattline.virtual.node import VirtualNode


class Rival:
    """The process, and a way to tell it what to write."""

    def __init__(self, node: VirtualNode) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **node.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Process id, by which its writes are known."""
        return self._process.pid

    def write(self, uuid: str, watts: float) -> str:
        """Let it write now; `ok`, or what NVML said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{uuid} {watts}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    import pynvml

    for line in sys.stdin:
        uuid, watts = line.split()
        answer = "ok"
        try:
            pynvml.nvmlInit()
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(float(watts) * 1000))
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            answer = str(error)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
