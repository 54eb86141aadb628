"""From a signal to enforced limits: the load turns from prefill to decode, and watts follow.

    python bench/shift.py [--shifts N] [--tick-s S] [--json FILE] [--keep FOLDER]

A real controller and a real agent on a virtual node of eight H100, four per role, under 4,000 W.
Frontend and workers are pages that count a steady flow: 100 prompts of 1,000 tokens a second, and
after every shift 300 of 150 tokens, or back; answers have 150 tokens. What is measured is how long
after the first page that shows the new flow the limits move.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from faults_processes import AGENT, Supervised
from wattline.recording.record import Recording
from wattline.virtual.node import VirtualNode

RUN = (sys.executable, "-c", "from wattline.cli.main import main; main()", "run")
MODEL = "bench"
BUDGET_W = 4000.0
LOOK_S = 0.002
SETTLED_S = 16.0
"""Least time between two shifts: the plan stands still well before. Up to 1.6 s come on top, so
that shifts meet a tick at any of its times."""
MOVED_W = 5.0
"""A limit that moved by less is a neighbouring cap, no shift."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A steady flow of requests. Tokens are means per request."""

    rps: float
    prompt_tokens: float
    answer_tokens: float


PREFILL_HEAVY = Flow(100.0, 1000.0, 150.0)
DECODE_HEAVY = Flow(300.0, 150.0, 150.0)


class Load:
    """What frontend and workers have counted; remembers when a page first showed a new flow."""

    def __init__(self, flow: Flow) -> None:
        self._lock = threading.Lock()
        self._flow = flow
        self._at_s = self._since_s = time.time()
        self._sums = [0.0, 0.0, 0.0]
        self.began_s = self._at_s
        self.shown_s: float | None = None

    def shift(self, flow: Flow) -> float:
        """Another flow from now on; when that was."""
        with self._lock:
            self._count()
            self._flow, self._since_s, self.shown_s = flow, self._at_s, None
            return self._at_s

    def _count(self) -> None:
        now_s = time.time()
        flow, seconds = self._flow, now_s - self._at_s
        for place, per_request in enumerate((1.0, flow.prompt_tokens, flow.answer_tokens)):
            self._sums[place] += flow.rps * seconds * per_request
        self._at_s = now_s

    def frontend(self) -> bytes:
        """The frontend's page."""
        with self._lock:
            self._count()
            requests, prompts, answers = (int(value) for value in self._sums)
            new = self._flow.rps * (self._at_s - self._since_s)
            if self.shown_s is None and new >= 1.0:
                self.shown_s = self._at_s
        label = f'model="{MODEL}"'
        lines = [
            f'dynamo_component_uptime_seconds{{worker_id="1"}} {self._at_s - self.began_s}',
            f"dynamo_frontend_model_ready{{{label}}} 1",
            f"dynamo_frontend_requests_started_total{{{label}}} {requests}",
            f'dynamo_frontend_requests_total{{{label},status="success"}} {requests}',
            f"dynamo_frontend_inflight_requests{{{label}}} 0",
        ]
        for name, total in (
            ("input_sequence_tokens", prompts),
            ("output_sequence_tokens", answers),
            ("cached_tokens", 0),
            ("time_to_first_token_seconds", 0.1 * requests),
            ("inter_token_latency_seconds", 0.01 * requests),
        ):
            full = f"dynamo_frontend_{name}"
            lines.append(f"# TYPE {full} histogram")
            lines.append(f'{full}_bucket{{{label},le="+Inf"}} {requests}')
            lines.append(f"{full}_sum{{{label}}} {total}")
            lines.append(f"{full}_count{{{label}}} {requests}")
        return ("\n".join(lines) + "\n").encode()

    def worker(self, role: str) -> bytes:
        """A role's workers as one page: nothing waits, decode holds what Little's law says."""
        with self._lock:
            flow = self._flow
        running = 0.0 if role == "prefill" else flow.rps * flow.answer_tokens * 0.01
        values = {
            "ready": 1.0,
            "queued_prefill_tokens": flow.prompt_tokens if role == "prefill" else 0.0,
            "active_kv_tokens": running * (flow.prompt_tokens + flow.answer_tokens / 2.0),
            "kv_capacity_tokens": 4e6,
            "running_requests": running,
            "waiting_requests": 0.0,
            "in_flight_requests": running,
        }
        return "".join(
            f"wattline_worker_{name} {value}\n" for name, value in values.items()
        ).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, page: Callable[[], bytes]) -> None:
        self.page = page
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.server.page()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One shift; times are seconds after the first page that showed it, None: it did not come.

    page_s: after the shift itself. planned_s: the decision that first moved the plan, and
    seen: requests of the new flow that had been counted by then. lowered_s, raised_s: the first
    limit of the losing role that fell, of the gaining role that rose. done_s: the last one.
    """

    to: str
    page_s: float
    planned_s: float | None
    seen: float | None
    lowered_s: float | None
    raised_s: float | None
    done_s: float | None
    moved_w: float


@dataclass(slots=True)
class Watcher:
    """Notes every change of an enforced limit: when, which GPU, from and to which watts."""

    node: VirtualNode
    changes: list[tuple[float, int, float, float]] = field(default_factory=list)

    def watch(self, until_s: float) -> None:
        """Look until then."""
        uuids = self.node.gpus.uuids()
        before = [self.node.gpus.enforced_mw(uuid) for uuid in uuids]
        while time.time() < until_s:
            for gpu, uuid in enumerate(uuids):
                now = self.node.gpus.enforced_mw(uuid)
                if now != before[gpu]:
                    self.changes.append((time.time(), gpu, before[gpu] / 1e3, now / 1e3))
                    before[gpu] = now
            time.sleep(LOOK_S)


@contextmanager
def running(folder: Path, load: Load, tick_s: float) -> Iterator[VirtualNode]:
    """Node, agent and controller, until the first plan stands."""
    (folder / "grants").mkdir()
    frontend = _Server(load.frontend)
    workers = {
        "prefill": _Server(lambda: load.worker("prefill")),
        "decode": _Server(lambda: load.worker("decode")),
    }
    with VirtualNode(folder / "node") as node:
        uuids = node.gpus.uuids()
        document = {
            "state_dir": str(folder / "controller"),
            "listen": "127.0.0.1:0",
            "tick_s": tick_s,
            "deployments": [
                {
                    "name": "chat",
                    "model": "Llama-3.1-8B",
                    "slo": {"ttft_s": 0.5, "itl_s": 0.03},
                    "pools": [
                        {"name": role, "role": role, "gpu": "H100", "gpus": 4} for role in workers
                    ],
                }
            ],
            "nodes": [
                {
                    "name": "n1",
                    "grants": f"{folder}/grants/",
                    "report_file": f"{folder}/agent/report.json",
                    "gpus": {"prefill": list(uuids[:4]), "decode": list(uuids[4:])},
                }
            ],
            "budget": {"total_w": BUDGET_W},
            # The pages tell made-up latencies, which no model can be right about.
            "calibration": {"enabled": False},
            "sources": {
                "frontends": {"chat": [frontend.url]},
                "workers": {role: [server.url] for role, server in workers.items()},
                "model_names": {"chat": MODEL},
            },
        }
        config = folder / "controller.yaml"
        config.write_text(yaml.safe_dump(document))
        options = {
            "node": "n1",
            "grants": folder / "grants",
            "state-dir": folder / "agent",
            "listen": "127.0.0.1:0",
            "kubelet-socket": node.kubelet_socket,
            "proc-root": node.proc_root,
            "dynamo-state": folder / "none.json",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        agent = Supervised("agent", [*AGENT, *words], node.env, folder)
        controller = Supervised("controller", [*RUN, "--config", str(config)], {}, folder)
        try:
            agent.start()
            controller.start()
            yield node
        finally:
            controller.end()
            agent.end()
            for server in (frontend, *workers.values()):
                server.shutdown()


def measured(node: VirtualNode, load: Load, flow: Flow) -> tuple[float, Watcher]:
    """Shift, and watch for as long as it takes; the time of the shift and what moved."""
    watcher = Watcher(node)
    began_s = load.shift(flow)
    watcher.watch(began_s + SETTLED_S)
    return began_s, watcher


def outcome(
    flow: Flow,
    began_s: float,
    shown_s: float,
    watcher: Watcher,
    plans: list[tuple[float, list[float]]],
) -> Shift:
    """Read one shift out of what moved and of the recorded plans."""
    gaining = 0 if flow is PREFILL_HEAVY else 1
    after = [(at_s, gpu, new - old) for at_s, gpu, old, new in watcher.changes if at_s >= shown_s]
    lowered = [at for at, gpu, by in after if gpu // 4 != gaining and by < -MOVED_W]
    raised = [at for at, gpu, by in after if gpu // 4 == gaining and by > MOVED_W]
    before = [caps for at_s, caps in plans if at_s < began_s][-1]
    moved = [
        at_s
        for at_s, caps in plans
        if began_s <= at_s < began_s + SETTLED_S
        and any(abs(new - old) > MOVED_W for new, old in zip(caps, before, strict=True))
    ]
    planned_s = moved[0] if moved else None

    def since(times: list[float]) -> float | None:
        return round(times[0] - shown_s, 3) if times else None

    return Shift(
        to="prefill" if gaining == 0 else "decode",
        page_s=round(shown_s - began_s, 3),
        planned_s=None if planned_s is None else round(planned_s - shown_s, 3),
        seen=None if planned_s is None else round(flow.rps * (planned_s - began_s)),
        lowered_s=since(lowered),
        raised_s=since(raised),
        done_s=round(max(at for at, _, _ in after) - shown_s, 3) if after else None,
        moved_w=round(sum(abs(by) for _, _, by in after) / 2.0, 1),
    )


def recorded_plans(folder: Path) -> list[tuple[float, list[float]]]:
    """When every decision was made, and the caps that it planned."""
    return [
        (tick.snapshot.time_s, [pool.setting.cap_w for pool in tick.decision.plan])
        for tick in Recording(folder / "controller" / "recording").ticks()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shifts", type=int, default=20)
    parser.add_argument("--tick-s", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="Folder that stays.")
    given = parser.parse_args()
    folder = (given.keep or Path(tempfile.mkdtemp(prefix="wattline-shift-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    load = Load(PREFILL_HEAVY)
    seen = []
    try:
        with running(folder, load, given.tick_s) as node:
            time.sleep(2.0 * SETTLED_S)
            draw = random.Random(1)
            for number in range(given.shifts):
                time.sleep(draw.uniform(0.0, 1.6))
                flow = DECODE_HEAVY if number % 2 == 0 else PREFILL_HEAVY
                began_s, watcher = measured(node, load, flow)
                shown_s = load.shown_s
                assert shown_s is not None, "no page was fetched"
                seen.append((flow, began_s, shown_s, watcher))
                print(f"shift {number + 1}: {len(watcher.changes)} limits moved", flush=True)
        plans = recorded_plans(folder)
        shifts = [outcome(*entry, plans) for entry in seen]
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(shifts))
    if given.json is not None:
        rows = [{name: getattr(s, name) for name in Shift.__slots__} for s in shifts]
        given.json.write_text(json.dumps({"tick_s": given.tick_s, "shifts": rows}, indent=1) + "\n")


def table(shifts: list[Shift]) -> str:
    """Distribution over the shifts, per direction."""
    lines = [
        "| seconds after the first page | to | n | p50 | p90 | largest |",
        "|---|---|---|---|---|---|",
    ]
    for to in ("decode", "prefill"):
        own = [shift for shift in shifts if shift.to == to]
        for name in ("page_s", "planned_s", "lowered_s", "raised_s", "done_s", "seen", "moved_w"):
            values: list[Any] = sorted(v for s in own if (v := getattr(s, name)) is not None)
            if values:
                p90 = values[min(len(values) - 1, int(0.9 * len(values)))]
                lines.append(
                    f"| {name} | {to} | {len(values)} | {statistics.median(values):.2f} "
                    f"| {p90:.2f} | {values[-1]:.2f} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
