"""Load of workers: from their own pages, and from what frontends route to them.

Three kinds of page: Wattline's worker says everything; a vLLM engine, or Dynamo's mock worker that
uses its names, tells running sequences and the share of its KV cache in use, but no prompt tokens;
a prefill mock worker tells requests in flight only. What is lacking comes from the frontends: each
keeps gauges of what it routed itself to each worker, so that the sum over all frontends is the
worker's load. (Seen with Dynamo 1.6.1: a second frontend shows nothing of the first one's.)

A worker's id is hexadecimal on its own page and decimal in the frontends' labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from wattline.drivers.dynamo.frontend import PREFIX
from wattline.drivers.dynamo.pages import Missing, Page, Sample

_OURS = "wattline_worker_"
_INFLIGHT = "dynamo_component_inflight_requests"
_REQUESTS = "dynamo_component_requests_total"
_GENERATE = {"dynamo_endpoint": "generate"}
# The second name is the one of vLLM before 0.10 or so; the mock worker shows both.
_KV_SHARE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"

WORKER_FAMILIES = (
    _OURS,
    _INFLIGHT,
    _REQUESTS,
    "dynamo_component_uptime_seconds",
    "vllm:num_requests_",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "vllm:cache_config_info",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerScrape:
    """One worker's load. Tokens and requests as in `core.snapshot.PoolView`.

    ids: of the worker at the frontends. kv_share: of the cache in use, 0 to 1. in_flight: requests
    that it has, running or not.
    """

    source: str
    at_s: float
    ids: frozenset[int]
    queued_prefill_tokens: float | Missing
    active_kv_tokens: float | Missing
    kv_capacity_tokens: float | Missing
    kv_share: float | Missing
    running: float | Missing
    waiting: float | Missing
    in_flight: float | Missing


@dataclass(frozen=True, slots=True)
class Routed:
    """What one frontend routed to one worker and has not seen end."""

    worker_id: int
    worker_type: str
    decode_blocks: float
    prefill_tokens: float


@dataclass(frozen=True, slots=True)
class FrontendWorkers:
    """One frontend's gauges of its workers. block_tokens: tokens of a KV block, of the model.

    kv_blocks: of one worker, as its card says. A worker that the frontend never routed to has no
    entry: its load there is zero.
    """

    source: str
    at_s: float
    block_tokens: float | Missing
    kv_blocks: float | Missing
    routed: tuple[Routed, ...] | Missing


def read_worker(page: Page, at_s: float) -> WorkerScrape:
    """A worker's page of any of the three kinds."""
    if page.select(f"{_OURS}ready"):
        return _ours(page, at_s)
    in_flight = page.counter([_INFLIGHT], _GENERATE)
    idle = in_flight == 0.0 and page.counter([_REQUESTS], _GENERATE) == 0.0
    running, waiting, share = (
        page.counter(names) for names in ((_RUNNING,), (_WAITING,), _KV_SHARE)
    )
    if idle:
        # The engine's own series come with its first request.
        running, waiting, share = (
            0.0 if isinstance(value, Missing) else value for value in (running, waiting, share)
        )
    if not isinstance(share, Missing) and share > 1.0 + 1e-9:
        share = Missing(f"{page.source}: {share} of the KV cache in use")
    capacity = _capacity(page)
    tokens: float | Missing
    if isinstance(share, Missing):
        tokens = share
    elif share == 0.0:
        tokens = 0.0
    else:
        tokens = capacity if isinstance(capacity, Missing) else share * capacity
    return WorkerScrape(
        source=page.source,
        at_s=at_s,
        ids=_ids(page),
        queued_prefill_tokens=(
            0.0 if in_flight == 0.0 else Missing(f"{page.source}: the page tells no prompt tokens")
        ),
        active_kv_tokens=tokens,
        kv_capacity_tokens=capacity,
        kv_share=share,
        running=running,
        waiting=waiting,
        in_flight=in_flight,
    )


def read_frontend_workers(
    page: Page, model: str, at_s: float, prefix: str = PREFIX
) -> FrontendWorkers:
    """The frontend's view of all workers; the gauges carry no name of a model."""
    where = {"model": model}
    return FrontendWorkers(
        source=page.source,
        at_s=at_s,
        block_tokens=page.gauge([f"{prefix}_model_kv_cache_block_size"], where),
        kv_blocks=page.gauge([f"{prefix}_model_total_kv_blocks"], where),
        routed=_routed(page, prefix),
    )


def _routed(page: Page, prefix: str) -> tuple[Routed, ...] | Missing:
    found: dict[tuple[int, str], list[float]] = {}
    for place, name in enumerate(("worker_active_decode_blocks", "worker_active_prefill_tokens")):
        for sample in page.select(f"{prefix}_{name}"):
            worker_id = _decimal(sample)
            if worker_id is None or not (isfinite(sample.value) and sample.value >= 0.0):
                return Missing(f"{page.source}: {prefix}_{name} is no load of a worker")
            key = (worker_id, sample.labels.get("worker_type", ""))
            found.setdefault(key, [0.0, 0.0])[place] += sample.value
    return tuple(
        Routed(worker_id, kind, blocks, tokens)
        for (worker_id, kind), (blocks, tokens) in sorted(found.items())
    )


def _ours(page: Page, at_s: float) -> WorkerScrape:
    capacity = page.counter([f"{_OURS}kv_capacity_tokens"])
    active = page.counter([f"{_OURS}active_kv_tokens"])
    share: float | Missing
    if isinstance(capacity, Missing) or isinstance(active, Missing):
        share = capacity if isinstance(capacity, Missing) else active
    elif capacity <= 0.0:
        share = Missing(f"{page.source}: a KV cache of {capacity:g} tokens")
    else:
        share = active / capacity
    return WorkerScrape(
        source=page.source,
        at_s=at_s,
        ids=_ids(page),
        queued_prefill_tokens=page.counter([f"{_OURS}queued_prefill_tokens"]),
        active_kv_tokens=active,
        kv_capacity_tokens=capacity,
        kv_share=share,
        running=page.counter([f"{_OURS}running_requests"]),
        waiting=page.counter([f"{_OURS}waiting_requests"]),
        in_flight=page.counter([f"{_OURS}in_flight_requests"]),
    )


def _capacity(page: Page) -> float | Missing:
    """KV tokens that fit: vLLM tells blocks and their size as labels of a constant."""
    samples = page.select("vllm:cache_config_info")
    total = 0.0
    for sample in samples:
        blocks = _whole(sample.labels.get("num_gpu_blocks"))
        size = _whole(sample.labels.get("block_size"))
        if blocks is None or size is None:
            return Missing(f"{page.source}: vllm:cache_config_info names no blocks")
        total += blocks * size
    return total if samples else Missing(f"{page.source}: no size of the KV cache")


def _ids(page: Page) -> frozenset[int]:
    texts = {sample.labels.get("worker_id") for sample in page.select(_INFLIGHT)}
    texts |= {sample.labels.get("worker_id") for sample in _uptime(page)}
    found = set()
    for text in texts:
        if text and len(text) <= 16 and all(letter in "0123456789abcdef" for letter in text):
            found.add(int(text, 16))
    return frozenset(found)


def _uptime(page: Page) -> Sequence[Sample]:
    return page.select("dynamo_component_uptime_seconds")


def _decimal(sample: Sample) -> int | None:
    return _whole(sample.labels.get("worker_id"))


def _whole(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 20:
        return None
    return int(text)
