"""A replica that steps token by token: slow, plain, and what the closed form must equal."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import Setting
from wattline.sim.request import Request


@dataclass(slots=True)
class _Job:
    index: int
    prompt: int
    prefill_left: int
    left: int


@dataclass(slots=True)
class NaiveResult:
    """Per request in order of arrival: seconds to the first token and of the last one."""

    ttft_s: list[float]
    finished_s: list[float]
    preemptions: int = 0


class NaiveReplica:
    """Aggregated replica. `caps` says from when on which cap is obeyed; the first from 0."""

    def __init__(
        self, engine: EngineModel, requests: list[Request], caps: list[tuple[float, float]]
    ) -> None:
        self._engine = engine
        self._requests = requests
        self._caps = caps
        self._now = 0.0
        self._waiting: list[_Job] = []
        self._decoding: list[_Job] = []
        self._arrived = 0
        self._result = NaiveResult([-1.0] * len(requests), [-1.0] * len(requests))

    def run(self) -> NaiveResult:
        """Serve everything."""
        while True:
            self._take_arrivals()
            if not self._waiting and not self._decoding:
                if self._arrived == len(self._requests):
                    return self._result
                self._now = self._requests[self._arrived].time_s
                continue
            self._one_pass()

    def _take_arrivals(self) -> None:
        while (
            self._arrived < len(self._requests)
            and self._requests[self._arrived].time_s <= self._now
        ):
            request = self._requests[self._arrived]
            tokens = request.input_tokens
            self._waiting.append(_Job(self._arrived, tokens, tokens, request.output_tokens))
            self._arrived += 1

    def _one_pass(self) -> None:
        engine, decoding = self._engine, self._decoding
        while decoding and self._held() + len(decoding) > engine.kv_capacity_tokens:
            job = decoding.pop()
            job.prefill_left = job.prompt
            self._waiting.insert(0, job)
            self._result.preemptions += 1
        chosen: list[tuple[_Job, int]] = []
        budget = engine.max_batched_tokens - len(decoding)
        free = engine.kv_capacity_tokens - self._held() - len(decoding)
        while self._waiting and budget > 0 and len(decoding) + len(chosen) < engine.max_num_seqs:
            job = self._waiting[0]
            if job.prompt + 1 > free:
                break
            self._waiting.pop(0)
            chunk = min(budget, job.prefill_left)
            chosen.append((job, chunk))
            budget -= chunk
            free -= job.prompt + 1
        done = [job for job, chunk in chosen if chunk == job.prefill_left]
        context = 0.0
        for job, chunk in chosen:
            before = job.prompt - job.prefill_left
            context += sum(before + i for i in range(1, chunk + 1))
        work = ForwardPass(
            prefill_tokens=sum(chunk for _, chunk in chosen),
            prefill_context=context,
            decode_batch=len(decoding) + len(done),
            decode_kv_tokens=float(self._held() + sum(job.prompt for job in done)),
        )
        self._spend(work)
        for job, chunk in chosen:
            job.prefill_left -= chunk
            if job.prefill_left:
                self._waiting.insert(0, job)
        for job in [*decoding, *done]:
            job.prompt += 1
            job.left -= 1
            if self._result.ttft_s[job.index] < 0.0:
                self._result.ttft_s[job.index] = self._now - self._requests[job.index].time_s
            if not job.left:
                self._result.finished_s[job.index] = self._now
        self._decoding = [job for job in [*decoding, *done] if job.left]

    def _held(self) -> int:
        return sum(job.prompt for job in self._decoding)

    def _spend(self, work: ForwardPass) -> None:
        """Let the pass happen; a change of the cap stretches what is left of it."""
        left = 1.0
        for place, (_, cap_w) in enumerate(self._caps):
            end_s = self._caps[place + 1][0] if place + 1 < len(self._caps) else float("inf")
            if self._now >= end_s:
                continue
            seconds = self._engine.cost(work, Setting(cap_w)).duration_s
            if self._now + left * seconds <= end_s:
                self._now += left * seconds
                return
            left -= (end_s - self._now) / seconds
            self._now = end_s
