"""One recorded run for all tests of a worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_fixtures import wattline, write_tiny


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `wattline`: to be read, not changed."""
    folder = tmp_path_factory.mktemp("recorded")
    outcome = wattline("simulate", write_tiny(folder), "--out", folder / "run")
    assert outcome.code == 0, outcome.err
    return folder / "run"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The tiny scenario as a file."""
    return write_tiny(tmp_path)
