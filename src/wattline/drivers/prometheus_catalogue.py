"""The queries that Wattline asks Prometheus: Dynamo's frontends and routers, engines, GPU power.

Expressions of the frontend and router source follow NVIDIA Dynamo 1.6.1's own planner, so that both
see the same. Where releases differ in a name, the new one counts where it is there (`or`). Rows are
chosen by model here, in any case of letters, as the planner does.

Two limits of `increase`: a counter that appears with its first count shows no increase for it, and
values at the edges of the window are extrapolated. Scraping the pages directly has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.core.errors import InputError
from wattline.drivers.prometheus import (
    History,
    Labels,
    Query,
    QueryResult,
    RangeQuery,
    Reading,
)

FRONTEND = "dynamo_frontend"
ROUTER = "dynamo_component_router"
_MEANS = {
    "ttft_s": "time_to_first_token_seconds",
    "itl_s": "inter_token_latency_seconds",
    "request_s": "request_duration_seconds",
    "input_tokens": "input_sequence_tokens",
    "output_tokens": "output_sequence_tokens",
}
_BY_MODEL = "sum by (model, dynamo_namespace)"
_POWER = "DCGM_FI_DEV_POWER_USAGE"
_EXPORTER = "dcgm-exporter"


@dataclass(frozen=True, slots=True)
class GpuPower:
    """Draw of one GPU. pods: (namespace, name) of those on it, none for a GPU that nobody holds.

    age_s: since Prometheus took the sample. The exporter's own interval, 30 s unless it is set
    otherwise, comes on top.
    """

    uuid: str
    host: str | None
    pods: tuple[tuple[str, str], ...]
    draw_w: float
    age_s: float | None


def frontend_queries(window_s: int, prefix: str = FRONTEND) -> tuple[Query, ...]:
    """Means and number of requests over the last `window_s`, per model and namespace.

    The label `dynamo_namespace` is put on by the scrape configuration; frontends have none.
    """
    window = _window(window_s)
    started, ended = f"{prefix}_requests_started_total", f"{prefix}_requests_total"

    def summed(series: str) -> str:
        return f"{_BY_MODEL}(increase({series}[{window}]))"

    means = tuple(
        Query(
            name=name,
            expr=f"{summed(f'{prefix}_{series}_sum')} / {summed(f'{prefix}_{series}_count')}",
            age=f"max by (model, dynamo_namespace)(timestamp({prefix}_{series}_count))",
        )
        for name, series in _MEANS.items()
    )
    requests = Query(
        name="requests",
        expr=f"{summed(started)} or {summed(ended)}",
        age=f"max by (model, dynamo_namespace)(timestamp({started}) or timestamp({ended}))",
    )
    return (*means, requests)


def demand_queries(window_s: int, prefix: str = FRONTEND) -> tuple[Query, ...]:
    """What a deployment's demand is made of over the last `window_s`, per model and namespace.

    `requests`, `completions`, `rejected`: counts; `input_tokens`, `output_tokens`, `cached_tokens`:
    means of a request.
    """
    window = _window(window_s)
    means = [
        query
        for query in frontend_queries(window_s, prefix)
        if query.name in ("input_tokens", "output_tokens", "requests")
    ]
    counts = {
        "completions": f'{prefix}_requests_total{{status="success"}}',
        "rejected": f"{prefix}_model_rejection_total",
    }
    cached = f"{prefix}_cached_tokens"
    return (
        *means,
        *(
            Query(
                name=name,
                expr=f"{_BY_MODEL}(increase({series}[{window}]))",
                age=f"max by (model, dynamo_namespace)(timestamp({series}))",
            )
            for name, series in counts.items()
        ),
        Query(
            name="cached_tokens",
            expr=f"{_BY_MODEL}(increase({cached}_sum[{window}])) / "
            f"{_BY_MODEL}(increase({cached}_count[{window}]))",
            age=f"max by (model, dynamo_namespace)(timestamp({cached}_count))",
        ),
    )


def past_queries(
    now_s: float, range_s: float, bin_s: float, window_s: int, prefix: str = FRONTEND
) -> tuple[Query | RangeQuery, ...]:
    """Demand of the last `range_s` in bins (`rates`), and the mean request over all of it."""
    window = _window(max(window_s, round(bin_s)))
    started, ended = f"{prefix}_requests_started_total", f"{prefix}_requests_total"
    bins = int(range_s / bin_s)
    rates = RangeQuery(
        name="rates",
        expr=f"{_BY_MODEL}(rate({started}[{window}])) or {_BY_MODEL}(rate({ended}[{window}]))",
        start_s=now_s - (bins - 1) * bin_s,
        end_s=now_s,
        step_s=bin_s,
    )
    means = [
        query
        for query in demand_queries(max(window_s, round(range_s)), prefix)
        if query.name.endswith("_tokens")
    ]
    return (rates, *means)


def limit_query(max_age_s: float | None = None) -> Query:
    """Power limit in force per GPU, W, where the exporter's counters have been extended by it.

    Neither is among the DCGM exporter's default counters.
    """
    names = ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "DCGM_FI_DEV_POWER_MGMT_LIMIT")
    return Query(
        name="gpu_limit",
        expr=" or ignoring(__name__) ".join(names),
        age=" or ".join(f"timestamp({each})" for each in names),
        max_age_s=max_age_s,
    )


def router_queries(window_s: int, namespace: str) -> tuple[Query, ...]:
    """As `frontend_queries`, of the routers of one namespace; without models and durations.

    Where prefill and decode are apart, routers of Dynamo 1.6.1 count each request in both phases:
    twice the requests, and output tokens per phase. Ratios of one series stand.
    """
    window = _window(window_s)
    where = f'{{dynamo_namespace="{_namespace(namespace)}"}}'

    def summed(series: str) -> str:
        return f"sum(increase({ROUTER}_{series}{where}[{window}]))"

    def newest(series: str) -> str:
        return f"max(timestamp({ROUTER}_{series}{where}))"

    means = tuple(
        Query(
            name=name,
            expr=f"{summed(f'{series}_sum')} / {summed(f'{series}_count')}",
            age=newest(f"{series}_count"),
        )
        for name, series in (*_MEANS.items(), ("kv_hit_rate", "kv_hit_rate"))
        if name != "request_s"
    )
    started = f"increase({ROUTER}_requests_started_total{where}[{window}])"
    ended = f"increase({ROUTER}_requests_total{where}[{window}])"
    requests = Query(
        name="requests",
        expr=f"sum({started} or ignoring(__name__) {ended})",
        age=newest("requests_total"),
    )
    return (*means, requests)


def engine_queries() -> tuple[Query, ...]:
    """Load of engines now, per series: running and waiting requests, share of the KV cache.

    vLLM's names, which Dynamo's mock workers use as well.
    """
    names = {
        "running": ("vllm:num_requests_running",),
        "waiting": ("vllm:num_requests_waiting",),
        "kv_share": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "in_flight": ('dynamo_component_inflight_requests{dynamo_endpoint="generate"}',),
    }
    return tuple(
        Query(
            name=name,
            expr=" or ignoring(__name__) ".join(series),
            age=" or ".join(f"timestamp({each})" for each in series),
        )
        for name, series in names.items()
    )


def power_query(max_age_s: float | None = None) -> Query:
    """Draw per GPU from NVIDIA's DCGM exporter; `gpu_power` reads the answer."""
    return Query(name="gpu_power", expr=_POWER, age=f"timestamp({_POWER})", max_age_s=max_age_s)


def of_model(
    result: QueryResult, model: str | None = None, namespace: str | None = None
) -> list[Reading]:
    """Readings of a model (any case of letters) and of a namespace, where they are given."""
    return [each for each in result.readings if _is_of(each.labels, model, namespace)]


def past_of_model(result: QueryResult, model: str, namespace: str | None = None) -> list[History]:
    """As `of_model`, of ranges."""
    return [each for each in result.histories if _is_of(each.labels, model, namespace)]


def _is_of(labels: Labels, model: str | None, namespace: str | None) -> bool:
    named = labels.get("model", labels.get("model_name", ""))
    return (model is None or named.casefold() == model.casefold()) and (
        namespace is None or labels.get("dynamo_namespace") == namespace
    )


def gpu_power(result: QueryResult) -> tuple[tuple[GpuPower, ...], tuple[str, ...]]:
    """GPUs by UUID, and what of the answer cannot be used.

    Both generations of labels: `exported_pod` where Prometheus kept the exporter's own `pod`
    (`honorLabels: false`), else `pod`, or `pod_name` of old exporters; `Hostname` and `hostname`.
    MIG slices and pods that share a GPU repeat its power: the GPU counts once.
    """
    exported = any("exported_pod" in each.labels for each in result.readings)
    found: dict[str, list[Reading]] = {}
    unusable = []
    for each in result.readings:
        uuid = each.labels.get("UUID") or each.labels.get("uuid")
        if not uuid:
            unusable.append("a GPU without a UUID")
        elif each.value < 0.0:
            unusable.append(f"{uuid}: a draw of {each.value:g} W")
        else:
            found.setdefault(uuid, []).append(each)
    pod_of = _exported_pod if exported else _honoured_pod
    gpus = tuple(_gpu(uuid, readings, pod_of) for uuid, readings in sorted(found.items()))
    return gpus, tuple(dict.fromkeys(unusable))


def _gpu(
    uuid: str,
    readings: Sequence[Reading],
    pod_of: Callable[[Labels], tuple[str, str] | None],
) -> GpuPower:
    hosts = [each.labels.get("Hostname") or each.labels.get("hostname") for each in readings]
    pods = {pod for each in readings if (pod := pod_of(each.labels)) is not None}
    # Two exporters on one GPU during a roll-out: the newest value counts.
    newest = min(readings, key=lambda each: float("inf") if each.age_s is None else each.age_s)
    return GpuPower(
        uuid=uuid,
        host=next((host for host in hosts if host), None),
        pods=tuple(sorted(pods)),
        draw_w=newest.value,
        age_s=newest.age_s,
    )


def _exported_pod(labels: Labels) -> tuple[str, str] | None:
    """`pod` is the exporter's own: a GPU without `exported_pod` belongs to nobody."""
    pod = labels.get("exported_pod")
    return (labels.get("exported_namespace", ""), pod) if pod else None


def _honoured_pod(labels: Labels) -> tuple[str, str] | None:
    pod = labels.get("pod") or labels.get("pod_name")
    container = labels.get("container") or labels.get("container_name") or ""
    # With no GPU held by anyone, `honorLabels: false` leaves nothing but the exporter's own name.
    if not pod or _EXPORTER in container or _EXPORTER in pod:
        return None
    return labels.get("namespace") or labels.get("pod_namespace") or "", pod


def _window(window_s: int) -> str:
    if window_s < 1:
        raise InputError("prometheus, window", window_s, "must be whole seconds, at least 1")
    return f"{window_s}s"


def _namespace(namespace: str) -> str:
    """As a label's value: Dynamo writes `_` for `-` there."""
    return namespace.replace("-", "_").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "")
