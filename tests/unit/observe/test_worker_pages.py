"""Load of workers from their own pages and from frontends' gauges."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any, cast

import pytest
from observe_fixtures import Asked, Reply, dead_url, page_bytes, serving

from wattline.core.snapshot import Phase
from wattline.drivers.dynamo.frontend import frontend_families
from wattline.drivers.dynamo.pages import Missing, parse_page
from wattline.drivers.dynamo.sources import WorkerLoads
from wattline.drivers.dynamo.workers import (
    WORKER_FAMILIES,
    FrontendWorkers,
    WorkerScrape,
    read_frontend_workers,
    read_worker,
)
from wattline.live.worker_page import render
from wattline.live.worker_signals import metrics_of

PREFILL, DECODE = 0x6F5F7B9206BB3120, 0xB11BDB50C4D5B0AA
OURS = b"""# TYPE wattline_worker_ready gauge
wattline_worker_ready{pool="decode"} 1.0
wattline_worker_queued_prefill_tokens{pool="decode"} 300
wattline_worker_active_kv_tokens{pool="decode"} 5000
wattline_worker_kv_capacity_tokens{pool="decode"} 20000
wattline_worker_running_requests{pool="decode"} 7
wattline_worker_waiting_requests{pool="decode"} 2
wattline_worker_in_flight_requests{pool="decode"} 9
wattline_worker_pass_seconds{pool="decode"} 0.01
"""


def _worker(body: bytes) -> WorkerScrape:
    return read_worker(parse_page(body, "http://w", WORKER_FAMILIES), 1.0)


def _gauges(name: str = "frontend_under_load", at_s: float = 0.0) -> FrontendWorkers:
    page = parse_page(page_bytes(name), "http://f", frontend_families())
    return read_frontend_workers(page, "TINY", at_s)


def test_our_own_worker_tells_everything() -> None:
    worker = _worker(OURS)
    assert (worker.queued_prefill_tokens, worker.active_kv_tokens) == (300, 5000)
    assert (worker.running, worker.waiting, worker.in_flight) == (7, 2, 9)
    assert worker.kv_share == 0.25


class _Ones:
    """Whatever is asked of it is 1."""

    def __getattr__(self, name: str) -> Any:
        return _Ones() if name in ("load", "lag", "engine") else 1.0


def test_the_page_that_our_worker_writes_has_what_is_read() -> None:
    metrics = metrics_of(cast(Any, _Ones()), Phase.READY)
    worker = _worker(render({"pool": 'a "decode" pool'}, metrics).encode())
    for each in fields(worker):
        assert not isinstance(getattr(worker, each.name), Missing)
    assert (worker.queued_prefill_tokens, worker.kv_share, worker.running) == (1, 1, 1)


def test_an_engine_tells_running_requests_and_a_share_of_its_cache() -> None:
    worker = _worker(page_bytes("decode_mocker_under_load"))
    assert (worker.running, worker.waiting, worker.in_flight) == (2, 1, 8)
    assert worker.kv_share == 0.38671875
    assert worker.ids == {DECODE}
    assert isinstance(worker.active_kv_tokens, Missing)
    assert isinstance(worker.queued_prefill_tokens, Missing)


def test_vllm_tells_the_size_of_its_cache_as_labels() -> None:
    body = page_bytes("decode_mocker_under_load")
    body += b'vllm:cache_config_info{block_size="64",num_gpu_blocks="512"} 1\n'
    assert _worker(body).active_kv_tokens == 0.38671875 * 512 * 64
    body = body.replace(b'"512"', b'"None"')
    assert isinstance(_worker(body).active_kv_tokens, Missing)


def test_an_engine_before_its_first_request_is_idle_not_missing() -> None:
    worker = _worker(page_bytes("decode_mocker_fresh"))
    assert (worker.running, worker.waiting, worker.active_kv_tokens) == (0, 0, 0)
    assert worker.queued_prefill_tokens == 0


def test_a_prefill_worker_tells_requests_in_flight_only() -> None:
    worker = _worker(page_bytes("prefill_mocker"))
    assert worker.in_flight == 0
    assert isinstance(worker.running, Missing)
    assert worker.ids == {PREFILL}


def test_an_impossible_share_or_nan_is_missing() -> None:
    for wrong in (b"1.5", b"NaN", b"-0.1"):
        body = page_bytes("decode_mocker_under_load").replace(b"0.38671875", wrong)
        assert isinstance(_worker(body).kv_share, Missing)


def test_gauges_of_a_frontend_name_workers_by_number() -> None:
    gauges = _gauges()
    assert (gauges.block_tokens, gauges.kv_blocks) == (64, 512)
    assert not isinstance(gauges.routed, Missing)
    load = {
        each.worker_id: (each.worker_type, each.decode_blocks, each.prefill_tokens)
        for each in gauges.routed
    }
    assert load == {PREFILL: ("prefill", 0, 67246), DECODE: ("decode", 520, 0)}


def test_gauges_that_are_no_load_are_missing() -> None:
    for old, new in ((b'd="8025268928105885984"', b'd="x"'), (b"} 67246", b"} NaN")):
        body = page_bytes("frontend_under_load").replace(old, new)
        page = parse_page(body, "http://f", frontend_families())
        assert isinstance(read_frontend_workers(page, "tiny", 0.0).routed, Missing)


def _pages(name: str) -> Reply:
    return Reply(page_bytes(name))


def test_a_pool_is_the_sum_of_its_workers() -> None:
    def reply(asked: Asked) -> Reply:
        return Reply(OURS) if asked.path == "/metrics" else Reply(status=404)

    with serving(reply) as one, serving(reply) as two:
        loads = WorkerLoads(limit_s=5.0)
        load = loads.read(0.0, [one.url, two.url, f"{two.url}/metrics/"])
        loads.close()
    # The third address is another one to us, though the same page: it is asked as it is written.
    assert load.running == 21
    assert load.queued_prefill_tokens == 900
    assert load.missing == ()


def test_what_mock_workers_do_not_tell_comes_from_the_frontends() -> None:
    with (
        serving(lambda asked: _pages("prefill_mocker")) as prefill,
        serving(lambda asked: _pages("decode_mocker_under_load")) as decode,
    ):
        for gauges, expected in (
            ((_gauges(),), (0.0, 0.0, 0.0, 0.38671875 * 512 * 64)),
            ((), (0.0, None, None, None)),
            ((_gauges(at_s=-60.0),), (0.0, None, None, 0.38671875 * 512 * 64)),
        ):
            loads = WorkerLoads(limit_s=5.0, gauges=partial(tuple, gauges))
            first = loads.read(0.0, [prefill.url])
            second = loads.read(0.0, [decode.url])
            loads.close()
            found = (
                first.queued_prefill_tokens,
                first.active_kv_tokens,
                second.queued_prefill_tokens,
                second.active_kv_tokens,
            )
            assert found == expected
            assert (first.running, second.running) == (0, 2)


def test_two_frontends_routed_to_the_same_worker() -> None:
    busy = page_bytes("prefill_mocker").replace(
        b'inflight_requests{dynamo_component="prefill",dynamo_endpoint="generate",'
        b'dynamo_namespace="dynamo",worker_id="6f5f7b9206bb3120"} 0',
        b'inflight_requests{dynamo_component="prefill",dynamo_endpoint="generate",'
        b'dynamo_namespace="dynamo",worker_id="6f5f7b9206bb3120"} 16',
    )
    with serving(lambda asked: Reply(busy)) as prefill:
        loads = WorkerLoads(limit_s=5.0, gauges=lambda: (_gauges(), _gauges()))
        load = loads.read(0.0, [prefill.url])
        loads.close()
    assert load.queued_prefill_tokens == 2 * 67246
    assert load.running == 16


@pytest.mark.parametrize("broken", [b"<html>", b"", b"wattline_worker_ready NaN\n"])
def test_a_worker_that_does_not_tell_makes_the_sum_missing(broken: bytes) -> None:
    with serving(lambda a: Reply(OURS)) as one, serving(lambda a: Reply(broken)) as two:
        loads = WorkerLoads(limit_s=5.0)
        load = loads.read(0.0, [one.url, two.url])
        loads.close()
    assert (load.running, load.active_kv_tokens, load.queued_prefill_tokens) == (None, None, None)
    assert any(two.url in reason for reason in load.missing)


def test_a_dead_worker_is_left_out_and_named() -> None:
    dead = dead_url()
    with serving(lambda asked: Reply(OURS)) as one:
        loads = WorkerLoads(limit_s=5.0)
        load = loads.read(0.0, [one.url, dead])
        loads.close()
    assert load.running == 7
    assert load.missing == (f"{dead}: refuses connections: left out",)


def test_a_pool_without_workers_has_no_load() -> None:
    loads = WorkerLoads(limit_s=5.0)
    load = loads.read(0.0, [])
    loads.close()
    assert (load.queued_prefill_tokens, load.active_kv_tokens, load.running) == (0, 0, 0)
