"""One batch of queries to Prometheus, and what it says of demand, draw and limits.

It may take as long as its time limit, so that it runs in a thread of its own (`history`). Whatever
the server does, a value that is not there is None, with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wattline.controller.outside_settings import PrometheusSpec
from wattline.core.snapshot import DemandView
from wattline.core.warmup import Past
from wattline.drivers.dynamo.demand import MOST_REQUESTS, MOST_TOKENS_EACH
from wattline.drivers.prometheus import (
    Prometheus,
    PrometheusSettings,
    Query,
    QueryResult,
    RangeQuery,
)
from wattline.drivers.prometheus_catalogue import (
    GpuPower,
    demand_queries,
    gpu_power,
    limit_query,
    of_model,
    past_of_model,
    past_queries,
    power_query,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandPart:
    """One deployment's counts over the last window. why: what is missing of them."""

    view: DemandView | None
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PastPart:
    """One deployment's demand before the start; None with the reason."""

    past: Past | None
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one batch gave. at_s: when it was asked, by the controller's clock.

    demand and past: per deployment. draw and limit: per GPU. Each is None where it was not asked
    for, or not all of it was answered. why: one line per query without a usable answer. trouble:
    why not all were answered.
    """

    at_s: float
    demand: tuple[DemandPart, ...] | None
    past: tuple[PastPart, ...] | None
    draw: Mapping[str, GpuPower] | None
    limit: Mapping[str, GpuPower] | None
    why: tuple[str, ...]
    trouble: str | None


class HistoryReader:
    """A server, and what is to be asked of it.

    models and namespaces: per deployment. limits: ask for limits in force, too. InputError for
    settings that cannot be.
    """

    def __init__(
        self,
        spec: PrometheusSpec,
        *,
        models: Sequence[str],
        namespaces: Sequence[str | None],
        bin_s: float,
        limits: bool = False,
    ) -> None:
        self._spec = spec
        self._models = tuple(models)
        self._namespaces = tuple(namespaces)
        self._bin_s = bin_s
        self._limits = limits
        self._prometheus = Prometheus(
            PrometheusSettings(
                url=spec.url,
                token=spec.token,
                token_file=None if spec.token_file is None else Path(spec.token_file),
                ca_file=None if spec.ca_file is None else Path(spec.ca_file),
                verify=spec.verify,
                params=tuple(spec.params.items()),
                limit_s=spec.limit_s,
            )
        )

    def read(self, now_s: float, *, past: bool) -> Batch:
        """Ask everything at once; `past`: what was before the start as well."""
        queries: list[Query | RangeQuery] = [*demand_queries(self._spec.window_s)]
        count = len(queries)
        queries.append(power_query(self._spec.draw_age_s))
        if self._limits:
            queries.append(limit_query(self._spec.draw_age_s))
        before: tuple[Query | RangeQuery, ...] = ()
        if past and self._spec.range_s >= self._bin_s:
            before = past_queries(now_s, self._spec.range_s, self._bin_s, self._spec.window_s)
        results = self._prometheus.query([*queries, *before], now_s)
        counts = {each.name: each for each in results[:count]}
        gpus = {each.name: each for each in results[count : len(queries)]}
        older = {each.name: each for each in results[len(queries) :]}
        draw, draw_why = gpu_power(gpus["gpu_power"])
        limit, limit_why = gpu_power(gpus["gpu_limit"]) if self._limits else ((), ())
        chosen = list(zip(self._models, self._namespaces, strict=True))
        unanswered = [each.missing or "; ".join(each.dropped) for each in results if _lost(each)]
        demand = tuple(_demand(counts, *which, self._spec.window_s) for which in chosen)
        return Batch(
            at_s=now_s,
            demand=None if any(map(_lost, counts.values())) else demand,
            past=tuple(_past(older, *which) for which in chosen)
            if older and not any(map(_lost, older.values()))
            else None,
            draw=None if _lost(gpus["gpu_power"]) else {each.uuid: each for each in draw},
            limit={each.uuid: each for each in limit}
            if self._limits and not _lost(gpus["gpu_limit"])
            else None,
            why=(
                *(f"{each.name}: {each.missing}" for each in results if each.missing is not None),
                *draw_why,
                *limit_why,
            ),
            trouble=unanswered[0] if unanswered else None,
        )

    def close(self) -> None:
        """Close all connections."""
        self._prometheus.close()


def _lost(result: QueryResult) -> bool:
    return not result.answered


def _one(
    results: Mapping[str, QueryResult], name: str, model: str, namespace: str | None
) -> tuple[float, float | None] | str:
    """Value and age of a deployment's only series, or why there is none."""
    result = results[name]
    if result.missing is not None:
        return f"{name}: {result.missing}"
    rows = of_model(result, model, namespace)
    if not rows:
        return f"{name}: nothing of model {model}"
    if len(rows) > 1:
        return f"{name}: several namespaces have model {model}: name one"
    value = rows[0].value
    if not 0.0 <= value <= (MOST_TOKENS_EACH if name.endswith("_tokens") else MOST_REQUESTS):
        return f"{name}: {value:.3g} cannot be"
    return value, rows[0].age_s


def _demand(
    results: Mapping[str, QueryResult], model: str, namespace: str | None, window_s: int
) -> DemandPart:
    def one(name: str) -> tuple[float, float | None] | str:
        return _one(results, name, model, namespace)

    arrived, ended, rejected = one("requests"), one("completions"), one("rejected")
    if isinstance(arrived, str):
        return DemandPart(view=None, why=(arrived,))
    if arrived[1] is None:
        return DemandPart(view=None, why=("requests: of unknown age",))
    if isinstance(ended, str):
        return DemandPart(view=None, why=(ended,))
    arrivals, completions = round(arrived[0]), round(ended[0])
    inputs = _sum(one("input_tokens"), arrivals)
    outputs = _sum(one("output_tokens"), completions)
    cached = _sum(one("cached_tokens"), arrivals)
    why = [each for each in (inputs, outputs) if isinstance(each, str)]
    if isinstance(cached, str):
        why.append("cached tokens are not told: taken as none")
        cached = 0
    why.append("percentiles of latency are not asked of Prometheus")
    view = DemandView(
        window_s=float(window_s),
        arrivals=arrivals,
        input_tokens_sum=None if isinstance(inputs, str) else inputs,
        cached_tokens_sum=cached,
        completions=completions,
        output_tokens_sum=None if isinstance(outputs, str) else outputs,
        # Frontends have no such series before they reject for the first time.
        rejected=0 if isinstance(rejected, str) else round(rejected[0]),
        ttft_p50_s=None,
        ttft_p99_s=None,
        itl_p50_s=None,
        itl_p99_s=None,
        age_s=arrived[1],
    )
    return DemandPart(view=view, why=tuple(why))


def _sum(mean: tuple[float, float | None] | str, count: int) -> int | str:
    """Tokens of `count` requests; 0 of none, whose mean is 0 / 0."""
    if count == 0:
        return 0
    return mean if isinstance(mean, str) else round(mean[0] * count)


def _past(results: Mapping[str, QueryResult], model: str, namespace: str | None) -> PastPart:
    rates = results["rates"]
    if rates.missing is not None:
        return PastPart(past=None, why=f"rates: {rates.missing}")
    rows = past_of_model(rates, model, namespace)
    if len(rows) != 1:
        found = "nothing of" if not rows else "several namespaces have"
        return PastPart(past=None, why=f"rates: {found} model {model}")
    newest = _without_gaps(rows[0].values)
    if not newest:
        return PastPart(past=None, why="rates: there is none of the newest time")
    means: dict[str, float | None] = {}
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        mean = _one(results, name, model, namespace)
        means[name] = None if isinstance(mean, str) else mean[0]
    inputs, cached = means["input_tokens"], means["cached_tokens"]
    return PastPart(
        past=Past(
            rates_rps=newest,
            input_tokens=inputs if inputs else None,
            output_tokens=means["output_tokens"] or None,
            cached_fraction=None if cached is None or not inputs else min(1.0, cached / inputs),
        )
    )


def _without_gaps(values: Sequence[float | None]) -> tuple[float, ...]:
    """The newest bins up to the first gap: what is between is not known, and not 0."""
    newest: list[float] = []
    for value in reversed(values):
        if value is None or not 0.0 <= value <= MOST_REQUESTS:
            break
        newest.append(round(value, 6))
    return tuple(reversed(newest))
