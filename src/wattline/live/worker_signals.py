"""What a worker tells about its load: Dynamo's three publishers, and its own metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from wattline.core.snapshot import Phase
from wattline.live.worker_blocks import LiveCache, Removed
from wattline.live.worker_engine import Load
from wattline.live.worker_loop import WorkerLoop
from wattline.live.worker_page import Metric
from wattline.live.worker_spec import WorkerSpec

log = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.1
"""The router's gauges are not told more often; a change within the period is told at its end."""


class LatestValue:
    """Tells changes of a value, at most one per period; the last one is always told.

    `send` is called on the running loop. The router turns requests away by what it was told last,
    for as long as it hears nothing else.
    """

    def __init__(self, send: Callable[[int, int], object], period_s: float) -> None:
        self._send = send
        self._period_s = period_s
        self._loop = asyncio.get_running_loop()
        self._told: tuple[int, int] | None = None
        self._told_s = float("-inf")
        self._value = (0, 0)
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, active: int, used: int) -> None:
        """This is the value from now on."""
        self._value = (active, used)
        if self._timer is not None or self._value == self._told:
            return
        rest_s = self._told_s + self._period_s - self._loop.time()
        if rest_s <= 0.0:
            self._now()
        else:
            self._timer = self._loop.call_later(rest_s, self._now)

    def _now(self) -> None:
        self._timer = None
        if self._value != self._told:
            self._told, self._told_s = self._value, self._loop.time()
            self._send(*self._value)

    def close(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class DynamoSignals:
    """Load for the router, forward-pass metrics for the planner, cache events for the router."""

    def __init__(self, spec: WorkerSpec, endpoint: Any) -> None:
        llm = import_module("dynamo.llm")
        self._spec = spec
        self._endpoint = endpoint
        self._load = llm.WorkerMetricsPublisher()
        self._passes = llm.FpmDirectPublisher(endpoint, str(endpoint.connection_id()))
        self._blocks = llm.KvEventPublisher(endpoint, kv_block_size=spec.block_tokens)
        self._gauges = LatestValue(partial(self._load.publish, 0), LOAD_PERIOD_S)
        self._steps = -1

    async def connect(self) -> None:
        """Register the load's endpoint; must be awaited once before `tell`."""
        await self._load.create_endpoint(self._endpoint)

    def tell(self, load: Load) -> None:
        """Publish the pass that runs, and the load if it changed."""
        self._tell_pass(load)
        block = self._spec.block_tokens
        used = -(-load.held_kv_tokens // block)
        active = -(-load.active_kv_tokens // block)
        self._gauges.tell(active, used)

    def _tell_pass(self, load: Load) -> None:
        work = load.work
        if work is None or load.steps == self._steps:
            return
        self._steps = load.steps
        self._passes.publish(
            dp_rank=0,
            scheduled_num_prefill_requests=load.prefills,
            scheduled_sum_prefill_tokens=work.prefill_tokens,
            scheduled_sum_prefill_kv_tokens=0,
            scheduled_num_decode_requests=load.batch,
            scheduled_sum_decode_kv_tokens=int(work.decode_kv_tokens),
            queued_num_prefill_requests=load.waiting,
            queued_sum_prefill_tokens=load.queued_prefill_tokens - work.prefill_tokens,
            queued_num_decode_requests=0,
            queued_sum_decode_kv_tokens=0,
            wall_time_secs=load.pass_s,
        )

    def tell_blocks(self, cache: LiveCache) -> None:
        """Publish what came into the prefix cache and what left it."""
        for event in cache.take():
            if isinstance(event, Removed):
                self._blocks.publish_removed(list(event.hashes))
            else:
                counts = [self._spec.block_tokens] * len(event.hashes)
                self._blocks.publish_stored(
                    list(event.token_ids), counts, list(event.hashes), event.parent
                )

    def close(self) -> None:
        """Stop the publishers' own tasks."""
        self._gauges.close()
        self._passes.shutdown()
        self._blocks.shutdown()


def metrics_of(worker: WorkerLoop, phase: Phase) -> list[Metric]:
    """The worker's series; the words of load are those of the plant's `PoolCounters`."""
    load, lag = worker.load, worker.lag
    gauge, counter = "gauge", "counter"
    name = "wattline_worker_"
    startup = (
        []
        if worker.ready_s is None
        else [Metric(f"{name}startup_seconds", gauge, "From start to registered.", worker.ready_s)]
    )
    return [
        *startup,
        Metric(f"{name}ready", gauge, "1 while it takes requests.", float(phase is Phase.READY)),
        Metric(
            f"{name}queued_prefill_tokens",
            gauge,
            "Prompt tokens that wait or are computed.",
            load.queued_prefill_tokens,
        ),
        Metric(
            f"{name}active_kv_tokens",
            gauge,
            "Tokens of context held, and of prompts that wait.",
            load.active_kv_tokens,
        ),
        Metric(
            f"{name}kv_capacity_tokens",
            gauge,
            "Tokens of context that fit.",
            worker.engine.engine.kv_capacity_tokens,
        ),
        Metric(f"{name}running_requests", gauge, "Sequences in the engine.", load.running),
        Metric(f"{name}waiting_requests", gauge, "Sequences that wait.", load.waiting),
        Metric(
            f"{name}in_flight_requests",
            gauge,
            "Requests taken and not finished.",
            worker.engine.in_flight,
        ),
        Metric(f"{name}completed_requests_total", counter, "Finished.", worker.engine.completed),
        Metric(f"{name}passes_total", counter, "Forward passes.", load.steps),
        Metric(f"{name}generated_tokens_total", counter, "Output tokens.", load.generated_tokens),
        Metric(
            f"{name}cached_tokens_total",
            counter,
            "Prompt tokens that the prefix cache had.",
            load.cached_tokens,
        ),
        Metric(f"{name}preemptions_total", counter, "Sequences thrown out.", load.preemptions),
        Metric(
            f"{name}wanted_watts",
            gauge,
            "Draw per GPU of the pass that runs at the largest limit.",
            load.wanted_w,
        ),
        Metric(f"{name}draw_watts", gauge, "Draw per GPU under the present limit.", load.drawn_w),
        Metric(f"{name}pass_seconds", gauge, "Length of the pass that runs; 0: idle.", load.pass_s),
        Metric(f"{name}lag_seconds_sum", counter, "Lateness of wakes.", lag.sum_s),
        Metric(f"{name}lag_seconds_count", counter, "Wakes for the engine.", lag.wakes),
        Metric(f"{name}lag_seconds_max", gauge, "Largest lateness of a wake so far.", lag.max_s),
    ]
