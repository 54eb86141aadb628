"""What a process uses, as the `process_*` metrics that Prometheus' client libraries have."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from wattline.agent.metric_catalogue import Kind, Metric

PROCESS = tuple(
    Metric(f"process_{name}", kind, (), unit, text)
    for name, kind, unit, text in (
        ("virtual_memory_bytes", Kind.GAUGE, "bytes", "Virtual memory size in bytes."),
        ("resident_memory_bytes", Kind.GAUGE, "bytes", "Resident memory size in bytes."),
        ("start_time_seconds", Kind.GAUGE, "seconds", "Start time since the Unix epoch."),
        ("cpu_seconds_total", Kind.COUNTER, "seconds", "User and system CPU time spent."),
        ("open_fds", Kind.GAUGE, "", "Open file descriptors."),
        ("max_fds", Kind.GAUGE, "", "Most open file descriptors that are allowed."),
    )
)


def process_values(proc: Path = Path("/proc")) -> Iterator[tuple[str, float]]:
    """Name and value of each metric of this process; what `/proc` does not tell is left out."""
    try:
        # The name in parentheses may hold anything. Numbers of fields as in proc(5), less three.
        fields = (proc / "self" / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        user, system, started, size, pages = (int(fields[place]) for place in (11, 12, 19, 20, 21))
    except (OSError, ValueError, IndexError):
        return
    ticks = os.sysconf("SC_CLK_TCK")
    yield "process_virtual_memory_bytes", size
    yield "process_resident_memory_bytes", pages * resource.getpagesize()
    booted_s = _booted_s(proc)
    if booted_s is not None:
        yield "process_start_time_seconds", booted_s + started / ticks
    yield "process_cpu_seconds_total", (user + system) / ticks
    try:
        yield "process_open_fds", len(os.listdir(proc / "self" / "fd"))
    except OSError:
        return  # out of descriptors: that cannot be counted now
    yield "process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _booted_s(proc: Path) -> float | None:
    try:
        lines = (proc / "stat").read_text("ascii", "replace").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
