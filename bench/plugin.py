"""Time from the planner's call to our answer: `wattline dynamo-plugin` over gRPC on loopback.

    python bench/plugin.py                # 5,000 calls, the plugin in a process of its own
    python bench/plugin.py --json FILE

One caller, one call at a time, as the planner does it, while the plan file is replaced ten times a
second. `answer` is the rule with its codec, without the transport, in this process. Exit code 1 if
the 99th percentile of calls is 5 ms or more.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc

from wattline.drivers.dynamo.plugin.constrain import PowerPlan, RolePlan
from wattline.drivers.dynamo.plugin.messages import (
    DECODE,
    PACKAGE,
    PREFILL,
    StageRequest,
    Target,
    WorkerCounts,
    encode_stage_request,
)
from wattline.drivers.dynamo.plugin.service import PluginService
from wattline.drivers.dynamo.plugin.state_file import Seen, write_state

GOAL_S = 0.005
WARM_UP = 200
PLAN = PowerPlan(
    version=1,
    budget_w=60_000.0,
    guard_w=500.0,
    roles={
        PREFILL: RolePlan(watts_per_replica_w=2800.0),
        DECODE: RolePlan(watts_per_replica_w=1600.0),
    },
)
REQUEST = encode_stage_request(
    StageRequest(
        request_id="0f6c1a52-5d7e-4b8e-9f3a-2f1d3c4b5a69",
        proposal=(Target(PREFILL, 14), Target(DECODE, 30)),
        prefill=WorkerCounts(8, 8, False),
        decode=WorkerCounts(12, 14, True),
    )
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        remote_s = called_s(options.calls, Path(folder) / "plan.json")
    figures = {
        "calls": options.calls,
        "call": percentiles_ms(remote_s),
        "answer": percentiles_ms(answered_s(options.calls)),
    }
    for name in ("call", "answer"):
        found = figures[name]
        assert isinstance(found, dict)
        print(f"{name:7} " + "  ".join(f"{key} {value:.3f} ms" for key, value in found.items()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return int(quantile(remote_s, 0.99) >= GOAL_S)


def called_s(calls: int, plan: Path) -> list[float]:
    """Seconds per call of another process."""
    write_state(plan, PLAN, made_s=time.time())
    command = [
        sys.executable, "-c",
        "from wattline.cli.dynamo_plugin import dynamo_plugin; dynamo_plugin()",
        "--state", str(plan), "--listen", "127.0.0.1:0", "--log-level", "info",
    ]  # fmt: skip
    stop = threading.Event()

    def replace() -> None:
        while not stop.wait(0.1):
            write_state(plan, PLAN, made_s=time.time())

    writer = threading.Thread(target=replace)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"grpc://(\S+)", process.stderr.readline())
            assert found is not None, "the plugin did not start"
            writer.start()
            return timed(found.group(1), calls)
        finally:
            stop.set()
            if writer.ident is not None:
                writer.join()
            process.terminate()


def timed(target: str, calls: int) -> list[float]:
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(f"/{PACKAGE}.ConstrainPlugin/Constrain")
        for _ in range(WARM_UP):
            call(REQUEST, timeout=10, wait_for_ready=True)
        taken = []
        for _ in range(calls):
            began_s = time.perf_counter()
            call(REQUEST, timeout=10)
            taken.append(time.perf_counter() - began_s)
    return taken


def answered_s(calls: int) -> list[float]:
    """Seconds per answer in this process."""
    service = PluginService(stale_s=3600.0)
    service.update(Seen(PLAN, time.monotonic(), 0.0), None)
    taken = []
    for _ in range(calls):
        began_s = time.perf_counter()
        service.constrain(REQUEST)
        taken.append(time.perf_counter() - began_s)
    return taken


def percentiles_ms(taken_s: list[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: 1000.0 * quantile(taken_s, share) for name, share in shares.items()}


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    sys.exit(main())
