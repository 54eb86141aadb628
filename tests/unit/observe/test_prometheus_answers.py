"""Prometheus' answers, good, broken and hostile; the server here says what it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observe_fixtures import Asked, Reply, dead_url, serving

from wattline.core.errors import InputError
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

NOW_S = 1_700_000_000.0
UP = Query(name="up", expr="up")


def _ok(result: list[Any], kind: str = "vector", **more: object) -> Reply:
    data = {"resultType": kind, "result": result}
    return Reply(json.dumps({"status": "success", "data": data, **more}).encode())


def _one(value: str = "1", **labels: str) -> dict[str, Any]:
    return {"metric": labels, "value": [NOW_S, value]}


def _ask(
    reply: Reply | Callable[[Asked], Reply], *queries: Query | RangeQuery
) -> list[QueryResult]:
    answer = (lambda asked: reply) if isinstance(reply, Reply) else reply
    with serving(answer) as server:
        prometheus = Prometheus(PrometheusSettings(url=server.url, limit_s=10.0))
        try:
            return prometheus.query(queries or (UP,), NOW_S)
        finally:
            prometheus.close()


def _params(asked: Asked) -> dict[str, list[str]]:
    return parse_qs(urlsplit(asked.path).query)


def test_values_come_with_labels_and_source() -> None:
    result = _ask(_ok([_one("2.5", job="a"), _one("3", job="b")]))[0]
    assert [(each.labels, each.value, each.age_s) for each in result.readings] == [
        ({"job": "a"}, 2.5, None),
        ({"job": "b"}, 3.0, None),
    ]
    assert result.missing is None
    assert result.source.endswith(": up")


def test_a_scalar_is_a_value_without_labels() -> None:
    assert _ask(_ok([NOW_S, "4"], "scalar"))[0].readings[0].value == 4.0


def _aged(asked: Asked) -> Reply:
    """Two series, one 5 s and one 100 s old."""
    if _params(asked)["query"] == ["timestamp(up)"]:
        return _ok([_one(str(NOW_S - 5), job="a"), _one(str(NOW_S - 100), job="b")])
    return _ok([_one("1", job="a", __name__="up"), _one("2", job="b", __name__="up")])


def test_each_value_has_the_age_of_its_own_series() -> None:
    result = _ask(_aged, Query(name="up", expr="up", age="timestamp(up)"))[0]
    assert [each.age_s for each in result.readings] == [5.0, 100.0]


def test_values_that_are_too_old_are_missing_with_their_age() -> None:
    query = Query(name="up", expr="up", age="timestamp(up)", max_age_s=30.0)
    result = _ask(_aged, query)[0]
    assert [each.labels["job"] for each in result.readings] == ["a"]
    assert "100 s old" in result.dropped[0]
    unknown = _ask(_ok([_one()]), Query(name="up", expr="up", max_age_s=30.0))[0]
    assert (unknown.readings, "of unknown age" in (unknown.missing or "")) == ((), True)


def test_one_age_holds_for_all() -> None:
    def reply(asked: Asked) -> Reply:
        age = _params(asked)["query"] == ["max(timestamp(up))"]
        return _ok([_one(str(NOW_S - 7))] if age else [_one(job="a"), _one(job="b")])

    result = _ask(reply, Query(name="up", expr="up", age="max(timestamp(up))"))[0]
    assert [each.age_s for each in result.readings] == [7.0, 7.0]


def test_an_age_that_cannot_be_told_is_named() -> None:
    def reply(asked: Asked) -> Reply:
        return Reply(b"", 500) if "timestamp" in asked.path else _ok([_one()])

    result = _ask(reply, Query(name="up", expr="up", age="timestamp(up)"))[0]
    assert result.readings[0].age_s is None
    assert result.dropped[0].startswith("ages: the server answers 500")


def test_nan_is_dropped_with_a_reason_and_the_rest_stands() -> None:
    result = _ask(_ok([_one("NaN", job="a"), _one("1", job="b"), _one("+Inf", job="c")]))[0]
    assert [each.labels["job"] for each in result.readings] == ["b"]
    assert len(result.dropped) == 2
    assert "is nan" in (_ask(_ok([_one("NaN", job="a")]))[0].missing or "")


def test_no_series_is_missing() -> None:
    assert "no such series now" in (_ask(_ok([]))[0].missing or "")


def test_half_an_answer_is_none_unless_it_is_wanted() -> None:
    for more in ({"warnings": ["store-1 is unreachable"]}, {"isPartial": True}):
        result = _ask(_ok([_one()], **more))[0]
        assert (result.readings, result.missing) == ((), "the answer is partial")
        taken = _ask(_ok([_one()], **more), Query(name="up", expr="up", partial=True))[0]
        assert len(taken.readings) == 1
    remark = _ask(_ok([_one()], warnings=["PromQL info: metric might not be a counter"]))[0]
    assert len(remark.readings) == 1
    assert remark.warnings == ("PromQL info: metric might not be a counter",)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(b"", 401), "token is not accepted"),
        (Reply(b"no", 403), "token is not accepted"),
        (
            Reply(b'{"status":"error","errorType":"bad_data","error":"1:3: parse"}', 400),
            "1:3: parse",
        ),
        (
            Reply(b'{"status":"error","errorType":"timeout","error":"query timed out"}', 503),
            "timed",
        ),
        (Reply(b"<html>login</html>"), "no JSON"),
        (Reply(b"[" * 100_000), "no JSON"),
        (Reply(b"[]"), "no object"),
        (Reply(b'{"status":"success"}'), "without a result"),
        (Reply(b'{"status":"success","data":{"resultType":3,"result":[]}}'), "without a result"),
        (_ok([], "streams"), "not a vector"),
        (_ok(["x"]), "without labels"),
        (_ok([{"metric": {"a": 1}, "value": [1, "1"]}]), "without labels"),
        (_ok([{"metric": {}, "value": [1]}]), "without a number"),
        (_ok([{"metric": {}, "value": [1, "one"]}]), "without a number"),
        (_ok([{"metric": {}, "value": [1, 1]}]), "without a number"),
        (_ok([{"metric": {}}]), "without a number"),
        (_ok([_one(), _one()]), "the same series twice"),
        (_ok(["x", "y"], "scalar"), "no number"),
        (Reply(b"x" * 10, headers={"Content-Encoding": "gzip"}), "packed"),
        (Reply(b"", 302, {"Location": "http://192.0.2.1/"}), "302"),
    ],
)
def test_what_makes_no_sense_is_missing_in_one_line(reply: Reply, reason: str) -> None:
    result = _ask(reply)[0]
    assert result.readings == ()
    assert reason in (result.missing or "")
    assert (result.missing or "").isprintable()
    assert len(result.missing or "") < 400


def test_a_silent_server_costs_the_time_limit_once() -> None:
    with serving(lambda asked: Reply(silent=True)) as server:
        prometheus = Prometheus(PrometheusSettings(url=server.url, limit_s=0.5))
        results = prometheus.query([UP] * 5, NOW_S)
        prometheus.close()
    assert all("no whole answer within 0.5 s" in (each.missing or "") for each in results)


def test_a_server_that_is_gone_is_a_reason() -> None:
    prometheus = Prometheus(PrometheusSettings(url=dead_url(), limit_s=1.0))
    results = prometheus.query([UP, UP], NOW_S)
    prometheus.close()
    assert ["ConnectError" in (result.missing or "") for result in results] == [True, True]


def test_a_range_is_laid_on_its_grid() -> None:
    points = [[NOW_S, "1"], [NOW_S + 20, "NaN"], [NOW_S + 30, "4"]]
    query = RangeQuery(name="r", expr="up", start_s=NOW_S, end_s=NOW_S + 30, step_s=10.0)
    result = _ask(_ok([{"metric": {"job": "a"}, "values": points}], "matrix"), query)[0]
    assert result.histories[0].values == (1.0, None, None, 4.0)
    assert "no such series" in (_ask(_ok([], "matrix"), query)[0].missing or "")
    for wrong in ([[NOW_S - 10, "1"]], [[NOW_S, 1]], 3):
        broken = _ask(_ok([{"metric": {}, "values": wrong}], "matrix"), query)[0]
        assert broken.histories == ()
        assert broken.missing is not None


def test_a_range_of_too_many_steps_is_refused() -> None:
    for start_s, end_s, step_s in ((0.0, 1e6, 1.0), (5.0, 1.0, 1.0), (0.0, 1.0, 0.0)):
        query = RangeQuery(name="r", expr="up", start_s=start_s, end_s=end_s, step_s=step_s)
        with pytest.raises(InputError, match="query r"):
            _ask(_ok([]), query)


def test_a_batch_is_asked_at_once_and_answered_in_order() -> None:
    def reply(asked: Asked) -> Reply:
        return _ok([_one(job=_params(asked)["query"][0])])

    names = [f"q{number}" for number in range(20)]
    results = _ask(reply, *(Query(name=name, expr=name) for name in names))
    assert [result.readings[0].labels["job"] for result in results] == names


def test_token_path_and_parameters_reach_the_server(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    with serving(lambda asked: _ok([_one()])) as server:
        prometheus = Prometheus(
            PrometheusSettings(
                url=f"{server.url}/select/0/",
                token_file=token,
                params=(("dedup", "true"), ("tenant", "a&b")),
                limit_s=5.0,
            )
        )
        prometheus.query([UP], NOW_S)
        token.write_text("second")
        prometheus.query([UP], NOW_S)
        token.write_text("two words")
        refused = prometheus.query([UP], NOW_S)
        token.unlink()
        absent = prometheus.query([UP], NOW_S)
        prometheus.close()
    assert [asked.headers["Authorization"] for asked in server.asked] == [
        "Bearer first",
        "Bearer second",
    ]
    assert server.asked[0].path.startswith("/select/0/api/v1/query?")
    params = _params(server.asked[0])
    assert (params["dedup"], params["tenant"]) == (["true"], ["a&b"])
    for result in (refused[0], absent[0]):
        assert "token" in (result.missing or "")
        assert "two words" not in (result.missing or "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "prometheus:9090"},
        {"url": "http://"},
        {"url": "http://h:99999999"},
        {"url": "http://h/?x=1"},
        {"url": "http://user:secret@h"},
        {"url": "http://h", "token": "a\r\nX: y"},
        {"url": "http://h", "token": "a", "token_file": Path("b")},
        {"url": "http://h", "limit_s": 0.0},
        {"url": "https://h", "ca_file": Path("/nonexistent")},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refusal:
        Prometheus(PrometheusSettings(**wrong))
    assert "secret" not in str(refusal.value)


def test_a_token_is_never_shown() -> None:
    assert "s3cret" not in repr(PrometheusSettings(url="http://h", token="s3cret"))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["status", "data", "resultType", "result", "metric", "value", "values", "warnings"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def test_any_answer_is_read_or_a_reason() -> None:
    replies: list[Reply] = []
    queries: list[Query | RangeQuery] = [Query(name="q", expr=str(n)) for n in range(4)]
    queries += [
        RangeQuery(name="r", expr=str(n), start_s=0.0, end_s=10.0, step_s=1.0) for n in range(4)
    ]

    with serving(lambda asked: replies[int(_params(asked)["query"][0])]) as server:
        prometheus = Prometheus(PrometheusSettings(url=server.url, limit_s=30.0))

        @settings(max_examples=60)
        @given(st.lists(_JSON, min_size=4, max_size=4), st.sampled_from(["vector", "matrix"]))
        def check(documents: list[Any], kind: str) -> None:
            replies[:] = [
                Reply(json.dumps(documents[0]).encode()),
                _ok(documents[1:3], kind, warnings=documents[3]),
                _ok([{"metric": {}, "value": documents[1], "values": documents[2]}], kind),
                Reply(json.dumps({"status": "success", "data": documents[0]}).encode()),
            ]
            for result in prometheus.query(queries, NOW_S):
                assert result.missing or result.readings or result.histories

        check()
        prometheus.close()


def test_rows_are_chosen_by_model_in_any_case() -> None:
    rows = [_one("1", model="Tiny"), _one("2", model="tiny", dynamo_namespace="x"), _one("3")]
    result = _ask(_ok(rows))[0]
    assert [each.value for each in of_model(result, "TINY")] == [1.0, 2.0]
    assert [each.value for each in of_model(result, "tiny", "x")] == [2.0]
    assert len(of_model(result)) == 3


def test_the_catalogue_names_each_value_once_and_escapes_namespaces() -> None:
    for queries in (frontend_queries(60), router_queries(60, 'a-b"'), engine_queries()):
        names = [query.name for query in queries]
        assert len(set(names)) == len(names)
        assert all(query.age for query in queries)
    assert 'dynamo_namespace="a_b\\""' in router_queries(60, 'a-b"')[0].expr
    with pytest.raises(InputError):
        frontend_queries(0)


def _power(*rows: dict[str, Any]) -> QueryResult:
    return _ask(_ok(list(rows)), power_query())[0]


def test_power_by_pod_with_either_generation_of_labels() -> None:
    kept = {"Hostname": "n1", "pod": "w-0", "namespace": "ml", "container": "main"}
    renamed = {
        "hostname": "n1",
        "pod": "dcgm-exporter-x",
        "namespace": "gpu-operator",
        "exported_pod": "w-0",
        "exported_namespace": "ml",
    }
    old = {"pod_name": "w-0", "pod_namespace": "ml"}
    for labels, host in ((kept, "n1"), (renamed, "n1"), (old, None)):
        gpus, unusable = gpu_power(_power(_one("412.5", UUID="GPU-1", **labels)))
        assert unusable == ()
        assert (gpus[0].uuid, gpus[0].host, gpus[0].draw_w) == ("GPU-1", host, 412.5)
        assert gpus[0].pods == (("ml", "w-0"),)


def test_a_gpu_that_nobody_holds_is_not_the_exporters() -> None:
    idle = {"pod": "dcgm-exporter-x", "container": "nvidia-dcgm-exporter"}
    held = {**idle, "exported_pod": "w-0", "exported_namespace": "ml"}
    only = gpu_power(_power(_one("60", UUID="GPU-1", **idle)))[0]
    both = gpu_power(_power(_one("60", UUID="GPU-1", pod="x"), _one("9", UUID="GPU-2", **held)))[0]
    assert only[0].pods == ()
    assert [gpu.pods for gpu in both] == [(), (("ml", "w-0"),)]


def test_slices_of_one_gpu_count_its_power_once() -> None:
    rows = [
        _one("300", UUID="GPU-1", GPU_I_ID=str(number), pod=f"w-{number}", namespace="ml")
        for number in range(3)
    ]
    gpus, _ = gpu_power(_power(*rows))
    assert len(gpus) == 1
    assert gpus[0].draw_w == 300.0
    assert len(gpus[0].pods) == 3


def test_power_that_cannot_be_is_left_out_and_named() -> None:
    gpus, unusable = gpu_power(_power(_one("-3", UUID="GPU-1"), _one("100")))
    assert gpus == ()
    assert unusable == ("GPU-1: a draw of -3 W", "a GPU without a UUID")
