"""The demonstration in a terminal: a table that moves, or plain lines where there is none."""

from __future__ import annotations

from collections.abc import Callable

from wattline.virtual.demo import Frame, GpuRow, View

BAR = 40
_RESET = "\x1b[0m"
_COLOURS = {"grey": "\x1b[90m", "green": "\x1b[32m", "yellow": "\x1b[33m", "red": "\x1b[31m"}
_BOLD = "\x1b[1m"


def bar(row: GpuRow, width: int = BAR) -> str:
    """Draw as full blocks, the enforced limit as a mark, the largest limit as the width."""
    scale = width / row.max_w
    drawn = min(width, round(row.draw_w * scale))
    limit = min(width - 1, max(0, round(row.enforced_w * scale) - 1))
    cells = ["█" if cell < drawn else "·" for cell in range(width)]
    cells[limit] = "┃"
    return "".join(cells)


def totals(frame: Frame) -> str:
    """The line that matters: booked, enforced, drawn, budget."""
    enforced_w = sum(row.enforced_w for row in frame.rows)
    drawn_w = sum(row.draw_w for row in frame.rows)
    booked = "    -" if frame.booked_w is None else f"{frame.booked_w:5.0f}"
    return (
        f"booked {booked} W   enforced {enforced_w:5.0f} W   drawn {drawn_w:5.0f} W   "
        f"budget {frame.budget_w:5.0f} W{'   BRAKED' if frame.braked else ''}"
    )


class PlainView(View):
    """One line per event, and the totals every two seconds; no escape codes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._next_s = 0.0

    def frame(self, frame: Frame) -> None:
        """Say the totals now and then."""
        if frame.at_s >= self._next_s:
            self._next_s = frame.at_s + 2.0
            limits = " ".join(f"{row.enforced_w:.0f}" for row in frame.rows)
            self._write(f"{frame.at_s:5.1f} s  {totals(frame)}   [{limits}]\n")

    def event(self, at_s: float, text: str) -> None:
        """Say it."""
        self._write(f"{at_s:5.1f} s  {text}\n")


class LiveView(View):
    """A table that is drawn over itself, with the events below it. Needs an ANSI terminal."""

    def __init__(self, write: Callable[[str], None], columns: int, rows: int) -> None:
        self._write = write
        self._columns = columns
        self._events_shown = max(3, rows - 16)
        self._events: list[str] = []
        self._lines = 0
        self._last: Frame | None = None

    def frame(self, frame: Frame) -> None:
        """Draw it anew."""
        self._last = frame
        self._draw(frame)

    def event(self, at_s: float, text: str) -> None:
        """Add a line below the table."""
        self._events.append(f"{at_s:5.1f} s  {text}")
        if self._last is not None:
            self._draw(self._last)

    def _draw(self, frame: Frame) -> None:
        over = sum(row.enforced_w for row in frame.rows) > frame.budget_w
        lines = [
            f"{_BOLD}wattline demo-node{_RESET}  {frame.at_s:4.0f} s  {self._cut(frame.title, 30)}",
            "",
            self._cut(f"{'GPU':>3}  {'granted':>9}  {'enforced':>9}  {'draw':>7}  █ draw  ┃ limit"),
            *(self._row(row) for row in frame.rows),
            "",
            _coloured(self._cut(totals(frame)), "red" if over else "green"),
            "",
            *(self._event(line) for line in self._events[-self._events_shown :]),
        ]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self._write(up + "".join(f"\r{line}\x1b[K\n" for line in lines))
        self._lines = len(lines)

    def _row(self, row: GpuRow) -> str:
        granted = "-" if row.granted_w is None else f"{row.granted_w:.0f} W"
        text = f"{row.index:>3}  {granted:>9}  {row.enforced_w:>7.0f} W  {row.draw_w:>5.0f} W  "
        width = min(BAR, self._columns - len(text) - 1)
        if width < 10:
            return self._cut(text)
        foreign = row.granted_w is not None and row.enforced_w > row.granted_w
        return text + _coloured(bar(row, width), "yellow" if foreign else "grey")

    def _event(self, line: str) -> str:
        shown = self._cut(line)
        words = shown[9:].split(" ", 1)
        if words[0].isupper() and len(words[0]) > 2:
            return shown[:9] + _BOLD + words[0] + _RESET + shown[9 + len(words[0]) :]
        return shown

    def _cut(self, text: str, used: int = 0) -> str:
        return text[: max(0, self._columns - 1 - used)]


def _coloured(text: str, colour: str) -> str:
    return _COLOURS[colour] + text + _RESET
