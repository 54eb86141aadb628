"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from wattline.core.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary neighbour and a rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            str(path), error.strerror or str(error), "choose a path that can be written"
        ) from error
