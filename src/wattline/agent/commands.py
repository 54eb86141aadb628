"""What a person or a local program may ask of a running agent, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Brake:
    """All GPUs to their brake watts, now."""

    by: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Obey no raise until `Resume`; lowerings and brakes are still obeyed."""

    by: str
    why: str


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep one GPU at `watts` until `Resume`; refused above what it holds by grant or found."""

    by: str
    why: str
    gpu: str
    """UUID, or its index as text."""
    watts: float


@dataclass(frozen=True, slots=True)
class Resume:
    """End a hold, a pin (one GPU) or everything (gpu None), and a brake that was called by hand."""

    by: str
    gpu: str | None = None


@dataclass(frozen=True, slots=True)
class Restore:
    """Give original limits back by hand, as far as that books nothing above what is held."""

    by: str
    gpu: str | None = None


Command = Brake | Hold | Pin | Resume | Restore


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a command: one line for a person; `done` False: refused, nothing was changed."""

    done: bool
    text: str
