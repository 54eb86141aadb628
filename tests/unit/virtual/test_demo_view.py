"""What the demonstration shows: true bars, and no escape codes where there is no terminal."""

from __future__ import annotations

import dataclasses
import re

from wattline.virtual.demo import Frame, GpuRow
from wattline.virtual.demo_view import BAR, LiveView, PlainView, bar, totals

ROWS = tuple(GpuRow(index, 400.0, 400.0, 350.0, 700.0) for index in range(8))
FRAME = Frame(1.0, "a title", ROWS, 3600.0, 3300.0, braked=False)
ESCAPES = re.compile(r"\x1b\[[0-9]*[A-Za-z]")


def test_a_bar_shows_draw_and_limit_in_proportion() -> None:
    shown = bar(GpuRow(0, 350.0, 350.0, 175.0, 700.0), 40)
    assert len(shown) == 40
    assert shown.count("█") == 10
    assert shown.index("┃") == 19
    assert len(bar(GpuRow(0, None, 0.0, 0.0, 700.0), 12)) == 12
    assert bar(GpuRow(0, None, 700.0, 900.0, 700.0), 12) == "█" * 11 + "┃"


def test_the_totals_add_up() -> None:
    line = totals(FRAME)
    assert "enforced  3200 W" in line
    assert "drawn  2800 W" in line
    assert "BRAKED" not in line
    assert "BRAKED" in totals(dataclasses.replace(FRAME, braked=True))
    assert "booked     - W" in totals(dataclasses.replace(FRAME, booked_w=None))


def test_plain_output_is_lines_without_escape_codes() -> None:
    written: list[str] = []
    view = PlainView(written.append)
    for at_s in (1.0, 1.2, 2.9, 3.1):
        view.frame(dataclasses.replace(FRAME, at_s=at_s))
    view.event(3.2, "CUT  something")
    text = "".join(written)
    assert text.count("\n") == 3
    assert "\x1b" not in text
    assert "  3.2 s  CUT  something\n" in text


def test_the_table_is_drawn_over_itself_and_fits_the_terminal() -> None:
    written: list[str] = []
    view = LiveView(written.append, columns=60, rows=24)
    for number in range(30):
        view.event(float(number), f"RIVAL  event {number} " + "x" * 100)
        view.frame(FRAME)
    lines = ESCAPES.sub("", written[-1]).rstrip("\n").split("\n")
    assert max(len(line.lstrip("\r")) for line in lines) < 60
    assert len(lines) <= 24
    assert re.match(rf"\x1b\[{len(lines)}A", written[-1])
    assert "event 29" in lines[-1]
    assert BAR == 40
