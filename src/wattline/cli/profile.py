"""`wattline profile`: parameters fitted to measurements, and engines from profiling results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from wattline.cli.profile_show import show
from wattline.cli.profile_sweep import sweep

if TYPE_CHECKING:
    from wattline.catalog.measurements import Measurements

_FILE = click.Path(path_type=Path, dir_okay=False)
_OBJECTS = ("fit", "fit_of_engine_alone", "cross_validation", "leave_one_gpu_out", "holdout")


@click.group()
def profile() -> None:
    """Fit the models of engines and GPUs to measurements; look at profiling results."""


profile.add_command(show)
profile.add_command(sweep)


@profile.command()
@click.argument("data", nargs=-1, required=True, type=_FILE)
@click.option("--holdout", multiple=True, type=_FILE, help="Score on FILE, never fitted; repeats.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write the fitted parameters as JSON: a file per product if PATH is a directory or has no "
    "suffix, else one file, a list if there are several products.",
)
@click.option("--gpu", help="GPU product of kernel tables that do not name it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print the tables of docs/concepts/fits.md.")
def fit(
    data: tuple[Path, ...],
    holdout: tuple[Path, ...],
    out: Path | None,
    gpu: str | None,
    as_json: bool,
    markdown: bool,
) -> None:
    """Fit to DATA: serving runs, single kernels, or both; CSV, plain or gzip.

    The kind of a file is recognised from its header. Latencies between tokens, energy per token and
    the other target are never read as inputs. Watts are scored per GPU.

    The JSON has `fit`, `cross_validation` (families of models; families of shapes for kernels),
    `leave_one_gpu_out` and `holdout`. When DATA and hold-out hold both kinds, those objects are of
    the hold-out's kind (serving, if it has both or there is none) and the other kind's stand under
    `op` or `serving`.

    \b
    Examples:
      wattline profile fit serving.csv --holdout new-model.csv
      wattline profile fit op_h200.csv.gz op_b200.csv.gz --holdout op_gb200.csv.gz
      wattline profile fit serving.csv --out fitted/ --json > errors.json
    """  # noqa: D301  # click wants the backspace itself
    from wattline.catalog.measurements import read_measurements

    tables = [read_measurements(path, gpu) for path in data]
    held = [read_measurements(path, gpu) for path in holdout]
    with _Progress(as_json or markdown) as say:
        document, records = _evaluate(tables, held, say)
    if out is not None:
        _write(out, records)
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    elif markdown:
        from wattline.cli.profile_page import tables_of

        click.echo(tables_of(document), nl=False)
    else:
        _print(document)


def _evaluate(
    tables: list[Measurements], held: list[Measurements], say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from wattline.core.errors import InputError
    from wattline.core.fit.export import fitted_records, op_record
    from wattline.core.fit.report import op_report, serving_report

    serving = [run for table in tables for run in table.serving]
    kernels = [run for table in tables for run in table.ops]
    for table in held:
        if (table.serving and not serving) or (table.ops and not kernels):
            raise InputError(table.path, f"{table.kind} rows", "DATA has none of that kind")
    found: dict[str, dict[str, Any]] = {}
    records: list[dict[str, Any]] = []
    if serving:
        result = serving_report(serving, [run for table in held for run in table.serving], say)
        found["serving"] = result.record
        products = {run.gpu.name: run.gpu for run in serving}
        products.update((kernel.gpu.name, kernel.gpu) for kernel in kernels)
        sources = [Path(table.path).name for table in tables if table.kind == "serving"]
        records = fitted_records(result, [products[name] for name in sorted(products)], sources)
    if kernels:
        kernel_result = op_report(kernels, [run for table in held for run in table.ops], say)
        found["op"] = kernel_result.record
        if not records:
            records = [op_record(kernel_result.fit, [Path(table.path).name for table in tables])]
    kinds = {table.kind for table in held}
    first = "op" if "serving" not in found or kinds == {"op"} else "serving"
    others = {kind: record for kind, record in found.items() if kind != first}
    document = {"schema": "wattline.fit/1", "kind": first, **found[first], **others}
    document["parameters"] = records
    return document, records


class _Progress:
    """One line on a terminal's standard error that says what is being done; nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self._stream: IO[str] = sys.stderr
        self._shown: bool = not quiet and self._stream.isatty()

    def __enter__(self) -> Callable[[str], None]:
        return self._say

    def __exit__(self, *_: object) -> None:
        self._say("")

    def _say(self, text: str) -> None:
        if self._shown:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()


def _write(out: Path, records: list[dict[str, Any]]) -> None:
    """One file per product into a directory, else all into one file."""
    from wattline.sim.files import write_text

    if "product" in records[0] and (out.is_dir() or not out.suffix):
        for record in records:
            write_text(out / f"{record['product']}.json", _text(record))
    else:
        write_text(out, _text(records[0] if len(records) == 1 else records))


def _text(record: object) -> str:
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def _print(document: dict[str, Any]) -> None:
    """Two tables per kind: the objects, then the groups of the last one that has any."""
    for kind in ("serving", "op"):
        record = document if document["kind"] == kind else document.get(kind)
        if record is None:
            continue
        click.echo(f"{kind}: |relative error|, median / 90th percentile")
        _print_head("")
        for name in (name for name in _OBJECTS if name in record):
            _print_line(name.replace("_", " "), record[name])
            if "long_kernels" in record[name]:
                _print_line("  kernels > 0.3 ms", record[name]["long_kernels"])
        scored = "holdout" if record["holdout"]["rows"] else "cross_validation"
        click.echo()
        _print_head(f"groups of {scored.replace('_', ' ')}")
        for row in record[scored]["groups"]:
            labels = [row[key] for key in ("gpu", "model", "op") if row[key] is not None]
            _print_line("  ".join(labels), row)
        click.echo()


def _print_head(title: str) -> None:
    click.echo(f"{title:<68}{'rows':>7}{'watts per GPU':>17}{'token rate':>17}")


def _print_line(label: str, row: dict[str, Any]) -> None:
    watts = _pair(row["watts_median_error"], row["watts_p90_error"])
    rates = _pair(row["token_rate_median_error"], row["token_rate_p90_error"])
    click.echo(f"{label:<68}{row['rows']:>7}{watts:>17}{rates:>17}")


def _pair(median: float | None, p90: float | None) -> str:
    if median is None or p90 is None:
        return "-"
    return f"{median:.1%} / {p90:.1%}"
