"""Everything that the controller reads, fed with one input; see `fuzz_feeds` for the agent's.

What comes back is what people get to read of it. A reader may refuse with Wattline's own error; an
AssertionError says that it took what it must not.
"""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit" / "controller"))

from controller_world import CONFIG, UUIDS, World

from fuzz_live_samples import MODEL, frontend_pages
from fuzz_samples import NODE
from wattline.catalog.profiles import read_profile
from wattline.catalog.yaml_files import parse
from wattline.controller.budget import BudgetDesk
from wattline.controller.nodes import HttpNode
from wattline.controller.operator import Audit, OrderBook
from wattline.controller.settings import ControllerSettings
from wattline.controller.site import Site, build_site
from wattline.core.decide import decide
from wattline.core.decision import Admission, Decision
from wattline.core.errors import WattlineError
from wattline.core.snapshot import Snapshot
from wattline.drivers.dynamo.demand import frontend_delta
from wattline.drivers.dynamo.frontend import FrontendScrape, frontend_families, read_frontend
from wattline.drivers.dynamo.pages import parse_page
from wattline.drivers.dynamo.plugin.state_file import StateReader
from wattline.drivers.dynamo.sources import WorkerLoads, demand_view
from wattline.drivers.dynamo.thresholds import BusyThresholds
from wattline.drivers.dynamo.workers import read_frontend_workers
from wattline.drivers.http_batch import Answer, Call, HttpBatch
from wattline.drivers.prometheus import Prometheus, PrometheusSettings, Query, RangeQuery
from wattline.recording.orders import carry_out
from wattline.recording.record import Recording
from wattline.sim.replay import replay

Texts = Sequence[str]
PAIR_MARK = b"\n@decode@\n"
"""Between the two texts of a JSON pair."""
MOST_REQUESTS = 1e9
MOST_TOKENS = 1e12
"""Per window: what a recording takes, and thousands of times what any fleet sees."""
LIMIT_S = 2.0
NOW_S = 1_800_000_000.0


class Raw(socketserver.ThreadingTCPServer):
    """Answers every connection once: a body by its path, else `answer` whatever was asked."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _RawHandler)
        self.answer = b""
        self.paths: dict[str, bytes] = {}
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def body(self, content: bytes, status: str = "200 OK") -> None:
        """Answer with a whole body from now on."""
        self.answer = _whole(content, status)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up on purpose here."""

    def close(self) -> None:
        """Listen no more."""
        self.shutdown()
        self._thread.join()
        self.server_close()


def _whole(content: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


class _RawHandler(socketserver.BaseRequestHandler):
    server: Raw

    def handle(self) -> None:
        asked = b""
        self.request.settimeout(5.0)
        while b"\r\n\r\n" not in asked:
            chunk = self.request.recv(65536)
            if not chunk:
                return
            asked += chunk
        head, _, body = asked.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(body) < length:
            body += self.request.recv(65536)
        path = head.split(b" ", 2)[1].decode().partition("?")[0]
        found = self.server.paths.get(path)
        self.request.sendall(self.server.answer if found is None else _whole(found))


def _within(name: str, value: float | None, most: float) -> None:
    if value is not None and not (isfinite(value) and 0.0 <= value <= most):
        raise AssertionError(f"{name} is {value!r:.60}")


def _scrape(body: bytes, source: str, at_s: float) -> FrontendScrape:
    page = parse_page(body, source, frontend_families())
    read_frontend_workers(page, MODEL, at_s)
    return read_frontend(page, MODEL, at_s)


def frontend(data: bytes) -> Texts:
    """A frontend's page before or after a good one; what it adds up to is a demand that can be."""
    good = _scrape(frontend_pages()[len(data) % 3], "f", 100.0 if len(data) % 2 else 102.0)
    fed = _scrape(data, "f", 101.0)
    pair = (good, fed) if good.at_s < fed.at_s else (fed, good)
    view, why = demand_view(frontend_delta([pair[0]], [pair[1]], pair[1].at_s))
    for name in ("arrivals", "completions", "rejected"):
        _within(name, getattr(view, name), MOST_REQUESTS)
    for name in ("input_tokens_sum", "cached_tokens_sum", "output_tokens_sum"):
        _within(name, getattr(view, name), MOST_TOKENS)
    for name in ("ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s", "window_s", "age_s"):
        _within(name, getattr(view, name), 1e9)
    return why


def configuration(data: bytes) -> Texts:
    """A controller's file, and the first decision under it."""
    settings = parse(ControllerSettings, data, "controller.yaml")
    site = build_site(settings, Path("controller.yaml"))
    if len(site.uuid) != len(UUIDS):
        return ()
    _decided(_SNAPSHOTS[0], site)
    return ()


def _decided(snapshot: Snapshot, site: Site) -> None:
    """A decision comes about, and its limits lie in the GPUs' range."""
    try:
        decision = decide(snapshot, site.settings)
    except (WattlineError, ArithmeticError, LookupError, ValueError) as error:
        raise AssertionError(f"no decision: {type(error).__name__}: {error}") from error
    for plan, pool in zip(decision.plan, site.fleet.pools, strict=True):
        product = site.fleet.product_of(pool)
        if not product.min_limit_w <= plan.setting.cap_w <= product.max_limit_w:
            raise AssertionError(f"planned {plan}")


_SNAPSHOTS: list[Snapshot] = []
_DECISIONS: list[Decision] = []


class LiveFiles:
    """Readers that need files or a server; `folder` is the run's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o700)
        self.raw = Raw()
        limit_s = LIMIT_S
        self._prometheus = Prometheus(PrometheusSettings(url=self.raw.url, limit_s=limit_s))
        self._thresholds = BusyThresholds(limit_s=limit_s)
        self._loads = WorkerLoads(limit_s=limit_s)
        self._http = HttpBatch(limit_s=limit_s, most_bytes=100_000)
        self._node = HttpNode(NODE, f"{self.raw.url}/report", None, limit_s)
        world_folder = folder / "world"
        world_folder.mkdir()
        self.world = World(world_folder)
        self.world.start()
        self.world.run(6)
        self.site = self.world.assembly.controller.parts.site
        view = self.world.assembly.controller.view
        assert view is not None
        assert view.decision is not None
        self.snapshot, self.decision = view.snapshot, view.decision
        _SNAPSHOTS[:] = [view.snapshot]
        self.world.stop()
        document = configuration_document(folder)
        document["deployments"][0]["engine"] = {"kind": "profile", "path": "profile"}
        self._profiled = ControllerSettings.model_validate(document)
        self.segment = max((world_folder / "state" / "recording").iterdir()).read_bytes()

    def close(self) -> None:
        """End the server and the connections."""
        self._prometheus.close()
        self._thresholds.close()
        self._http.close()
        self._node.close()
        self._loads.close()
        self.raw.close()

    def put(self, name: str, data: bytes) -> Path:
        """Write one of the run's files."""
        path = self.folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def worker(self, data: bytes) -> Texts:
        """A worker's page, twice in its pool; the load is one that can be."""
        self.raw.body(data)
        load = self._loads.read(1.0, [self.raw.url, f"{self.raw.url}/metrics"])
        for name in ("queued_prefill_tokens", "active_kv_tokens", "running"):
            _within(name, getattr(load, name), 2.0 * MOST_TOKENS)
        return load.missing

    def prometheus(self, data: bytes) -> Texts:
        """An answer of the HTTP API: numbers, or a reason why there are none."""
        self.raw.body(data)
        queries: list[Query | RangeQuery] = [
            Query(name="plain", expr="up"),
            Query(name="aged", expr="up", age="timestamp(up)", max_age_s=60.0),
            RangeQuery(name="range", expr="up", start_s=NOW_S - 60, end_s=NOW_S, step_s=10.0),
        ]
        texts: list[str] = []
        for result in self._prometheus.query(queries, NOW_S):
            if not (result.missing or result.readings or result.histories):
                raise AssertionError("neither values nor a reason")
            for reading in result.readings:
                if not isfinite(reading.value) or (reading.age_s is not None and reading.age_s < 0):
                    raise AssertionError(f"{reading}")
            for history in result.histories:
                if any(value is not None and not isfinite(value) for value in history.values):
                    raise AssertionError(f"{history}")
            texts += [*result.dropped, *result.warnings, result.missing or ""]
        return texts

    def thresholds(self, data: bytes) -> Texts:
        """A frontend's answers to GET and POST /busy_threshold."""
        self.raw.body(data)
        wanted = Admission(
            active_decode_blocks=0.8, active_prefill_tokens=4000.0, active_prefill_tokens_frac=None
        )
        results = self._thresholds.send([self.raw.url], MODEL, wanted)
        for result in results:
            if result.failure is None and result.held is None:
                raise AssertionError("neither thresholds nor a reason")
            if result.held is not None:
                for value in (
                    result.held.decode_blocks,
                    result.held.prefill_tokens,
                    result.held.prefill_fraction,
                ):
                    # As the metrics page shows it.
                    float(value or 0.0)
        return [result.failure or "" for result in results]

    def http_answer(self, data: bytes) -> Texts:
        """Bytes in place of an HTTP answer."""
        self.raw.answer = data
        (found,) = self._http.run([Call(self.raw.url)])
        return [] if isinstance(found, Answer) else [found.reason]

    def report(self, data: bytes) -> Texts:
        """Bytes in place of an agent's HTTP answer."""
        self.raw.answer = data
        self._node.read()
        return ()

    def orders(self, data: bytes) -> Texts:
        """The file of orders at a start, and what they do to a decision."""
        path = self.put("state/orders.json", data)
        book = OrderBook(path, self.site, Audit(self.folder / "audit.jsonl"))
        orders = book.in_force(self.snapshot.time_s)
        carried = carry_out(self.snapshot, self.decision, orders, self.site.settings)
        for watts in carried.caps.cap_w:
            if not 200.0 <= watts <= 700.0:
                raise AssertionError(f"a limit of {watts} W")
        return [reason.sentence for reason in carried.reasons]

    def budget(self, data: bytes) -> Texts:
        """The file of the budget at a start, and what is in force then."""
        path = self.put("state/budget.json", data)
        desk = BudgetDesk(self.world.settings.budget, path, 800.0)
        found = desk.now(NOW_S)
        # One below all lowest limits is kept: the fleet may have grown since it was set.
        if not (isfinite(found.budget.usable_w) and found.budget.usable_w > 0.0):
            raise AssertionError(f"a budget of {found.budget.usable_w} W")
        return [found.cause]

    def command(self, data: bytes) -> Texts:
        """A command over HTTP, without the HTTP: as the body of each."""
        texts = []
        for name in ("budget", "hold", "pin", "cordon", "resume", "attest-off", "none"):
            try:
                texts.append(self.world.assembly.desk(name, data))
            except WattlineError as error:
                texts.append(str(error))
        orders = self.world.assembly.controller.parts.orders.in_force(self.snapshot.time_s)
        carried = carry_out(self.snapshot, self.decision, orders, self.site.settings)
        texts += [reason.sentence for reason in carried.reasons]
        return texts

    def recording(self, data: bytes) -> Texts:
        """A segment: what `wattline replay`, `explain` and a controller that starts read of it."""
        for old in (self.folder / "recording").glob("*"):
            old.unlink()
        path = self.put("recording/segment-00000001.jsonl.gz", data)
        recording = Recording(path.parent)
        outcome = replay(recording)
        Recording(path.parent).last_tick()
        return outcome.notes

    def profile(self, data: bytes) -> Texts:
        """Profiling results, and the first decision on them: a pair of JSON texts, or an NPZ."""
        folder = self.folder / "profile"
        for old in folder.glob("*"):
            old.unlink()
        if data[:2] == b"PK":
            self.put("profile/perf_data.npz", data)
        else:
            prefill, _, decode = data.partition(PAIR_MARK)
            self.put("profile/prefill_raw_data.json", prefill)
            self.put("profile/decode_raw_data.json", decode)
        read_profile(folder)
        site = build_site(self._profiled, self.folder / "controller.yaml")
        _decided(self.snapshot, site)
        return ()

    def plugin_state(self, data: bytes) -> Texts:
        """The state file of the planner's plugin."""
        path = self.put("plugin.json", data)
        reader = StateReader(path, wall=lambda: NOW_S, now=lambda: 1.0)
        reader.look()
        return [reader.fault or ""]


def configuration_document(folder: Path) -> Any:
    """A valid file of four GPUs."""
    import yaml

    text = CONFIG.format(folder=folder, prefill=", ".join(UUIDS[:2]), decode=", ".join(UUIDS[2:]))
    document = yaml.safe_load(text)
    document["sources"] |= {"frontends": {"chat": ["http://127.0.0.1:1"]}, "silent_after_s": 5.0}
    document["actuation"] = {"advisory": True, "admission": "inherit", "lease_s": 60.0}
    document["decision"] = {
        "objective": "throughput",
        "headroom": 1.1,
        "cap_step_w": 10.0,
        "rate_window_s": 10.0,
        "mix_window_s": 60.0,
        "stale_s": 10.0,
        "drain_s": 10.0,
        "season_s": 0.0,
        "replica_interval_s": 30.0,
        "replica_down_s": 300.0,
        "cap_hold_s": 30.0,
        "repair_s": 5.0,
        "expected": {"chat": {"input_tokens": 1000.0, "output_tokens": 200.0}},
    }
    document["budget"] |= {
        "rise_w_per_s": 100.0,
        "timezone": "Europe/Berlin",
        "schedule": [{"days": ["mon"], "start": "08:00", "end": "18:00", "total_w": 1500.0}],
    }
    document["recorder"] = {"segment_mib": 1.0, "total_mib": 4.0, "retry_s": 1.0}
    return json.loads(json.dumps(document))
