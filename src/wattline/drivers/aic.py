"""AIConfigurator (and AISimulate, its successor) as a table of latencies: one process per sweep.

The library is asked in a process of its own (`aic_worker`), by the Python that has it, with a time
limit for the whole sweep: what hangs is killed, what it says is checked like any foreign input.
Tables are kept on disk (`aic_cache`), because a prediction for the same question does not change.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wattline.core.errors import WattlineError
from wattline.drivers.aic_cache import TableCache
from wattline.drivers.aic_worker import DISTRIBUTIONS

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("aic_worker.py")
SCHEMA = "wattline.aic/3"
MOST_ANSWER_BYTES = 16 << 20
MOST_POINTS = 2000
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")

SYSTEMS: Mapping[str, str] = {
    "A100-SXM4-80GB": "a100_sxm",
    "B200": "b200_sxm",
    "GB200": "gb200",
    "H100-80GB-HBM3": "h100_sxm",
    "H200": "h200_sxm",
    "L40S": "l40s",
}
"""GPU products and what AIConfigurator 0.12 calls systems with them."""


class AicError(WattlineError):
    """A sweep that gave no table; one line. missing: the library is not there at all."""

    def __init__(self, text: str, *, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one table is asked for.

    models: names of one model, of which the library may know some; or a folder with a
    `config.json`, whose digest tells one version of it from the next. moe_tp, moe_ep: of experts,
    None for a dense model. gemm_quant, kv_quant: the library's words, None: as the model is
    published. The points are all prefill_tokens, and all contexts with all batches that fit the
    cache and with the largest that does. memory_fraction: share of the memory that the engine
    fills.
    """

    models: tuple[str, ...]
    config_digest: str | None = None
    system: str
    backend: str
    backend_version: str | None
    tp: int
    pp: int = 1
    moe_tp: int | None = None
    moe_ep: int | None = None
    gemm_quant: str | None = None
    kv_quant: str | None = None
    prefill_tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    max_batched_tokens: int = 8192
    max_num_seqs: int = 256
    memory_fraction: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One estimate: seconds of a pass over `batch` sequences of `tokens` tokens each.

    power_w: draw per GPU as predicted, None where the library withholds it. coverage: share of the
    pass, by time, whose power was measured; None where the library does not say.
    """

    tokens: int
    batch: int
    seconds: float
    power_w: float | None
    coverage: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What the library said to one request.

    package: its name and version. model: the name that it knew.
    failed_points: asked for and not answered; `why` is the first reason.
    """

    package: str
    model: str
    backend_version: str
    kv_tokens: int
    prefill: tuple[Point, ...]
    decode: tuple[Point, ...]
    failed_points: int
    why: str | None


class Aic:
    """Asks the library. python: the interpreter that has it; None: this one.

    cache: folder of tables, by version of the library; None: nothing is kept. One sweep at a time;
    `close` ends one that runs.
    """

    def __init__(self, *, python: Path | None, limit_s: float, cache: Path | None) -> None:
        self._python = sys.executable if python is None else str(python)
        self._beside = python
        self._limit_s = limit_s
        self._folder = cache
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def cached(self, requests: Sequence[Request]) -> list[Table] | None:
        """The tables, if the cache holds all of them."""
        cache = self._cache()
        found = [_kept(cache, request) for request in requests]
        return None if None in found else [table for table in found if table is not None]

    def sweep(self, requests: Sequence[Request]) -> list[Table]:
        """A table per request, from the cache where it has them; AicError on the first without."""
        cache = self._cache()
        found: dict[Request, Table] = {}
        for request in requests:
            kept = _kept(cache, request)
            if kept is not None:
                found[request] = kept
        asked = [request for request in dict.fromkeys(requests) if request not in found]
        if asked:
            answer = self._ask(asked)
            for request, table in zip(asked, _tables(answer, len(asked)), strict=True):
                found[request] = table
                if cache is not None:
                    cache.put(_key(request), _document(table))
        return [found[request] for request in requests]

    def close(self) -> None:
        """End a sweep that runs; later ones are refused."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                _kill(self._process)

    def _cache(self) -> TableCache | None:
        """What is kept of the library as it is installed now.

        None without a folder, and for a library whose version is not known: a later one may differ.
        """
        if self._folder is None:
            return None
        version = installed(self._beside)
        return None if version is None else TableCache(self._folder, version)

    def _ask(self, requests: list[Request]) -> Any:
        text = json.dumps({"requests": [asdict(request) for request in requests]}).encode()
        process = self._start()
        try:
            out, err = process.communicate(text, timeout=self._limit_s)
        except subprocess.TimeoutExpired:
            raise AicError(
                f"aiconfigurator: no answer in {self._limit_s:g} s: raise models.aic.limit_s"
            ) from None
        finally:
            with self._lock:
                self._process = None
                _kill(process)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        if process.returncode != 0:
            last = err.decode("utf-8", "replace").strip().rpartition("\n")[2][-300:]
            raise AicError(f"aiconfigurator: its process ended with {process.returncode}: {last}")
        if len(out) > MOST_ANSWER_BYTES:
            raise AicError(f"aiconfigurator: an answer of {len(out):,} bytes is not believed")
        try:
            return json.loads(out)
        except (ValueError, RecursionError) as error:
            raise AicError(f"aiconfigurator: its answer is no JSON: {error}") from None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: a script's folder comes first otherwise, and ours has modules with everyday names.
        command = [self._python, "-P", "-s", str(WORKER)]
        with self._lock:
            if self._closed:
                raise AicError("aiconfigurator: the controller ends")
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=_environment(),
                    start_new_session=True,
                )
            except OSError as error:
                raise AicError(
                    f"aiconfigurator: {self._python}: {error.strerror or error}: "
                    "name the interpreter that has it in models.aic.python",
                    missing=True,
                ) from None
            return self._process


def installed(python: Path | None) -> str | None:
    """Name and version of the library beside an interpreter, without starting it; None: unknown."""
    if python is None:
        for name in DISTRIBUTIONS:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                return f"{name} {importlib.metadata.version(name)}"
        return None
    for name in DISTRIBUTIONS:
        # Of a virtual environment: its bin folder is what counts, not what its links point to.
        pattern = f"lib*/python3*/site-packages/{name}-*.dist-info"
        for path in sorted(python.absolute().parent.parent.glob(pattern)):
            return f"{name} {path.name.removeprefix(name + '-').removesuffix('.dist-info')}"
    return None


def _environment() -> dict[str, str]:
    """No network and one thread: a predictor works on what is installed."""
    kept = {name: os.environ[name] for name in _PASSED if name in os.environ}
    nowhere = "http://127.0.0.1:9"
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
    }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it started, which share its session."""
    if process.returncode is None:  # Not reaped, so its number is still its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _key(request: Request) -> dict[str, Any]:
    return {"schema": SCHEMA, **asdict(request)}


def _kept(cache: TableCache | None, request: Request) -> Table | None:
    document = None if cache is None else cache.get(_key(request))
    if cache is None or document is None:
        return None
    try:
        return table_of(document.get("package"), document)
    except AicError as error:
        cache.set_aside(_key(request), str(error))
        return None


def _document(table: Table) -> dict[str, Any]:
    """What `table_of` reads."""
    document = asdict(table)
    document["prefill"] = [
        [p.tokens, p.seconds * 1e3, p.power_w, p.coverage] for p in table.prefill
    ]
    document["decode"] = [
        [p.batch, p.tokens, p.seconds * 1e3, p.power_w, p.coverage] for p in table.decode
    ]
    return document


def _tables(answer: Any, count: int) -> list[Table]:
    if isinstance(answer, dict) and "missing" in answer:
        raise AicError(
            f"aiconfigurator is not installed: {_text(answer['missing'])}: pip install "
            "'wattline[aic]', or name the interpreter that has it in models.aic.python",
            missing=True,
        )
    tables = answer.get("tables") if isinstance(answer, dict) else None
    if not isinstance(tables, list) or len(tables) != count:
        raise AicError("aiconfigurator: its answer does not fit the question")
    return [table_of(answer.get("package"), table) for table in tables]


def table_of(package: object, document: object) -> Table:
    """A table out of plain JSON values; AicError for what cannot be one."""
    if not isinstance(document, dict):
        raise AicError("aiconfigurator: a table is no object")
    if "error" in document:
        raise AicError(f"aiconfigurator: {_text(document['error'])}")
    prefill = [_point(row, batched=False) for row in _rows(document, "prefill", 4)]
    decode = [_point(row, batched=True) for row in _rows(document, "decode", 5)]
    why = document.get("why")
    if len(prefill) < 2 or not decode:
        raise AicError(
            f"aiconfigurator: {len(prefill)} prefill and {len(decode)} decode points are too few"
            + ("" if why is None else f": {_text(why)}")
        )
    return Table(
        package=_text(package),
        model=_text(document.get("model")),
        backend_version=_text(document.get("backend_version")),
        kv_tokens=int(_number("kv_tokens", document.get("kv_tokens"), 1.0, 1e12)),
        prefill=tuple(prefill),
        decode=tuple(decode),
        failed_points=int(_number("failed_points", document.get("failed_points"), 0.0, 1e6)),
        why=None if why is None else _text(why),
    )


def _rows(document: Mapping[str, Any], key: str, width: int) -> list[list[Any]]:
    rows = document.get(key)
    good = isinstance(rows, list) and len(rows) <= MOST_POINTS
    if not good or any(not isinstance(row, list) or len(row) != width for row in rows or ()):
        raise AicError(f"aiconfigurator: {key}: not a list of points")
    return list(rows or ())


def _point(row: list[Any], *, batched: bool) -> Point:
    batch, rest = (row[0], row[1:]) if batched else (1, row)
    power_w = None if rest[2] is None else _number("power_w", rest[2], 0.0, 1e6)
    return Point(
        tokens=int(_number("tokens", rest[0], 1.0, 1e9)),
        batch=int(_number("batch", batch, 1.0, 1e6)),
        # An hour stands for the library's way to say that it cannot be done (999,999 ms).
        seconds=_number("latency", rest[1], 1e-6, 3_600_000.0) / 1e3,
        power_w=power_w,
        coverage=None if rest[3] is None else _number("power_coverage", rest[3], 0.0, 1.0),
    )


def _number(name: str, value: object, low: float, high: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type,operator]
        raise AicError(f"aiconfigurator: {name} {value!r:.60} is not between {low:g} and {high:g}")
    return float(value)  # type: ignore[arg-type]


def _text(value: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value)[:300])
