"""The live demonstration in a terminal: a picture that moves, or plain lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

_BLOCKS = " ▁▂▃▄▅▆▇█"
_LINES = "▁─▔"
_ROWS, _MARGIN = 7, 12
_LEAST_HEIGHT = 34
_BAR = 44
_EVENTS = 7
_PLAIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRow:
    """One pool as shown; watts are sums over its GPUs."""

    name: str
    ready: int
    starting: int
    draining: int
    cap_w: float
    enforced_w: float
    drawn_w: float
    queued_tokens: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What clients saw: counts since the start of the load, latencies over the last 10 s."""

    sent: int
    answered: int
    good: int
    turned_away: int
    broken: int
    offered_rps: float
    good_rps: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    itl_p50_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What there is to be seen at one moment. at_s counts from the start of the load."""

    at_s: float
    of_s: float
    title: str
    budget_w: float
    usable_w: float
    booked_w: float | None
    enforced_w: float
    drawn_w: float
    most_w: float
    pools: tuple[PoolRow, ...]
    served: Served
    ttft_target_s: float
    itl_target_s: float


class Moment(NamedTuple):
    """Watts of one second, for the picture."""

    enforced_w: float
    drawn_w: float
    budget_w: float


class View:
    """Where it is shown. A context manager."""

    def frame(self, frame: Frame) -> None:
        """Show it anew."""

    def event(self, at_s: float | None, text: str) -> None:
        """Say what happened; `at_s` None: before the load."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class PlainView(View):
    """One line per event and one every five seconds; no escape codes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._next_s = 0.0

    def frame(self, frame: Frame) -> None:
        """Say the totals now and then."""
        if frame.at_s < self._next_s:
            return
        self._next_s = frame.at_s + _PLAIN_S
        pools = ", ".join(
            f"{row.name} {row.ready}{f'+{row.starting}' if row.starting else ''} at "
            f"{row.cap_w:.0f} W"
            for row in frame.pools
        )
        served = frame.served
        self._write(
            f"{_stamp(frame.at_s)} budget {frame.budget_w:.0f} W, enforced {frame.enforced_w:.0f} "
            f"W, drawn {frame.drawn_w:.0f} W; {pools}; {served.offered_rps:.1f} req/s offered, "
            f"{served.good_rps:.1f} good; TTFT {_ms(served.ttft_p50_s)}, "
            f"ITL {_ms(served.itl_p50_s)}\n"
        )

    def event(self, at_s: float | None, text: str) -> None:
        """Say it."""
        self._write(f"{_stamp(at_s)} {text}\n")


class LiveView(View):
    """Tables, and watts over time as blocks, drawn over themselves."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._events: deque[str] = deque(maxlen=_EVENTS)
        self._history: list[Moment] = []
        self._last: Frame | None = None

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def frame(self, frame: Frame) -> None:
        """Draw it anew; once a second it becomes part of the history."""
        self._last = frame
        if frame.at_s >= len(self._history):
            self._history.append(Moment(frame.enforced_w, frame.drawn_w, frame.budget_w))
        self._draw()

    def event(self, at_s: float | None, text: str) -> None:
        """Add a line below."""
        self._events.append(f"{_stamp(at_s)} {text}")
        self._draw()

    def _draw(self) -> None:
        parts: list[RenderableType] = []
        if self._last is not None:
            frame = self._last
            parts += [
                _head(frame),
                Text(),
                _watts(frame),
                Text(),
                *self._picture(),
                _pools(frame),
                Text(),
                _served(frame),
                Text(),
            ]
        parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in self._events]
        self._live.update(Group(*parts), refresh=True)

    def _picture(self) -> list[RenderableType]:
        """Nothing in a terminal that is too low for it."""
        columns = self._console.width - _MARGIN
        if self._console.height < _LEAST_HEIGHT or columns < 1 or not self._history:
            return []
        return [_over_time(self._history, columns), Text()]


def _stamp(at_s: float | None) -> str:
    return "        " if at_s is None else f"{at_s:6.1f} s"


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s * 1000:.0f} ms"


def _head(frame: Frame) -> Text:
    text = Text("wattline demo-live", style="bold")
    text.append(f"   {max(0.0, frame.at_s):3.0f} of {frame.of_s:.0f} s   ", style="dim")
    text.append(frame.title)
    return text


def _watts(frame: Frame) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    over = frame.enforced_w > frame.budget_w
    rows = [
        ("budget", frame.budget_w, "white"),
        ("booked", frame.booked_w, "blue"),
        ("enforced", frame.enforced_w, "red" if over else "green"),
        ("drawn", frame.drawn_w, "yellow"),
    ]
    for name, watts, colour in rows:
        shown = "-" if watts is None else f"{watts:6,.0f} W"
        full = 0 if watts is None else min(_BAR, round(_BAR * watts / frame.most_w))
        mark = min(_BAR - 1, round(_BAR * frame.budget_w / frame.most_w))
        cells = ["█" if cell < full else "·" for cell in range(_BAR)]
        if name != "budget":
            cells[mark] = "┃"
        table.add_row(name, shown, Text("".join(cells), style=colour))
    return table


def _over_time(history: Sequence[Moment], columns: int) -> Table:
    """Watts over time, a column a second: drawn as an area, enforced and budget as lines."""
    top_w = 1.1 * max(moment.budget_w for moment in history)
    recent = history[-columns:]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    for row in reversed(range(_ROWS)):
        line = Text()
        for moment in recent:
            line.append(*_cell(moment, row, _ROWS / top_w))
        table.add_row(f"{(row + 0.5) * top_w / _ROWS / 1000:.1f} kW", line)
    key = Text("drawn ", style="yellow")
    key.append("enforced ", style="green").append("budget", style="bright_white")
    table.add_row("", key)
    return table


def _cell(moment: Moment, row: int, rows_per_w: float) -> tuple[str, str]:
    """Sign and colour of one cell; a limit that reaches into the drawn area hides it."""
    over = moment.enforced_w > moment.budget_w
    lines = (
        (moment.enforced_w, "bold red" if over else "green"),
        (moment.budget_w, "bright_white"),
    )
    drawn = moment.drawn_w * rows_per_w - row
    for watts, colour in lines:
        part = watts * rows_per_w - row
        if 0.0 <= part < 1.0 and drawn < 1.0:
            return _LINES[int(part * len(_LINES))], colour
    return _BLOCKS[max(0, min(len(_BLOCKS) - 1, round(drawn * (len(_BLOCKS) - 1))))], "yellow"


def _pools(frame: Frame) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("Pool", "Replicas", "Cap", "Enforced", "Drawn", "Queue"):
        table.add_column(name, justify="left" if name == "Pool" else "right", no_wrap=True)
    table.add_column("Reason", no_wrap=True, overflow="ellipsis")
    for row in frame.pools:
        count = f"{row.ready}"
        count += f" +{row.starting}" if row.starting else ""
        count += f" -{row.draining}" if row.draining else ""
        queue = "-" if row.queued_tokens is None else f"{row.queued_tokens:,.0f} tok"
        table.add_row(
            row.name,
            count,
            f"{row.cap_w:.0f} W",
            f"{row.enforced_w:,.0f} W",
            f"{row.drawn_w:,.0f} W",
            queue,
            row.reason,
        )
    return table


def _served(frame: Frame) -> Table:
    served = frame.served
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    names = ("Offered", "Good", "Sent", "Answered", "Turned away", "TTFT p50", "p99", "ITL p50")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    slow = served.ttft_p99_s is not None and served.ttft_p99_s > frame.ttft_target_s
    table.add_row(
        f"{served.offered_rps:.1f}/s",
        f"{served.good_rps:.1f}/s",
        f"{served.sent}",
        f"{served.answered}",
        f"{served.turned_away}",
        _ms(served.ttft_p50_s),
        Text(_ms(served.ttft_p99_s), style="yellow" if slow else ""),
        "-" if served.itl_p50_s is None else f"{served.itl_p50_s * 1000:.1f} ms",
    )
    return table
