"""The report in a real browser: it draws, without an error, and fits a phone.

Runs where Chromium is installed (`chromium` or `chromium-browser` on the path, or its path in
`WATTLINE_CHROMIUM`); skipped, with that reason, elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from report_fixtures import fake_comparison, fake_run

from wattline.sim.report.html import write_report
from wattline.sim.result import Run

CHROMIUM = (
    os.environ.get("WATTLINE_CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found: the report was not looked at in a browser"
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
)


# A window cannot be narrower than about 500 pixels, a frame can.
FRAME = """<!DOCTYPE html><iframe src="report.html" width="{width}" height="900"></iframe>
<p id="found"></p><script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  const canvases = frame.contentDocument.querySelectorAll("canvas").length;
  found.textContent = `width ${{root.scrollWidth}} canvases ${{canvases}}`;
}};
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def look(folder: Path, runs: list[Run], width: int) -> tuple[int, int, str]:
    """Open the report in a frame `width` pixels wide: its own width, its plots, browser's log."""
    write_report(
        folder / "report.html",
        title="Made-up runs",
        runs=runs,
        scenario_yaml="name: made-up\n" + "long: " + "x" * 300,
        notes=["Nothing here happened."],
        command="wattline compare made-up",
    )
    (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    assert CHROMIUM is not None
    with served(folder) as address:
        done = subprocess.run(
            [
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={folder / 'profile'}",
                "--window-size=1600,1000",
                "--dump-dom",
                f"{address}/frame.html",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    found = re.search(r"width (\d+) canvases (\d+)", done.stdout)
    assert found is not None, done.stderr[-2000:]
    return int(found[1]), int(found[2]), done.stderr


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "runs", [[fake_run(steps=60)], fake_comparison(steps=30)], ids=["one", "many"]
)
def test_plots_are_drawn_and_fit_without_an_error(
    tmp_path: Path, runs: list[Run], width: int
) -> None:
    page_width, canvases, log = look(tmp_path, runs, width)
    assert page_width <= width
    assert canvases >= 7
    errors = [line for line in log.split("\n") if "CONSOLE" in line and "favicon" not in line]
    assert not errors
