from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fit_fixtures import csv_text, kernel_rows, serving_rows, serving_runs

from wattline.catalog.fits import parse_fitted
from wattline.cli.profile import profile
from wattline.core.errors import InputError

ERRORS = {
    "watts_median_error",
    "watts_p90_error",
    "token_rate_median_error",
    "token_rate_p90_error",
}
RUNS = [run for run in serving_runs() if run.batch in (8.0, 64.0, 256.0)]


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """Serving data, a hold-out with one family of it, and kernels of two products."""
    rows = serving_rows(RUNS)
    unseen = [row for row in rows if "14B" in row["model"]]
    texts = {
        "serving.csv": csv_text([row for row in rows if row not in unseen]),
        "holdout.csv": csv_text(unseen),
        "op_h200.csv": csv_text(kernel_rows(700.0, 0.7)),
        "op_b200.csv": csv_text(kernel_rows(1000.0)),
        "op_gb200.csv": csv_text(kernel_rows(1200.0)),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {name.removesuffix(".csv"): tmp_path / name for name in texts}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(profile, ["fit", *map(str, arguments)], catch_exceptions=False)


def document(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_serving_json_has_the_agreed_keys(tables: dict[str, Path]) -> None:
    found = document(tables["serving"], "--holdout", tables["holdout"])
    for name in ("fit", "cross_validation", "holdout"):
        assert set(found[name]) >= {"rows", "groups", *ERRORS}
        assert found[name]["rows"] > 0
        assert all(0.0 <= found[name][key] < 0.5 for key in ERRORS)
        for group in found[name]["groups"]:
            assert set(group) >= {"rows", "gpu", "model", "op", *ERRORS}
    assert found["holdout"]["families_also_in_fit"] == []
    assert {group["gpu"] for group in found["fit"]["groups"]} >= {"B200", "H100-80GB-HBM3"}


def test_op_json_has_long_kernels_and_null_rates_with_a_reason(tables: dict[str, Path]) -> None:
    found = document(tables["op_h200"], tables["op_b200"], "--holdout", tables["op_gb200"])
    for name in ("fit", "cross_validation", "holdout"):
        for part in (found[name], found[name]["long_kernels"]):
            assert set(part) >= {"rows", "groups", *ERRORS}
            assert part["token_rate_median_error"] is None
            assert part["token_rate_reason"]
            assert part["watts_median_error"] is not None
    assert found["holdout"]["predicted_from"] == {"GB200": "B200"}
    assert found["holdout"]["watts_median_error"] < 0.05


def test_mixed_data_puts_the_holdouts_kind_on_top(tables: dict[str, Path]) -> None:
    both = (tables["serving"], tables["op_b200"])
    found = document(*both, "--holdout", tables["op_gb200"])
    assert found["kind"] == "op"
    assert found["holdout"]["rows"] > 0
    assert found["serving"]["fit"]["rows"] > 0
    assert found["serving"]["holdout"]["watts_median_error"] is None
    assert found["serving"]["holdout"]["watts_reason"]


def test_blanked_columns_give_the_same_bytes(tables: dict[str, Path], tmp_path: Path) -> None:
    blanked = tmp_path / "blanked.csv"
    rows = serving_rows([r for r in RUNS if "14B" not in r.name])
    for row in rows:
        row.update(j_per_token="", itl_p50_ms="", itl_p99_ms="")
    blanked.write_text(csv_text(rows))
    first = document(tables["serving"], "--holdout", tables["holdout"])
    second = document(blanked, "--holdout", tables["holdout"])
    for found in (first, second):
        for record in found["parameters"]:
            record["evidence"].pop("data")
    assert first == second


def test_a_holdouts_targets_change_nothing_but_its_scores(
    tables: dict[str, Path], tmp_path: Path
) -> None:
    rows = serving_rows([r for r in RUNS if "14B" in r.name])
    for row in rows:
        row.update(avg_power_w="", output_tok_s="")
    blank = tmp_path / "blank.csv"
    blank.write_text(csv_text(rows))
    scored = document(tables["serving"], "--holdout", tables["holdout"])
    unscored = document(tables["serving"], "--holdout", blank)
    assert unscored["holdout"]["watts_median_error"] is None
    assert unscored["holdout"]["watts_reason"]
    assert {**scored, "holdout": None} == {**unscored, "holdout": None}


def test_out_writes_files_that_the_catalog_reads(tables: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "fitted"
    assert run(tables["serving"], "--out", out).exit_code == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["B200.json", "H100-80GB-HBM3.json"]
    for name in names:
        file = parse_fitted((out / name).read_text(), name)
        assert file.engine["weight_bandwidth"] > 0.0
        assert "cross-validated" in file.coverage


def test_several_products_in_one_file_are_a_list(tables: dict[str, Path], tmp_path: Path) -> None:
    assert run(tables["serving"], "--out", tmp_path / "all.json").exit_code == 0
    records = json.loads((tmp_path / "all.json").read_text())
    assert [record["product"] for record in records] == ["B200", "H100-80GB-HBM3"]
    for record in records:
        parse_fitted(json.dumps(record), "all.json")


def test_kernels_alone_write_their_surfaces(tables: dict[str, Path], tmp_path: Path) -> None:
    assert run(tables["op_b200"], "--out", tmp_path / "op.json").exit_code == 0
    record = json.loads((tmp_path / "op.json").read_text())
    assert set(record["products"]["B200"]) == {"decode_attention", "gemm/bfloat16"}


def test_the_table_names_every_object(tables: dict[str, Path]) -> None:
    result = run(tables["op_b200"])
    assert result.exit_code == 0
    for words in ("cross validation", "holdout", "kernels > 0.3 ms", "decode_attention"):
        assert words in result.stdout


def test_a_holdout_of_another_kind_is_an_error(tables: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="DATA has none of that kind"):
        run(tables["serving"], "--holdout", tables["op_gb200"])
