"""A command whose libraries are not installed says which extra brings them."""

from __future__ import annotations

import subprocess
import sys

import pytest

_RUN = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {missing!r} or name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Missing())
sys.argv = {argv!r}
from wattline.cli.main import main
main()
"""


def _run(argv: list[str], missing: list[str]) -> subprocess.CompletedProcess[str]:
    script = _RUN.format(missing=missing, argv=["wattline", *argv])
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize("argv", [["simulate", "demo"], ["models", "list"], ["scenario", "list"]])
def test_the_simulators_commands_name_their_extra(argv: list[str]) -> None:
    outcome = _run(argv, ["numpy", "pydantic", "rich"])
    assert outcome.returncode == 2
    assert outcome.stderr.count("\n") == 1
    assert "pip install 'wattline[sim]'" in outcome.stderr


def test_help_needs_no_extra() -> None:
    outcome = _run(["--help"], ["numpy", "pydantic", "rich", "yaml", "grpc", "lightkube", "pynvml"])
    assert outcome.returncode == 0
    assert "simulate" in outcome.stdout


def test_a_missing_module_of_our_own_is_not_taken_for_a_missing_extra() -> None:
    outcome = _run(["models", "list"], ["wattline.cli.models"])
    assert outcome.returncode == 1
    assert "ModuleNotFoundError" in outcome.stderr
    assert "pip install" not in outcome.stderr
