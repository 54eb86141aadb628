"""Install AIConfigurator into an environment of its own, for the contract tests, once.

`python tests/contract/aic/build_predictor.py` prints its interpreter. It takes
`WATTLINE_AIC_PYTHON` where that is set, else installs about 0.8 GB into `.cache/aiconfigurator-*/`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINS = HERE / "aiconfigurator.txt"
VERSION = "0.12.0"
PLACE = HERE.parents[2] / ".cache" / f"aiconfigurator-{VERSION}"
COMMAND_LIMIT_S = 1800.0


def find() -> Path | None:
    """The interpreter that has the library, as pinned; None if it is not built."""
    named = os.environ.get("WATTLINE_AIC_PYTHON")
    if named:
        return Path(named)
    ready = PLACE / ".ready"
    built = ready.exists() and ready.read_text() == _digest()
    return PLACE / "bin" / "python" if built else None


def build() -> Path:
    """The interpreter, after an installation if there was none; one build at a time."""
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    with PLACE.with_name(f"{PLACE.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = find()
        if found is not None:
            return found
        print(f"installing AIConfigurator {VERSION} (this happens once)", file=sys.stderr)
        python = PLACE / "bin" / "python"
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(PLACE)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run([*pip, "--no-deps", "--requirement", str(PINS)])
        (PLACE / ".ready").write_text(_digest())
        return python


def _digest() -> str:
    return hashlib.sha256(PINS.read_bytes()).hexdigest()


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=COMMAND_LIMIT_S
    )
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        sys.exit(f"AIConfigurator {VERSION}: {last}: see that the package index can be reached")


if __name__ == "__main__":
    print(build())
