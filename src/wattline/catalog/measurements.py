"""Measurement tables: serving runs and single kernels, as CSV, gzip or not.

The kind is recognised from the header. Columns beside those named here are not read at all, so that
what must not be an input (latencies between tokens, energy per token) cannot become one.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wattline.catalog.products import gpu, gpu_files
from wattline.catalog.specs import model, model_names
from wattline.core.errors import InputError
from wattline.core.fit.kernels import KernelRun, KernelWork, attention_work, gemm_work
from wattline.core.fit.shapes import guessed_spec
from wattline.core.fit.validation import model_family
from wattline.core.fit.workload import ServingRun
from wattline.core.fleet import GpuProduct, ModelSpec

Kind = Literal["serving", "op"]

SERVING_COLUMNS = ("model", "gpu", "num_gpus", "avg_output_len")
OP_COLUMNS = ("op", "dtype", "latency_ms", "power_w")
TARGETS = ("avg_power_w", "output_tok_s", "power_w")

_MAX_BYTES = 2_000_000_000
_PRECISIONS = (
    (re.compile(r"bfloat16|bf16|float16|fp16|half|auto"), "bf16"),
    (re.compile(r"(fp8|float8|f8).*"), "fp8"),
    (re.compile(r"mxfp4.*"), "mxfp4"),
    (re.compile(r"(nvfp4|fp4).*"), "nvfp4"),
    (re.compile(r"(int8|w8a8).*"), "int8"),
    (re.compile(r"(int4|awq|gptq|w4a16).*"), "int4"),
)


@dataclass(frozen=True, slots=True)
class Measurements:
    """What one file holds: runs of one kind, in the file's order."""

    path: str
    kind: Kind
    serving: tuple[ServingRun, ...] = ()
    ops: tuple[KernelRun, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return len(self.serving) + len(self.ops)


class _Row:
    """One line of a table; every reading checks and names file, line and field."""

    def __init__(self, path: str, line: int, values: dict[str, str]) -> None:
        self.path, self.line, self.values = path, line, values

    def where(self, field: str) -> str:
        return f"{self.path}, line {self.line}, {field}"

    def text(self, field: str, default: str | None = None) -> str:
        found = self.values.get(field, "").strip()
        if found:
            return found
        if default is not None:
            return default
        raise InputError(self.where(field), "", "missing: give a value, or remove the line")

    def number(self, field: str, low: float, high: float) -> float:
        """Read a finite number in (low, high]."""
        found = self.text(field)
        try:
            value = float(found)
        except ValueError:
            raise InputError(self.where(field), found, "must be a number") from None
        if not math.isfinite(value) or not low < value <= high:
            raise InputError(
                self.where(field), found, f"must be above {low:g} and at most {high:g}"
            )
        return value

    def optional(self, field: str, low: float, high: float) -> float | None:
        """Read a number, or None where the field is blank or absent."""
        if not self.values.get(field, "").strip():
            return None
        return self.number(field, low, high)

    def count(self, field: str, default: int, high: int) -> int:
        value = self.optional(field, 0.0, high)
        if value is None:
            return default
        if value != int(value):
            raise InputError(self.where(field), self.values[field], "must be a whole number")
        return int(value)


def read_measurements(path: Path, product: str | None = None) -> Measurements:
    """Read one table. `product` names the GPU of kernel tables that do not name it themselves.

    Raises InputError with file, line, field, value and remedy for anything that cannot be used; a
    blank target (watts, token rate) is no error, it is a row without that measurement.
    """
    name = str(path)
    header, rows = _open(path, name)
    kind = _kind(name, header)
    lines = (_Row(name, line, values) for line, values in rows)
    if kind == "serving":
        result = Measurements(name, kind, serving=tuple(_serving(row) for row in lines))
    else:
        named = _ProductOfFile(name, product)
        result = Measurements(name, kind, ops=tuple(_kernel(row, named) for row in lines))
    if result.rows == 0:
        raise InputError(name, "header only", "give a table with at least one row")
    return result


def _open(path: Path, name: str) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(raw)) as packed:
                raw = packed.read(_MAX_BYTES)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(name, reason, "give a readable CSV file, plain or gzip") from None
    except (EOFError, zlib.error) as error:
        raise InputError(name, str(error), "the gzip file is damaged: fetch it again") from None
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8"
        raise InputError(name, found, "give a CSV file in UTF-8") from None
    reader = csv.reader(io.StringIO(text), strict=True)
    header = [column.strip() for column in next(_records(name, reader), (0, []))[1]]
    return header, _rows(name, header, reader)


def _records(name: str, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    line = 0
    while True:
        line = getattr(reader, "line_num", line) + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{name}, line {line}", str(error), "repair the CSV") from None
        if record:
            yield line, record


def _rows(
    name: str, header: Sequence[str], reader: Iterator[list[str]]
) -> Iterator[tuple[int, dict[str, str]]]:
    for line, record in _records(name, reader):
        if len(record) != len(header):
            raise InputError(
                f"{name}, line {line}",
                f"{len(record)} fields",
                f"the header has {len(header)}: the line is cut or has stray commas",
            )
        yield line, dict(zip(header, record, strict=True))


def _kind(name: str, header: Sequence[str]) -> Kind:
    if not any(header):
        raise InputError(name, "", "empty: give a CSV file with a header")
    doubled = sorted({column for column in header if header.count(column) > 1})
    if doubled:
        raise InputError(f"{name}, header", doubled[0], "name each column once")
    kinds: dict[Kind, tuple[str, ...]] = {"serving": SERVING_COLUMNS, "op": OP_COLUMNS}
    needed = {
        k: [c for c in cols if c not in header and c not in TARGETS] for k, cols in kinds.items()
    }
    for kind, missing in needed.items():
        if not missing:
            return kind
    kind = min(needed, key=lambda k: len(needed[k]))
    raise InputError(
        f"{name}, header",
        ",".join(header),
        f"neither serving ({', '.join(SERVING_COLUMNS)}, ...) nor op-level "
        f"({', '.join(OP_COLUMNS)}, ...): nearest is {kind}, without {', '.join(needed[kind])}",
    )


def _serving(row: _Row) -> ServingRun:
    name = row.text("model")
    product = _named_product(row, row.text("gpu"))
    gpus = row.count("num_gpus", 1, 4096)
    copies = row.count("dp", 1, 4096)
    if gpus % copies:
        raise InputError(row.where("dp"), copies, f"must divide num_gpus, {gpus}")
    precision = _precision(row)
    spec, known = _shape(row, name, precision)
    batch = row.optional("avg_batch", 0.0, 1e6)
    if batch is None:
        batch = row.number("max_num_seqs", 0.0, 1e6)
    watts = row.optional("avg_power_w", 0.0, 1e6)
    if watts is not None and watts / gpus > 2.0 * product.max_limit_w:
        raise InputError(
            row.where("avg_power_w"),
            watts,
            f"more than twice the limits of {gpus} x {product.name}: give watts of all GPUs",
        )
    return ServingRun(
        name=name,
        family=model_family(name),
        task=row.text("task", "other"),
        model=spec,
        gpu=product,
        precision=precision,
        gpus=gpus,
        dp=copies,
        expert_parallel=row.count("ep", 1, 4096) > 1,
        batch=batch,
        output_tokens=row.number("avg_output_len", 0.0, 1e7),
        watts=None if watts is None else watts / gpus,
        rate=row.optional("output_tok_s", 0.0, 1e9),
        shape_known=known,
    )


def _named_product(row: _Row, name: str) -> GpuProduct:
    try:
        return gpu(name)
    except InputError as error:
        raise InputError(row.where("gpu"), name, error.remedy) from None


def _precision(row: _Row) -> str:
    found = row.text("precision", "bfloat16")
    for pattern, name in _PRECISIONS:
        if pattern.fullmatch(found.lower()):
            return name
    raise InputError(row.where("precision"), found, "use bfloat16, fp8, mxfp4, nvfp4, int8 or int4")


def _shape(row: _Row, name: str, precision: str) -> tuple[ModelSpec, bool]:
    """Shape from the catalog by name, else by family, else guessed from the parameter counts."""
    total_b = row.optional("total_params_b", 0.0, 1e5)
    with suppress(InputError):  # not in the catalog by this name
        return model(name), True
    family = model_family(name)
    for known in model_names():
        if model_family(known) == family:
            spec = model(known)
            if total_b is None or 0.8 < spec.params / (total_b * 1e9) < 1.25:
                return spec, True
    total_b = row.number("total_params_b", 0.0, 1e5)
    active_b = row.optional("active_params_b", 0.0, 1e5) or total_b
    if active_b > total_b:
        raise InputError(row.where("active_params_b"), active_b, f"must not exceed {total_b:g}")
    kind = row.text("architecture", "unknown")
    return guessed_spec(name, total_b * 1e9, active_b * 1e9, kind, precision), False


class _ProductOfFile:
    """The GPU product of kernel tables, whose rows usually do not name one."""

    def __init__(self, path: str, given: str | None) -> None:
        self._path = path
        self._given = gpu(given) if given is not None else None
        self._in_name = _product_in(Path(path).name)

    def of(self, row: _Row, limit_w: float | None) -> GpuProduct:
        """Named by the row, by the caller, by the file's name, or the only one with that limit."""
        if row.values.get("gpu", "").strip():
            return _named_product(row, row.text("gpu"))
        named = self._given or self._in_name
        if named is not None:
            return named
        fitting = [gpu(f.name) for f in gpu_files() if f.default_limit_w.value == limit_w]
        if len(fitting) == 1:
            return fitting[0]
        raise InputError(
            self._path,
            "no GPU product named",
            "add a column gpu, name the product in the file's name, or pass --gpu",
        )


def _product_in(file_name: str) -> GpuProduct | None:
    """Find the product whose longest name or alias stands in a file's name as whole words."""
    words = "_" + re.sub(r"[^a-z0-9]+", "_", file_name.lower()) + "_"
    best: tuple[int, str] | None = None
    for file in gpu_files():
        for name in (file.name, *file.aliases):
            spelled = "_" + re.sub(r"[^a-z0-9]+", "_", name.lower()) + "_"
            if spelled in words and (best is None or len(spelled) > best[0]):
                best = (len(spelled), file.name)
    return gpu(best[1]) if best else None


def _kernel(row: _Row, named: _ProductOfFile) -> KernelRun:
    limit_w = row.optional("power_limit_w", 0.0, 1e5)
    product = named.of(row, limit_w)
    if limit_w is None:
        limit_w = product.default_limit_w
    op = row.text("op")
    watts = row.optional("power_w", 0.0, 1e6)
    if watts is not None and watts > 2.0 * limit_w:
        raise InputError(row.where("power_w"), watts, f"more than twice the limit of {limit_w:g} W")
    dtype = row.text("dtype", "bfloat16")
    return KernelRun(
        gpu=product,
        op=op,
        dtype=dtype,
        work=_work(row, dtype),
        latency_s=row.number("latency_ms", 0.0, 1e7) / 1e3,
        limit_w=limit_w,
        watts=watts,
    )


def _work(row: _Row, dtype: str) -> KernelWork:
    """A GEMM where the row has an m, else attention."""
    if row.values.get("m", "").strip():
        m, n, k = (row.number(name, 0.0, 1e9) for name in ("m", "n", "k"))
        return gemm_work(m, n, k, dtype)
    batch, tokens, heads, kv_heads, head_dim = (
        row.number(name, 0.0, 1e9) for name in ("batch", "isl", "heads", "kv_heads", "head_dim")
    )
    past = row.optional("step", -1.0, 1e9) or 0.0
    kv_dtype = row.text("kv_dtype", dtype)
    return attention_work(batch, tokens, past, heads, kv_heads, head_dim, dtype, kv_dtype)
