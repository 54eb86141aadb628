"""Mutated input for everything that the controller reads, and whole loops over it.

    python bench/fuzz_live.py                           # some 20,000 cases, a table
    python bench/fuzz_live.py --cases 200 --seed 7      # per target
    python bench/fuzz_live.py --json FILE               # also write the figures
    python bench/fuzz_live.py --only "recording"        # one target

As `bench/fuzz.py` does it for the agent: a case is taken, or refused by Wattline's own error with
one line of text. The whole loop is a controller that ticks while all its sources lie; see
`fuzz_live_loop` for what has to hold after each tick. Exit code 1 if there is a defect.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from fuzz import Result, fuzz_target, show
from fuzz_live_feeds import LiveFiles
from fuzz_live_http import fuzz_http
from fuzz_live_loop import fuzz_loop
from fuzz_live_targets import live_targets

DEFAULT_CASES = 1_500


def fuzz_live(cases: int, seed: int, only: str | None = None) -> list[Result]:
    """Every target, then requests, then whole loops."""
    with tempfile.TemporaryDirectory() as folder:
        files = LiveFiles(Path(folder))
        try:
            results = [
                fuzz_target(target, cases, seed)
                for target in live_targets(files)
                if only in (None, target.name)
            ]
        finally:
            files.close()
    if only in (None, "HTTP request"):
        with tempfile.TemporaryDirectory() as folder:
            results.append(fuzz_http(cases, seed, Path(folder)))
    for reports in (False, True):
        if only in (None, "loop"):
            results.append(fuzz_loop(cases, seed, reports=reports))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=DEFAULT_CASES, help="per target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="TARGET")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    begin = time.monotonic()
    results = fuzz_live(options.cases, options.seed, options.only)
    seconds = time.monotonic() - begin
    show(results, seconds)
    if options.json is not None:
        figures = {
            "seed": options.seed,
            "seconds": seconds,
            "cases": sum(result.cases for result in results),
            "targets": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if any(result.found for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
