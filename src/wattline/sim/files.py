"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from wattline.core.errors import InputError


def check_writable(path: Path) -> None:
    """InputError if `write_text` could not write `path`: before the work, not after it."""
    if path.is_dir():
        raise InputError(str(path), "a folder", "name a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(str(path), "may not be written", "choose a path that can be written")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary neighbour and a rename.

    Straight into it, if it is a pipe or a device.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            str(path), error.strerror or str(error), "choose a path that can be written"
        ) from error
