"""What the sections of the results page share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from results_cells import Cell, Store


class Section(Protocol):
    """A part of the page."""

    @property
    def key(self) -> str:
        """Its name for `--only`."""
        ...

    def cells(self, store: Store) -> Iterator[Cell]:
        """Cells that are needed, as far as the finished ones tell."""
        ...

    def page(self, store: Store) -> list[str]:
        """Markdown; says so where cells are missing."""
        ...


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def number(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def trace_name(trace: str) -> str:
    """Name of a trace file, without its folder."""
    return Path(trace).name
