"""Files of profiling results as tables of numbers: NPZ and JSON, from wherever they came.

Both are read as foreign input: nothing is unpickled, sizes are bounded before anything is unpacked,
and whatever is wrong is one line that names file and key.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattline.core.errors import InputError

LARGEST = 1e9
_MOST_BYTES = 64 << 20
_MOST_NUMBERS = 1_000_000
_MOST_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of one file."""

    where: str
    values: dict[str, Any]

    def has(self, *keys: str) -> bool:
        """Whether all these keys are there."""
        return all(key in self.values for key in keys)

    def array(self, key: str, low: float, high: float = LARGEST) -> np.ndarray[Any, Any]:
        """An array of finite numbers between `low` and `high`, in the shape it has."""
        if key not in self.values:
            raise InputError(self.where, key, "this key is missing: profile the engine anew")
        where = f"{self.where}, {key}"
        try:
            found = np.asarray(self.values[key])
            # Whole numbers too large for an integer come as objects; text does not count.
            objects = found.dtype.kind == "O" and all(map(_is_number, found.reshape(-1)))
            if found.dtype.kind not in "iuf" and not objects:
                raise ValueError
            numbers = found.astype(float)
        except (TypeError, ValueError, OverflowError):
            raise InputError(where, "not numbers", "give a list of numbers") from None
        if numbers.size == 0:
            raise InputError(where, "empty", "profile at least one point")
        if numbers.size > _MOST_NUMBERS:
            raise InputError(where, f"{numbers.size:,} numbers", f"at most {_MOST_NUMBERS:,}")
        for index, number in enumerate(numbers.reshape(-1).tolist()):
            if not (math.isfinite(number) and low <= number <= high):
                raise InputError(f"{where}[{index}]", number, f"between {low:g} and {high:g}")
        return numbers

    def column(self, key: str, low: float, high: float = LARGEST) -> list[float]:
        """The same as a flat list."""
        flat: list[float] = self.array(key, low, high).reshape(-1).tolist()
        return flat

    def number(self, key: str, low: float, high: float = LARGEST) -> float:
        """One number, or a column of which the first counts."""
        return self.column(key, low, high)[0]

    def text(self, key: str) -> str | None:
        """A single value as short text; None if it is not there, or is no single value."""
        if key not in self.values:
            return None
        value = self.values[key]
        if isinstance(value, np.ndarray):
            if value.size != 1 or value.dtype.kind not in "iufSU":
                return None
            value = value.reshape(-1)[0].item()
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        return "".join(c if c.isprintable() else "?" for c in str(value)[:80])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_length(table: Table, columns: dict[str, list[float]]) -> None:
    """InputError unless all columns are equally long."""
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(table.where, lengths, "these columns must be equally long")


def read_npz(file: Path) -> Table:
    """An NPZ file; objects in it are refused, because unpickling could run code."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
        if len(entries) > _MOST_ENTRIES or unpacked > _MOST_BYTES:
            raise InputError(
                str(file),
                f"{len(entries)} arrays, {unpacked:,} bytes",
                f"a profile has at most {_MOST_ENTRIES} arrays and {_MOST_BYTES:,} bytes",
            )
        with np.load(file, allow_pickle=False) as loaded:
            return Table(str(file), {key: loaded[key] for key in loaded.files})
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,  # an encrypted entry
        NotImplementedError,
        SyntaxError,  # a header that is no Python literal
        MemoryError,  # a header that claims more than there is
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(str(file), why[:200], "not a readable NPZ file of numbers") from None


def read_json(file: Path) -> Table:
    """A JSON file that holds one object."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(
                str(file), f"{file.stat().st_size:,} bytes", f"at most {_MOST_BYTES:,}"
            )
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise InputError(str(file), why[:200], "not a readable JSON file") from None
    if not isinstance(loaded, dict):
        raise InputError(str(file), loaded, "one object with lists of numbers is expected")
    return Table(str(file), loaded)
