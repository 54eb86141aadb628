"""A real Prometheus that scrapes pages of ours: values, ages, staleness, NaN, ranges, rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wattline.drivers.prometheus import (
    Prometheus,
    PrometheusSettings,
    Query,
    QueryResult,
    RangeQuery,
)
from wattline.drivers.prometheus_catalogue import (
    engine_queries,
    frontend_queries,
    gpu_power,
    of_model,
    power_query,
    router_queries,
)
from wattline.live.processes import free_ports

_BINARY = shutil.which("prometheus")
pytestmark = [
    pytest.mark.skipif(
        _BINARY is None,
        reason="no `prometheus` on PATH: install it, as by `apt install prometheus`",
    ),
    pytest.mark.xdist_group("prometheus"),
]
_WITHIN_S = 60.0
_TOKEN = "a-token-of-this-test"
_COUNT = 40
_PAGE = """\
dynamo_frontend_model_ready{{model="Tiny"}} 1
dynamo_frontend_requests_started_total{{model="Tiny"}} {count}
dynamo_frontend_requests_total{{model="Tiny",status="success"}} {count}
dynamo_frontend_time_to_first_token_seconds_sum{{model="Tiny"}} {half}
dynamo_frontend_time_to_first_token_seconds_count{{model="Tiny"}} {count}
dynamo_frontend_inter_token_latency_seconds_sum{{model="Tiny"}} 0
dynamo_frontend_inter_token_latency_seconds_count{{model="Tiny"}} 0
dynamo_component_router_requests_total{{dynamo_namespace="my_space"}} {count}
dynamo_component_router_kv_hit_rate_sum{{dynamo_namespace="my_space"}} {half}
dynamo_component_router_kv_hit_rate_count{{dynamo_namespace="my_space"}} {count}
vllm:num_requests_running{{engine="0",model_name="Tiny"}} 3
vllm:gpu_cache_usage_perc{{engine="0",model_name="Tiny"}} 0.25
DCGM_FI_DEV_POWER_USAGE{{gpu="0",UUID="GPU-1",Hostname="n1",pod="w-0",namespace="ml"}} 412.5
DCGM_FI_DEV_POWER_USAGE{{gpu="1",UUID="GPU-2",Hostname="n1"}} 61.0
broken_gauge NaN
"""


class _Target(ThreadingHTTPServer):
    """A page whose counters grow with each scrape. `dead`: it answers nothing more."""

    daemon_threads = True

    def __init__(self) -> None:
        self.scrapes = 0
        self.dead = False
        super().__init__(("127.0.0.1", 0), _TargetHandler)


class _TargetHandler(BaseHTTPRequestHandler):
    server: _Target

    def do_GET(self) -> None:
        if self.server.dead:
            self.send_error(503)
            return
        self.server.scrapes += 1
        count = _COUNT * self.server.scrapes
        body = _PAGE.format(count=count, half=count * 0.5).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Gate(ThreadingHTTPServer):
    """Lets through to Prometheus who shows the token."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behind: str) -> None:
        self.behind = behind
        super().__init__(("127.0.0.1", 0), _GateHandler)


class _GateHandler(BaseHTTPRequestHandler):
    server: _Gate

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {_TOKEN}":
            self.send_error(401)
            return
        with urllib.request.urlopen(self.server.behind + self.path, timeout=_WITHIN_S) as answer:
            body = answer.read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _serve(server: ThreadingHTTPServer) -> str:
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def _stop(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


class _Running:
    """Prometheus with two targets: one that lives on, and one that can be made to die."""

    def __init__(self, folder: Path) -> None:
        assert _BINARY is not None
        self.target, self.mortal = _Target(), _Target()
        live, mortal = _serve(self.target), _serve(self.mortal)
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
            for name, url in (("live", live), ("mortal", mortal))
        ]
        rules = {"record": "wattline:started", "expr": "dynamo_frontend_requests_started_total"}
        group = {"groups": [{"name": "g", "interval": "1s", "rules": [rules]}]}
        (folder / "rules.yml").write_text(json.dumps(group))
        config = {
            "global": {"scrape_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": jobs,
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    _BINARY,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.client = Prometheus(PrometheusSettings(url=self.url, limit_s=20.0))

    def close(self) -> None:
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _stop(self.target)
        _stop(self.mortal)

    def ask(self, query: Query | RangeQuery) -> QueryResult:
        return self.client.query([query], time.time())[0]

    def until(self, query: Query, good: Callable[[QueryResult], bool]) -> QueryResult:
        end_s = time.monotonic() + _WITHIN_S
        while True:
            result = self.ask(query)
            if good(result):
                return result
            assert time.monotonic() < end_s, result
            time.sleep(0.2)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Running]:
    started = _Running(tmp_path_factory.mktemp("prometheus"))
    try:
        grown = Query(
            name="r", expr='min(increase(dynamo_frontend_requests_total{job="live"}[20s]))'
        )
        started.until(grown, lambda result: bool(result.readings))
        yield started
    finally:
        started.close()


def _started(job: str) -> Query:
    series = f'dynamo_frontend_requests_started_total{{job="{job}"}}'
    return Query(name=job, expr=series, age=f"timestamp({series})", max_age_s=30.0)


def test_a_value_comes_with_its_age(running: _Running) -> None:
    reading = running.ask(_started("live")).readings[0]
    assert reading.value % _COUNT == 0
    assert reading.age_s is not None
    assert reading.age_s < 20.0


def test_the_frontend_catalogue_reads_means_and_requests(running: _Running) -> None:
    results = {
        result.name: result for result in running.client.query(frontend_queries(60), time.time())
    }
    ttft = of_model(results["ttft_s"], "TINY")[0]
    assert ttft.value == pytest.approx(0.5)
    assert ttft.age_s is not None
    assert of_model(results["requests"], "tiny")[0].value > 0.0
    # No token between others was counted: 0 / 0.
    assert "is nan" in (results["itl_s"].missing or "")
    assert "no such series" in (results["output_tokens"].missing or "")


def test_the_router_catalogue_falls_back_to_the_older_name(running: _Running) -> None:
    results = {
        result.name: result
        for result in running.client.query(router_queries(60, "my-space"), time.time())
    }
    assert results["requests"].readings[0].value > 0.0
    assert results["kv_hit_rate"].readings[0].value == pytest.approx(0.5)
    assert results["requests"].readings[0].age_s is not None


def test_the_engine_catalogue_takes_either_spelling(running: _Running) -> None:
    results = {
        result.name: result for result in running.client.query(engine_queries(), time.time())
    }
    assert [each.value for each in of_model(results["running"], "tiny")] == [3.0, 3.0]
    share = of_model(results["kv_share"], "tiny")[0]
    assert (share.value, share.age_s is not None) == (0.25, True)


def test_power_by_pod(running: _Running) -> None:
    gpus, unusable = gpu_power(running.ask(power_query(max_age_s=30.0)))
    # Both targets tell of the same GPUs: each counts once.
    assert [(gpu.uuid, gpu.host, gpu.pods, gpu.draw_w) for gpu in gpus] == [
        ("GPU-1", "n1", (("ml", "w-0"),), 412.5),
        ("GPU-2", "n1", (), 61.0),
    ]
    assert unusable == ()


def test_nan_is_missing_and_said(running: _Running) -> None:
    result = running.ask(Query(name="nan", expr='broken_gauge{job="live"}'))
    assert result.readings == ()
    assert "is nan" in (result.missing or "")


def test_a_recorded_rule_is_there(running: _Running) -> None:
    result = running.until(
        Query(name="rule", expr='wattline:started{job="live"}'), lambda r: bool(r.readings)
    )
    assert result.readings[0].value % _COUNT == 0


def test_a_range_has_gaps_where_nothing_was(running: _Running) -> None:
    now_s = float(int(time.time()))
    query = RangeQuery(
        name="history", expr='up{job="live"}', start_s=now_s - 600, end_s=now_s, step_s=5.0
    )
    history = running.ask(query).histories[0]
    assert len(history.values) == 121
    assert history.values[0] is None
    assert history.values[-1] == 1.0


def test_a_mistake_in_a_query_is_one_line(running: _Running) -> None:
    result = running.ask(Query(name="wrong", expr="sum(("))
    assert "parse error" in (result.missing or "")
    assert result.readings == ()


def test_a_target_that_dies_goes_stale_and_its_windows_age(running: _Running) -> None:
    running.until(_started("mortal"), lambda result: bool(result.readings))
    running.mortal.dead = True
    gone = running.until(_started("mortal"), lambda result: not result.readings)
    assert "no such series now" in (gone.missing or "")
    # What was counted before it died is still in the window; its newest sample tells the age.
    series = 'dynamo_frontend_requests_started_total{job="mortal"}'
    held = Query(
        name="held",
        expr=f"sum(max_over_time({series}[5m]))",
        age=f"max(max_over_time(timestamp({series})[5m:1s]))",
    )
    aged = running.until(
        held, lambda result: bool(result.readings) and (result.readings[0].age_s or 0.0) > 1.0
    )
    assert aged.readings[0].value >= _COUNT
    young = Query(name="held", expr=held.expr, age=held.age, max_age_s=0.5)
    assert "s old" in (running.ask(young).missing or "")


def test_a_token_file_opens_the_gate(running: _Running, tmp_path: Path) -> None:
    gate = _Gate(running.url)
    token = tmp_path / "token"
    token.write_text("another\n")
    client = Prometheus(PrometheusSettings(url=_serve(gate), token_file=token, limit_s=20.0))
    try:
        refused = client.query([_started("live")], time.time())[0]
        token.write_text(f"{_TOKEN}\n")
        let_in = client.query([_started("live")], time.time())[0]
    finally:
        client.close()
        _stop(gate)
    assert "token is not accepted" in (refused.missing or "")
    assert len(let_in.readings) == 1
