"""Queries to a Prometheus server (or one that speaks its HTTP API), one batch at a time.

Prometheus is behind what it scrapes by its interval and by that of exporters: 5 to 45 s. It serves
history and the slow loop, never the moving of watts.

The time stamps in an answer are those of the query, not of what was measured; the age of a value is
therefore asked for by itself (`timestamp()`), in the same batch. A value without that is older than
nothing and newer than nothing: its age is None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wattline.core.errors import InputError
from wattline.drivers.http_batch import Answer, Call, HttpBatch, Unanswered

MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_SERIES = 50_000
"""Of one query. More are refused: half an answer would be a wrong sum."""
MAX_POINTS = 11_000
"""Of one series: the server's own limit."""
_MAX_TOKEN_BYTES = 64 * 1024
_TOKEN = re.compile(r"[\x21-\x7e]+")
_MOST_SHOWN = 200
_MOST_WARNINGS = 10

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """Where the server is and how to ask it.

    url: without `/api/v1`; a path before it is kept. token_file: read anew for each batch, because
    tokens are rotated. verify: False leaves certificates unchecked. params: added to every query
    (a tenant, a time-out, `dedup`). limit_s: of a whole batch.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    ca_file: Path | None = None
    verify: bool = True
    params: tuple[tuple[str, str], ...] = ()
    limit_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One instant query.

    age: an expression for when the newest sample behind each value was taken, as seconds of the
    epoch: one value for all, or one per series with the labels of `expr`. max_age_s: values that
    are older, or of unknown age, are missing. partial: take what the server calls partial, too.
    """

    name: str
    expr: str
    age: str | None = None
    max_age_s: float | None = None
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeQuery:
    """Values of `expr` from `start_s` to `end_s` (seconds of the epoch), each `step_s`."""

    name: str
    expr: str
    start_s: float
    end_s: float
    step_s: float
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """One value. age_s: of the newest sample behind it when it was asked for; None: not known."""

    labels: Labels
    value: float
    age_s: float | None


@dataclass(frozen=True, slots=True)
class History:
    """One series on the grid of its query; None where there is no value, or it is NaN."""

    labels: Labels
    start_s: float
    step_s: float
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """What one query gave.

    missing: why there are no values at all, None if there are. dropped: values left out, and why.
    source: server and expression. answered: False where the server did not answer, or not whole, so
    that nothing is known of the series.
    """

    name: str
    source: str
    readings: tuple[Reading, ...] = ()
    histories: tuple[History, ...] = ()
    missing: str | None = None
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    answered: bool = True


class Prometheus:
    """A server's HTTP API; for one thread at a time. InputError for settings that cannot be."""

    def __init__(self, settings: PrometheusSettings) -> None:
        _check(settings)
        self._settings = settings
        self._url = settings.url.rstrip("/")
        verify: bool | Path = settings.verify
        if settings.verify and settings.ca_file is not None:
            verify = settings.ca_file
        self._http = HttpBatch(limit_s=settings.limit_s, most_bytes=MAX_ANSWER_BYTES, verify=verify)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def query(self, queries: Sequence[Query | RangeQuery], now_s: float) -> list[QueryResult]:
        """All of them at once, as of `now_s` (seconds of the epoch), in their order.

        Never raises for what the server does: a result without values says why.
        """
        try:
            headers = self._headers()
        except (OSError, InputError) as error:
            reason = f"the token cannot be read: {error}"
            return [self._none(each, reason, answered=False) for each in queries]
        calls: list[Call] = []
        for each in queries:
            calls.append(self._call(each, now_s, headers))
            if isinstance(each, Query) and each.age is not None:
                calls.append(self._instant(each.age, now_s, headers))
        answers = iter(self._http.run(calls))
        results = []
        for each in queries:
            answer = _decoded(next(answers))
            if isinstance(each, RangeQuery):
                results.append(self._range_result(each, answer))
                continue
            ages = None if each.age is None else _decoded(next(answers))
            results.append(self._instant_result(each, answer, ages, now_s))
        return results

    def _instant_result(
        self, query: Query, answer: _Decoded | str, ages: _Decoded | str | None, now_s: float
    ) -> QueryResult:
        if isinstance(answer, str):
            return self._none(query, answer, answered=False)
        if answer.partial and not query.partial:
            return self._none(query, "the answer is partial", answer.warnings)
        series = _vector(answer)
        if isinstance(series, str):
            return self._none(query, series, answer.warnings)
        taken = _Ages(ages)
        readings: list[Reading] = []
        dropped = [taken.trouble] if taken.trouble else []
        for labels, value in series:
            taken_s = taken.of(labels)
            age_s = None if taken_s is None else max(0.0, round(now_s - taken_s, 3))
            if not isfinite(value):
                dropped.append(f"{_shown(str(dict(labels)))} is {value}")
            elif query.max_age_s is not None and (age_s is None or age_s > query.max_age_s):
                old = "of unknown age" if age_s is None else f"{age_s:g} s old"
                dropped.append(f"{_shown(str(dict(labels)))} is {old}")
            else:
                readings.append(Reading(labels, value, age_s))
        missing = None
        if not readings:
            missing = dropped[-1] if series else "no such series now: never scraped, or gone stale"
        return QueryResult(
            name=query.name,
            source=self._source(query),
            readings=tuple(readings),
            missing=missing,
            dropped=tuple(dropped[:_MOST_WARNINGS]),
            warnings=answer.warnings,
            answered=not isinstance(ages, str),
        )

    def _range_result(self, query: RangeQuery, answer: _Decoded | str) -> QueryResult:
        if isinstance(answer, str):
            return self._none(query, answer, answered=False)
        if answer.partial and not query.partial:
            return self._none(query, "the answer is partial", answer.warnings)
        histories = _matrix(answer, query)
        if isinstance(histories, str):
            return self._none(query, histories, answer.warnings)
        return QueryResult(
            name=query.name,
            source=self._source(query),
            histories=tuple(histories),
            missing=None if histories else "no such series in that time",
            warnings=answer.warnings,
        )

    def _none(
        self,
        query: Query | RangeQuery,
        reason: str,
        warnings: tuple[str, ...] = (),
        *,
        answered: bool = True,
    ) -> QueryResult:
        return QueryResult(
            name=query.name,
            source=self._source(query),
            missing=reason,
            warnings=warnings,
            answered=answered,
        )

    def _source(self, query: Query | RangeQuery) -> str:
        return f"{self._url}: {query.expr}"

    def _call(self, query: Query | RangeQuery, now_s: float, headers: Mapping[str, str]) -> Call:
        if isinstance(query, Query):
            return self._instant(query.expr, now_s, headers)
        if not (query.step_s > 0.0 and query.end_s >= query.start_s) or (
            (query.end_s - query.start_s) / query.step_s > MAX_POINTS
        ):
            found = (query.start_s, query.end_s, query.step_s)
            remedy = f"a range goes forward in at most {MAX_POINTS} steps"
            raise InputError(f"query {query.name}", found, remedy)
        span = (
            ("start", f"{query.start_s:.3f}"),
            ("end", f"{query.end_s:.3f}"),
            ("step", f"{query.step_s:g}"),
        )
        return self._get("query_range", (("query", query.expr), *span), headers)

    def _instant(self, expr: str, now_s: float, headers: Mapping[str, str]) -> Call:
        return self._get("query", (("query", expr), ("time", f"{now_s:.3f}")), headers)

    def _get(
        self, what: str, params: tuple[tuple[str, str], ...], headers: Mapping[str, str]
    ) -> Call:
        url = f"{self._url}/api/v1/{what}"
        return Call(url, (*params, *self._settings.params), headers=headers)

    def _headers(self) -> dict[str, str]:
        settings = self._settings
        token = settings.token
        if settings.token_file is not None:
            with settings.token_file.open("rb") as file:
                token = file.read(_MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
            if not _TOKEN.fullmatch(token):
                raise InputError(str(settings.token_file), "its content", "must be one token")
        return {} if token is None else {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True, slots=True)
class _Decoded:
    kind: str
    result: list[Any]
    warnings: tuple[str, ...]
    partial: bool


class _Ages:
    """When samples were taken, by labels, or one time for all."""

    def __init__(self, answer: _Decoded | str | None) -> None:
        self.trouble: str | None = None
        self._all_s: float | None = None
        self._each_s: dict[tuple[tuple[str, str], ...], float] = {}
        if answer is None:
            return
        series = answer if isinstance(answer, str) else _vector(answer)
        if isinstance(series, str):
            self.trouble = f"ages: {series}"
            return
        finite = [(labels, value) for labels, value in series if isfinite(value)]
        if len(finite) == 1 and not finite[0][0]:
            self._all_s = finite[0][1]
        else:
            self._each_s = {_key(labels): value for labels, value in finite}

    def of(self, labels: Labels) -> float | None:
        return self._each_s.get(_key(labels), self._all_s)


def _check(settings: PrometheusSettings) -> None:
    where = "prometheus, url"
    try:
        parts = urlsplit(settings.url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or not settings.url.isprintable():
        raise InputError(where, settings.url, "give it as https://host:9090, without a query")
    if parts.username is not None or parts.password is not None:
        raise InputError(where, "a password", "give a token or a token file instead")
    if settings.token is not None and settings.token_file is not None:
        raise InputError("prometheus", "token and token_file", "give one of them")
    if settings.token is not None and not _TOKEN.fullmatch(settings.token):
        raise InputError("prometheus, token", "unprintable characters", "give the bare token")
    if not 0.0 < settings.limit_s < float("inf"):
        raise InputError("prometheus, limit_s", settings.limit_s, "must be seconds above 0")


def _decoded(answer: Answer | Unanswered) -> _Decoded | str:
    """The answer's data, or why there is none. Format: Prometheus' HTTP API, version 1."""
    if isinstance(answer, Unanswered):
        return answer.reason
    if answer.status in (401, 403):
        return f"the server answers {answer.status}: the token is not accepted"
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return f"the server answers {answer.status} and no JSON: {_shown_bytes(answer.body)}"
    if not isinstance(document, dict):
        return f"the server answers {answer.status} and no object"
    if document.get("status") != "success":
        kind, text = document.get("errorType"), document.get("error")
        return f"the server answers {answer.status}: {_shown(f'{kind}: {text}')}"
    data = document.get("data")
    kind = data.get("resultType") if isinstance(data, dict) else None
    result = data.get("result") if isinstance(data, dict) else None
    if answer.status != 200 or not isinstance(kind, str) or not isinstance(result, list):
        return f"the server answers {answer.status} without a result"
    given = document.get("warnings")
    warnings = (
        [_shown(each) for each in given or () if isinstance(each, str)]
        if isinstance(given, list)
        else []
    )
    # Remarks on the expression, as Prometheus 2.49 and later make them, cut nothing off.
    lossy = any(not each.startswith("PromQL") for each in warnings)
    partial = lossy or document.get("isPartial") is True
    return _Decoded(kind, result, tuple(warnings[:_MOST_WARNINGS]), partial)


def _vector(answer: _Decoded) -> list[tuple[Labels, float]] | str:
    """Series and values of an instant query."""
    if answer.kind == "scalar":
        value = _number(answer.result)
        return "a scalar that is no number" if value is None else [({}, value[1])]
    if answer.kind != "vector":
        return f"the result is a {_shown(answer.kind)}, not a vector"
    if len(answer.result) > MAX_SERIES:
        return f"more than {MAX_SERIES} series"
    series = []
    for entry in answer.result:
        labels = _labels(entry)
        value = _number(entry.get("value")) if isinstance(entry, dict) else None
        if labels is None or value is None:
            return "a series without labels or without a number"
        series.append((labels, value[1]))
    if len({_key(labels) for labels, _ in series}) != len(series):
        return "the same series twice"
    return series


def _matrix(answer: _Decoded, query: RangeQuery) -> list[History] | str:
    if answer.kind != "matrix":
        return f"the result is a {_shown(answer.kind)}, not a matrix"
    if len(answer.result) > MAX_SERIES:
        return f"more than {MAX_SERIES} series"
    steps = int((query.end_s - query.start_s) / query.step_s + 1e-9) + 1
    histories = []
    for entry in answer.result:
        labels = _labels(entry)
        points = entry.get("values") if isinstance(entry, dict) else None
        if labels is None or not isinstance(points, list) or len(points) > MAX_POINTS + 1:
            return "a series without labels or values"
        values: list[float | None] = [None] * steps
        for point in points:
            read = _number(point)
            place = None if read is None else round((read[0] - query.start_s) / query.step_s)
            if read is None or place is None or not 0 <= place < steps:
                return "a point that is no number, or of another time"
            values[place] = read[1] if isfinite(read[1]) else None
        histories.append(History(labels, query.start_s, query.step_s, tuple(values)))
    return histories


def _labels(entry: object) -> Labels | None:
    labels = entry.get("metric") if isinstance(entry, dict) else None
    if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()):
        return None
    return labels


def _number(pair: object) -> tuple[float, float] | None:
    """A `[seconds, "value"]`; the value may be NaN or infinite."""
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    at_s, text = pair
    if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not isinstance(text, str):
        return None
    try:
        at, value = float(at_s), float(text)
    except (ValueError, OverflowError):
        return None
    return (at, value) if isfinite(at) else None


def _key(labels: Labels) -> tuple[tuple[str, str], ...]:
    """Labels without the name, which functions take away."""
    return tuple(sorted(item for item in labels.items() if item[0] != "__name__"))


def _shown_bytes(body: bytes) -> str:
    return _shown(body[:_MOST_SHOWN].decode(errors="replace"))


def _shown(text: str) -> str:
    cut = text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
    return cut.encode("unicode_escape").decode("ascii")
