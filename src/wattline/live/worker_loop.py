"""Runs a live engine in real time: wakes up when its next event is due, and serves requests.

Requests in, tokens out, limits from the GPUs, the wanted draw into them; all on one asyncio loop
that sleeps until the engine's next deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.core.snapshot import Phase
from wattline.live.worker_blocks import LiveCache, block_hashes
from wattline.live.worker_engine import Job, LiveEngine, Load, transfer_s
from wattline.live.worker_spec import WorkerSpec

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""Limits are read at every wake, and at least so often while something runs."""
REST_S = 0.5
"""The same while nothing runs; also the period of reading clock ceilings."""
_TRANSFER = "wattline_source_gpus"


class Gpus(Protocol):
    """The GPUs of the replica."""

    def limits_w(self) -> tuple[float, ...]:
        """Watts that the chips obey by now."""
        ...

    def clocks(self) -> tuple[float, ...]:
        """Clock ceilings as fractions of the largest clock."""
        ...

    def want(self, watts: float, clocks: tuple[float, ...]) -> None:
        """What the work would draw per GPU without a limit."""
        ...


class Signals(Protocol):
    """Where the worker's load is told besides the metrics page."""

    def tell(self, load: Load) -> None:
        """The load has changed."""
        ...

    def tell_blocks(self, cache: LiveCache) -> None:
        """Blocks came into the prefix cache or left it: take them out of `cache.events`."""
        ...


@dataclass(slots=True)
class Lag:
    """How late the loop woke up after the engine's deadlines."""

    wakes: int = 0
    sum_s: float = 0.0
    max_s: float = 0.0

    def note(self, late_s: float) -> None:
        """One wake."""
        self.wakes += 1
        self.sum_s += late_s
        self.max_s = max(self.max_s, late_s)


class WorkerLoop:
    """One worker: its engine, its GPUs and its requests. Everything runs on the running loop.

    `zero_s` is the moment of `asyncio`'s clock from which the engine's time counts: the start of
    the process. `ready_s` is when it was registered, on the engine's clock; None: not yet.
    """

    def __init__(
        self, spec: WorkerSpec, engine: LiveEngine, gpus: Gpus, cache: LiveCache, zero_s: float
    ) -> None:
        self.spec = spec
        self.engine = engine
        self.cache = cache
        self.lag = Lag()
        self.signals: Signals | None = None
        self.ready_s: float | None = None
        self._gpus = gpus
        self._zero_s = zero_s
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.Future[None] | None = None
        self._clocks = gpus.clocks()
        self._clocks_read_s = 0.0
        self._ending = False
        self._ready = asyncio.Event()
        self.load = engine.load(0.0)

    def now(self) -> float:
        """Seconds on the engine's clock."""
        return self._loop.time() - self._zero_s

    # The loop

    async def run(self) -> None:
        """Drive the engine until `end`. WattlineError when a GPU is lost."""
        engine = self.engine
        engine.step_stride = self.spec.stream_steps
        engine.start(0.0)
        while not self._ending:
            now = self.now()
            engine.obey(now, self._gpus.limits_w(), self._ceilings(now))
            self._look(now)
            if engine.phase is not Phase.STARTING:
                self._ready.set()
            next_s = engine.next_s(now)
            rest_s = now + (LOOK_S if self.load.work is not None else REST_S)
            deadline = rest_s if next_s is None else min(rest_s, next_s)
            await self._sleep_until(deadline)
            if next_s is not None and deadline == next_s and self.now() >= next_s:
                self.lag.note(self.now() - next_s)

    def _ceilings(self, now: float) -> tuple[float, ...]:
        if now - self._clocks_read_s >= REST_S:
            self._clocks_read_s = now
            self._clocks = self._gpus.clocks()
        return self._clocks

    def _look(self, now: float) -> None:
        """Tell the GPUs, the router and the page what runs now."""
        self.load = load = self.engine.load(now)
        self._gpus.want(load.wanted_w, self._clocks)
        if self.signals is not None:
            self.signals.tell(load)
            if self.cache.events:
                self.signals.tell_blocks(self.cache)

    async def _sleep_until(self, deadline_s: float) -> None:
        self._alarm = alarm = self._loop.create_future()
        timer = self._loop.call_at(self._zero_s + deadline_s, _ring, alarm)
        try:
            await alarm
        finally:
            timer.cancel()
            self._alarm = None

    def wake(self) -> None:
        """Something came in: look now."""
        if self._alarm is not None:
            _ring(self._alarm)

    async def ready(self) -> None:
        """Wait until the model is loaded."""
        await self._ready.wait()

    async def drained(self, limit_s: float) -> bool:
        """Wait until no request is in flight; False if that took longer than `limit_s`."""
        end_s = self._loop.time() + limit_s
        while self.engine.in_flight and self._loop.time() < end_s:
            await asyncio.sleep(min(LOOK_S, max(0.0, end_s - self._loop.time())))
        return not self.engine.in_flight

    def end(self) -> None:
        """Stop to drive."""
        self.engine.stop(self.now())
        self._ending = True
        self.wake()

    # Requests

    async def answer(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Items of Dynamo's answer to one request, as they are made.

        A request whose client went away is finished all the same: the plant's engine cannot abort.
        InputError for a request that could never be served.
        """
        tokens: Sequence[int] = request.get("token_ids") or ()
        if not tokens:
            raise InputError("request, token_ids", tokens, "a prompt has at least one token")
        moved = asyncio.Event()

        def changed(job: Job) -> None:
            moved.set()

        prefill_only = self.spec.role is Role.PREFILL
        output = 1 if prefill_only else self._output_tokens(request)
        job = self._submit(request, tokens, output, changed)
        if prefill_only:
            while not job.finished:
                await moved.wait()
                moved.clear()
            yield {
                "token_ids": _made_up(tokens, 0, 1),
                "disaggregated_params": {"kv_transfer_params": {_TRANSFER: len(self.spec.gpus)}},
                # With "stop" the frontend would end the request here.
                "finish_reason": "length",
            }
            return
        told = 0
        while told < output:
            made = job.made
            if made == told:
                await moved.wait()
                moved.clear()
                continue
            item: dict[str, Any] = {"token_ids": _made_up(tokens, told, made)}
            if made == output:
                item["finish_reason"] = "length"
            told = made  # while the item is taken, the engine goes on
            yield item

    def _submit(
        self,
        request: Mapping[str, Any],
        tokens: Sequence[int],
        output: int,
        changed: Callable[[Job], None],
    ) -> Job:
        now = self.now()
        self.engine.obey(now, self._gpus.limits_w(), self._clocks)
        source_gpus = _source_gpus(request) if self.spec.role is Role.DECODE else None
        if source_gpus is not None:
            delay_s = transfer_s(self.engine.engine, len(tokens), source_gpus)
            job = self.engine.submit(
                now,
                prompt_tokens=len(tokens),
                output_tokens=output,
                changed=changed,
                prefilled=True,
                delay_s=delay_s,
            )
        else:
            hashes = block_hashes(tokens, self.spec.block_tokens)
            self.cache.learn(hashes, tokens)

            def finished(job: Job) -> None:
                changed(job)
                if job.finished:
                    self.cache.forget(hashes)

            job = self.engine.submit(
                now,
                prompt_tokens=len(tokens),
                output_tokens=output,
                changed=finished,
                hashes=hashes,
            )
        self.wake()
        return job

    def _output_tokens(self, request: Mapping[str, Any]) -> int:
        conditions = request.get("stop_conditions") or {}
        wanted = conditions.get("max_tokens")
        return self.spec.default_max_tokens if wanted is None else max(1, int(wanted))


def _source_gpus(request: Mapping[str, Any]) -> int | None:
    """GPUs of the worker that prefilled the prompt; None: nobody has, it is computed here."""
    result = request.get("prefill_result") or {}
    params = (result.get("disaggregated_params") or {}).get("kv_transfer_params") or {}
    gpus = params.get(_TRANSFER)
    return gpus if isinstance(gpus, int) and gpus > 0 else None


def _made_up(prompt: Sequence[int], start: int, end: int) -> list[int]:
    """Output tokens: nothing is computed, so the prompt is said again."""
    return [prompt[place % len(prompt)] for place in range(start, end)]


def _ring(alarm: asyncio.Future[None]) -> None:
    if not alarm.done():
        alarm.set_result(None)
