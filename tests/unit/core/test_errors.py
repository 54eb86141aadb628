"""What an error says stays on one line and short, whatever was found."""

from __future__ import annotations

import pytest

from wattline.core.errors import InputError


def _aliases(levels: int) -> object:
    """Nine references to the same list of nine references, and so on: 9 ** levels when spelled."""
    value: object = ["x"] * 9
    for _ in range(levels):
        value = [value] * 9
    return value


@pytest.mark.parametrize(
    "found",
    [
        _aliases(12),
        "x" * 10_000,
        "two\nlines",
        {"key": "y" * 10_000},
        b"\x00" * 5_000,
        None,
        1e300,
        [16**5000],
    ],
    ids=["aliases", "long", "lines", "dict", "bytes", "none", "number", "integer"],
)
def test_an_error_is_one_short_line(found: object) -> None:
    text = str(InputError("where", found, "remedy"))
    assert text.startswith("where: ")
    assert text.endswith(": remedy")
    assert len(text) < 160
    assert "\n" not in text


def test_short_values_are_shown_whole() -> None:
    assert str(InputError("a", {"b": [1, 2.5, None]}, "c")) == "a: {'b': [1, 2.5, None]}: c"
    assert str(InputError("a", "it's", "c")) == 'a: "it\'s": c'


def test_where_is_printable_too() -> None:
    text = str(InputError("file:1: a\nb\ud800\u00e9", 1, "c"))
    assert text == "file:1: a\\nb\\ud800\u00e9: 1: c"
