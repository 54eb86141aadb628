"""10,000 changes of pods on one real agent: memory and descriptors must not grow.

    python bench/soak.py                    # 10,000 changes, about two minutes
    python bench/soak.py --changes 2000 --json FILE
    python bench/soak.py --pods-from kube   # pods from a real kube-apiserver

Each round binds a pod to each of eight virtual GPUs, waits until all eight limits are enforced, and
takes the pods away again: sixteen changes. The slopes are least squares over the samples after the
first fifth, in which caches and allocators fill. Exit code 1 if memory grows by more than
2 MiB in 10,000 changes, or descriptors or threads grow at all.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import agent_pods
from agent_node import MeasuredNode, Usage
from wattline.virtual.podresources import Device
from wattline.virtual.pods import VirtualPod

MOST_MIB_PER_10000 = 2.0
WARM_UP = 0.2
SAMPLES = 40


def soak(node: MeasuredNode, writer: agent_pods.PodWriter, changes: int) -> dict[str, Any]:
    """Make `changes` changes, in rounds, and sample what the agent uses in between."""
    draw = random.Random(4)
    samples: list[tuple[int, Usage]] = []
    start_s = time.monotonic()
    done = 0
    while done < changes:
        if len(samples) <= done * SAMPLES // changes:
            samples.append((done, node.usage()))
        done += _round(node, writer, draw, done)
    samples.append((done, node.usage()))
    kept = [(at, usage) for at, usage in samples if at >= WARM_UP * changes]
    figures: dict[str, Any] = {
        "changes": done,
        "seconds": time.monotonic() - start_s,
        "pods_from": writer.name,
        "resident_mib_per_10000": 10000 * slope([(at, u.resident_mib) for at, u in kept]),
        "descriptors_per_10000": 10000 * slope([(at, float(u.descriptors)) for at, u in kept]),
        "threads_per_10000": 10000 * slope([(at, float(u.threads)) for at, u in kept]),
        "resident_mib": (kept[0][1].resident_mib, kept[-1][1].resident_mib),
        "descriptors": (kept[0][1].descriptors, kept[-1][1].descriptors),
        "threads": (kept[0][1].threads, kept[-1][1].threads),
        "cpu_ms_per_change": 1000 * (samples[-1][1].cpu_s - samples[0][1].cpu_s) / done,
        "samples": [
            {
                "changes": at,
                "resident_mib": usage.resident_mib,
                "descriptors": usage.descriptors,
                "threads": usage.threads,
            }
            for at, usage in samples
        ],
    }
    figures["grown"] = grown(figures)
    return figures


def _round(
    node: MeasuredNode, writer: agent_pods.PodWriter, draw: random.Random, number: int
) -> int:
    """A pod on each GPU, then none: how many changes that was."""
    wanted_w = {}
    pods = []
    for index, uuid in enumerate(node.uuids):
        before_w = node.enforced_w(uuid)
        watts = float(draw.choice([w for w in range(210, 690) if w != before_w]))
        pod = VirtualPod(
            name=f"soak-{number + index}",
            uid=f"00000000-0000-4000-8000-{number + index:012d}",
            limit=f"{watts:.0f}",
            devices=(Device(uuid),),
        )
        node.virtual.pods.allocate(pod)
        writer.bind(pod)
        wanted_w[uuid] = watts
        pods.append(pod)
    node.changes_until(wanted_w, 30.0)
    for pod in pods:
        node.virtual.pods.release(pod.namespace, pod.name)
        writer.unbind(pod)
    return 2 * len(pods)


def slope(points: Sequence[tuple[int, float]]) -> float:
    """Least squares: rise of the second per one of the first."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def grown(figures: dict[str, Any]) -> list[str]:
    """What grew that must not."""
    lines = []
    rise_mib = figures["resident_mib_per_10000"]
    # Over a short run the slope of an allocator's noise says nothing: what was really added counts.
    first_mib, last_mib = figures["resident_mib"]
    if rise_mib > MOST_MIB_PER_10000 and last_mib - first_mib > MOST_MIB_PER_10000:
        lines.append(f"memory: {rise_mib:.2f} MiB in 10,000 changes")
    for name in ("descriptors", "threads"):
        first, last = figures[name]
        if last > first:
            lines.append(f"{name}: from {first} to {last}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--changes", type=int, default=10000)
    parser.add_argument("--pods-from", choices=("auto", "kube", "file"), default="file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        with agent_pods.running(folder / "s", options.pods_from) as (node, writer):
            figures = soak(node, writer, options.changes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{figures['changes']} changes of pods in {figures['seconds']:.0f} s, pods from "
        f"{figures['pods_from']}, {figures['cpu_ms_per_change']:.2f} ms of CPU each"
    )
    for name, unit in (("resident_mib", " MiB"), ("descriptors", ""), ("threads", "")):
        first, last = figures[name]
        rise = figures[f"{name}_per_10000"]
        print(f"{name:14} {first:8.1f} to {last:8.1f}, slope {rise:+.2f}{unit} in 10,000 changes")
    for line in figures["grown"]:
        print(f"GROWN {line}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))
    return 1 if figures["grown"] else 0


if __name__ == "__main__":
    sys.exit(main())
