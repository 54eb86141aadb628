from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fit_fixtures import csv_text, kernel_rows, serving_rows, serving_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.catalog.measurements import read_measurements
from wattline.core.errors import InputError

SERVING = csv_text(serving_rows(serving_runs(("H100",))[:4]))
OPS = csv_text(kernel_rows(1000.0)[:4])


def read(folder: Path, text: str, name: str = "op_power_b200_sxm.csv") -> object:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return read_measurements(path)


def changed(field: str, value: str, line: int = 3, text: str = SERVING) -> str:
    """`text` with one field of one line replaced."""
    lines = text.splitlines()
    column = lines[0].split(",").index(field)
    cells = lines[line - 1].split(",")
    cells[column] = value
    lines[line - 1] = ",".join(cells)
    return "\n".join(lines) + "\n"


def test_kinds_are_recognised_plain_and_gzipped(tmp_path: Path) -> None:
    packed = tmp_path / "table.bin"
    packed.write_bytes(gzip.compress(SERVING.encode()))
    assert read_measurements(packed).kind == "serving"
    path = tmp_path / "op_power_h200_sxm.csv"
    path.write_text(OPS)
    table = read_measurements(path)
    assert table.kind == "op"
    assert {run.gpu.name for run in table.ops} == {"H200"}


def test_watts_are_per_gpu(tmp_path: Path) -> None:
    runs = serving_runs(("H100",))
    many = [run for run in runs if run.gpus == 4][:1]
    path = tmp_path / "serving.csv"
    path.write_text(csv_text(serving_rows(many)))
    assert read_measurements(path).serving[0].watts == pytest.approx(many[0].watts)


@pytest.mark.parametrize("column", ["j_per_token", "itl_p50_ms", "itl_p99_ms"])
@pytest.mark.parametrize("value", ["", "nan", "-1", "nonsense"])
def test_forbidden_columns_are_never_read(tmp_path: Path, column: str, value: str) -> None:
    plain = read(tmp_path, SERVING)
    assert read(tmp_path, changed(column, value)) == plain


def test_forbidden_columns_may_be_absent(tmp_path: Path) -> None:
    rows = serving_rows(serving_runs(("H100",))[:4])
    keep = [{k: v for k, v in row.items() if "itl" not in k and k != "j_per_token"} for row in rows]
    assert read(tmp_path, csv_text(keep)) == read(tmp_path, SERVING)


def test_blank_targets_are_rows_without_that_measurement(tmp_path: Path) -> None:
    text = changed("output_tok_s", "", text=changed("avg_power_w", ""))
    path = tmp_path / "holdout.csv"
    path.write_text(text)
    runs = read_measurements(path).serving
    assert [run.watts is None for run in runs] == [False, True, False, False]
    assert [run.rate is None for run in runs] == [False, True, False, False]


def test_a_model_that_nobody_knows_is_guessed_from_its_parameters(tmp_path: Path) -> None:
    path = tmp_path / "serving.csv"
    path.write_text(changed("model", "acme/Rocket-9000-Ultra"))
    run = read_measurements(path).serving[1]
    assert not run.shape_known
    assert run.model.params == pytest.approx(8.2e9)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("avg_batch", "nan"),
        ("avg_batch", "-3"),
        ("avg_batch", "1e99"),
        ("avg_batch", "many"),
        ("avg_output_len", ""),
        ("avg_output_len", "0"),
        ("num_gpus", "1.5"),
        ("num_gpus", "inf"),
        ("dp", "3"),
        ("gpu", "H1000"),
        ("gpu", ""),
        ("precision", "fp3"),
        ("avg_power_w", "99999"),
        ("avg_power_w", "-1"),
        ("output_tok_s", "0"),
        ("model", ""),
    ],
)
def test_bad_serving_values_name_file_line_field_and_value(
    tmp_path: Path, field: str, value: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, changed(field, value), "serving.csv")
    message = str(caught.value)
    assert "serving.csv, line 3" in message
    assert field in message
    assert value[:10] in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("field", "value"),
    [("latency_ms", "0"), ("latency_ms", ""), ("power_w", "5000"), ("n", "-1"), ("op", "")],
)
def test_bad_kernel_values_name_file_line_field(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(InputError, match=rf"line 2, {field}"):
        read(tmp_path, changed(field, value, 2, OPS))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("a,b,c\n1,2,3\n", "neither serving"),
        (SERVING.splitlines()[0] + "\n", "at least one row"),
        (SERVING.splitlines()[0] + "\n1,2\n", "the line is cut"),
        ("model,gpu,gpu\n", "name each column once"),
        ('model,"gpu\n', "repair"),
    ],
)
def test_bad_tables_say_what_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read(tmp_path, text)


def test_kernels_of_no_known_product_ask_for_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--gpu"):
        read(tmp_path, csv_text(kernel_rows(700.0)[:2]), "mystery.csv")
    found = read(tmp_path, csv_text(kernel_rows(1200.0)[:2]), "mystery.csv")
    assert {run.gpu.name for run in found.ops} == {"GB200"}  # type: ignore[attr-defined]


def test_damaged_gzip_and_absent_files_are_one_line(tmp_path: Path) -> None:
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(SERVING.encode())[:-20])
    for path in (cut, tmp_path / "absent.csv", tmp_path):
        with pytest.raises(InputError) as caught:
            read_measurements(path)
        assert "\n" not in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, len(SERVING)),
    length=st.integers(0, 40),
    put=st.text(st.characters(codec="utf-8"), max_size=20),
    kind=st.sampled_from((SERVING, OPS)),
)
def test_no_damage_ends_in_a_traceback(
    tmp_path: Path, start: int, length: int, put: str, kind: str
) -> None:
    message = ""
    try:
        read(tmp_path, kind[:start] + put + kind[start + length :])
    except InputError as error:
        message = str(error)
    assert "\n" not in message


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_no_bytes_end_in_a_traceback(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_measurements(path)
