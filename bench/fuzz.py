"""Mutated input for every parser of the agent, and wild values through to the writes.

    python bench/fuzz.py                           # over 100,000 cases, a table
    python bench/fuzz.py --cases 1000 --seed 7     # per target
    python bench/fuzz.py --json FILE               # also write the figures
    python bench/fuzz.py --only "grant file"       # one target

Samples that a parser takes are mutated with a seed: bytes are flipped, cut, spliced; places of JSON
documents get numbers of 5,000 digits, nesting of 60,000 levels, lone surrogates, line breaks. What
may come of a case: it is taken, or refused by Wattline's own error with one line of text. Anything
else is a defect and is shown with its input; so is a write, or an attempt at one, outside a GPU's
range. Exit code 1 if there is a defect.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fuzz_actuation import fuzz_agent, fuzz_protocol
from fuzz_mutations import Mutator
from fuzz_parsers import Target, targets
from wattline.agent.snapshot import Mode
from wattline.core.errors import WattlineError

DEFAULT_CASES = 6_500
LONGEST_LINE = 2_000
LONGEST_CASE_S = 5.0
"""Over this a case counts as a hang; hundreds of times what the slowest one needs."""


@dataclass(slots=True)
class Result:
    """What came of one target's cases.

    defects: input and what happened, one of each kind. writes: limits that GPUs were asked for.
    """

    target: str
    cases: int = 0
    taken: int = 0
    refused: int = 0
    found: int = 0
    slowest_ms: float = 0.0
    defects: list[tuple[str, str]] = field(default_factory=list)
    writes: int | None = None

    def defect(self, data: bytes, what: str) -> None:
        """Count a defect, and keep the first of each kind."""
        self.found += 1
        if len(self.defects) < 5 and all(what[:30] != known[:30] for _, known in self.defects):
            self.defects.append((repr(data[:300]), what[:500]))


def wrong_with(text: str) -> str | None:
    """What is wrong with a text that people get to read; None: nothing."""
    if len(text.splitlines()) > 1:
        return f"more than one line: {text[:200]!r}"
    if len(text) > LONGEST_LINE:
        return f"a line of {len(text)} characters"
    return None if text.isprintable() else f"characters that do not print: {text[:200]!r}"


def feed(target: Target, data: bytes, result: Result) -> None:
    """One case."""
    result.cases += 1
    begin = time.perf_counter()
    texts: Sequence[str] = ()
    try:
        texts = target.feed(data)
        result.taken += 1
    except WattlineError as error:
        texts = [str(error)]
        result.refused += 1
    except (Exception, RecursionError) as error:
        result.defect(data, f"{type(error).__name__}: {error}")
    duration_s = time.perf_counter() - begin
    result.slowest_ms = max(result.slowest_ms, duration_s * 1000)
    if duration_s > LONGEST_CASE_S:
        result.defect(data, f"took {duration_s:.1f} s")
    for text in texts:
        wrong = wrong_with(text)
        if wrong is not None:
            result.defect(data, wrong)
            break


def fuzz_target(target: Target, cases: int, seed: int) -> Result:
    """So many cases of one target."""
    result = Result(target.name)
    mutator = Mutator(f"{seed}/{target.name}")
    for _ in range(cases):
        feed(target, target.make(mutator), result)
    return result


def fuzz_all(cases: int, seed: int, only: str | None = None) -> list[Result]:
    """Every target, then the protocol's state and a whole agent."""
    with tempfile.TemporaryDirectory() as folder:
        results = [
            fuzz_target(target, cases, seed)
            for target in targets(Path(folder))
            if only in (None, target.name)
        ]
    if only in (None, "protocol"):
        done, refused, defects = fuzz_protocol(cases, seed)
        results.append(
            Result("protocol", done, done - refused, refused, len(defects), 0.0, defects[:5])
        )
    for mode in Mode:
        name = f"agent under {mode.value}"
        if only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                done, refused, writes, defects = fuzz_agent(mode, cases // 5, seed, Path(folder))
            result = Result(name, done, done - refused, refused, len(defects), 0.0, defects[:5])
            result.writes = writes
            results.append(result)
    return results


def show(results: Sequence[Result], seconds: float) -> None:
    print(f"{'target':26} {'cases':>8} {'taken':>8} {'refused':>8} {'defects':>8} {'slowest':>9}")
    for result in results:
        print(
            f"{result.target:26} {result.cases:8} {result.taken:8} {result.refused:8} "
            f"{result.found:8} {result.slowest_ms:6.1f} ms"
        )
    cases, found = sum(r.cases for r in results), sum(r.found for r in results)
    print(f"{'all':26} {cases:8} {'':8} {'':8} {found:8}   in {seconds:.0f} s")
    for result in results:
        if result.writes is not None:
            print(f"{result.target}: GPUs were asked for {result.writes} limits")
    for result in results:
        for data, what in result.defects:
            print(f"\n{result.target}: {what}\n  input {data}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=DEFAULT_CASES, help="per target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="TARGET")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    begin = time.monotonic()
    results = fuzz_all(options.cases, options.seed, options.only)
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
