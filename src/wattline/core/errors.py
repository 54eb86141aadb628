"""Errors that a user can act on.

WattlineError
├── InputError      a file, field or value that cannot be used (exit code 2)
├── InfeasibleError no answer exists within the stated limits (exit code 1)
└── SafetyError     an internal check of the booking invariant failed: a bug, stop (exit code 1)
"""

from __future__ import annotations

import reprlib

_MOST_SHOWN = 120


class _Bounded(reprlib.Repr):
    """Cuts while it writes out, not after.

    A few hundred bytes of YAML whose aliases hold aliases would otherwise fill the memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = _MOST_SHOWN
        self.maxdict = self.maxlist = self.maxtuple = 20

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write out an integer of thousands of digits."""
        return f"an integer of {x.bit_length()} bits" if abs(x) > 10**18 else repr(x)


_BOUNDED = _Bounded()


class WattlineError(Exception):
    """Base of every error that Wattline raises on purpose; its text is one line with a remedy."""

    exit_code = 1


class InputError(WattlineError):
    """Input that cannot be used: says where, what was found, and what to do about it."""

    exit_code = 2

    def __init__(self, where: str, found: object, remedy: str) -> None:
        super().__init__(f"{printable(where)}: {_shown(found)}: {remedy}")
        self.where = where
        self.found = found
        self.remedy = remedy


class InfeasibleError(WattlineError):
    """No answer exists within the stated limits."""


class SafetyError(WattlineError):
    """The booking invariant would be broken: a bug in Wattline, never a user's mistake."""


def printable(text: str) -> str:
    """`text` on one line, what does not print escaped: keys and texts may come from anywhere."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _shown(found: object) -> str:
    """What was found, on one line of bounded length."""
    text = repr(found) if isinstance(found, str) else _BOUNDED.repr(found)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
