"""How fast and how small the node agent is, on a virtual node, beside Dynamo's Power Agent.

    python bench/agent.py                   # 504 pods, 240 grants, 240 brakes, 3 x 60 s at rest
    python bench/agent.py --quick           # a tenth of it
    python bench/agent.py --json FILE       # also write the figures
    python bench/agent.py --pods-from file  # without a kube-apiserver

Latencies are wall time on this machine, from just before the last sign that the agent gets (a pod's
event or the kubelet's listing, whichever is later; a grant file's rename; a brake's file, signal or
command) to the moment at which the last of the registers concerned changed, by the virtual
library's own log of changes. Real NVML calls take longer than the virtual library's: see
bench/hardware.py. CPU and memory are those of the agent's process in /proc, with eight virtual
GPUs. Exit code 1 if a bound that the project holds itself to is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import agent_grants
import agent_pods

MUST = {"p99_ms": 500.0, "resident_most_mib": 80.0}
GOAL = {"pod p99_ms": 250.0, "grant p99_ms": 300.0, "resident_mib": 60.0, "cpu_percent": 0.5}
RESTS = ("rest_annotations", "rest_grants", "rest_grants_kubelet")
DYNAMO = {
    "source": "deploy/power-agent of ai-dynamo/dynamo at 3f41c0ec, read, not run",
    "pod bound to limit": "up to 15 s: it looks every 15 s (hard-coded)",
    "API requests at rest": "one LIST of the node's pods every 15 s, 4 a minute",
    "memory": "requests 96 MiB, limit 256 MiB",
    "CPU": "requests 50m, limit 200m",
    "brake": "none",
}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    scale = 10 if options.quick else 1
    figures: dict[str, Any] = {
        "load_average_before": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "dynamo": DYNAMO,
    }
    with agent_pods.running(folder / "pods", options.pods_from) as (node, writer):
        figures["pods_from"] = writer.name
        _say(f"{504 // scale} pods from {writer.name}")
        figures["pod"] = agent_pods.measure_pods(node, writer, 504 // scale)
        requests = len(writer.requests())
        _say("at rest, with annotations")
        figures["rest_annotations"] = agent_grants.measure_rest(node, 60.0 / scale)
        figures["api_requests_at_rest"] = writer.requests()[requests:]
        figures["api_requests_in_all"] = len(writer.requests())
    node, granter, brake_file = agent_grants.start(folder / "grants")
    try:
        _say(f"{240 // scale} grants")
        figures["grant"] = agent_grants.measure_grants(node, granter, 240 // scale)
        _say("at rest, with grants")
        figures["rest_grants"] = agent_grants.measure_rest(node, 60.0 / scale)
        _say(f"{240 // scale} brakes")
        figures["brake"] = agent_grants.measure_brakes(node, granter, brake_file, 240 // scale)
    finally:
        node.close()
    node, granter, _ = agent_grants.start(folder / "kubelet", kubelet=True)
    try:
        _say("at rest, with grants and a kubelet")
        granter.reach(dict.fromkeys(node.uuids, 400.0))
        figures["rest_grants_kubelet"] = agent_grants.measure_rest(node, 60.0 / scale)
    finally:
        node.close()
    figures["load_average_after"] = os.getloadavg()[0]
    figures["missed"] = missed(figures)
    return figures


def missed(figures: dict[str, Any]) -> list[str]:
    """Bounds that were not met."""
    latencies = {
        "pod": figures["pod"]["all"],
        "grant": figures["grant"],
        **{f"brake by {way}": each for way, each in figures["brake"].items()},
    }
    lines = [
        f"{name}: p99 {each['p99_ms']:.0f} ms, over {MUST['p99_ms']:.0f} ms"
        for name, each in latencies.items()
        if each["p99_ms"] >= MUST["p99_ms"]
    ]
    for rest in RESTS:
        most_mib = figures[rest]["resident_most_mib"]
        if most_mib >= MUST["resident_most_mib"]:
            lines.append(f"{rest}: {most_mib:.0f} MiB resident, over 80 MiB")
    if figures["api_requests_at_rest"]:
        lines.append(f"API requests while nothing changed: {figures['api_requests_at_rest']}")
    return lines


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"virtual library, {figures['cpus']} CPUs, pods from {figures['pods_from']}; "
        f"load average {figures['load_average_before']:.1f} before, "
        f"{figures['load_average_after']:.1f} after",
        "",
        "until enforced                     rounds   p50 ms   p90 ms   p99 ms   max ms   goal p99",
    ]
    rows = [
        ("pod bound", figures["pod"]["all"], GOAL["pod p99_ms"]),
        ("  kubelet first, then the event", figures["pod"]["kubelet first"], None),
        ("  event first, then the kubelet", figures["pod"]["event first"], None),
        ("grant file replaced, 8 GPUs", figures["grant"], GOAL["grant p99_ms"]),
        *(
            (f"brake by {way}, 8 GPUs", each, GOAL["grant p99_ms"])
            for way, each in figures["brake"].items()
        ),
    ]
    for name, each, goal in rows:
        shown = "" if goal is None else f"{goal:10.0f}"
        lines.append(
            f"{name:34} {each['rounds']:6d} {each['p50_ms']:8.1f} {each['p90_ms']:8.1f} "
            f"{each['p99_ms']:8.1f} {each['max_ms']:8.1f} {shown}"
        )
    lines += [
        "",
        "at rest, 8 GPUs       seconds   CPU %   resident MiB   (own share)   threads   fds",
    ]
    for name in RESTS:
        each = figures[name]
        lines.append(
            f"{name[5:]:20} {each['seconds']:8.0f} {each['cpu_percent_of_a_core']:7.2f} "
            f"{each['resident_mib']:14.1f} {each['proportional_mib']:13.1f} {each['threads']:9d} "
            f"{each['descriptors']:5d}"
        )
    lines += [
        f"goals: {GOAL['cpu_percent']:g} % of a core, {GOAL['resident_mib']:.0f} MiB",
        f"API requests while nothing changed: {len(figures['api_requests_at_rest'])}; "
        f"in all {figures['api_requests_in_all']}",
        "",
        "Dynamo's Power Agent:",
        *(f"  {name}: {text}" for name, text in figures["dynamo"].items()),
    ]
    lines += [f"MISSED {line}" for line in figures["missed"]]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--pods-from", choices=("auto", "kube", "file"), default="auto")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    try:
        figures = measure(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))
    return 1 if figures["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
