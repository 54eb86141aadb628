"""Builds the environments that Dynamo's processes run in: `python -m wattline.live.environment`.

Dynamo is not a dependency of ours: it comes from the public index into a folder of its own, every
package at a pinned version, once. Its frontend, mock workers and runtime are one part; the planner
with what it imports is another part of the same folder. What is left out on purpose: `aisimulate`,
which no public index has; a stub stands in for it, so that the planner's `sla` performance model
does not work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TextIO

from wattline.core.errors import InputError, WattlineError
from wattline.live import model_dir

RELEASE = "1.6.1"
HOME_VARIABLE = "WATTLINE_DYNAMO_HOME"
BASE, PLANNER = "base", "planner"
_COMMAND_S = 1800.0
_HOSTS = (
    "DYN_EVENT_PLANE_HOST",
    "DYN_SYSTEM_HOST",
    "DYN_TCP_RESPONSE_STREAM_HOST",
    "DYN_TCP_RPC_HOST",
)

# The planner imports these names at start, even where it never uses them.
_STUB = {
    "__init__.py": '"""A stub: aisimulate is on no public index."""\n',
    "_native.py": (
        "class RustForwardPassPerfModel:\n"
        "    def __init__(self, *args, **kwargs):\n"
        '        raise RuntimeError("aisimulate is not installed: a stub stands in for it")\n'
    ),
    "sdk.py": (
        "from dataclasses import dataclass\n\n"
        "from aisimulate_core._native import RustForwardPassPerfModel\n\n"
        '__all__ = ["ForwardPassPerfModelConfig", "RustForwardPassPerfModel"]\n\n\n'
        "@dataclass\n"
        "class ForwardPassPerfModelConfig:\n"
        "    def to_dict(self):\n"
        "        return {}\n\n"
        "    @classmethod\n"
        "    def from_legacy_engine_config(cls, *args, **kwargs):\n"
        '        raise RuntimeError("aisimulate is not installed: a stub stands in for it")\n'
    ),
}


@dataclass(frozen=True, slots=True)
class Environment:
    """A built environment in `home`."""

    home: Path

    @property
    def python(self) -> Path:
        """Its interpreter: `python -m dynamo.frontend` and the like."""
        return self.home / "bin" / "python"

    @property
    def model_dir(self) -> Path:
        """The model directory without weights."""
        return self.home / "model"

    def variables(self, folder: Path) -> dict[str, str]:
        """Variables for Dynamo processes that find each other through files in `folder`.

        On loopback, as far as Dynamo lets itself be told: its ZeroMQ publishers listen on all
        addresses. The package of this very process is put on the path of Python, and nothing else
        of its environment. `DYN_LOG` is `warn` unless this process has another.
        """
        return {
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(folder),
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            **dict.fromkeys(_HOSTS, "127.0.0.1"),
            "DYN_LOG": os.environ.get("DYN_LOG", "warn"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(_package_path(self.home)),
        }


def default_home() -> Path:
    """Where it is kept: `$WATTLINE_DYNAMO_HOME`, else `.cache` of the source tree or the user's."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).absolute()
    root = Path(__file__).resolve().parents[3]
    if (root / "pyproject.toml").exists():
        return root / ".cache" / f"dynamo-{RELEASE}"
    base = os.environ.get("XDG_CACHE_HOME")
    cache = Path(base) if base else Path.home() / ".cache"
    return cache / "wattline" / f"dynamo-{RELEASE}"


def find(*, planner: bool = False, home: Path | None = None) -> Environment | None:
    """The environment if it is built, with the versions that this package pins; else None."""
    place = home or default_home()
    return Environment(place) if _missing(place, _wanted(planner)) == [] else None


def require(*, planner: bool = False, home: Path | None = None) -> Environment:
    """As `find`; InputError with the command that builds it where it is not built."""
    found = find(planner=planner, home=home)
    if found is None:
        option = " --planner" if planner else ""
        remedy = f"build it: `python -m wattline.live.environment{option}`"
        raise InputError("Dynamo environment", str(home or default_home()), remedy)
    return found


def build(
    *,
    planner: bool = False,
    home: Path | None = None,
    python: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Environment:
    """The environment, built now as far as it is not there; one build of a folder at a time.

    `python` makes the virtual environment (the running one by default); `say` gets lines of
    progress, on standard error by default. WattlineError when a step fails.
    """
    place = (home or default_home()).absolute()
    tell = say or _say
    wanted = _wanted(planner)
    if not _missing(place, wanted):
        return Environment(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_name(place.name + ".lock"), tell):
        missing = _missing(place, wanted)
        if missing:
            _make(place, missing, python or sys.executable, tell)
    return Environment(place)


def _make(place: Path, parts: list[str], python: str, tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    interpreter = place / "bin" / "python"
    if not interpreter.exists():
        tell(f"making a virtual environment in {place}")
        _run([python, "-m", "venv", "--clear", str(place)])
    pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for part in parts:
        pins = _pins(part)
        packages = sum(not line.startswith("#") for line in pins.splitlines())
        tell(f"installing {packages} packages of Dynamo {RELEASE}, part {part} (this happens once)")
        listed = place / f"{part}.txt"
        listed.write_text(pins)
        _run([*pip, "--no-deps", "--requirement", str(listed)])
        if part == PLANNER:
            _write_stub(place)
    if not (place / "model" / "tokenizer.json").exists():
        tell("training the tokenizer of a model without weights")
        _run([str(interpreter), str(Path(model_dir.__file__)), str(place / "model")])
    ready = _ready(place) | {part: _digest(part) for part in parts}
    partial = place / ".ready.partial"
    partial.write_text(json.dumps(ready, indent=2) + "\n")
    partial.replace(place / ".ready")
    tell(f"Dynamo {RELEASE} is ready after {time.monotonic() - began:.0f} s")


def _write_stub(place: Path) -> None:
    packages = next((place / "lib").glob("python3*")) / "site-packages"
    stub = packages / "aisimulate_core"
    stub.mkdir(exist_ok=True)
    for name, text in _STUB.items():
        (stub / name).write_text(text)


def _wanted(planner: bool) -> list[str]:
    return [BASE, PLANNER] if planner else [BASE]


def _missing(place: Path, parts: list[str]) -> list[str]:
    """The parts that are not there, or there at other versions."""
    ready = _ready(place)
    return [part for part in parts if ready.get(part) != _digest(part)]


def _ready(place: Path) -> dict[str, str]:
    """Digest of each part that is installed; empty for a folder that none of us finished."""
    try:
        found = json.loads((place / ".ready").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _pins(part: str) -> str:
    return files("wattline.live").joinpath(f"dynamo_{part}.txt").read_text()


def _digest(part: str) -> str:
    return hashlib.sha256(_pins(part).encode()).hexdigest()[:16]


def _run(command: list[str]) -> None:
    """Run a step; its last lines say what went wrong."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COMMAND_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WattlineError(f"Dynamo environment: {command[0]}: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        found = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise WattlineError(
            f"Dynamo environment: {found}: see that the package index can be reached and has "
            f"wheels for this Python and machine ({sys.platform}, {command[0]})"
        )


@contextmanager
def _locked(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as lock:
        _wait_for(lock, path, tell)
        yield


def _wait_for(lock: TextIO, path: Path, tell: Callable[[str], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell(f"another process builds: waiting for {path}")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _package_path(home: Path) -> Path:
    """A folder that holds our package and nothing else, for `PYTHONPATH`.

    The folder that the package lies in may be another environment's `site-packages`, which would
    come before Dynamo's own.
    """
    package = Path(__file__).resolve().parents[1]
    folder = home / "paths" / hashlib.sha256(str(package).encode()).hexdigest()[:16]
    link = folder / package.name
    folder.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        partial = folder / f".{os.getpid()}"
        partial.symlink_to(package)
        partial.replace(link)
    return folder


def _say(line: str) -> None:
    print(f"dynamo: {line}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Build, and print the folder."""
    unknown = set(arguments) - {"--planner"}
    if unknown:
        print("usage: python -m wattline.live.environment [--planner]", file=sys.stderr)
        return 2
    try:
        print(build(planner="--planner" in arguments).home)
    except WattlineError as error:
        print(f"wattline: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
