"""Dynamo's profiling results: NPZ folders, or the pair of JSON files of its ConfigMap.

A folder holds `selected_prefill_interpolation/raw_data.npz` and
`selected_decode_interpolation/raw_data.npz`, or `prefill_raw_data.json` and
`decode_raw_data.json`; either half may be missing, not both. Keys: prefill_isl (tokens),
prefill_ttft (ms); x_kv_usage (0 to 1), y_context_length (tokens), z_itl (ms), max_kv_tokens. Other
keys are ignored.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattline.core.errors import InputError
from wattline.core.profile import DecodeSlice

_LARGEST = 1e9


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured latencies, sorted; seconds and tokens. An absent half is empty, max_kv_tokens 1."""

    prefill_tokens: tuple[float, ...]
    prefill_s: tuple[float, ...]
    decode: tuple[DecodeSlice, ...]
    max_kv_tokens: int


def read_profile(folder: Path) -> Profile:
    """Read a folder of profiling results; InputError naming file and key."""
    if not folder.is_dir():
        raise InputError(str(folder), "no such folder", "give Dynamo's profile_results_dir")
    prefill = _find(folder, "prefill")
    decode = _find(folder, "decode")
    if prefill is None and decode is None:
        raise InputError(
            str(folder),
            "no profiling results",
            "it should hold selected_{prefill,decode}_interpolation/raw_data.npz "
            "or {prefill,decode}_raw_data.json",
        )
    tokens: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    slices: tuple[DecodeSlice, ...] = ()
    max_kv_tokens = 1
    if prefill is not None:
        tokens, seconds = _prefill(prefill)
    if decode is not None:
        slices, max_kv_tokens = _decode(decode)
    return Profile(tokens, seconds, slices, max_kv_tokens)


@dataclass(frozen=True, slots=True)
class _Table:
    where: str
    values: dict[str, Any]

    def column(self, key: str, low: float, high: float = _LARGEST) -> list[float]:
        """Return a column of finite numbers between `low` and `high`."""
        if key not in self.values:
            raise InputError(self.where, key, "this key is missing: profile the engine anew")
        try:
            numbers = [float(value) for value in np.asarray(self.values[key]).reshape(-1).tolist()]
        except (TypeError, ValueError):
            raise InputError(
                f"{self.where}, {key}", "not numbers", "give a list of numbers"
            ) from None
        if not numbers:
            raise InputError(f"{self.where}, {key}", "empty", "profile at least one point")
        for index, number in enumerate(numbers):
            if not math.isfinite(number) or not low <= number <= high:
                raise InputError(
                    f"{self.where}, {key}[{index}]", number, f"between {low:g} and {high:g}"
                )
        return numbers


def _find(folder: Path, half: str) -> _Table | None:
    npz = folder / f"selected_{half}_interpolation" / "raw_data.npz"
    if npz.is_file():
        return _Table(str(npz), _read_npz(npz))
    text = folder / f"{half}_raw_data.json"
    if text.is_file():
        return _Table(str(text), _read_json(text))
    return None


def _read_npz(file: Path) -> dict[str, Any]:
    try:
        # Pickled objects could run code: never loaded.
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(str(file), str(error), "not a readable NPZ file of numbers") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(file), str(error), "not a readable JSON file") from None
    if not isinstance(loaded, dict):
        raise InputError(str(file), loaded, "one object with lists of numbers is expected")
    return loaded


def _same_length(table: _Table, columns: dict[str, list[float]]) -> None:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(table.where, lengths, "these columns must be equally long")


def _prefill(table: _Table) -> tuple[tuple[float, ...], tuple[float, ...]]:
    isl = table.column("prefill_isl", 1.0)
    ttft_ms = table.column("prefill_ttft", 1e-6)
    _same_length(table, {"prefill_isl": isl, "prefill_ttft": ttft_ms})
    points = _averaged(zip(isl, ttft_ms, strict=True))
    return tuple(points), tuple(value / 1e3 for value in points.values())


def _decode(table: _Table) -> tuple[tuple[DecodeSlice, ...], int]:
    usage = table.column("x_kv_usage", 0.0, 1.0)
    context = table.column("y_context_length", 1.0)
    itl_ms = table.column("z_itl", 1e-6)
    columns = {"x_kv_usage": usage, "y_context_length": context, "z_itl": itl_ms}
    _same_length(table, columns)
    max_kv_tokens = int(table.column("max_kv_tokens", 1.0, 1e12)[0])
    slices = []
    for length in sorted(set(context)):
        rows = [i for i, value in enumerate(context) if value == length]
        points = _averaged((usage[i], itl_ms[i]) for i in rows)
        itl_s = tuple(value / 1e3 for value in points.values())
        slices.append(DecodeSlice(length, tuple(points), itl_s))
    return tuple(slices), max_kv_tokens


def _averaged(pairs: Any) -> dict[float, float]:
    """Sort by the first number; where it repeats, the mean of the second stands."""
    groups: dict[float, list[float]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return {key: math.fsum(groups[key]) / len(groups[key]) for key in sorted(groups)}
