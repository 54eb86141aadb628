"""One writer at a time per node: a lock that lasts until its process is really gone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from wattline.core.errors import WattlineError


class WriterLock:
    """An exclusive lock on `lock` in the state directory, held for the life of the process.

    A process that hangs in a driver call keeps it even while it is being killed, so no successor
    can report before the last write of its predecessor has ended. Never waits: raises WattlineError
    that names the holder, or OSError when the directory cannot be used.
    """

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / "lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise WattlineError(
                f"{path}: another agent (process {holder}) writes on this node: "
                f"wait until it has ended, or give this one another state_dir"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor: int | None = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            # The lock is held; on a full disk the next one cannot say by whom, and says so.
            return

    def release(self) -> None:
        """Let the next writer in. Only for one whose device calls have all returned."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
