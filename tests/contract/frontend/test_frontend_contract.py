"""A real frontend of Dynamo with its mock workers: what is counted is what was sent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
from mock_stack import MODEL, MockStack, complete, complete_at_once, get, wait_until

from wattline.core.decision import Admission
from wattline.core.snapshot import DemandView
from wattline.drivers.dynamo.frontend import frontend_families, read_frontend
from wattline.drivers.dynamo.pages import Missing, parse_page
from wattline.drivers.dynamo.sources import FrontendDemand, WorkerLoads
from wattline.drivers.dynamo.thresholds import LARGEST_TOKENS, BusyThresholds, Thresholds
from wattline.live import environment

_ENVIRONMENT = environment.find()
pytestmark = [
    pytest.mark.skipif(
        _ENVIRONMENT is None,
        reason="Dynamo is not built: run `python -m wattline.live.environment`",
    ),
    pytest.mark.xdist_group("dynamo-frontend"),
    pytest.mark.timeout(400),
]
_LONG = "hello there how are you " * 200


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockStack]:
    assert _ENVIRONMENT is not None
    running = MockStack(_ENVIRONMENT, tmp_path_factory.mktemp("frontend"))
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def urls(stack: MockStack) -> list[str]:
    return [stack.frontend(), stack.frontend()]


@pytest.fixture
def demand(urls: list[str]) -> Iterator[FrontendDemand]:
    source = FrontendDemand(urls, MODEL.upper(), limit_s=20.0)
    try:
        yield source
    finally:
        source.close()


@pytest.fixture
def client() -> Iterator[BusyThresholds]:
    thresholds = BusyThresholds(limit_s=20.0)
    try:
        yield thresholds
    finally:
        thresholds.close()


def _ended(source: FrontendDemand, requests: int) -> DemandView:
    """The window in which so many requests ended: counters follow answers a moment later."""
    urls = [gauges.source for gauges in source.gauges]
    wait_until(lambda: all(_in_flight(url) == 0 for url in urls))
    view = source.read(monotonic()).view
    assert view.completions == requests
    return view


def _in_flight(url: str) -> float | Missing:
    page = parse_page(get(url, "/metrics")[1].encode(), url, frontend_families())
    return read_frontend(page, MODEL, 0.0).in_flight


def test_a_fresh_frontend_has_counted_nothing(demand: FrontendDemand) -> None:
    demand.read(monotonic())
    reading = demand.read(monotonic())
    assert reading.missing == ()
    assert (reading.view.arrivals, reading.view.rejected, reading.view.completions) == (0, 0, 0)


def test_what_was_sent_to_two_frontends_is_what_is_counted(
    urls: list[str], demand: FrontendDemand
) -> None:
    demand.read(monotonic())
    answers = [
        *complete_at_once(urls[0], ["one two", "one two three", "four"], 7),
        complete(urls[1], _LONG, 12),
    ]
    assert [status for status, _ in answers] == [200] * 4
    prompts = sum(usage["prompt_tokens"] for _, usage in answers)
    view = _ended(demand, 4)
    assert (view.arrivals, view.rejected) == (4, 0)
    assert view.input_tokens_sum == prompts
    assert view.output_tokens_sum == 3 * 7 + 12
    assert view.cached_tokens_sum == 0
    assert view.ttft_p50_s is not None
    assert view.ttft_p99_s is not None
    assert 0.0 < view.ttft_p50_s <= view.ttft_p99_s
    # The mock worker takes 5.7 ms for a decode step of an empty batch (its default polynomial).
    assert demand.newest is not None
    assert demand.newest.itl_mean_s is not None
    assert 0.004 < demand.newest.itl_mean_s < 0.1
    assert view.itl_p50_s is not None
    assert view.itl_p50_s > 0.0033


def test_a_request_for_another_model_is_not_ours(urls: list[str], demand: FrontendDemand) -> None:
    demand.read(monotonic())
    document = {"model": "nobody", "prompt": "x", "max_tokens": 1}
    assert get(urls[0], "/v1/completions", document)[0] == 404
    assert demand.read(monotonic()).view.arrivals == 0


def test_load_of_mock_workers_under_way_and_after(
    stack: MockStack, urls: list[str], demand: FrontendDemand
) -> None:
    loads = WorkerLoads(limit_s=20.0, gauges=lambda: demand.gauges)
    seen = 0.0

    def busy() -> bool:
        nonlocal seen
        now_s = monotonic()
        demand.read(now_s)
        load = loads.read(now_s, stack.workers[1:])
        assert load.missing == ()
        assert load.active_kv_tokens is not None
        assert load.running is not None
        seen = max(seen, load.active_kv_tokens if load.running else 0.0)
        return seen > 0.0

    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(complete_at_once, urls[0], ["a b c", "d e f"], 300)
        wait_until(busy)
        under_way.result()
    wait_until(lambda: _in_flight(urls[0]) == 0)
    demand.read(monotonic())
    load = loads.read(monotonic(), stack.workers)
    loads.close()
    assert load.queued_prefill_tokens == 0
    assert load.running == 0


def test_thresholds_are_set_at_all_frontends_and_reject(
    urls: list[str], demand: FrontendDemand, client: BusyThresholds
) -> None:
    before = client.read(urls, MODEL)
    assert [result.held for result in before] == [Thresholds()] * 2
    wanted = Admission(None, 0.0, 0.25)
    results = client.send(urls, MODEL.lower(), wanted)
    assert [(result.held, result.failure) for result in results] == [
        (Thresholds(None, 0, 0.25), None)
    ] * 2
    demand.read(monotonic())
    statuses = [status for status, _ in complete_at_once(urls[0], [_LONG] * 8, 2)]
    served = statuses.count(200)
    assert served >= 1
    assert statuses.count(529) == 8 - served > 0
    view = _ended(demand, served)
    assert (view.arrivals, view.rejected) == (8, 8 - served)
    # All prompts have the same length, and so have the rejected ones here.
    assert view.input_tokens_sum is not None
    assert view.input_tokens_sum / 8 == pytest.approx(demand_length(urls[0]), rel=1e-3)


def demand_length(url: str) -> int:
    """Prompt tokens of the long prompt."""
    wait_until(lambda: complete(url, _LONG, 1)[0] == 200)
    status, usage = complete(url, _LONG, 1)
    assert status == 200
    return int(usage["prompt_tokens"])


def test_thresholds_of_prefill_end_when_they_are_no_longer_wanted(
    urls: list[str], client: BusyThresholds
) -> None:
    client.send(urls, MODEL, Admission(None, 0.0, 0.25))
    results = client.send(urls, MODEL, Admission())
    assert [result.not_cleared for result in results] == [(), ()]
    for result in results:
        assert result.held is not None
        assert result.held.prefill_tokens == LARGEST_TOKENS
    statuses = [status for status, _ in complete_at_once(urls[0], [_LONG] * 8, 2)]
    assert statuses == [200] * 8


def test_the_share_of_decode_blocks_cannot_be_cleared_and_goes_on_rejecting(
    urls: list[str], client: BusyThresholds
) -> None:
    client.send([urls[1]], MODEL, Admission(0.5))
    result = client.send([urls[1]], MODEL, Admission())[0]
    assert result.not_cleared == ("active_decode_blocks_threshold",)
    assert result.held is not None
    assert result.held.decode_blocks == 1.0
    # 24 prompts of 66 blocks do not fit into 512: the share of what was routed is above 1.
    prompts = [f"{number} {_LONG}" for number in range(24)]
    assert 529 in [status for status, _ in complete_at_once(urls[1], prompts, 30)]


def test_what_a_frontend_refuses_is_its_own_failure(
    urls: list[str], client: BusyThresholds
) -> None:
    results = client.send([*urls, "http://127.0.0.1:1"], "nobody", Admission(None, 10.0))
    assert ["does not know the model" in (result.failure or "") for result in results] == [
        True,
        True,
        False,
    ]
    body = {"model": MODEL.lower(), "active_prefill_tokens_threshold_frac": 0.5}
    assert get(urls[0], "/busy_threshold", body)[0] == 404


def test_a_frontend_that_was_killed_and_started_again(
    stack: MockStack, client: BusyThresholds
) -> None:
    first = stack.frontend()
    source = FrontendDemand([first], MODEL, limit_s=20.0)
    source.read(monotonic())
    assert complete(first, "one two", 3)[0] == 200
    assert client.send([first], MODEL, Admission(None, 5000.0))[0].sent
    stack.stop_newest()
    dead = source.read(monotonic())
    assert dead.view.arrivals is None
    assert "refuses connections" in dead.missing[0]
    assert client.send([first], MODEL, Admission(None, 5000.0))[0].failure is not None
    assert stack.frontend(int(first.rpartition(":")[2])) == first
    again = client.send([first], MODEL, Admission(None, 5000.0))[0]
    assert (again.restarted, again.sent, again.failure) == (True, True, None)
    source.read(monotonic())
    assert complete(first, "one two", 3)[0] == 200
    view = _ended(source, 1)
    assert (view.arrivals, view.output_tokens_sum) == (1, 3)
    source.close()
