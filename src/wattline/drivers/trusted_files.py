"""Files that steer or record limits: read only from those who may steer, replaced in one step."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from wattline.core.errors import InputError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def read_trusted(path: Path, *, max_bytes: int) -> bytes:
    """Content of a regular file that only root or our own user can have written.

    Symbolic links are followed as long as they stay inside the file's directory, as volumes of
    Kubernetes do it (`name -> ..data/name -> ..2026_01_01/name`). Raises FileNotFoundError when
    there is none, InputError for a file that must not be obeyed, OSError when it cannot be read.
    """
    where = str(path)
    folder = os.path.realpath(path.parent)
    target = os.path.realpath(path)
    if os.path.commonpath([folder, target]) != folder:
        raise InputError(where, target, "a link out of its directory is not followed")
    _check_folder(folder)
    # Not blocking: a FIFO in its place must not stop us.
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(where, stat.filemode(found.st_mode), "must be a regular file")
        _check_owner(where, found)
        if found.st_mode & _OTHERS_WRITE:
            raise InputError(
                where, stat.filemode(found.st_mode), "must be writable by its owner only: chmod 644"
            )
        return _read_all(descriptor, where, max_bytes)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Replace `path` by `content` so that a reader sees the old or the new, never a part.

    durable: it has reached the disk when this returns, its name included. Raises OSError, and
    leaves the old content in place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, mode)
        try:
            os.fchmod(descriptor, mode)
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):  # the error that is raised below says it all
            os.unlink(temporary)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a directory to the disk; OSError when that fails."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_folder(folder: str) -> None:
    """Refuse a directory in which others may exchange files; read-only mounts are beyond them."""
    found = os.stat(folder)
    _check_owner(folder, found)
    if not found.st_mode & _OTHERS_WRITE:
        return
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return
    raise InputError(
        folder, stat.filemode(found.st_mode), "must be writable by its owner only: chmod go-w"
    )


def _check_owner(where: str, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise InputError(where, f"uid {found.st_uid}", "must belong to root or to the agent's user")


def _read_all(descriptor: int, where: str, max_bytes: int) -> bytes:
    parts = []
    size = 0
    while chunk := os.read(descriptor, 65536):
        size += len(chunk)
        if size > max_bytes:
            raise InputError(where, f"over {max_bytes} bytes", "too large to be what it should be")
        parts.append(chunk)
    return b"".join(parts)
