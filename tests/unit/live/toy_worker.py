"""A child for the supervisor's tests: answers /readyz, drains on SIGTERM; behaves as told.

python toy_worker.py PORT [ready|never|stubborn|crash] [DRAIN_S]
"""

from __future__ import annotations

import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import FrameType

port, manner = int(sys.argv[1]), sys.argv[2]
drain_s = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
ending = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ready = manner != "never" and not ending.is_set()
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def asked(number: int, frame: FrameType | None) -> None:
    ending.set()


if manner == "crash":
    sys.exit(7)
signal.signal(signal.SIGTERM, asked)
server = HTTPServer(("127.0.0.1", port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("toy", sys.argv[1:], flush=True)
ending.wait()
if manner == "stubborn":
    threading.Event().wait()
threading.Event().wait(drain_s)
