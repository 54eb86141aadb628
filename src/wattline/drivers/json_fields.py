"""Typed look-ups in JSON documents of others; each refusal names the place in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from wattline.core.errors import InputError, printable
from wattline.grants.messages import PROTOCOL_VERSION

_LARGEST_COUNT = 2**63 - 1
_LARGEST_W = 1e6
_MOST_ITEMS = 1024


def parse(content: bytes, where: str) -> Fields:
    """The one object of a document; InputError for what is torn or no JSON."""
    try:
        document = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise InputError(where, found, "no whole JSON document: replace it in one step") from None
    return Fields(document, where)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


class Fields:
    """Typed look-ups in one JSON object; every refusal is an InputError that names the field."""

    def __init__(self, entry: object, where: str) -> None:
        if not isinstance(entry, dict):
            raise InputError(where, _shown(entry), "must be an object")
        self._entry: Mapping[str, Any] = entry
        self._where = where

    def check_protocol(self) -> None:
        """Refuse another version of the protocol than ours."""
        found = self._entry.get("protocol")
        if found != PROTOCOL_VERSION or isinstance(found, bool):
            raise InputError(
                f"{self._where}: protocol",
                _shown(found),
                f"this program speaks {PROTOCOL_VERSION}: bring both sides to one version",
            )

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._entry.get(name) is not None

    def text(self, name: str) -> str:
        """A text of at most 1000 characters."""
        found = self._entry.get(name)
        if not isinstance(found, str) or len(found) > 1000:
            raise self.refusal(name, "must be a text")
        return found

    def line(self, name: str) -> str:
        """A text for a person, on one line: what does not print comes escaped."""
        return printable(self.text(name))

    def line_or_none(self, name: str) -> str | None:
        """The same, or None."""
        return self.line(name) if self.has(name) else None

    def text_or_none(self, name: str) -> str | None:
        """The same, or None."""
        return self.text(name) if self.has(name) else None

    def uuid(self, name: str) -> str:
        """The UUID of a GPU."""
        return uuid_of(self._entry.get(name), f"{self._where}: {name}")

    def count(self, name: str) -> int:
        """A whole number from 0 to 2^63 - 1."""
        found = self._entry.get(name)
        if not isinstance(found, int) or isinstance(found, bool):
            raise self.refusal(name, "must be a whole number")
        if not 0 <= found <= _LARGEST_COUNT:
            raise self.refusal(name, "must be from 0 to 2^63 - 1")
        return found

    def count_or_none(self, name: str) -> int | None:
        """The same, or None."""
        return self.count(name) if self.has(name) else None

    def number(self, name: str, largest: float) -> float:
        """A finite number from 0 to `largest`."""
        found = self._entry.get(name)
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise self.refusal(name, "must be a number")
        # Compared before the conversion: a whole number may be too large for a float.
        if not 0 <= found <= largest or not math.isfinite(found):
            raise self.refusal(name, f"must be from 0 to {largest:g}")
        return float(found)

    def number_or_none(self, name: str, largest: float) -> float | None:
        """The same, or None."""
        return self.number(name, largest) if self.has(name) else None

    def numbers_or_none(self, name: str, largest: float) -> dict[str, float | None]:
        """An object of such numbers, each or None; empty where there is none."""
        found = self.object(name)
        if found is None:
            return {}
        return {str(key): found.number_or_none(key, largest) for key in found._entry}

    def watts(self, name: str) -> float:
        """Watts, up to a million."""
        return self.number(name, _LARGEST_W)

    def watts_or_none(self, name: str) -> float | None:
        """The same, or None."""
        return self.number_or_none(name, _LARGEST_W)

    def flag_or_none(self, name: str) -> bool | None:
        """True, False or None."""
        found = self._entry.get(name)
        if found is not None and not isinstance(found, bool):
            raise self.refusal(name, "must be true or false")
        return found

    def items(self, name: str) -> list[object]:
        """A list of at most 1024; empty where there is none."""
        found = self._entry.get(name, [])
        if not isinstance(found, list) or len(found) > _MOST_ITEMS:
            raise self.refusal(name, f"must be a list of at most {_MOST_ITEMS}")
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self.items(name)
        texts = [entry for entry in found if isinstance(entry, str)]
        if len(texts) != len(found):
            raise self.refusal(name, "must be a list of texts")
        return tuple(texts)

    def object(self, name: str) -> Fields | None:
        """An object inside this one, or None."""
        found = self._entry.get(name)
        return None if found is None else Fields(found, f"{self._where}: {name}")

    def refusal(self, name: str, remedy: str) -> InputError:
        """The error that names this field."""
        return InputError(f"{self._where}: {name}", _shown(self._entry.get(name)), remedy)


def uuid_of(found: object, where: str) -> str:
    """The UUID of a GPU."""
    if not isinstance(found, str) or not 1 <= len(found) <= 200 or not found.isprintable():
        raise InputError(where, _shown(found), "must be the UUID of a GPU")
    return found


def _shown(found: object) -> object:
    """A value as an error shows it: containers, which may nest deeply, by their kind only."""
    return type(found).__name__ if isinstance(found, dict | list) else found
