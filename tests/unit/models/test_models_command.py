"""`wattline models`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from wattline.cli.models import models
from wattline.core.errors import InputError


def run(*arguments: str) -> str:
    result = CliRunner().invoke(models, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_names_products_and_models() -> None:
    text = run("list")
    assert "H200" in text
    assert "gpt-oss-120b" in text
    listed = json.loads(run("list", "--json"))
    assert {"H200", "L40S"} <= {product["name"] for product in listed["gpus"]}
    assert len(listed["models"]) >= 16


def test_show_gives_each_number_its_source() -> None:
    text = run("show", "H200")
    assert "max_limit_w" in text
    assert "datasheet" in text
    shown = json.loads(run("show", "h200", "--json"))
    assert shown["max_limit_w"]["value"] == 700
    assert shown["max_limit_w"]["source"]


def test_show_reads_models_and_directories(tmp_path: Path) -> None:
    shown = json.loads(run("show", "openai/gpt-oss-20b", "--json"))
    assert shown["experts"] == 32
    assert shown["source"].startswith("https://")
    config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "dense" in run("show", str(tmp_path))


def test_unknown_names_are_bad_input() -> None:
    with pytest.raises(InputError, match="did you mean"):
        CliRunner().invoke(models, ["show", "gpt-oss-12b"], catch_exceptions=False)


def test_cap_response_as_text_and_json() -> None:
    assert "RTX 3090, decode" in run("cap-response")
    document = json.loads(run("cap-response", "--json"))
    assert document["worst_tested_error"] <= 0.25
    assert {board["name"] for board in document["boards"]} >= {"RTX 3090", "A100", "GB300"}
