"""What no fuzz draws by chance: slow and endless answers, redirects, gigabytes, far times."""

from __future__ import annotations

import gzip
import json
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "controller"))

from controller_world import World
from prometheus_stand_in import PrometheusStandIn

from fuzz_live_loop import good_page
from fuzz_live_samples import MODEL
from wattline.controller.nodes import HttpNode
from wattline.core.decision import Admission
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.dynamo.sources import FrontendDemand, WorkerLoads
from wattline.drivers.dynamo.thresholds import BusyThresholds
from wattline.drivers.prometheus import Prometheus, PrometheusSettings, Query
from wattline.live.supervisor import Supervisor, WorkerPool
from wattline.recording import segments
from wattline.recording.record import Recording

LIMIT_S = 0.4
GENEROUS_S = 5.0
"""Far above the limit, far below what the servers here would take."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"

Send = Callable[[Any], object]


@contextmanager
def serving(answer: Callable[[Any, bytes], None]) -> Iterator[str]:
    """The address of a server that answers each connection by `answer(connection, request)`."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                answer(self.request, self.request.recv(65536))
            except OSError:
                return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def drip(connection: Any, asked: bytes) -> None:
    """One byte now and then: each step of the call is quick, the whole would take years."""
    connection.sendall(HEAD)
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def endless(connection: Any, asked: bytes) -> None:
    """As much as is taken."""
    connection.sendall(HEAD)
    while True:
        connection.sendall(b"x" * 65536)


def headers(connection: Any, asked: bytes) -> None:
    """Headers without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"A: b\r\n")
        time.sleep(0.001)


def report(url: str) -> str:
    node = HttpNode("n1", f"{url}/report", None, LIMIT_S)
    try:
        with pytest.raises(WattlineError) as caught:
            node.read()
        return str(caught.value)
    finally:
        node.close()


def demand(url: str) -> str:
    source = FrontendDemand([url], MODEL, limit_s=LIMIT_S)
    (why,) = source.read(1.0).missing
    source.close()
    return why


def load(url: str) -> str:
    source = WorkerLoads(limit_s=LIMIT_S)
    (why,) = source.read(1.0, [url]).missing
    source.close()
    return why


def thresholds(url: str) -> str:
    sender = BusyThresholds(limit_s=LIMIT_S)
    (result,) = sender.send([url], MODEL, Admission(0.5, None, None))
    sender.close()
    assert result.failure is not None
    return result.failure


def history(url: str) -> str:
    server = Prometheus(PrometheusSettings(url=url, limit_s=LIMIT_S))
    (result,) = server.query([Query(name="q", expr="up")], 1.0)
    server.close()
    assert result.missing is not None
    return result.missing


@pytest.mark.parametrize("ask", [report, demand, load, thresholds, history])
@pytest.mark.parametrize("answer", [drip, endless, headers])
def test_an_answer_without_end_costs_the_limit(
    ask: Callable[[str], str], answer: Callable[[Any, bytes], None]
) -> None:
    began_s = time.monotonic()
    with serving(answer) as url:
        why = ask(url)
    assert time.monotonic() - began_s < GENEROUS_S
    assert len(why.splitlines()) == 1


def test_a_report_that_redirects_gets_no_token(tmp_path: Path) -> None:
    asked: list[bytes] = []
    token = tmp_path / "token"
    token.write_text("s3cret-s3cret-s3cret\n")

    def elsewhere(connection: Any, request: bytes) -> None:
        asked.append(request)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with serving(elsewhere) as other:

        def redirect(connection: Any, request: bytes) -> None:
            answer = f"HTTP/1.1 302 Found\r\nLocation: {other}/x\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(answer.encode())

        with serving(redirect) as url:
            node = HttpNode("n1", f"{url}/report", token, GENEROUS_S)
            with pytest.raises(WattlineError, match="answers 302"):
                node.read()
            node.close()
    assert asked == []


@pytest.mark.parametrize("content", ["two\ntokens", "", "caf\u00e9"])
def test_a_token_that_is_none_is_not_shown(content: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    node = HttpNode("n1", "http://127.0.0.1:1/report", token, LIMIT_S)
    with pytest.raises(InputError, match="must be one token"):
        node.read()
    node.close()


@pytest.mark.parametrize("times", [10**12, 10**30, 10**290])
def test_one_page_that_cannot_be_is_an_outage_not_a_demand(times: int) -> None:
    pages = [good_page(1), good_page(times), good_page(2)]

    def page(connection: Any, request: bytes) -> None:
        body = pages.pop(0)
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)

    with serving(page) as url:
        source = FrontendDemand([url], MODEL, limit_s=GENEROUS_S)
        source.read(1.0)
        reading = source.read(2.0)
        source.close()
    assert reading.view.arrivals is None
    assert any("cannot be" in why for why in reading.missing)


def test_a_load_that_cannot_be_is_missing() -> None:
    body = b"wattline_worker_ready 1\nwattline_worker_active_kv_tokens 1e300\n"
    body += b"wattline_worker_queued_prefill_tokens 5\nwattline_worker_running_requests 1\n"

    def page(connection: Any, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with serving(page) as url:
        source = WorkerLoads(limit_s=GENEROUS_S)
        found = source.read(1.0, [url])
        source.close()
    assert (found.active_kv_tokens, found.queued_prefill_tokens) == (None, 5.0)
    assert "1e+300 cannot be" in found.missing[0]


@pytest.mark.parametrize("count", ["1e300", "-5", "1e10"])
def test_counts_of_prometheus_that_cannot_be_stand_in_for_nothing(
    count: str, tmp_path: Path
) -> None:
    world = World(tmp_path)
    server = PrometheusStandIn(world.clock)
    model = {"model": "chat"}
    parts = ("requests_started_total", 'status="success"', "input_sequence_tokens")
    server.series = {part: [(model, count)] for part in parts}
    server.bins = ["1e300"] * 3
    prometheus = {"url": server.url, "limit_s": GENEROUS_S}
    world.write_config(sources={"call_s": 2.0, "prometheus": prometheus})
    world.start()
    world.demand.why = "no frontend answers"
    try:
        end_s = time.monotonic() + 20.0
        said: tuple[str, ...] = ()
        while not any("cannot be" in text for text in said):
            assert time.monotonic() < end_s, said
            world.run(1)
            view = world.assembly.controller.view
            assert view is not None
            said = view.snapshot.missing
        assert view is not None
        assert view.snapshot.demand[0].arrivals is None
        assert view.snapshot.state is not None
        assert view.snapshot.state.demand[0].bins_rps == ()
    finally:
        world.stop()
        server.end()


GOOD_ORDER = {"id": "1", "kind": "hold", "by": "ann", "why": "a look", "since_s": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([GOOD_ORDER | {"until_s": float("nan")}]),
        json.dumps([GOOD_ORDER | {"until_s": float("inf")}]),
        json.dumps([GOOD_ORDER | {"until_s": 1e300}]),
        json.dumps([GOOD_ORDER | {"since_s": -1.0}]),
        json.dumps([GOOD_ORDER | {"why": "two\nlines"}]),
        json.dumps([GOOD_ORDER | {"kind": "pin", "pool": "decode", "cap_w": 1e5}]),
        json.dumps([GOOD_ORDER | {"kind": "pin", "pool": "decode", "replicas": 10**9}]),
    ],
)
def test_orders_that_nobody_gave_are_refused_at_the_start(text: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "orders.json").write_text(text)
    (tmp_path / "state" / "orders.json").chmod(0o600)
    with pytest.raises(InputError, match=r"orders\.json"):
        world.start()


@pytest.mark.parametrize(
    "changes", [{"total_w": 0}, {"by": "two\nlines"}, {"why": "\ud800"}, {"until_s": float("nan")}]
)
def test_a_budget_that_nobody_set_is_refused_at_the_start(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    override = {"total_w": 1500.0, "by": "ann", "why": "PSU", "since_s": 1.0, "until_s": None}
    document = {"version": 3, "override": override | changes}
    world = World(tmp_path)
    (tmp_path / "state").mkdir(mode=0o700)
    path = tmp_path / "state" / "budget.json"
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    with pytest.raises(InputError, match=r"budget\.json"):
        world.start()


def test_a_line_of_gigabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_LINE_BYTES", 1 << 20)
    (tmp_path / "segment-00000001.jsonl.gz").write_bytes(gzip.compress(bytes(64 << 20), 9))
    with pytest.raises(InputError, match="no whole header"):
        Recording(tmp_path)
    notes: list[str] = []
    path = tmp_path / "segment-00000001.jsonl.gz"
    assert list(segments.segment_lines(path, notes.append)) == []
    assert "a line of more than 1048576 bytes" in notes[0]


NOTE = (
    '{"replica": "decode-1", "pool": "decode", "gpus": ["a"], "started_ticks": 1, '
    '"asked": false, "pid": %s}'
)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        NOTE.replace(', "pid": %s', ""),
        NOTE.replace("%s", "1e999"),
        NOTE.replace("%s", '"x"'),
        NOTE.replace("%s", "null"),
    ],
)
def test_a_note_of_a_worker_that_is_none_is_refused_in_one_line(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "decode-1.json").write_text(content)
    with pytest.raises(InputError, match="no note of a replica") as caught:
        Supervisor([WorkerPool(name="decode", argv=("true",))], tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_note_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "decode-1.json").mkdir()
    with pytest.raises(InputError, match="make it readable"):
        Supervisor([WorkerPool(name="decode", argv=("true",))], tmp_path)
