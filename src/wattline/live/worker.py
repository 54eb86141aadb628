"""A real Dynamo worker: `python -m wattline.live.worker SPEC`, with Dynamo's own interpreter.

Registers with Dynamo's runtime and serves requests with the plant's engine in real time; the call
by call account is in docs/guides/live-worker.md. SIGTERM and SIGINT drain.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from wattline.core.errors import WattlineError
from wattline.core.fleet import Role
from wattline.core.snapshot import Phase
from wattline.live.worker_blocks import LiveCache
from wattline.live.worker_engine import LiveEngine
from wattline.live.worker_gpus import WorkerGpus
from wattline.live.worker_loop import WorkerLoop
from wattline.live.worker_page import Page
from wattline.live.worker_signals import DynamoSignals, metrics_of
from wattline.live.worker_spec import WorkerSpec, build_engine

log = logging.getLogger("wattline.worker")


async def serve(spec: WorkerSpec, gpus: WorkerGpus, born_s: float) -> int:
    """Run one worker until it is told to end; returns the exit code."""
    loop = asyncio.get_running_loop()
    zero_s = loop.time() - (time.monotonic() - born_s)
    cache = LiveCache(spec.block_tokens)
    engine = LiveEngine(
        engine=build_engine(spec, gpus.product.name),
        role=spec.role,
        product=gpus.product,
        gpus=len(spec.gpus),
        startup_s=spec.startup_s,
        cap_w=min(gpus.limits_w()),
        tokens_per_block=spec.block_tokens,
        cache=cache,
    )
    worker = WorkerLoop(spec, engine, gpus, cache, zero_s)
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    state = _State(worker)
    labels = {"worker": spec.name, "role": spec.role.value, "model": spec.served_name}
    page = Page(spec.metrics_port, labels, state.metrics, state.not_ready)
    driving = asyncio.create_task(worker.run(), name="engine")
    try:
        return await _life(spec, worker, state, page, driving, asked)
    finally:
        worker.end()
        await asyncio.gather(driving, return_exceptions=True)
        page.close()


class _State:
    """Phase and numbers for the page."""

    def __init__(self, worker: WorkerLoop) -> None:
        self._worker = worker
        self.serving = False
        self.draining = False

    def not_ready(self) -> str | None:
        if self.draining:
            return "draining"
        return None if self.serving else "starting"

    def metrics(self) -> list[Any]:
        phase = Phase.DRAINING if self.draining else Phase.STARTING
        return metrics_of(self._worker, Phase.READY if self.not_ready() is None else phase)


async def _life(
    spec: WorkerSpec,
    worker: WorkerLoop,
    state: _State,
    page: Page,
    driving: asyncio.Task[None],
    asked: asyncio.Event,
) -> int:
    """Load, register, serve, drain."""
    from dynamo.llm import ModelInput, ModelRuntimeConfig, ModelType, WorkerType, register_model
    from dynamo.runtime import DistributedRuntime

    if not await _first(asyncio.create_task(worker.ready()), driving, asked):
        return _failed(driving)
    runtime = DistributedRuntime(
        asyncio.get_running_loop(), os.environ["DYN_DISCOVERY_BACKEND"], os.environ["DYN_REQUEST_PLANE"]
    )
    endpoint = runtime.endpoint(spec.endpoint)
    config = ModelRuntimeConfig()
    config.total_kv_blocks = worker.engine.engine.kv_capacity_tokens // spec.block_tokens
    config.max_num_seqs = spec.max_num_seqs
    config.max_num_batched_tokens = spec.max_batched_tokens
    text = ModelType.Chat | ModelType.Completions
    kinds: dict[Role, tuple[Any, Any, Any]] = {
        Role.AGGREGATED: (text, WorkerType.Aggregated, None),
        Role.DECODE: (text, WorkerType.Decode, [[WorkerType.Prefill]]),
        Role.PREFILL: (ModelType.Prefill, WorkerType.Prefill, [[WorkerType.Decode]]),
    }
    model_type, worker_type, needs = kinds[spec.role]

    async def generate(request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        async for item in worker.answer(request):
            yield item

    serving = asyncio.ensure_future(endpoint.serve_endpoint(generate, graceful_shutdown=True))
    signals = DynamoSignals(spec, endpoint)
    await signals.connect()
    worker.signals = signals
    worker.on_blocks = signals.tell_blocks
    await register_model(
        ModelInput.Tokens,
        model_type,
        endpoint,
        spec.model_dir,
        spec.served_name,
        worker_type=worker_type,
        kv_cache_block_size=spec.block_tokens,
        runtime_config=config,
        needs=needs,
    )
    state.serving = True
    _say({"event": "ready", "worker": spec.name, "metrics": f"{page.url}/metrics"})
    ended = await _first(serving, driving, asked)
    state.draining = True
    if driving.done():
        return _failed(driving)
    _say({"event": "draining", "worker": spec.name, "in_flight": worker.engine.in_flight})
    await endpoint.unregister_endpoint_instance()
    await asyncio.sleep(spec.quiet_s)
    clean = await worker.drained(spec.drain_s)
    _say({"event": "drained", "worker": spec.name, "lost": worker.engine.in_flight})
    signals.close()
    runtime.shutdown()
    await asyncio.wait([serving], timeout=5.0)
    return 0 if clean and not ended else 1


async def _first(
    wanted: asyncio.Future[Any], driving: asyncio.Task[None], asked: asyncio.Event
) -> bool:
    """Wait for `wanted`, the end of the engine or the wish to end; True if it was `wanted`."""
    wish = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait([wanted, driving, wish], return_when=asyncio.FIRST_COMPLETED)
    finally:
        wish.cancel()
    return wanted.done()


def _failed(driving: asyncio.Task[None]) -> int:
    """0 when we were asked to end before serving; else raise what ended the engine."""
    if driving.done():
        driving.result()
        return 1
    return 0


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def main() -> int:
    """Run the worker of the specification in the first argument; exit codes as the command's."""
    born_s = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        spec = WorkerSpec.from_json(sys.argv[1])
        with WorkerGpus(Path(spec.gpus_file), spec.gpus) as gpus:
            return asyncio.run(serve(spec, gpus, born_s))
    except WattlineError as error:
        print(f"wattline worker: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
