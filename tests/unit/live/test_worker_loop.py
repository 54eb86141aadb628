"""The loop in real time, on GPUs that are lists; nothing here asserts how long something took."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from live_fixtures import ListGpus, live_engine, spec

from wattline.catalog.engines import engine_polynomial
from wattline.core.engine import EngineModel
from wattline.core.errors import InputError, WattlineError
from wattline.core.fleet import Role
from wattline.core.snapshot import Phase
from wattline.live.worker_blocks import LiveCache, Stored
from wattline.live.worker_engine import Load
from wattline.live.worker_loop import WorkerLoop
from wattline.live.worker_page import Metric
from wattline.live.worker_signals import LatestValue, metrics_of

WITHIN_S = 20.0


class Heard:
    """Signals that remember."""

    def __init__(self) -> None:
        self.loads: list[Load] = []
        self.blocks: list[Any] = []

    def tell(self, load: Load) -> None:
        self.loads.append(load)

    def tell_blocks(self, cache: LiveCache) -> None:
        self.blocks.extend(cache.take())


class Running:
    """A loop that runs inside a test."""

    def __init__(self, devices: ListGpus, role: Role, model: EngineModel | None, **changes: Any):
        cache = LiveCache(64)
        engine = live_engine(model, role=role, cache=cache, gpus=len(devices.limit_w))
        engine.stop(0.0)  # it starts with the loop
        self.heard = Heard()
        self.loop = WorkerLoop(
            spec(role=role, **changes), engine, devices, cache, asyncio.get_running_loop().time()
        )
        self.loop.signals = self.heard

    async def __aenter__(self) -> WorkerLoop:
        self.driving = asyncio.create_task(self.loop.run())
        await asyncio.wait_for(self.loop.ready(), WITHIN_S)
        return self.loop

    async def __aexit__(self, *failure: object) -> None:
        self.loop.end()
        await asyncio.wait_for(self.driving, WITHIN_S)


async def ask(
    loop: WorkerLoop, prompt: int, output: int, first: int = 0, **more: Any
) -> list[dict[str, Any]]:
    request = {
        "token_ids": list(range(first, first + prompt)),
        "stop_conditions": {"max_tokens": output},
        **more,
    }

    async def collect() -> list[dict[str, Any]]:
        return [item async for item in loop.answer(request)]

    return await asyncio.wait_for(collect(), WITHIN_S)


def test_an_answer_has_every_token_once_and_says_how_it_ended() -> None:
    async def run() -> None:
        async with Running(ListGpus(), Role.AGGREGATED, None) as loop:
            answers = await asyncio.gather(*(ask(loop, 50 + i, 1 + 5 * i) for i in range(6)))
            for i, items in enumerate(answers):
                tokens = [token for item in items for token in item["token_ids"]]
                assert tokens == [place % (50 + i) for place in range(1 + 5 * i)]
                assert [item.get("finish_reason") for item in items][-1] == "length"
                assert all("finish_reason" not in item for item in items[:-1])
            assert loop.engine.in_flight == 0
            assert loop.lag.wakes > 0

    asyncio.run(run())


def test_a_slow_reader_gets_the_rest_in_larger_items() -> None:
    async def run() -> None:
        async with Running(ListGpus(), Role.AGGREGATED, None) as loop:
            for pause_s in (0.005, 0.02, 0.2):
                items = []
                request = {"token_ids": [1, 2, 3], "stop_conditions": {"max_tokens": 30}}
                async for item in loop.answer(request):
                    items.append(item)
                    await asyncio.sleep(pause_s)
                assert sum(len(item["token_ids"]) for item in items) == 30
                assert items[-1]["finish_reason"] == "length"
            assert len(items) < 30

    asyncio.run(run())


def test_a_request_without_a_length_gets_the_default() -> None:
    async def run() -> None:
        async with Running(ListGpus(), Role.AGGREGATED, None, default_max_tokens=3) as loop:
            items = await ask(loop, 10, 1, stop_conditions={"max_tokens": None})
            assert sum(len(item["token_ids"]) for item in items) == 3

    asyncio.run(run())


def test_a_prefill_worker_hands_over_and_a_decode_worker_takes_it() -> None:
    async def run() -> None:
        async with Running(ListGpus(gpus=2), Role.PREFILL, None, gpus=("a", "b")) as loop:
            (handed,) = await ask(loop, 500, 40)
            assert handed["finish_reason"] == "length"
            assert len(handed["token_ids"]) == 1
        decode = Running(ListGpus(), Role.DECODE, None)
        async with decode as loop:
            result = {"disaggregated_params": handed["disaggregated_params"]}
            items = await ask(loop, 500, 12, prefill_result=result)
            assert sum(len(item["token_ids"]) for item in items) == 12
            assert all(load.queued_prefill_tokens == 0 for load in decode.heard.loads)

    asyncio.run(run())


def test_a_decode_worker_computes_a_prompt_that_nobody_prefilled() -> None:
    async def run() -> None:
        running = Running(ListGpus(), Role.DECODE, None)
        async with running as loop:
            await ask(loop, 500, 2)
            assert max(load.queued_prefill_tokens for load in running.heard.loads) == 500

    asyncio.run(run())


def test_the_limit_of_the_gpu_reaches_the_engine_and_the_want_reaches_the_gpu() -> None:
    async def run() -> None:
        gpus, model = ListGpus(), engine_polynomial("H200")
        running = Running(gpus, Role.AGGREGATED, model)
        async with running as loop:
            passes = {}
            for limit_w in (700.0, 300.0):
                gpus.limit_w = [limit_w]
                running.heard.loads.clear()
                await ask(loop, 2000, 2, first=int(limit_w))
                passes[limit_w] = max(load.pass_s for load in running.heard.loads)
                drawn = max(load.drawn_w for load in running.heard.loads)
                assert drawn <= limit_w
            assert passes[300.0] > 1.2 * passes[700.0]
            assert max(gpus.wanted_w) > 300.0
        assert gpus.wanted_w[-1] <= model.idle_w

    asyncio.run(run())


def test_blocks_of_prompts_are_told_once() -> None:
    async def run() -> None:
        running = Running(ListGpus(), Role.AGGREGATED, None)
        async with running as loop:
            await ask(loop, 200, 2)
            await ask(loop, 200, 2)
            await ask(loop, 64, 2)
        stored = [event for event in running.heard.blocks if isinstance(event, Stored)]
        assert [len(event.hashes) for event in stored] == [3]
        assert stored[0].parent is None
        assert stored[0].token_ids == tuple(range(192))

    asyncio.run(run())


def test_an_empty_or_endless_prompt_is_refused_and_the_loop_goes_on() -> None:
    async def run() -> None:
        model = engine_polynomial("H200", kv_capacity_tokens=4096)
        async with Running(ListGpus(), Role.AGGREGATED, model) as loop:
            with pytest.raises(InputError, match="at least one token"):
                await ask(loop, 0, 1)
            with pytest.raises(InputError, match="4096"):
                await ask(loop, 4090, 100)
            assert await ask(loop, 10, 1)

    asyncio.run(run())


def test_drained_waits_for_what_is_in_flight_and_gives_up_at_its_limit() -> None:
    async def run() -> None:
        async with Running(ListGpus(), Role.AGGREGATED, None) as loop:
            asking = asyncio.create_task(ask(loop, 100, 60))
            while not loop.engine.in_flight:
                await asyncio.sleep(0)
            assert not await loop.drained(0.0)
            assert await loop.drained(WITHIN_S)
            assert await asking

    asyncio.run(run())


def test_a_lost_gpu_ends_the_loop_with_its_reason() -> None:
    class Lost(ListGpus):
        def limits_w(self) -> tuple[float, ...]:
            raise WattlineError("GPU a is gone (Xid 79): the worker ends")

    async def run() -> None:
        loop = Running(Lost(), Role.AGGREGATED, None).loop
        with pytest.raises(WattlineError, match="Xid 79"):
            await asyncio.wait_for(loop.run(), WITHIN_S)

    asyncio.run(run())


def test_every_number_of_the_page_has_a_name_of_its_own() -> None:
    async def run() -> list[Metric]:
        async with Running(ListGpus(), Role.AGGREGATED, None) as loop:
            await ask(loop, 100, 5)
            return metrics_of(loop, Phase.READY)

    found = {metric.name.removeprefix("wattline_worker_"): metric for metric in asyncio.run(run())}
    assert len({metric.name for metric in found.values()}) == len(found)
    assert found["ready"].value == 1.0
    assert found["completed_requests_total"].value == 1
    assert found["generated_tokens_total"].value == 5
    assert found["passes_total"].value == 5
    assert found["queued_prefill_tokens"].value == found["running_requests"].value == 0
    assert found["kv_capacity_tokens"].value == 16_384 * 64
    for metric in found.values():
        assert (metric.kind == "counter") == metric.name.endswith(("_total", "_sum", "_count"))


def test_the_last_change_is_told_even_when_nothing_follows() -> None:
    """A worker that goes idle must not stay busy for the router until its next look."""

    async def told() -> list[tuple[int, int]]:
        sent: list[tuple[int, int]] = []
        value = LatestValue(lambda active, used: sent.append((active, used)), 0.05)
        for active in (0, 1, 2, 0, 3):
            value.tell(active, active)
            value.tell(active, active)
        await until(lambda: sent[-1] == (3, 3))
        value.tell(4, 4)
        value.tell(0, 1)
        await until(lambda: sent[-1] == (0, 1))
        return sent

    sent = asyncio.run(told())
    assert sent[0] == (0, 0), "the first one at once"
    assert all(before != after for before, after in pairwise(sent)), "changes only"


def test_a_change_waits_for_its_period_and_is_not_told_after_the_end() -> None:
    async def told() -> tuple[list[int], int]:
        sent: list[int] = []
        value = LatestValue(lambda active, _: sent.append(active), 0.05)
        value.tell(0, 0)
        waiting = 1
        value.tell(waiting, 0)
        while sent[-1] == waiting:  # a slow machine: the period was over already
            waiting += 1
            value.tell(waiting, 0)
        value.close()
        await asyncio.sleep(0.15)
        return sent, waiting

    sent, waiting = asyncio.run(told())
    assert sent == list(range(waiting))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.01)
