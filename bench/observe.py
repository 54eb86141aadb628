"""What one observation costs: pages of 2 frontends and 8 workers, fetched over loopback and read.

    python bench/observe.py [--rounds N] [--json FILE]

The pages are those of tests/vectors/dynamo_pages (Dynamo 1.6.1 under load), filled up with families
that are not read to the size that a frontend's page had before it was cut down (115 kB), because a
parser has to pass over those as well.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from wattline.drivers.dynamo.frontend import frontend_families
from wattline.drivers.dynamo.pages import parse_page
from wattline.drivers.dynamo.sources import FrontendDemand, WorkerLoads

PAGES = Path(__file__).resolve().parents[1] / "tests" / "vectors" / "dynamo_pages"
FRONTENDS, WORKERS = 2, 8
FRONTEND_BYTES = 115_000
_FILLER = (
    'dynamo_component_kv_cache_events_applied{{dynamo_component="prefill",dynamo_namespace="dynamo"'
    ',event_type="stored",status="s{number}",worker_id="19522fb96ad0aa87"}} {number}\n'
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, body: bytes) -> None:
        self.body = body
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def frontend_page() -> bytes:
    page = (PAGES / "frontend_under_load.txt").read_bytes()
    number = 0
    while len(page) < FRONTEND_BYTES:
        number += 1
        page += _FILLER.format(number=number).encode()
    return page


def measured(call: Callable[[], object], rounds: int) -> dict[str, float]:
    """Milliseconds of wall and processor time, after one round to warm up."""
    call()
    wall, used = [], time.process_time()
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        wall.append((time.perf_counter() - began) * 1e3)
    cpu_ms = (time.process_time() - used) * 1e3 / rounds
    return {"median_ms": statistics.median(wall), "max_ms": max(wall), "cpu_ms": cpu_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    page = frontend_page()
    worker = (PAGES / "decode_mocker_under_load.txt").read_bytes()
    frontends = [_Server(page) for _ in range(FRONTENDS)]
    workers = [_Server(worker) for _ in range(WORKERS)]
    demand = FrontendDemand([each.url for each in frontends], "tiny", limit_s=10.0)
    loads = WorkerLoads(limit_s=10.0, gauges=lambda: demand.gauges)

    def observe() -> None:
        now_s = time.monotonic()
        demand.read(now_s)
        loads.read(now_s, [each.url for each in workers])

    families = frontend_families()
    text = page.decode()
    rows = {
        "parse one frontend page": measured(
            lambda: parse_page(page, "page", families), options.rounds
        ),
        "the same with prometheus_client": measured(
            lambda: list(text_string_to_metric_families(text)), max(3, options.rounds // 10)
        ),
        f"one observation ({FRONTENDS} frontends, {WORKERS} workers)": measured(
            observe, options.rounds
        ),
    }
    print(f"{'what':<48}{'median ms':>10}{'max ms':>10}{'cpu ms':>10}")
    for name, row in rows.items():
        print(f"{name:<48}{row['median_ms']:>10.2f}{row['max_ms']:>10.2f}{row['cpu_ms']:>10.2f}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npages of {len(page)} and {len(worker)} bytes; cpu includes the servers' threads;")
    print(f"peak resident {peak_mib:.0f} MiB")
    if options.json:
        document = {"rows": rows, "peak_mib": peak_mib, "page_bytes": len(page)}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    demand.close()
    loads.close()
    for each in (*frontends, *workers):
        each.shutdown()
        each.server_close()


if __name__ == "__main__":
    main()
