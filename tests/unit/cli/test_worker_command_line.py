"""`wattline worker` says in one line what keeps it from starting."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from wattline.cli.worker import worker
from wattline.core.errors import InputError


def test_without_dynamo_it_says_how_to_get_it(tmp_path: Path) -> None:
    options = ["--node", str(tmp_path), "--gpus", "0", "--dynamo", str(tmp_path / "none")]
    result = CliRunner().invoke(worker, options)
    assert isinstance(result.exception, InputError)
    assert "python -m wattline.live.environment" in str(result.exception)


@pytest.mark.parametrize(
    "options",
    [[], ["--node", "x"], ["--gpus", "0"], ["--node", "x", "--gpus", "0", "--role", "router"]],
)
def test_what_is_missing_or_unknown_is_a_usage_error(options: list[str]) -> None:
    assert CliRunner().invoke(worker, options).exit_code == 2


def test_every_option_has_a_text() -> None:
    text = CliRunner().invoke(worker, ["--help"], terminal_width=100).output
    assert "Serve requests as a Dynamo worker" in text
    for option in worker.params:
        assert getattr(option, "help", None), option.name
