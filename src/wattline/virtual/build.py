"""Builds the virtual GPUs' `libnvidia-ml.so.1` from its C source, once per version of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from wattline.core.errors import WattlineError

SOURCE = Path(__file__).parent / "nvml"
LIBRARY = "libnvidia-ml.so.1"
FLAGS = (
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    f"-Wl,-soname,{LIBRARY}",
)
LIBRARIES = ("-lm", "-pthread")


def cache_folder() -> Path:
    """Where built libraries are kept: XDG_CACHE_HOME or ~/.cache, below it `wattline`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "wattline" / "virtual-nvml"


def build(cache: Path | None = None, extra_flags: tuple[str, ...] = ()) -> Path:
    """Path of the library, built now unless `cache` has it for this very source and flags.

    The compiler is `$CC` or `cc`. WattlineError when there is none or it fails. Several processes
    may build at once: each writes a file of its own and moves it into place.
    """
    folder = (cache or cache_folder()) / _fingerprint(extra_flags)
    library = folder / LIBRARY
    if library.exists():
        return library
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise WattlineError(
            f"the virtual GPUs need a C compiler and {compiler!r} is not there: install one "
            "(Debian: gcc and libc6-dev) or name it in CC"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / LIBRARY
        sources = sorted(str(path) for path in SOURCE.glob("*.c"))
        command = [compiler, *FLAGS, *extra_flags, "-o", str(built), *sources, *LIBRARIES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            found = next((line for line in lines if "error" in line), lines[0])
            raise WattlineError(f"{compiler} cannot build the virtual GPUs: {found}")
        built.replace(library)
    return library


def _fingerprint(extra_flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(" ".join((*FLAGS, *extra_flags, *LIBRARIES)).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
