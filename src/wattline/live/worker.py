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
from importlib import import_module
from pathlib import Path
from typing import Any

from wattline.core.errors import InputError, WattlineError
from wattline.core.fleet import Role
from wattline.core.snapshot import Phase
from wattline.live.processes import boot_ticks
from wattline.live.worker_blocks import LiveCache
from wattline.live.worker_engine import LiveEngine
from wattline.live.worker_gpus import WorkerGpus
from wattline.live.worker_loop import WorkerLoop
from wattline.live.worker_page import Metric, Page
from wattline.live.worker_signals import DynamoSignals, metrics_of
from wattline.live.worker_spec import WorkerSpec, build_engine

log = logging.getLogger("wattline.worker")

_END_S = 5.0
"""How long Dynamo's runtime may take to let go after the last request."""


class DynamoWorker:
    """The worker's life with Dynamo: register, serve, drain."""

    def __init__(self, spec: WorkerSpec, worker: WorkerLoop) -> None:
        self._spec = spec
        self._worker = worker
        self._phase = Phase.STARTING
        self._asked = asyncio.Event()

    def ask_to_end(self) -> None:
        """Finish what is in flight, then end."""
        self._asked.set()

    def not_ready(self) -> str | None:
        """Why it takes no requests; None: it does."""
        return None if self._phase is Phase.READY else self._phase.value

    def metrics(self) -> list[Metric]:
        """Its series now."""
        return metrics_of(self._worker, self._phase)

    async def live(self, url: str) -> bool:
        """Serve until asked to end. True when every request got its answer.

        WattlineError when a GPU is lost.
        """
        driving = asyncio.create_task(self._worker.run(), name="engine")
        asked = asyncio.create_task(self._asked.wait(), name="asked")
        try:
            loaded = asyncio.create_task(self._worker.ready(), name="loaded")
            await _first(loaded, driving, asked)
            loaded.cancel()
            return True if asked.done() else await self._serve(url, driving, asked)
        finally:
            asked.cancel()
            self._worker.end()
            await driving

    async def _serve(
        self, url: str, driving: asyncio.Task[None], asked: asyncio.Task[bool]
    ) -> bool:
        spec, worker = self._spec, self._worker
        runtime = import_module("dynamo.runtime").DistributedRuntime(
            asyncio.get_running_loop(),
            os.environ["DYN_DISCOVERY_BACKEND"],
            os.environ["DYN_REQUEST_PLANE"],
        )
        endpoint = runtime.endpoint(spec.endpoint)
        serving = asyncio.ensure_future(endpoint.serve_endpoint(self._generate))
        signals = DynamoSignals(spec, endpoint)
        try:
            await signals.connect()
            worker.signals = signals
            await _register(spec, endpoint, worker.engine.engine.kv_capacity_tokens)
            self._phase = Phase.READY
            worker.ready_s = worker.now()
            _say("ready", worker=spec.name, metrics=f"{url}/metrics", startup_s=worker.ready_s)
            await _first(serving, driving, asked)
            if not asked.done():
                return False
            return await self._drain(endpoint)
        finally:
            self._phase = Phase.DRAINING
            signals.close()
            runtime.shutdown()
            await asyncio.wait([serving], timeout=_END_S)

    async def _drain(self, endpoint: Any) -> bool:
        """Leave Dynamo's discovery, then wait: requests already sent to us still arrive."""
        self._phase = Phase.DRAINING
        _say("draining", worker=self._spec.name, in_flight=self._worker.engine.in_flight)
        await endpoint.unregister_endpoint_instance()
        await asyncio.sleep(self._spec.quiet_s)
        clean = await self._worker.drained(self._spec.drain_s)
        _say("drained", worker=self._spec.name, lost=self._worker.engine.in_flight)
        return clean

    async def _generate(
        self, request: dict[str, Any], context: Any
    ) -> AsyncIterator[dict[str, Any]]:
        try:
            async for item in self._worker.answer(request):
                yield item
        except InputError as error:  # so that the client hears that it is its request
            raise import_module("dynamo.llm.exceptions").InvalidArgument(str(error)) from None


async def _register(spec: WorkerSpec, endpoint: Any, kv_tokens: int) -> None:
    """The model's card, by role; prefill and decode each say that they need the other."""
    llm = import_module("dynamo.llm")
    config = llm.ModelRuntimeConfig()
    config.total_kv_blocks = kv_tokens // spec.block_tokens
    config.max_num_seqs = spec.max_num_seqs
    config.max_num_batched_tokens = spec.max_batched_tokens
    kinds = llm.WorkerType
    text = llm.ModelType.Chat | llm.ModelType.Completions
    model_type, kind, needs = {
        Role.AGGREGATED: (text, kinds.Aggregated, None),
        Role.DECODE: (text, kinds.Decode, [[kinds.Prefill]]),
        Role.PREFILL: (llm.ModelType.Prefill, kinds.Prefill, [[kinds.Decode]]),
    }[spec.role]
    await llm.register_model(
        llm.ModelInput.Tokens,
        model_type,
        endpoint,
        spec.model_dir,
        spec.served_name,
        worker_type=kind,
        kv_cache_block_size=spec.block_tokens,
        runtime_config=config,
        needs=needs,
    )


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def serve(spec: WorkerSpec, gpus: WorkerGpus, born_s: float) -> bool:
    """Run one worker until it is told to end; True when no request was lost."""
    loop = asyncio.get_running_loop()
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
    zero_s = loop.time() - (time.monotonic() - born_s)
    dynamo = DynamoWorker(spec, WorkerLoop(spec, engine, gpus, cache, zero_s))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, dynamo.ask_to_end)
    labels = {"worker": spec.name, "role": spec.role.value, "model": spec.served_name}
    page = Page(spec.metrics_port, labels, dynamo.metrics, dynamo.not_ready)
    try:
        return await dynamo.live(page.url)
    finally:
        page.close()


def _born_s() -> float:
    """When this process was started, on `time.monotonic`'s clock: imports count as start-up."""
    ticks = boot_ticks(os.getpid())
    assert ticks is not None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age_s


def _say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def main(arguments: list[str]) -> int:
    """Run the worker of a specification: exit code 0 drained, 1 failed or lost, 2 bad input."""
    born_s = _born_s()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        if not arguments:
            raise InputError("worker", arguments, "give a specification, as JSON")
        spec = WorkerSpec.from_json(arguments[0], arguments[1:])
        with WorkerGpus(Path(spec.gpus_file), spec.gpus) as gpus:
            return 0 if asyncio.run(serve(spec, gpus, born_s)) else 1
    except WattlineError as error:
        print(f"wattline worker: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
