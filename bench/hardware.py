"""Read-only checks of the NVML driver on the GPUs of this machine; skipped where there are none.

    python bench/hardware.py                       # a table
    python bench/hardware.py --json FILE           # also write the figures
    python bench/hardware.py --seconds 30          # watch energy and power for longer

Per GPU: do the fields and the calls for one quantity agree, are limits and clocks in their ranges,
does the energy counter match power integrated over the time watched, how long does each call take.
Nothing is written: the driver gets a binding that has no function which sets or resets anything.
Exit code 1 if a check fails, 0 otherwise, also when skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuError, GpuFault
from wattline.drivers.gpu.nvml import NvmlDevice, NvmlDriver
from wattline.drivers.gpu.nvml_binding import NvmlConnection, field_number, load_binding

READS = ("nvmlDeviceGet", "nvmlSystemGet", "nvmlInit", "nvmlShutdown", "nvmlErrorString")
"""Beginnings of the binding's functions that may be called at all."""

AGREE_W = 1.0
POWER_PERIOD_S = 0.1
ENERGY_TOLERANCE = 0.10
"""Relative. The sensor of H100 covers a part of the time only (arXiv 2312.02741)."""


class ReadOnlyBinding(types.ModuleType):
    """A binding through which nothing can be changed: setters are not there, nor is the library."""

    def __init__(self, binding: types.ModuleType) -> None:
        super().__init__("pynvml")
        self._binding = binding
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml") and not name.startswith(READS):
            raise AttributeError(f"{name}: this run only reads")
        self.used.add(name)
        return getattr(self._binding, name)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison; ok None: this GPU has nothing to compare."""

    name: str
    ok: bool | None
    found: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Durations of one call in microseconds."""

    call: str
    runs: int
    median_us: float
    p99_us: float
    longest_us: float


def raw_field(device: NvmlDevice, connection: NvmlConnection, field: int) -> float | None:
    handle = connection.call("nvmlDeviceGetHandleByUUID", device.identity.uuid)
    values = connection.call("nvmlDeviceGetFieldValues", handle, [field])
    return field_number(values[0], device.identity.uuid)


def raw_call(device: NvmlDevice, connection: NvmlConnection, name: str) -> float | None:
    handle = connection.call("nvmlDeviceGetHandleByUUID", device.identity.uuid)
    try:
        return float(connection.call(name, handle))
    except GpuError as error:
        if error.fault is GpuFault.NOT_SUPPORTED:
            return None
        raise


def agreement(name: str, first: float | None, second: float | None) -> Check:
    if first is None or second is None:
        return Check(name, None, f"only one of two sources: {first}, {second} mW")
    difference_w = abs(first - second) / 1000
    return Check(name, difference_w <= AGREE_W, f"{first / 1000:g} W and {second / 1000:g} W")


def source_checks(device: NvmlDevice, connection: NvmlConnection) -> list[Check]:
    """Compare what the field says with what the call says."""
    pairs = (
        ("enforced: field 190, GetEnforcedPowerLimit", 190, "nvmlDeviceGetEnforcedPowerLimit"),
        ("requested: field 192, GetPowerManagementLimit", 192, "nvmlDeviceGetPowerManagementLimit"),
        (
            "default: field 189, GetPowerManagementDefaultLimit",
            189,
            "nvmlDeviceGetPowerManagementDefaultLimit",
        ),
    )
    checks = [
        agreement(name, raw_field(device, connection, field), raw_call(device, connection, call))
        for name, field, call in pairs
    ]
    limits = device.range()
    for name, field, watts in (
        ("smallest: field 187, Constraints", 187, limits.min_w),
        ("largest: field 188, Constraints", 188, limits.max_w),
    ):
        checks.append(agreement(name, raw_field(device, connection, field), watts * 1000))
    return checks


def range_checks(device: NvmlDevice) -> list[Check]:
    """See whether numbers are where they can be, in the units that they are taken for."""
    limits, enforced_w = device.range(), device.enforced_w()
    default_w, draw_w = device.default_w(), device.draw_w()
    clock, highest = device.sm_clock_mhz(), device.max_sm_clock_mhz()
    reasons = device.throttle_reasons()
    unknown = sorted(name for name in reasons if name.startswith("unknown_"))

    def within(name: str, value: float | None, low: float, high: float, unit: str) -> Check:
        text = f"{value} {unit}, expected {low:g} to {high:g}"
        return Check(name, None if value is None else low <= value <= high, text)

    return [
        within("range is of one board, in watts", limits.max_w, limits.min_w, 3000.0, "W"),
        within("default in range", default_w, limits.min_w, limits.max_w, "W"),
        within("enforced at most the largest", enforced_w, 1.0, limits.max_w + AGREE_W, "W"),
        within("draw is positive and below twice the largest", draw_w, 1.0, 2 * limits.max_w, "W"),
        within("SM clock at most its highest", clock, 0.0, float(highest or 0), "MHz"),
        Check("all clock-event reasons have a name", not unknown, ", ".join(sorted(reasons))),
        Check("persistence mode is told", device.persistence_mode() is not None, ""),
    ]


def energy_check(device: NvmlDevice, seconds: float) -> tuple[Check, dict[str, float]]:
    """Compare the growth of the counter with power integrated over the same time."""
    name = "energy counter matches integrated power"
    start_j = device.energy_j()
    if start_j is None:
        return Check(name, None, "no energy counter"), {}
    begin = last = time.monotonic()
    integral_j, previous_w = 0.0, device.draw_w()
    while last - begin < seconds:
        time.sleep(POWER_PERIOD_S)
        now, watts = time.monotonic(), device.draw_w()
        if watts is None or previous_w is None:
            return Check(name, None, "no measured power"), {}
        integral_j += (watts + previous_w) / 2 * (now - last)
        last, previous_w = now, watts
    counted_j = (device.energy_j() or 0.0) - start_j
    error = counted_j / integral_j - 1 if integral_j > 0 else float("inf")
    figures = {"seconds": last - begin, "counter_j": counted_j, "integrated_j": integral_j}
    text = f"{counted_j:.1f} J counted, {integral_j:.1f} J integrated, {error:+.1%}"
    return Check(name, counted_j >= 0 and abs(error) <= ENERGY_TOLERANCE, text), figures


def latencies(device: NvmlDevice, runs: int) -> list[Latency]:
    calls: tuple[Callable[[], object], ...] = (
        device.enforced_w,
        device.requested_w,
        device.range,
        device.draw_w,
        device.energy_j,
        device.sm_clock_mhz,
        device.throttle_reasons,
        device.persistence_mode,
        device.mig_enabled,
        device.processes,
    )
    found = []
    for call in calls:
        durations: list[float] = []
        for _ in range(runs):
            begin = time.perf_counter()
            call()
            durations.append((time.perf_counter() - begin) * 1e6)
        durations.sort()
        found.append(
            Latency(
                call=call.__name__,
                runs=runs,
                median_us=statistics.median(durations),
                p99_us=durations[min(len(durations) - 1, int(len(durations) * 0.99))],
                longest_us=durations[-1],
            )
        )
    return found


def check_gpu(
    device: NvmlDevice, connection: NvmlConnection, seconds: float, runs: int
) -> dict[str, Any]:
    checks = source_checks(device, connection) + range_checks(device)
    energy, figures = energy_check(device, seconds)
    return {
        "identity": asdict(device.identity),
        "limits_w": asdict(device.range()),
        "sources": device.sources(),
        "checks": [asdict(check) for check in [*checks, energy]],
        "energy": figures,
        "latency": [asdict(latency) for latency in latencies(device, runs)],
    }


def run(seconds: float, runs: int) -> dict[str, Any]:
    """All GPUs, or why there are none to check."""
    try:
        binding = ReadOnlyBinding(load_binding())
        driver = NvmlDriver(binding)
        devices = driver.enumerate()
    except (GpuError, InputError) as error:
        return {"skipped": str(error)}
    connection = NvmlConnection(binding)
    connection.open()
    try:
        return {
            "driver": str(connection.call("nvmlSystemGetDriverVersion")),
            "nvml": str(connection.call("nvmlSystemGetNVMLVersion")),
            "unreachable": list(driver.unreachable),
            "gpus": [check_gpu(device, connection, seconds, runs) for device in devices],
            "functions": sorted(name for name in binding.used if name.startswith("nvml")),
        }
    finally:
        connection.close()
        driver.close()


def show(results: dict[str, Any]) -> int:
    """Print the table; the number of failed checks."""
    if "skipped" in results:
        print(f"skipped: {results['skipped']}")
        return 0
    failed = 0
    print(f"driver {results['driver']}, NVML {results['nvml']}")
    for line in results["unreachable"]:
        print(f"unreachable: {line}")
    for gpu in results["gpus"]:
        identity = gpu["identity"]
        print(f"\nGPU {identity['index']} {identity['product']} {identity['uuid']}")
        for check in gpu["checks"]:
            word = {True: "ok", False: "FAILED", None: "-"}[check["ok"]]
            failed += check["ok"] is False
            print(f"  {word:6}  {check['name']:52}  {check['found']}")
        print(f"  {'call':18} {'median':>9} {'99th':>9} {'longest':>9}  microseconds")
        for latency in gpu["latency"]:
            print(
                f"  {latency['call']:18} {latency['median_us']:9.1f} "
                f"{latency['p99_us']:9.1f} {latency['longest_us']:9.1f}"
            )
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="time to watch energy for")
    parser.add_argument("--runs", type=int, default=100, help="times that each call is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options = parser.parse_args()
    results = run(options.seconds, max(1, options.runs))
    failed = show(results)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
