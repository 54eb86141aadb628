"""What a tick of the controller costs: milliseconds and memory against GPUs, nodes and pools.

    python bench/tick.py [--ticks N] [--json FILE]

Each size runs in a process of its own: the controller as `wattline run` has it, with a report file
and a grant file per node of eight GPUs, a frontend page of 115 kB per deployment and a worker page
per replica of one GPU, served by another process over loopback. Agents obey between two ticks,
which is not counted. The load turns from prefill to decode and back, so that limits move.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shift import DECODE_HEAVY, MODEL, PREFILL_HEAVY, Flow, Load
from wattline.catalog.yaml_files import parse
from wattline.controller.assemble import assemble
from wattline.controller.settings import ControllerSettings
from wattline.drivers.grant_files import (
    GpuFacts,
    GpuReport,
    NodeReport,
    decode_grants,
    encode_report,
)
from wattline.drivers.trusted_files import replace_file
from wattline.grants.node import Node
from wattline.grants.node_state import Found

PER_NODE = 8
MIN_W, MAX_W = 200.0, 700.0
FRONTEND_BYTES = 115_000
TURN_TICKS = 25
_FILLER = 'dynamo_component_other{{dynamo_namespace="dynamo",status="s{number}"}} {number}\n'


@dataclass(frozen=True, slots=True)
class Size:
    """How large a fleet is. Every deployment has a prefill and a decode pool."""

    nodes: int
    deployments: int

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * PER_NODE

    def pools(self) -> list[tuple[str, str, int]]:
        """Name, role and GPUs of every pool."""
        each = self.gpus // (2 * self.deployments)
        return [
            (f"{role}-{number}", role, each)
            for number in range(self.deployments)
            for role in ("prefill", "decode")
        ]


SIZES = (Size(1, 1), Size(8, 1), Size(64, 1), Size(8, 8), Size(64, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one size. Milliseconds; reading: of pages and reports, a part of the tick."""

    gpus: int
    nodes: int
    pools: int
    ticks: int
    tick_p50_ms: float
    tick_p99_ms: float
    reading_p50_ms: float
    processor_ms: float
    started_mib: float
    resident_mib: float
    recorded_kib: float
    missing: int
    steps: int


class Agents:
    """The nodes' agents as the protocol has them: grants in, report files out."""

    def __init__(self, folder: Path, nodes: Mapping[str, tuple[str, ...]]) -> None:
        self._folder = folder
        self._nodes: dict[str, Node[str]] = {}
        self._enforced_w: dict[str, float] = {}
        for name, uuids in nodes.items():
            found = {uuid: Found(400.0, MIN_W, MAX_W) for uuid in uuids}
            self._nodes[name] = Node(found, incarnation=1, now_s=0.0)
            for uuid in uuids:
                self._enforced_w[uuid] = 400.0
                self._nodes[name].set_persistence(uuid, True)
        self._uuids = nodes

    def step(self, now_s: float) -> None:
        """Read grants, write limits, report."""
        for name, node in self._nodes.items():
            path = self._folder / "grants" / f"{name}.json"
            if path.exists():
                file = decode_grants(path.read_bytes(), node=name, where=str(path))
                for entry in file.grants:
                    node.on_grant(entry.grant, now_s)
                for adopt in file.adopt:
                    node.on_adopt(adopt)
            for uuid in self._uuids[name]:
                watts = node.write_due(uuid, now_s)
                if watts is not None:
                    node.begin_write(uuid, watts, now_s)
                    self._enforced_w[uuid] = watts
                    node.end_write(uuid, watts, now_s)
                node.on_enforced(uuid, self._enforced_w[uuid], now_s)
            self._report(name, node, now_s)

    def _report(self, name: str, node: Node[str], now_s: float) -> None:
        reports = [node.report(uuid, now_s) for uuid in self._uuids[name]]
        document = NodeReport(
            node=name,
            version="bench",
            incarnation=1,
            report_sequence=max(report.report_sequence for report in reports),
            mode="grants",
            gpus=tuple(
                GpuReport(
                    gpu=report.gpu,
                    report=report,
                    facts=GpuFacts(min_w=MIN_W, max_w=MAX_W, draw_w=0.8 * report.enforced_w),
                )
                for report in reports
            ),
        )
        path = self._folder / "reports" / f"{name}.json"
        replace_file(path, encode_report(document), durable=False)


def serve(port: Any, flows: Any) -> None:
    """Pages of frontends and workers, until killed. `flows`: requests/s and tokens, shared."""
    load = Load(PREFILL_HEAVY)
    filler = "".join(_FILLER.format(number=number) for number in range(FRONTEND_BYTES // 68))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown: Flow | None = None
        while line := await reader.readline():
            path = line.split()[1].decode()
            while (await reader.readline()) not in (b"\r\n", b""):
                pass
            flow = Flow(*flows)
            if flow != shown:
                load.shift(flow)
                shown = flow
            if path.startswith("/frontend"):
                body = load.frontend() + filler.encode()
            else:
                body = load.worker("prefill" if "/prefill" in path else "decode")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(run())


def configuration(folder: Path, size: Size, url: str) -> dict[str, Any]:
    """The controller's file. GPUs of a pool lie on as few nodes as hold them."""
    uuids = [f"GPU-{number:08d}-0000-0000-0000-000000000000" for number in range(size.gpus)]
    gpus: list[dict[str, list[str]]] = [{} for _ in range(size.nodes)]
    place = 0
    for name, _, count in size.pools():
        for uuid in uuids[place : place + count]:
            gpus[place // PER_NODE].setdefault(name, []).append(uuid)
            place += 1
    return {
        "state_dir": str(folder / "state"),
        "deployments": [
            {
                "name": f"chat-{number}",
                "model": "Llama-3.1-8B",
                "slo": {"ttft_s": 0.5, "itl_s": 0.03},
                "pools": [
                    {"name": name, "role": role, "gpu": "H100", "gpus": count}
                    for name, role, count in size.pools()[2 * number : 2 * number + 2]
                ],
            }
            for number in range(size.deployments)
        ],
        "nodes": [
            {
                "name": f"n{number}",
                "grants": f"{folder}/grants/",
                "report_file": f"{folder}/reports/n{number}.json",
                "gpus": own,
            }
            for number, own in enumerate(gpus)
        ],
        "budget": {"total_w": 500.0 * size.gpus},
        # The pages tell made-up latencies: factors would be learnt, but not followed.
        "calibration": {"latency": False, "power": False, "drift": False},
        "sources": {
            "call_s": 20.0,
            "silent_after_s": 60.0,
            "frontends": {
                f"chat-{number}": [f"{url}/frontend/{number}"] for number in range(size.deployments)
            },
            "workers": {
                name: [f"{url}/{name}/{replica}" for replica in range(count)]
                for name, _, count in size.pools()
            },
            "model_names": {f"chat-{number}": MODEL for number in range(size.deployments)},
        },
    }


def cost(size: Size, ticks: int) -> Cost:
    """Run one size in this process."""
    port, flows = multiprocessing.Value("i", 0), multiprocessing.Array("d", 3)
    flows[:] = _flow(PREFILL_HEAVY, size)
    pages = multiprocessing.get_context("fork").Process(target=serve, args=(port, flows))
    pages.start()
    try:
        while port.value == 0:
            time.sleep(0.01)
        with tempfile.TemporaryDirectory(prefix="wattline-tick-") as name:
            return _cost(Path(name), size, ticks, f"http://127.0.0.1:{port.value}", flows)
    finally:
        pages.kill()
        pages.join()


def _flow(flow: Flow, size: Size) -> tuple[float, float, float]:
    """What one deployment gets: as much per GPU as eight GPUs get in `shift`."""
    scale = size.gpus / PER_NODE / size.deployments
    return flow.rps * scale, flow.prompt_tokens, flow.answer_tokens


def _cost(folder: Path, size: Size, ticks: int, url: str, flows: Any) -> Cost:
    for part in ("grants", "reports"):
        (folder / part).mkdir()
    document = configuration(folder, size, url)
    path = folder / "controller.yaml"
    path.write_text(json.dumps(document))
    settings = parse(ControllerSettings, path.read_bytes(), str(path))
    nodes = {n.name: tuple(u for own in n.gpus.values() for u in own) for n in settings.nodes}
    agents = Agents(folder, nodes)
    agents.step(time.time())
    began_s = time.time()
    clock = time.time
    controller = assemble(settings, path, advisory=False, clock=clock).controller
    reading: list[float] = []
    gatherer = controller.parts.gatherer
    gather = gatherer.gather

    def timed(calls: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        at_s = time.perf_counter()
        outcomes = gather(calls)
        reading.append(1e3 * (time.perf_counter() - at_s))
        return outcomes

    gatherer.gather = timed  # type: ignore[method-assign]
    wall: list[float] = []
    used, missing, steps = 0.0, 0, 0
    for number in range(ticks + 5):
        if number == 5:  # before that everything is there for the first time
            started_mib = _resident_mib()
            wall.clear()
            reading.clear()
            used = missing = steps = 0
        turned = number // TURN_TICKS % 2
        flows[:] = _flow(DECODE_HEAVY if turned else PREFILL_HEAVY, size)
        at_s, cpu_s = time.perf_counter(), time.process_time()
        view = controller.tick()
        wall.append(1e3 * (time.perf_counter() - at_s))
        used += time.process_time() - cpu_s
        missing += len(view.snapshot.missing)
        steps += 0 if view.carried is None else len(view.carried.caps.gpu)
        agents.step(time.time())
        time.sleep(max(0.0, began_s + 0.5 * (number + 1) - time.time()))
    resident_mib = _resident_mib()
    controller.close()
    recorded = sum(f.stat().st_size for f in (folder / "state" / "recording").iterdir())
    wall.sort()
    return Cost(
        gpus=size.gpus,
        nodes=size.nodes,
        pools=2 * size.deployments,
        ticks=ticks,
        tick_p50_ms=round(statistics.median(wall), 2),
        tick_p99_ms=round(wall[min(len(wall) - 1, int(0.99 * len(wall)))], 2),
        reading_p50_ms=round(statistics.median(reading), 2),
        processor_ms=round(1e3 * used / ticks, 2),
        started_mib=round(started_mib, 1),
        resident_mib=round(resident_mib, 1),
        recorded_kib=round(recorded / 1024 / (ticks + 5), 2),
        missing=missing,
        steps=steps,
    )


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _in_a_process(size: Size, ticks: int) -> Cost:
    """The cost, measured in a process of its own."""
    import subprocess

    words = [sys.executable, __file__, "--ticks", str(ticks)]
    words += ["--one", f"{size.nodes},{size.deployments}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def table(costs: list[Cost]) -> str:
    """A row per size, with ratios to the first."""
    names = [
        "tick_p50_ms",
        "tick_p99_ms",
        "reading_p50_ms",
        "processor_ms",
        "resident_mib",
        "recorded_kib",
    ]
    lines = [
        f"| GPUs | nodes | pools | {' | '.join(names)} | missing | steps |",
        "|---" * (len(names) + 5) + "|",
    ]
    for entry in costs:
        cells = [
            f"{getattr(entry, name):.1f} (x{getattr(entry, name) / getattr(costs[0], name):.1f})"
            for name in names
        ]
        lines.append(
            f"| {entry.gpus} | {entry.nodes} | {entry.pools} | {' | '.join(cells)} "
            f"| {entry.missing} | {entry.steps} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help="NODES,DEPLOYMENTS: this size only, in this process.")
    given = parser.parse_args()
    if given.one is not None:
        nodes, deployments = (int(word) for word in given.one.split(","))
        print(json.dumps(asdict(cost(Size(nodes, deployments), given.ticks))))
        return
    costs = []
    for size in SIZES:
        costs.append(_in_a_process(size, given.ticks))
        print(costs[-1], flush=True)
    print(table(costs))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(entry) for entry in costs], indent=1) + "\n")


if __name__ == "__main__":
    main()
