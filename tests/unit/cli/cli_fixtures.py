"""The command line in this process, and a scenario that it runs in a fraction of a second."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from wattline.cli.main import main

TINY = """
name: tiny
description: "Two H200 under more load than their budget can serve."
duration_s: 15
drain_s: 5
deployments:
  - name: chat
    model: Llama-3.1-8B
    slo: {ttft_s: 0.5, itl_s: 0.03}
    pools:
      - {name: prefill, role: prefill, gpu: H200, gpus: 1, startup_s: 5}
      - {name: decode, role: decode, gpu: H200, gpus: 1, startup_s: 5}
traffic:
  - {kind: conversation, mean_rps: 30}
budget: {total_percent: 60}
plant: {gpus_per_node: 2}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a refusal; fails if there is more or less, or a traceback."""
        assert self.out == ""
        assert self.err.startswith("wattline: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        return self.err[:-1]


def wattline(*arguments: object) -> Outcome:
    """Run `wattline ARGUMENTS...` here; whatever is not a clean end is raised."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["wattline", *map(str, arguments)])
        patch.setenv("COLUMNS", "100")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                code = stop.code
    signal.signal(signal.SIGTERM, before)
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def write_tiny(folder: Path) -> Path:
    """The tiny scenario as a file in `folder`."""
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path
