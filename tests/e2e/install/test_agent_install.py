"""The agent installs and starts with its own few libraries, and stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_MOST_MB = 40

_IMPORT_ALL = """
import sys
sys.path[:0] = {paths!r}
import importlib, json, pkgutil
import wattline.agent, wattline.drivers, wattline.cli.agent
for package in (wattline.agent, wattline.drivers):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent's locked libraries, and nothing else, in a folder."""
    folder = tmp_path_factory.mktemp("agent") / "libraries"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--require-hashes", "--no-compile", "--target", str(folder)]
    subprocess.run(
        [*command, "-r", str(_ROOT / "requirements" / "agent.lock")],
        check=True,
        capture_output=True,
        timeout=110,
    )
    return folder


def _python(libraries: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `script` with the standard library, the agent's libraries and our sources only."""
    paths = [str(libraries), str(_ROOT / "src")]
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", script.format(paths=paths), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_libraries_stay_under_the_limit(libraries: Path) -> None:
    size_mb = sum(file.stat().st_size for file in libraries.rglob("*") if file.is_file()) / 1e6
    assert 5 < size_mb < _MOST_MB


@pytest.mark.slow
def test_everything_of_the_agent_imports_without_the_simulators_libraries(libraries: Path) -> None:
    outcome = _python(libraries, _IMPORT_ALL)
    assert outcome.returncode == 0, outcome.stderr
    loaded = {name.split(".")[0] for name in json.loads(outcome.stdout)}
    assert not loaded & {"numpy", "pydantic", "rich"}
    ours = [name for name in json.loads(outcome.stdout) if name.startswith("wattline.")]
    assert "wattline.agent.snapshot" in ours
    assert not [name for name in ours if name.startswith(("wattline.sim", "wattline.catalog"))]


@pytest.mark.slow
def test_the_simulator_says_what_it_needs(libraries: Path) -> None:
    script = (
        "import sys; sys.path[:0] = {paths!r}; sys.argv[0] = 'wattline'\n"
        "from wattline.cli.main import main\nmain()"
    )
    outcome = _python(libraries, script, "simulate", "demo")
    assert outcome.returncode == 2
    assert "pip install 'wattline[sim]'" in outcome.stderr
    assert _python(libraries, script, "agent", "--help").returncode == 0
