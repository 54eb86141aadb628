"""Every figure of docs/results.md, by one command.

    python bench/results.py --azure FILE --mooncake FILE
    python bench/results.py ... --only safety,energy   # run these, show the rest if it is there
    python bench/results.py ... --cached               # run nothing: the page of what is there
    python bench/results.py ... --mix-s 1200           # two swings of the mix, not 2 hours
    python bench/results.py ... --quick                # short slices of everything, into out/

Traces: github.com/Azure/AzurePublicDataset (2023, conversation) and github.com/kvcache-ai/Mooncake
(FAST25-release, conversation_trace); what a missing trace is needed for is left out and said so.
Finished runs are kept in .cache/results: after an interruption the same command goes on where it
stopped. Writes docs/results.md and docs/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from results_cells import ROOT, Cell, Setup, Store, prepared, source_digest
from results_grids import BUDGETS, POLICIES, TARGETS, Headline, Ranges
from results_sections import Energy, EnergyCase, Safety
from results_tables import Section, trace_name
from wattline import __version__, catalog
from wattline.core.errors import InputError
from wattline.sim.files import write_text
from wattline.sim.runs import HINDSIGHT

SATURATE = 0.0
AZURE_LOAD = 6.0
"""Azure's conversation hour on 32 GPUs: some half of what they can serve."""
MIX_PART_S = 2400.0
"""Four full swings of the mix."""
WALL_GOAL_S = 180.0
COMPARE = "from wattline.cli.main import main; main()"


def headlines(arguments: argparse.Namespace) -> list[Headline]:
    """The three scenarios under saturating load."""
    quick = arguments.quick
    mix_until_s = 300.0 if quick else arguments.mix_s
    mix = Setup(scenario="mix-shift-h200", load=SATURATE, until_s=mix_until_s)
    targets = TARGETS | {
        peer: dict.fromkeys(BUDGETS, 1.05) for peer in ("best-static", "dynamo-clamp-best")
    }
    shared: dict[str, Any] = {}
    if quick:
        shared = {
            "policies": [policy for policy in POLICIES if policy not in HINDSIGHT],
            "budgets": ("60%", "80%"),
        }
    azure = _traced("azure-conv-h200", arguments.azure, SATURATE, 600.0 if quick else None)
    mooncake = _traced("mooncake-h200", arguments.mooncake, SATURATE, 400.0 if quick else None)
    return [
        Headline("azure", "Chat: `azure-conv-h200`", azure, "give the trace: --azure", **shared),
        Headline(
            "mooncake",
            "Long prompts: `mooncake-h200`",
            mooncake,
            "give the trace: --mooncake",
            **shared,
        ),
        Headline(
            "mix-shift",
            "A mix that shifts: `mix-shift-h200`",
            mix,
            sweep_until_s=None if mix_until_s and mix_until_s <= MIX_PART_S else MIX_PART_S,
            targets=targets,
            **shared,
        ),
    ]


def _traced(scenario: str, trace: Path | None, load: float, until_s: float | None) -> Setup | None:
    if trace is None:
        return None
    return Setup(scenario=scenario, trace=str(trace), load=load, until_s=until_s)


def energy(arguments: argparse.Namespace) -> Energy:
    """Three loads on which joules are compared."""
    until_s = 900.0 if arguments.quick else None
    on_eight = _traced("day-energy", arguments.azure, 1.0, until_s)
    on_all = _traced("azure-conv-h200", arguments.azure, AZURE_LOAD, until_s)
    if on_all is not None:
        on_all = replace(on_all, objective="energy")
    day = Setup(scenario="day-energy", until_s=until_s)
    return Energy(
        [
            EnergyCase(
                "The Azure conversation hour as it was (5.5 requests/s), on the 8 GPUs of "
                "`day-energy`",
                on_eight,
                0.30,
            ),
            EnergyCase(
                f"The same {AZURE_LOAD:.0f} times as dense, on the 32 GPUs of `azure-conv-h200`: "
                "some half of what they can serve",
                on_all,
                0.30,
            ),
            EnergyCase(
                "A generated day with a peak of four times its trough: `day-energy`", day, 0.50
            ),
        ],
        "give the trace: --azure",
    )


def time_comparison(arguments: argparse.Namespace, store: Store, run: bool) -> list[str]:
    """Wall time of the whole comparison of the Azure conversation on two cores."""
    lines = ["## Time of the whole Azure comparison", ""]
    if arguments.azure is None:
        return [*lines, "Not run: give the trace: --azure.", ""]
    path = store.timed(" ".join(["azure", *POLICIES, *BUDGETS]), str(arguments.azure))
    if run and not path.exists():
        write_text(path, json.dumps(_timed_comparison(arguments.azure)) + "\n")
    if not path.exists():
        return [*lines, "Not run.", ""]
    measured = json.loads(path.read_text(encoding="utf-8"))
    met = "met" if measured["wall_s"] <= WALL_GOAL_S else "**missed**"
    return [
        *lines,
        f"{len(POLICIES)} policies x {len(BUDGETS)} budgets, both sweeps included, with "
        f"`--jobs 2`: {measured['wall_s']:.0f} s; goal "
        f"{WALL_GOAL_S:.0f} s: {met}. Load average of the machine before it: "
        f"{measured['load']:.1f}.",
        "",
        "```",
        _comparison_command(trace_name(str(arguments.azure))),
        "```",
        "",
    ]


def _comparison_command(trace: str) -> str:
    return (
        f"wattline compare azure-conv-h200 --trace {trace} --scale-load saturate \\\n"
        f"  --budgets {','.join(BUDGETS)} --policies {','.join(POLICIES)} --jobs 2"
    )


def _timed_comparison(trace: Path) -> dict[str, float]:
    words = _comparison_command(str(trace)).replace("\\\n", " ").split()[1:]
    load, started = os.getloadavg()[0], time.perf_counter()
    subprocess.run([sys.executable, "-c", COMPARE, *words], check=True, stdout=subprocess.DEVNULL)
    return {"wall_s": round(time.perf_counter() - started, 1), "load": round(load, 1)}


def introduction(sections: Sequence[Headline], arguments: argparse.Namespace) -> list[str]:
    """What the figures are, where they stand on, and how to make them again."""
    given = "".join(
        f" --{name} {trace_name(str(trace))}"
        for name, trace in (("azure", arguments.azure), ("mooncake", arguments.mooncake))
        if trace is not None
    )
    products = dict.fromkeys(
        product.name
        for section in sections
        if section.setup is not None
        for product in prepared(section.setup).fleet.products
    )
    short = f" --mix-s {arguments.mix_s:.0f}" if arguments.mix_s else ""
    return [
        "# Results",
        "",
        f"Made by `python bench/results.py{given}{short}`; do not edit. All figures are from the "
        "simulated plant ([what it assumes](concepts/plant.md)); every policy gets the same plant, "
        "GPUs, traffic, budget, models and admission rule "
        "([what each does](reference/policies.md)). Goodput counts requests that met both latency "
        "targets, over the duration of the traffic; attainment is over *offered* requests. "
        "`--scale-load saturate` offers 1.1 times what the uncapped fleet can serve of this mix. "
        "Budgets are fractions of the sum of the GPUs' largest limits; 2 % of each is kept free as "
        "a guard band. The uncapped fleet and policies that write limits past the ledger may "
        "enforce more than the budget: their rows say how much.",
        "",
        "Two things to know when reading. *Whose watts:* `dynamo-clamp` counts what replicas "
        "request and neither caps nor counts the GPUs beside them, so it serves with watts that "
        "the budget does not have; `dynamo-clamp-parked` is the same planner with those GPUs "
        "parked and charged, as every policy under the ledger has to. Compare goodput with the "
        "second, promises with the first. *How fast:* saturating a recorded trace compresses its "
        "time, so its load moves that much faster than it did, while replicas still take two "
        "minutes to start and Dynamo's planner three to look again; there the starting plan and "
        "the caps decide.",
        "",
        "",
        "What the models of the GPUs stand on:",
        "",
        *(f"- {name}: {catalog.fit(name).coverage}." for name in products),
        "",
    ]


def main() -> int:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--azure", type=Path, metavar="FILE")
    parser.add_argument("--mooncake", type=Path, metavar="FILE")
    parser.add_argument("--only", default="", metavar="NAME,...", help="run these sections only")
    parser.add_argument("--cached", action="store_true", help="run nothing")
    parser.add_argument("--mix-s", type=float, help="the mix shift for its first SECONDS only")
    parser.add_argument("--quick", action="store_true", help="short slices, into out/")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    store, grids = Store(), headlines(arguments)
    sections: list[Section] = [
        *grids,
        Ranges(grids),
        energy(arguments),
        Safety(300.0 if arguments.quick else None),
    ]
    keys = [*(section.key for section in sections), "time"]
    only = [name for name in arguments.only.split(",") if name] or keys
    unknown = sorted(set(only) - set(keys))
    if unknown:
        parser.error(f"--only {unknown[0]}: use {', '.join(keys)}")
    digest = source_digest()
    wanted = [] if arguments.cached else [section for section in sections if section.key in only]
    run_all(wanted, store, arguments.jobs)
    timed = time_comparison(
        arguments, store, run="time" in only and not arguments.cached and not arguments.quick
    )
    write_page(sections, introduction(grids, arguments), timed, store, arguments)
    source_digest.cache_clear()
    if source_digest() != digest:
        print(
            "The source changed meanwhile: figures are of mixed code. Run again.", file=sys.stderr
        )
        return 1
    return 0


def run_all(sections: Sequence[Section], store: Store, workers: int) -> None:
    """Run cells until no section knows of more: sweeps first, then what they chose."""
    # Energy holds the longest search, which only one process works on: it starts first.
    ordered = sorted(sections, key=lambda section: section.key != "energy")
    done: set[Cell] = set()
    while True:
        cells = [cell for section in ordered for cell in section.cells(store)]
        new = [cell for cell in cells if cell not in done]
        if not new:
            return
        store.fill(new, workers)
        done.update(new)


def write_page(
    sections: Sequence[Section],
    head: Sequence[str],
    timed: Sequence[str],
    store: Store,
    arguments: argparse.Namespace,
) -> None:
    """Write the page and the figures behind it."""
    lines = [*head, *(line for section in sections for line in section.page(store)), *timed]
    folder = ROOT / ("out" if arguments.quick else "docs")
    write_text(folder / "results.md", "\n".join(lines).rstrip() + "\n")
    rows = []
    for cell in dict.fromkeys(cell for section in sections for cell in section.cells(store)):
        outcome = store.get(cell)
        if outcome is not None:
            outcome["cell"]["setup"]["trace"] = trace_name(outcome["cell"]["setup"]["trace"])
            rows.append(json.dumps(outcome, allow_nan=False))
    text = ",\n".join(rows)
    write_text(
        folder / "results.json",
        f'{{"wattline": {json.dumps(__version__)}, "source": "{source_digest()[:12]}", '
        f'"cells": [\n{text}\n]}}\n',
    )
    print(f"Wrote {folder / 'results.md'} and results.json.", file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
