"""Errors that a user can act on.

WattlineError
├── InputError      a file, field or value that cannot be used (exit code 2)
├── InfeasibleError no answer exists within the stated limits (exit code 1)
└── SafetyError     an internal check of the booking invariant failed: a bug, stop (exit code 1)
"""

from __future__ import annotations


class WattlineError(Exception):
    """Base of every error that Wattline raises on purpose; its text is one line with a remedy."""

    exit_code = 1


class InputError(WattlineError):
    """Input that cannot be used: says where, what was found, and what to do about it."""

    exit_code = 2

    def __init__(self, where: str, found: object, remedy: str) -> None:
        shown = repr(found)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(f"{where}: {shown}: {remedy}")
        self.where = where
        self.found = found
        self.remedy = remedy


class InfeasibleError(WattlineError):
    """No answer exists within the stated limits."""


class SafetyError(WattlineError):
    """The booking invariant would be broken: a bug in Wattline, never a user's mistake."""
