"""A deployment's demand over time: outages, deaths and returns of frontends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from observe_fixtures import Asked, Reply, dead_url, page_bytes, serving

from wattline.drivers.dynamo.sources import DemandReading, FrontendDemand

_ID = b"19522fb96ad0aa87"


def _in_turn(replies: Sequence[Reply]) -> Callable[[Asked], Reply]:
    """One after the other; the last one again and again."""
    rest = list(replies)

    def reply(asked: Asked) -> Reply:
        assert asked.path == "/metrics"
        return rest.pop(0) if len(rest) > 1 else rest[0]

    return reply


def _page(name: str) -> Reply:
    return Reply(page_bytes(name))


FRESH, TWO, MANY = (
    _page(name) for name in ("frontend_fresh", "frontend_two_requests", "frontend_rejections")
)


def _arrivals(readings: Sequence[DemandReading]) -> list[int | None]:
    return [reading.view.arrivals for reading in readings]


def test_each_reading_covers_the_time_since_the_one_before() -> None:
    with serving(_in_turn([FRESH, TWO, MANY, MANY])) as server:
        source = FrontendDemand([server.url], "tiny", limit_s=5.0)
        readings = [source.read(float(second)) for second in (100, 102, 103, 104)]
        source.close()
    assert _arrivals(readings) == [None, 2, 25, 0]
    assert "no two pages" in readings[0].missing[0]
    view = readings[1].view
    assert view.window_s == pytest.approx(2.0, abs=0.5)
    assert view.age_s == pytest.approx(0.0, abs=0.5)
    assert (view.input_tokens_sum, view.cached_tokens_sum, view.output_tokens_sum) == (102, 0, 40)
    assert readings[1].missing == ()
    assert view.ttft_p50_s == pytest.approx(0.148129008 / 2)
    assert source.newest is not None
    assert source.newest.arrivals == 0
    assert source.gauges[0].source == server.url


@pytest.mark.parametrize(
    "broken",
    [
        Reply(b"<html>a login page</html>"),
        Reply(b"", 500),
        Reply(b"", 302, {"Location": "http://192.0.2.1/"}),
        Reply(b"x" * 40, headers={"Content-Encoding": "gzip"}),
    ],
)
def test_an_outage_is_no_zero_and_loses_no_count(broken: Reply) -> None:
    with serving(_in_turn([FRESH, TWO, broken, broken, MANY])) as server:
        source = FrontendDemand([server.url], "tiny", limit_s=5.0)
        readings = [source.read(float(second)) for second in range(5)]
        source.close()
    assert _arrivals(readings) == [None, 2, None, None, 25]
    assert readings[3].view.age_s == pytest.approx(2.0)
    assert readings[3].missing[0].startswith(server.url)
    assert readings[4].view.window_s == pytest.approx(3.0, abs=0.5)


@pytest.mark.parametrize("broken", [Reply(silent=True), Reply(FRESH.body, drip_s=0.2)])
def test_a_silent_or_dripping_frontend_ends_with_the_time_limit(broken: Reply) -> None:
    """The page that drips would take a quarter of an hour."""
    with serving(_in_turn([broken])) as server, serving(_in_turn([FRESH])) as other:
        source = FrontendDemand([server.url, other.url], "tiny", limit_s=0.5)
        reading = source.read(0.0)
        source.close()
    assert reading.view.arrivals is None
    assert reading.missing == (f"{server.url}/metrics: no whole answer within 0.5 s",)


def test_a_page_without_end_is_not_read() -> None:
    huge = Reply(b"#" * (9 * 1024 * 1024))
    with serving(_in_turn([huge])) as server:
        source = FrontendDemand([server.url], "tiny", limit_s=10.0)
        reading = source.read(0.0)
        source.close()
    assert "more than 8388608 bytes" in reading.missing[0]


def test_of_two_frontends_one_that_may_serve_unseen_is_an_outage() -> None:
    broken = Reply(status=503)
    with (
        serving(_in_turn([FRESH, TWO, MANY])) as one,
        serving(_in_turn([FRESH, broken, TWO])) as two,
    ):
        source = FrontendDemand([one.url, two.url], "tiny", limit_s=5.0)
        readings = [source.read(float(second)) for second in range(3)]
        source.close()
    assert _arrivals(readings) == [None, None, 29]
    assert readings[1].missing == (f"{two.url}: answers 503",)


def test_of_two_frontends_a_dead_one_serves_nothing() -> None:
    dead = dead_url()
    with serving(_in_turn([FRESH, TWO])) as one:
        source = FrontendDemand([one.url, dead], "tiny", limit_s=5.0)
        readings = [source.read(float(second)) for second in range(2)]
        source.close()
    assert _arrivals(readings) == [None, 2]
    assert readings[1].missing == (f"{dead}: refuses connections: left out",)


def test_with_all_frontends_dead_nothing_is_known() -> None:
    dead = dead_url()
    source = FrontendDemand([dead], "tiny", limit_s=5.0)
    reading = source.read(0.0)
    source.close()
    assert reading.view.arrivals is None
    assert reading.missing == (f"{dead}: refuses connections: left out",)


def test_a_restart_is_told() -> None:
    anew = Reply(page_bytes("frontend_two_requests").replace(_ID, b"29522fb96ad0aa87"))
    with serving(_in_turn([MANY, anew])) as server:
        source = FrontendDemand([server.url], "tiny", limit_s=5.0)
        readings = [source.read(float(second)) for second in range(2)]
        source.close()
    assert _arrivals(readings) == [None, 2]
    assert readings[1].missing == (f"{server.url}: started anew; its last counts are lost",)


def test_engines_that_report_no_cached_tokens_do_not_blind_the_fleet() -> None:
    def without(reply: Reply) -> Reply:
        lines = [line for line in reply.body.split(b"\n") if b"cached_tokens" not in line]
        return Reply(b"\n".join(lines))

    with serving(_in_turn([without(TWO), without(MANY)])) as server:
        source = FrontendDemand([server.url], "tiny", limit_s=5.0)
        readings = [source.read(float(second)) for second in range(2)]
        source.close()
    assert readings[1].view.cached_tokens_sum == 0
    assert readings[1].missing[-1] == "cached tokens are not reported: taken as none"


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "http://127.0.0.1:99999", "http://[::1", "http://a\nb", "http://\u2028"],
)
def test_an_address_that_is_none_is_an_outage_with_a_reason(url: str) -> None:
    source = FrontendDemand([url], "tiny", limit_s=2.0)
    reading = source.read(0.0)
    source.close()
    assert reading.view.arrivals is None
    assert len(reading.missing) == 1
