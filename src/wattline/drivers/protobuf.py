"""Protobuf's wire format, as much of it as our protocols use; no generated code.

Source: the encoding chapter of protobuf.dev. A message is read as its fields in order. What a field
means, and whether another wire type than its number has in the schema is refused or passed over, is
for the reader of a message to say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MAX_TEXT_BYTES = 4096

Value = int | bytes
"""A varint as it stands (64 bits, unsigned), or the bytes of every other kind of field."""


class WireError(ValueError):
    """Bytes that are not protobuf, or not of the message that they should be."""


def read_fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Fields of a message as (number, value)."""
    return ((number, value) for number, _, value in _fields(data))


def read_messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Length-delimited fields of a message; numbers and fixed fields are passed over."""
    for number, kind, value in _fields(data):
        if kind == _LENGTH_DELIMITED and isinstance(value, bytes):
            yield number, value


def _fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """Number, wire type and value of each field."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {at}")
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, kind, value
            continue
        if kind == _LENGTH_DELIMITED:
            length, at = _read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise WireError(f"wire type {kind} at byte {at}")
        end = at + length
        if end > len(data):
            raise WireError(f"{length} bytes announced at byte {at}, {len(data) - at} there")
        yield number, kind, data[at:end]
        at = end


def as_message(value: Value) -> bytes:
    """The bytes of an embedded message."""
    if not isinstance(value, bytes):
        raise WireError("a number where a message belongs")
    return value


def as_text(value: Value, most_bytes: int = _MAX_TEXT_BYTES) -> str:
    """UTF-8 text of at most so many bytes."""
    data = as_message(value)
    if len(data) > most_bytes:
        raise WireError(f"a text of {len(data)} bytes")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a text that is not UTF-8") from None


def as_int32(value: Value) -> int:
    """A signed number of 32 bits (`int32`, enums); negative ones come as 64 bits."""
    if not isinstance(value, int):
        raise WireError("bytes where a number belongs")
    low = value & 0xFFFF_FFFF
    return low - (1 << 32) if low >> 31 else low


def as_bool(value: Value) -> bool:
    """A truth value."""
    if not isinstance(value, int):
        raise WireError("bytes where a truth value belongs")
    return value != 0


class Writer:
    """Collects the fields of one message. Plain fields leave out their default, as proto3 does."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def text(self, number: int, value: str) -> Writer:
        """A `string`."""
        return self._delimited(number, value.encode()) if value else self

    def texts(self, number: int, values: Sequence[str]) -> Writer:
        """A `repeated string`."""
        for value in values:
            self._delimited(number, value.encode())
        return self

    def number(self, number: int, value: int) -> Writer:
        """A `uint32`, `int32`, enum or `bool`."""
        return self.optional_number(number, value) if value else self

    def optional_number(self, number: int, value: int | None) -> Writer:
        """An `optional int32` or `optional bool`: 0 is said, None is not."""
        if value is not None:
            self._key(number, _VARINT)
            _append_varint(self._parts, value & 0xFFFF_FFFF_FFFF_FFFF)
        return self

    def float32(self, number: int, value: float) -> Writer:
        """A `float`."""
        if value:
            self._key(number, _FIXED32)
            self._parts += struct.pack("<f", value)
        return self

    def message(self, number: int, content: bytes | None) -> Writer:
        """An embedded message; an empty one is there, None is not."""
        return self if content is None else self._delimited(number, content)

    def done(self) -> bytes:
        """The message."""
        return bytes(self._parts)

    def _key(self, number: int, kind: int) -> None:
        _append_varint(self._parts, number << 3 | kind)

    def _delimited(self, number: int, content: bytes) -> Writer:
        self._key(number, _LENGTH_DELIMITED)
        _append_varint(self._parts, len(content))
        self._parts += content
        return self


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:  # nearly all are of one byte
        return data[at], at + 1
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if at + index >= len(data):
            raise WireError("cut short in a number")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + index + 1
    raise WireError(f"a number of more than {_MAX_VARINT_BYTES} bytes at byte {at}")


def _append_varint(parts: bytearray, value: int) -> None:
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
