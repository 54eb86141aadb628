"""Errors that a user can act on.

WattlineError
├── InputError      a file, field or value that cannot be used (exit code 2)
├── InfeasibleError no answer exists within the stated limits (exit code 1)
└── SafetyError     an internal check of the booking invariant failed: a bug, stop (exit code 1)
"""

from __future__ import annotations

import reprlib

_MOST_SHOWN = 120

# Containers are cut while they are written out: a few hundred bytes of YAML whose aliases hold
# aliases would otherwise fill the memory.
_CONTAINERS = reprlib.Repr()
_CONTAINERS.maxlevel = 4
_CONTAINERS.maxstring = _CONTAINERS.maxother = _CONTAINERS.maxlong = _MOST_SHOWN
_CONTAINERS.maxdict = _CONTAINERS.maxlist = _CONTAINERS.maxtuple = 20


class WattlineError(Exception):
    """Base of every error that Wattline raises on purpose; its text is one line with a remedy."""

    exit_code = 1


class InputError(WattlineError):
    """Input that cannot be used: says where, what was found, and what to do about it."""

    exit_code = 2

    def __init__(self, where: str, found: object, remedy: str) -> None:
        super().__init__(f"{where}: {_shown(found)}: {remedy}")
        self.where = where
        self.found = found
        self.remedy = remedy


class InfeasibleError(WattlineError):
    """No answer exists within the stated limits."""


class SafetyError(WattlineError):
    """The booking invariant would be broken: a bug in Wattline, never a user's mistake."""


def _shown(found: object) -> str:
    """What was found, on one line of bounded length."""
    text = repr(found) if isinstance(found, str) else _CONTAINERS.repr(found)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
