"""Seeded mutations of valid samples: bytes, lines of text, JSON documents."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

RAW_NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e-999",
    "-0",
    "-0.0",
    "1e308",
    "0.1e1",
    "9" * 30,
    "9" * 400,
    "9" * 5000,
    "-" + "9" * 30,
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "007",
    "0x10",
    "1_000",
    "--1",
)
"""Spellings that a JSON reader meets before Python's values do."""

DEPTHS = (1, 5, 90, *range(940, 1001, 2), 1_500, 3_000, 60_000)

VALUES: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    2**64,
    -(2**63),
    0.0,
    -0.5,
    0.1,
    199.999999,
    1e18,
    1e-300,
    "",
    " ",
    "0",
    "400",
    "NaN",
    "inf",
    "null",
    "GPU-",
    "x" * 200,
    "x" * 5000,
    "two\nlines",
    "return\rcarriage",
    "tab\tnul\0",
    "line\u2028separator\x85next",
    "\ud800",
    "\U0001f50c",
    "\u202eright to left",
    "\x1b[31mred",
    "%s{}{0.__class__}",
    "../../etc/passwd",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a\nb": 1},
)

TOKENS = (
    b"",
    b"\0",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b",",
    b":",
    b"-",
    b"/",
    b"..",
    b"0" * 40,
    b"9" * 40,
    b"A" * 300,
    b"\x80" * 11,
    b"\x01" * 9,
)


class Mutator:
    """Draws mutations; the same seed gives the same cases."""

    def __init__(self, seed: int | str) -> None:
        self.draw = random.Random(seed)

    def some_bytes(self, samples: Sequence[bytes]) -> bytes:
        """A sample with one to four mutations; seldom nothing but noise."""
        if self.draw.random() < 0.02:
            return self.draw.randbytes(self.draw.randrange(0, 200))
        data = self.draw.choice(samples)
        for _ in range(self.draw.randint(1, 4)):
            data = self.draw.choice(_BYTE_MUTATIONS)(self.draw, data, samples)
        return data

    def some_text(self, samples: Sequence[str]) -> str:
        """A sample with mutations of its characters; any code point may come, surrogates too."""
        text = self.draw.choice(samples)
        for _ in range(self.draw.randint(1, 4)):
            at = self.draw.randrange(len(text) + 1)
            match self.draw.randrange(6):
                case 0:
                    text = text[:at] + self._character() + text[at:]
                case 1:
                    text = text[:at] + text[at + 1 :]
                case 2:
                    text = text[:at]
                case 3:
                    piece = text[at : at + self.draw.randint(1, 12)]
                    text = text[:at] + piece * self.draw.randint(2, 6) + text[at:]
                case 4:
                    other = self.draw.choice(samples)
                    text = text[:at] + other[self.draw.randrange(len(other) + 1) :]
                case _:
                    text = text.swapcase() if self.draw.random() < 0.3 else text + self._character()
        return text

    def some_json(self, samples: Sequence[object]) -> bytes:
        """A document with one to three mutated places, then seldom a mutation of its bytes."""
        document = copy.deepcopy(self.draw.choice(samples))
        raw: dict[str, str] = {}
        for _ in range(self.draw.randint(1, 3)):
            document = self._mutated(document, raw)
        text = json.dumps(document, allow_nan=True)
        for mark, spelling in raw.items():
            text = text.replace(json.dumps(mark), spelling)
        data = text.encode("utf-8", "surrogatepass")
        if self.draw.random() < 0.15:
            data = self.draw.choice(_BYTE_MUTATIONS)(self.draw, data, (data,))
        return data

    def value(self, raw: dict[str, str]) -> object:
        """Something that nobody means; marks in `raw` stand for what JSON writers cannot write."""
        if self.draw.random() < 0.35:
            mark = f"@raw-{len(raw)}-{self.draw.random()}@"
            if self.draw.random() < 0.3:
                depth = self.draw.choice(DEPTHS)
                opened, closed = self.draw.choice((("[", "]"), ('{"a":', "}")))
                inner = "1" if opened != "[" else ""
                raw[mark] = opened * depth + inner + closed * depth
            else:
                raw[mark] = self.draw.choice(RAW_NUMBERS)
            return mark
        return copy.deepcopy(self.draw.choice(VALUES))

    def _mutated(self, document: object, raw: dict[str, str]) -> object:
        places: list[tuple[Any, Any]] = []
        _collect(document, places)
        if not places or self.draw.random() < 0.03:
            return self.value(raw)
        holder, key = self.draw.choice(places)
        match self.draw.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[self.draw.randrange(len(holder))]))
            case 1:
                holder[self.draw.choice(("extra", "a\nb", "", "\ud800", str(key)))] = self.value(
                    raw
                )
            case 2:
                other_holder, other_key = self.draw.choice(places)
                holder[key] = copy.deepcopy(other_holder[other_key])
            case _:
                holder[key] = self.value(raw)
        return document

    def _character(self) -> str:
        if self.draw.random() < 0.5:
            return self.draw.choice("0123456789+-._ \t\n\r:/\\\"'%{}[]\0")
        return chr(self.draw.choice((0x2028, 0x85, 0x663, 0xFF11, 0xD800, 0x1F50C, 0x7F, 0xB2)))


def _collect(document: object, places: list[tuple[Any, Any]]) -> None:
    """Find every place of a document at which something could be put."""
    if isinstance(document, dict):
        keys: list[Any] = list(document)
    elif isinstance(document, list):
        keys = list(range(len(document)))
    else:
        return
    for key in keys:
        places.append((document, key))
        _collect(document[key], places)


def _flip(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _cut(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin = draw.randrange(len(data) + 1)
    return data[:begin] + data[begin + draw.randint(1, 20) :]


def _truncate(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _insert(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(TOKENS) + data[at:]


def _repeat(draw: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[at : at + draw.randint(1, 40)] * draw.randint(2, 8) + data[at:]


def _splice(draw: random.Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    other = draw.choice(samples)
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


_BYTE_MUTATIONS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip,
    _cut,
    _truncate,
    _insert,
    _repeat,
    _splice,
)
