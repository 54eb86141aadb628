"""The controller's Prometheus desk against a real server: stand-in, draw, warm-up, hang, death."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wattline.controller.history import HistoryDesk
from wattline.controller.history_batch import HistoryReader
from wattline.controller.outside_settings import PrometheusSpec
from wattline.drivers.dynamo.sources import DemandReading
from wattline.live.processes import free_ports
from wattline.live.prometheus_server import command, write_config

_BINARY = shutil.which("prometheus")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        _BINARY is None,
        reason="no `prometheus` on PATH: install it, as by `apt install prometheus`",
    ),
    pytest.mark.xdist_group("prometheus"),
]
WITHIN_S = 60.0
BIN_S = 2.0
"""Short bins, so that a history is there in seconds."""
_PAGE = """\
dynamo_frontend_model_ready{{model="Tiny"}} 1
dynamo_frontend_requests_started_total{{model="Tiny"}} {started}
dynamo_frontend_requests_total{{model="Tiny",status="success"}} {ended}
dynamo_frontend_requests_total{{model="Tiny",status="error"}} 5
dynamo_frontend_input_sequence_tokens_sum{{model="Tiny"}} {prompts}
dynamo_frontend_input_sequence_tokens_count{{model="Tiny"}} {started}
dynamo_frontend_output_sequence_tokens_sum{{model="Tiny"}} {answers}
dynamo_frontend_output_sequence_tokens_count{{model="Tiny"}} {ended}
DCGM_FI_DEV_POWER_USAGE{{gpu="0",UUID="GPU-1",Hostname="n1",pod="w-0",namespace="ml"}} 412.5
DCGM_FI_DEV_POWER_USAGE{{gpu="1",UUID="GPU-2",hostname="n1",pod="w-1",namespace="ml"}} NaN
DCGM_FI_DEV_ENFORCED_POWER_LIMIT{{gpu="0",UUID="GPU-1",Hostname="n1"}} 450
"""
RPS = 30


class Target(ThreadingHTTPServer):
    """A frontend and an exporter in one page; 30 requests a second of 400 and 50 tokens."""

    daemon_threads = True

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def page(self) -> bytes:
        started = 100 + int(RPS * (time.monotonic() - self.began_s))
        ended = started - 10
        return _PAGE.format(
            started=started, ended=ended, prompts=400 * started, answers=50 * ended
        ).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Target

    def do_GET(self) -> None:
        body = self.server.page()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Rig:
    """Prometheus scraping the target each second, and a desk that asks it each second."""

    def __init__(self, folder: Path) -> None:
        assert _BINARY is not None
        self.target = Target()
        address = f"127.0.0.1:{self.target.server_address[1]}"
        config = write_config(folder, {"all": [address]}, 1.0)
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                command(_BINARY, config, self.address), stdout=log, stderr=subprocess.STDOUT
            )
        spec = PrometheusSpec(
            url=f"http://{self.address}", limit_s=2.0, interval_s=1.0, window_s=5, range_s=20.0
        )
        reader = HistoryReader(spec, models=["tiny"], namespaces=[None], bin_s=BIN_S, limits=True)
        self.reader = reader
        self.desk = HistoryDesk(
            reader,
            ["chat"],
            url=spec.url,
            interval_s=spec.interval_s,
            stale_s=10.0,
            draw_age_s=8.0,
            warm=False,
        )

    def poll(self) -> None:
        self.desk.poll(time.time())

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end_s = time.monotonic() + WITHIN_S
        while True:
            self.poll()
            if condition():
                return
            assert time.monotonic() < end_s, (what, self.desk.view(time.time()))
            time.sleep(0.05)

    def demand(self) -> DemandReading | str:
        return self.desk.demand(0, time.time())

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.desk.close()
        self.target.shutdown()
        self.target.server_close()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(tmp_path_factory.mktemp("history"))
    try:
        rig.until(lambda: isinstance(rig.demand(), DemandReading), "demand from Prometheus")
        yield rig
    finally:
        rig.close()


def test_demand_has_rate_means_and_age(rig: Rig) -> None:
    def good() -> bool:
        reading = rig.demand()
        # Less than the window's counts are there as long as the server has not run for it.
        return isinstance(reading, DemandReading) and (reading.view.completions or 0) > 4 * RPS

    rig.until(good, "a whole window of counts")
    reading = rig.demand()
    assert isinstance(reading, DemandReading)
    view = reading.view
    assert view.arrivals is not None
    assert view.completions is not None
    assert view.arrivals / view.window_s == pytest.approx(RPS, rel=0.5)
    assert view.input_tokens_sum == pytest.approx(400 * view.arrivals, rel=0.1)
    assert view.output_tokens_sum == pytest.approx(50 * view.completions, rel=0.1)
    assert view.cached_tokens_sum == 0
    assert view.rejected == 0
    assert 0.0 <= view.age_s < 10.0
    assert any("cached tokens are not told" in why for why in reading.missing)
    assert any("comes from Prometheus" in why for why in reading.missing)


def test_draw_and_limits_come_per_gpu_with_either_label(rig: Rig) -> None:
    rig.until(lambda: "GPU-1" in rig.desk.draw(time.time()), "a draw")
    draw = rig.desk.draw(time.time())
    assert draw["GPU-1"].watts == 412.5
    assert draw["GPU-1"].host == "n1"
    assert draw["GPU-1"].pods == ("ml/w-0",)
    assert "GPU-2" not in draw, "NaN is no draw"
    assert rig.desk.limit(time.time())["GPU-1"].watts == 450.0


def test_the_past_is_a_history_of_bins_without_gaps(rig: Rig) -> None:
    # A server that has run for long enough, asked as at the start of a controller.
    end_s = time.monotonic() + WITHIN_S
    reader = HistoryReader(
        PrometheusSpec(url=f"http://{rig.address}", window_s=5, range_s=20.0),
        models=["tiny"],
        namespaces=[None],
        bin_s=BIN_S,
    )
    try:
        while True:
            batch = reader.read(time.time(), past=True)
            assert batch.past is not None, batch.trouble
            (part,) = batch.past
            if part.past is not None and len(part.past.rates_rps) >= 3:
                break
            assert time.monotonic() < end_s, part
            time.sleep(0.2)
    finally:
        reader.close()
    assert part.past.rates_rps[-1] == pytest.approx(RPS, rel=0.5)
    assert part.past.input_tokens == pytest.approx(400.0, rel=0.1)
    assert part.past.output_tokens == pytest.approx(50.0, rel=0.1)


def test_a_hung_server_is_not_waited_for_and_its_values_age_away(rig: Rig) -> None:
    rig.until(lambda: "GPU-1" in rig.desk.draw(time.time()), "a draw")
    rig.process.send_signal(signal.SIGSTOP)
    try:
        rig.until(lambda: rig.desk.view(time.time()).why is not None, "it is seen to hang")
        # What was known keeps its age until it is too old.
        rig.until(lambda: "GPU-1" not in rig.desk.draw(time.time()), "the draw is too old")
        reading = rig.demand()
        assert isinstance(reading, DemandReading)
        assert reading.view.age_s >= 8.0
    finally:
        rig.process.send_signal(signal.SIGCONT)
    rig.until(lambda: "GPU-1" in rig.desk.draw(time.time()), "it is back")
    assert rig.desk.view(time.time()).why is None


def test_a_dead_server_is_a_reason(rig: Rig) -> None:
    rig.process.kill()
    rig.process.wait()
    rig.until(lambda: rig.address in (rig.desk.view(time.time()).why or ""), "the reason")
    assert rig.desk.view(time.time()).why is not None, "and it stays dead"
