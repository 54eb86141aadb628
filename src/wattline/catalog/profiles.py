"""Dynamo's profiling results, in each form that it writes or reads.

NPZ folder: `selected_prefill_interpolation/raw_data.npz` and
`selected_decode_interpolation/raw_data.npz`. JSON pair: `prefill_raw_data.json` and
`decode_raw_data.json`, as in its ConfigMap. Either half may be missing, not both. Keys: prefill_isl
(tokens), prefill_ttft (ms); x_kv_usage (0 to 1), y_context_length (tokens), z_itl (ms),
max_kv_tokens.

Planner profile data: one `.npz` (in a folder: `perf_data.npz`), as its `--planner-profile-data`
takes it; a grid made from the above. Keys: prefill_isl, prefill_ttft_ms, decode_active_kv_tokens
(tokens), decode_context_length (tokens), decode_itl (ms, a row per content of the cache).

Other keys are ignored, except for those that say what was profiled, and the watts of `wattline
profile sweep` (power_w and the pass that they belong to). Source: ai-dynamo 1.4.2 and 1.6.1:
profiler, planner and mocker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from wattline.catalog.profile_tables import Table, read_json, read_npz, same_length
from wattline.core.errors import InputError
from wattline.core.profile import DecodeSlice

ABOUT = (
    "gpu_type",
    "model",
    "framework",
    "framework_version",
    "tp",
    "dp",
    "pp",
    "block_size",
    "max_batch_size",
    "gpu_count",
    "source",
    "power_coverage",
)
"""Keys that say what was profiled; those of Dynamo's pre-swept files and two of ours."""

GRID_POINTS = 33
"""Most points per axis that are kept of a planner grid, which is smooth: evenly spaced ones."""

_PLANNER = (
    "prefill_isl",
    "prefill_ttft_ms",
    "decode_active_kv_tokens",
    "decode_context_length",
    "decode_itl",
)
_MOST_WATTS = 1e5


@dataclass(frozen=True, slots=True)
class Watts:
    """Draw per GPU in one pass at the profiled limit: of `batch` sequences of `tokens` each."""

    watts: float
    tokens: float
    batch: float = 1.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured latencies, sorted; seconds and tokens. An absent half is empty, max_kv_tokens 1.

    form: which of the forms above. gpus: GPUs of the profiled replica over its data-parallel size,
    None if the file does not tell. about: what the file says of itself. prefill_watts,
    decode_watts: None where nothing is known of them, as in everything that Dynamo writes.
    """

    prefill_tokens: tuple[float, ...]
    prefill_s: tuple[float, ...]
    decode: tuple[DecodeSlice, ...]
    max_kv_tokens: int
    form: str = field(default="JSON pair", compare=False)
    gpus: int | None = None
    about: tuple[tuple[str, str], ...] = ()
    prefill_watts: Watts | None = None
    decode_watts: Watts | None = None

    @property
    def points(self) -> tuple[int, int]:
        """Number of prefill and of decode measurements."""
        return len(self.prefill_tokens), sum(len(entry.kv_usage) for entry in self.decode)


def read_profile(path: Path) -> Profile:
    """Read profiling results from a folder or a planner `.npz`; InputError naming file and key."""
    if path.is_file():
        return _planner(_planner_table(path))
    if not path.is_dir():
        raise InputError(str(path), "no such folder", "give Dynamo's profile_results_dir")
    prefill, decode = _find(path, "prefill"), _find(path, "decode")
    if prefill is not None or decode is not None:
        return _raw(prefill, decode)
    grid = path / "perf_data.npz"
    if grid.is_file():
        return _planner(_planner_table(grid))
    raise InputError(
        str(path),
        "no profiling results",
        "it should hold selected_{prefill,decode}_interpolation/raw_data.npz, "
        "{prefill,decode}_raw_data.json or perf_data.npz",
    )


def raw_documents(profile: Profile, gpus: int) -> dict[str, dict[str, Any]]:
    """The profile as a JSON pair, by file name, as Dynamo and `read_profile` read it.

    gpus: of the replica, for the throughputs per GPU. Watts and `about` go into keys of our own.
    """
    about = dict(profile.about)
    documents: dict[str, dict[str, Any]] = {}
    if profile.prefill_tokens:
        pairs = list(zip(profile.prefill_tokens, profile.prefill_s, strict=True))
        documents["prefill_raw_data.json"] = {
            "prefill_isl": [int(tokens) for tokens, _ in pairs],
            "prefill_ttft": [seconds * 1e3 for _, seconds in pairs],
            "prefill_thpt_per_gpu": [tokens / seconds / gpus for tokens, seconds in pairs],
            **about,
        }
        if profile.prefill_watts is not None:
            known = profile.prefill_watts
            documents["prefill_raw_data.json"] |= {
                "power_w": known.watts,
                "power_isl": known.tokens,
            }
    if profile.decode:
        rows = [
            (usage, entry.context_tokens, seconds)
            for entry in profile.decode
            for usage, seconds in zip(entry.kv_usage, entry.itl_s, strict=True)
        ]
        held = profile.max_kv_tokens
        documents["decode_raw_data.json"] = {
            "x_kv_usage": [usage for usage, _, _ in rows],
            "y_context_length": [context for _, context, _ in rows],
            "z_itl": [seconds * 1e3 for _, _, seconds in rows],
            "z_thpt_per_gpu": [u * held / context / seconds / gpus for u, context, seconds in rows],
            "max_kv_tokens": held,
            **about,
        }
        if profile.decode_watts is not None:
            step = profile.decode_watts
            documents["decode_raw_data.json"] |= {
                "power_w": step.watts,
                "power_context_length": step.tokens,
                "power_batch": step.batch,
            }
    return documents


def _find(folder: Path, half: str) -> Table | None:
    npz = folder / f"selected_{half}_interpolation" / "raw_data.npz"
    if npz.is_file():
        return read_npz(npz)
    text = folder / f"{half}_raw_data.json"
    return read_json(text) if text.is_file() else None


def _raw(prefill: Table | None, decode: Table | None) -> Profile:
    tokens: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    slices: tuple[DecodeSlice, ...] = ()
    max_kv_tokens, gpus = 1, None
    if prefill is not None:
        tokens, seconds = _prefill(prefill, "prefill_ttft")
        gpus = _gpus(prefill)
    if decode is not None:
        slices, max_kv_tokens = _decode(decode)
    tables = [table for table in (prefill, decode) if table is not None]
    return Profile(
        tokens,
        seconds,
        slices,
        max_kv_tokens,
        form="NPZ folder" if tables[0].where.endswith(".npz") else "JSON pair",
        gpus=gpus,
        about=_about(tables),
        prefill_watts=None if prefill is None else _watts(prefill, "power_isl", None),
        decode_watts=(
            None if decode is None else _watts(decode, "power_context_length", "power_batch")
        ),
    )


def _prefill(table: Table, ttft: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    isl = table.column("prefill_isl", 1.0)
    ttft_ms = table.column(ttft, 1e-6)
    same_length(table, {"prefill_isl": isl, ttft: ttft_ms})
    points = _averaged(zip(isl, ttft_ms, strict=True))
    return tuple(points), tuple(value / 1e3 for value in points.values())


def _decode(table: Table) -> tuple[tuple[DecodeSlice, ...], int]:
    usage = table.column("x_kv_usage", 0.0, 1.0)
    context = table.column("y_context_length", 1.0)
    itl_ms = table.column("z_itl", 1e-6)
    columns = {"x_kv_usage": usage, "y_context_length": context, "z_itl": itl_ms}
    same_length(table, columns)
    max_kv_tokens = int(table.number("max_kv_tokens", 1.0, 1e12))
    groups: dict[float, list[tuple[float, float]]] = {}
    for length, used, value in zip(context, usage, itl_ms, strict=True):
        groups.setdefault(length, []).append((used, value))
    slices = []
    for length in sorted(groups):
        points = _averaged(groups[length])
        itl_s = tuple(value / 1e3 for value in points.values())
        slices.append(DecodeSlice(length, tuple(points), itl_s))
    return tuple(slices), max_kv_tokens


def _planner_table(file: Path) -> Table:
    if file.suffix != ".npz":
        remedy = "give a folder of profiling results or a planner's .npz"
        raise InputError(str(file), file.suffix or "a file", remedy)
    table = read_npz(file)
    if not table.has(*_PLANNER):
        missing = next(key for key in _PLANNER if key not in table.values)
        remedy = "not planner profile data; of a raw_data.npz give the folder two levels above"
        raise InputError(str(file), f"no {missing}", remedy)
    return table


def _planner(table: Table) -> Profile:
    """The grid that Dynamo's mocker reads. Its largest cache content is taken for the capacity."""
    tokens, seconds = _prefill(table, "prefill_ttft_ms")
    kept = _kept(len(tokens))
    held = table.column("decode_active_kv_tokens", 0.0, 1e12)
    context = table.column("decode_context_length", 1.0)
    itl_ms = table.array("decode_itl", 1e-6)
    if itl_ms.shape != (len(held), len(context)):
        raise InputError(
            f"{table.where}, decode_itl",
            itl_ms.shape,
            f"a row for each of {len(held)} cache contents, a column for each of {len(context)} "
            "contexts",
        )
    for key, axis in (("decode_active_kv_tokens", held), ("decode_context_length", context)):
        if sorted(set(axis)) != axis:
            raise InputError(f"{table.where}, {key}", "not rising", "give rising numbers")
    capacity = int(held[-1])
    if capacity < 1:
        raise InputError(f"{table.where}, decode_active_kv_tokens", held[-1], "at least 1")
    rows, columns = _kept(len(held)), _kept(len(context))
    usage = tuple(min(1.0, held[row] / capacity) for row in rows)
    return Profile(
        tuple(tokens[index] for index in kept),
        tuple(seconds[index] for index in kept),
        tuple(
            DecodeSlice(context[j], usage, tuple(float(itl_ms[row, j]) / 1e3 for row in rows))
            for j in columns
        ),
        capacity,
        form="planner profile data",
        about=_about([table]),
    )


def _kept(count: int) -> list[int]:
    """At most `GRID_POINTS` indexes, evenly spaced, both ends among them."""
    if count <= GRID_POINTS:
        return list(range(count))
    step = (count - 1) / (GRID_POINTS - 1)
    return [round(index * step) for index in range(GRID_POINTS)]


def _gpus(table: Table) -> int | None:
    """GPUs of the profiled replica: throughput per GPU is isl / ttft over them, where given."""
    if not table.has("prefill_thpt_per_gpu"):
        return None
    isl, ttft_ms = table.column("prefill_isl", 1.0), table.column("prefill_ttft", 1e-6)
    rate = table.column("prefill_thpt_per_gpu", 0.0, 1e12)
    if len(rate) != len(isl) or min(rate) <= 0.0:
        return None
    ratio = median(i / t * 1e3 / r for i, t, r in zip(isl, ttft_ms, rate, strict=True))
    whole = round(ratio)
    return whole if whole >= 1 and math.isclose(ratio, whole, rel_tol=0.02) else None


def _about(tables: Sequence[Table]) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for table in tables:
        for key in ABOUT:
            text = table.text(key)
            if text is not None:
                found.setdefault(key, text)
    return tuple(found.items())


def _watts(table: Table, tokens: str, batch: str | None) -> Watts | None:
    if not table.has("power_w"):
        return None
    return Watts(
        table.number("power_w", 1.0, _MOST_WATTS),
        table.number(tokens, 1.0),
        1.0 if batch is None else table.number(batch, 1.0),
    )


def _averaged(pairs: Iterable[tuple[float, float]]) -> dict[float, float]:
    """Sort by the first number; where it repeats, the mean of the second stands."""
    groups: dict[float, list[float]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return {key: math.fsum(groups[key]) / len(groups[key]) for key in sorted(groups)}
