"""What a page can be given besides its runs: small tables, and words of its own at the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True, kw_only=True)
class PageWords:
    """Replaces the sentences that compare policies, on a page whose runs are none."""

    subtitle: str
    headline: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTable:
    """Title, a sentence on what it shows, and cells as text. The first column names the row.

    bad: (row, column) of cells that tell of something that should not be.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bad: frozenset[tuple[int, int]] = frozenset()

    def html(self) -> str:
        """As a section of the page."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.header)
        body = "".join(f"<tr>{self._row(number)}</tr>" for number in range(len(self.rows)))
        return (
            f'<section class="side"><h2>{escape(self.title)}</h2>'
            f'<p class="unit">{escape(self.note)}</p>'
            '<div class="scroll" tabindex="0"><table class="side">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
        )

    def _row(self, number: int) -> str:
        name, *cells = self.rows[number]
        shown = "".join(
            f'<td class="bad">{escape(cell)}</td>'
            if (number, place) in self.bad
            else f"<td>{escape(cell)}</td>"
            for place, cell in enumerate(cells, start=1)
        )
        return f'<th scope="row">{escape(name)}</th>{shown}'
