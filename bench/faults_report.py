"""The table and the JSON of a fault campaign."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from faults_run import CellResult
from wattline.virtual.judge import CUT_S, REPAIR_S, JudgedExposure


def summary(results: Sequence[CellResult], *, seed: int, wall_s: float) -> dict[str, Any]:
    """All figures of a campaign as plain JSON."""
    faults: Counter[str] = Counter()
    for result in results:
        faults.update(result.faults)
    verdicts = [result.verdict for result in results if result.verdict is not None]
    under_grants = [result for result in results if result.mode == "grants"]
    failures = [f"cell {result.seed}: {line}" for result in results for line in result.failures]
    ours_ws = sum(verdict.ours_watt_seconds for verdict in verdicts)
    exposures = [each for verdict in verdicts for each in verdict.exposures]
    return {
        "seed": seed,
        "wall_s": wall_s,
        "cells": len(results),
        "cells_with_annotations": len(results) - len(under_grants),
        "gpus": sum(result.gpus for result in results),
        "faults": dict(sorted(faults.items(), key=lambda entry: -entry[1])),
        "faults_total": faults.total(),
        "disk_full_by": sorted({result.disk for result in results if result.disk}),
        "agent_starts": sum(result.agent_starts for result in results),
        "coordinator_starts": sum(result.coordinator_starts for result in results),
        "observed_s": sum(result.observed_s for result in results),
        "limit_changes": sum(result.changes for result in results),
        "samples": sum(result.samples for result in results),
        "longest_gap_between_samples_s": max((r.longest_gap_s for r in results), default=0.0),
        "ours_watt_seconds": ours_ws,
        "least_margin_w": min((verdict.least_margin_w for verdict in verdicts), default=None),
        "exposures": _by_kind(exposures),
        "stated_repair_s": REPAIR_S,
        "stated_cut_s": CUT_S,
        "rest_s_longest": max((r.rest_s for r in results if r.rest_s is not None), default=None),
        "originals_given_back": sum(result.originals for result in results),
        "given_back_as_found": sum(result.originals_as_found for result in results),
        "failures": failures,
        "passed": not failures and ours_ws == 0 and len(verdicts) == len(under_grants),
        "details": [result.as_json() for result in results],
    }


def _by_kind(exposures: Sequence[JudgedExposure]) -> dict[str, dict[str, Any]]:
    kinds: dict[str, list[JudgedExposure]] = defaultdict(list)
    for each in exposures:
        kinds[each.kind].append(each)
    found = {}
    for kind, entries in sorted(kinds.items()):
        free = [each for each in entries if not each.hindered_by]
        found[kind] = {
            "events": len(entries),
            "watt_seconds": sum(each.watt_seconds for each in entries),
            "peak_w": max(each.peak_w for each in entries),
            "longest_s": max(each.over_s for each in entries),
            "longest_unhindered_s": max((each.over_s for each in free), default=None),
            "longest_able_s": max(each.able_s for each in entries),
            "hindered": len(entries) - len(free),
            "late": sum(not each.in_time for each in entries),
        }
    return found


def table(figures: dict[str, Any]) -> str:
    """The campaign for people."""
    lines = [
        f"{figures['faults_total']} faults, seed {figures['seed']}, in {figures['wall_s']:.0f} s: "
        f"{figures['cells']} cells ({figures['cells_with_annotations']} with annotations), "
        f"{figures['gpus']} GPUs, "
        f"{figures['agent_starts']} agent starts, "
        f"{figures['coordinator_starts']} coordinator starts",
        f"observed {figures['observed_s']:.0f} s, {figures['limit_changes']} changes of limits, "
        f"{figures['samples']} samples (longest gap "
        f"{figures['longest_gap_between_samples_s'] * 1000:.0f} ms; the log of changes has none); "
        f"disk full by {', '.join(figures['disk_full_by'])}",
        "",
        "fault                            injected",
    ]
    lines += [f"{name:32} {count:8d}" for name, count in figures["faults"].items()]
    lines += [
        "",
        "exposure by          events      W·s   peak W  longest s  unhindered s  able s  late",
    ]
    for kind, row in figures["exposures"].items():
        unhindered = row["longest_unhindered_s"]
        shown = "-" if unhindered is None else f"{unhindered:.2f}"
        lines.append(
            f"{kind:20} {row['events']:6d} {row['watt_seconds']:8.0f} {row['peak_w']:8.0f} "
            f"{row['longest_s']:10.2f} {shown:>13} {row['longest_able_s']:7.2f} {row['late']:5d}"
        )
    if not figures["exposures"]:
        lines.append("none")
    rest_s = figures["rest_s_longest"]
    lines += [
        "unhindered: of those that nothing stood in the way of; able: longest time on end in which "
        "agent, driver and coordinator could act",
        f"stated: {figures['stated_repair_s']:g} s to detect and repair; "
        f"{figures['stated_cut_s']:g} s for a cut, or where others must make room",
        "",
        f"above the budget by us: {figures['ours_watt_seconds']:.3f} W·s",
        f"at rest again within: {'never' if rest_s is None else f'{rest_s:.1f} s'} of healing",
        f"given back: {figures['originals_given_back']} originals, and "
        f"{figures['given_back_as_found']} as found later (damaged journal, other writer), "
        f"of {figures['gpus']} GPUs",
    ]
    lines += [f"FAILED {line}" for line in figures["failures"]]
    lines.append("passed" if figures["passed"] else "NOT passed")
    return "\n".join(lines)
