"""The most that one replica serves within its targets under one setting, from its engine model.

Prefill. A prompt's uncached tokens are computed in passes of at most `max_batched_tokens`, several
short prompts in one pass where that serves more. What is left of the TTFT target after the pass
itself, moving the cache and the first decode step is for waiting (queueing.py).

Decode. The largest batch whose step meets the ITL target, fits the cache and the engine's limit,
less a margin for its fluctuation. Context per sequence is prompt + output (1 + cv2) / 2: what a
sequence seen at a random time holds (inspection paradox).

Aggregated. Prompt chunks share passes with decoding, so the mean time between tokens is the mean
over passes with and without a chunk. Both targets apply.

All outcomes are rounded to six digits, below any model's error, so that they do not depend on a
processor's last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, sqrt

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import Role, Slo
from wattline.core.mix import Mix
from wattline.core.point import (
    LOADS,
    Limit,
    Margins,
    Point,
    load_curve,
    make_point,
    no_point,
    with_idle,
)
from wattline.core.queueing import mean_batch, mean_wait_s, most_utilisation

# Shares of the full batch between which draw is interpolated.
_BATCH_SHARES = (0.01, 0.03, 0.1, 0.3, 0.6)
# Batches tried for an aggregated replica: 1.01**-1200 of the most is the least.
_BATCHES = 1200
# More prompts than this in one pass change nothing: a pass is long past its fixed costs.
_MOST_PROMPTS = 64

Cost = Callable[[ForwardPass], tuple[float, float]]
"""Seconds and watts per GPU of a pass under the setting in question."""


def operating_point(
    engine: EngineModel, role: Role, cost: Cost, mix: Mix, slo: Slo, servers: int, m: Margins
) -> Point:
    """Find the most that one of `servers` replicas sharing a queue serves within the targets."""
    if role is Role.PREFILL:
        return _prefill(engine, cost, mix, slo, servers, m)
    if role is Role.DECODE:
        return _decode(engine, cost, mix, slo, servers, m)
    return _aggregated(engine, cost, mix, slo, servers, m)


def _prefill(
    engine: EngineModel, cost: Cost, mix: Mix, slo: Slo, servers: int, m: Margins
) -> Point:
    tokens = max(1.0, mix.computed_tokens)
    transfer_s = m.kv_latency_s + mix.input_tokens * engine.kv_bytes_per_token / m.kv_bytes_per_s
    target_s = slo.ttft_s * m.ttft_fraction - transfer_s - slo.itl_s
    best: Point | None = None
    for prompts in _prompt_counts(tokens, engine.max_batched_tokens):
        pass_s, busy_w = prompt_pass(engine, cost, mix, prompts, m)
        each_s = pass_s / prompts
        most = most_utilisation(target_s - pass_s, each_s, servers, m.input_cv2, m.ttft_quantile)
        used = min(most, m.utilisation)
        if best is not None and used / each_s <= best.rate_rps:
            continue
        wait_s = mean_wait_s(used, each_s, servers, m.input_cv2)
        best = make_point(
            engine=engine,
            rate_rps=used / each_s,
            batch=float(prompts),
            utilisation=used,
            busy_w=busy_w,
            curve=[engine.idle_w + (busy_w - engine.idle_w) * used * load for load in LOADS],
            ttft_s=wait_s + pass_s + transfer_s + slo.itl_s,
            itl_s=None,
            limit=Limit.COMPUTE if most >= m.utilisation else Limit.TTFT,
        )
    assert best is not None
    return best


def _decode(engine: EngineModel, cost: Cost, mix: Mix, slo: Slo, servers: int, m: Margins) -> Point:
    context = _context(mix, m)
    steps = max(1.0, mix.output_tokens)

    def step(batch: float) -> tuple[float, float]:
        return cost(_decoding(batch, context))

    def exceeded(batch: int) -> Limit | None:
        return None if step(batch)[0] <= slo.itl_s * m.itl_fraction else Limit.ITL

    high, by_cache = _most_sequences(engine, context, servers, m)
    most, limit = _last_good(high, exceeded) if high else (0, Limit.KV)
    if most == 0:
        return no_point(engine, limit)
    mean, limit = _with_room(most, limit, by_cache, servers, m)
    seconds, watts = step(mean)
    loads = [(0.0, engine.idle_w)]
    for share in _BATCH_SHARES:
        part_s, part_w = step(mean * share)
        loads.append((share * seconds / part_s, with_idle(engine, mean * share, part_w)))
    draw = with_idle(engine, mean, watts)
    return make_point(
        engine=engine,
        rate_rps=mean / (steps * seconds),
        batch=mean,
        utilisation=1.0 - exp(-mean),
        busy_w=watts,
        curve=load_curve([*loads, (1.0, draw)]),
        ttft_s=None,
        itl_s=seconds,
        limit=limit,
    )


def _aggregated(
    engine: EngineModel, cost: Cost, mix: Mix, slo: Slo, servers: int, m: Margins
) -> Point:
    context = _context(mix, m)
    steps = max(1.0, mix.output_tokens - 1.0)

    def shared(batch: float) -> SharedPasses | None:
        return shared_passes(engine, cost, mix, batch, context, steps, m)

    high, by_cache = _most_sequences(engine, context, servers, m)

    def batch_at(number: int) -> float:
        """Batches from far below one to the most, in steps of one per cent."""
        return high * 1.01 ** (number - _BATCHES)

    def exceeded(number: int) -> Limit | None:
        batch = batch_at(number)
        passes = shared(batch)
        if passes is None:
            return Limit.COMPUTE
        if passes.mean_s + m.itl_deviations * passes.spread_s > slo.itl_s * m.itl_fraction:
            return Limit.ITL
        left_s = slo.ttft_s * m.ttft_fraction - passes.prompt_s - passes.mean_s / 2.0
        allowed = most_utilisation(left_s, passes.prompt_s, servers, m.input_cv2, m.ttft_quantile)
        used = batch / (steps * passes.mean_s) * passes.prompt_s
        if used <= min(allowed, m.utilisation):
            return None
        return Limit.TTFT if allowed < m.utilisation else Limit.COMPUTE

    number, limit = _last_good(_BATCHES, exceeded) if high else (0, Limit.KV)
    mean, limit = _with_room(batch_at(number), limit, by_cache, servers, m)
    passes = shared(mean) if number else None
    if passes is None:
        return no_point(engine, limit)
    rate = mean / (steps * passes.mean_s)
    loads = [(0.0, engine.idle_w)]
    for share in _BATCH_SHARES:
        part = shared(mean * share)
        if part is not None:
            load = share * passes.mean_s / part.mean_s
            loads.append((load, with_idle(engine, mean * share, part.watts)))
    used = rate * passes.prompt_s
    wait_s = mean_wait_s(min(used, m.utilisation), passes.prompt_s, servers, m.input_cv2)
    return make_point(
        engine=engine,
        rate_rps=rate,
        batch=mean,
        utilisation=1.0 - exp(-mean),
        busy_w=passes.watts,
        curve=load_curve([*loads, (1.0, with_idle(engine, mean, passes.watts))]),
        ttft_s=wait_s + passes.prompt_s + passes.mean_s / 2.0,
        itl_s=passes.mean_s,
        limit=limit,
    )


@dataclass(frozen=True, slots=True)
class SharedPasses:
    """Passes of an aggregated replica: mean seconds and watts, and seconds to take in a prompt.

    spread_s: standard deviation of a request's mean time between tokens, because some requests are
    interrupted by more prompts than others.
    """

    mean_s: float
    spread_s: float
    watts: float
    prompt_s: float


def shared_passes(
    engine: EngineModel,
    cost: Cost,
    mix: Mix,
    batch: float,
    context: float,
    steps: float,
    m: Margins,
) -> SharedPasses | None:
    """Mix of passes with and without prompt work at a batch; None if prompts do not fit at all.

    A mean batch below one is an engine that is idle at times; its passes hold one sequence.
    """
    prompt = max(1.0, mix.computed_tokens)
    batch = max(1.0, batch)
    room = engine.max_batched_tokens - batch
    # In the steady state each pass must take in what its tokens will have ended.
    wanted = batch * prompt / steps
    if room < 1.0 or wanted > room:
        return None
    chunk = max(min(prompt, room), min(wanted, room))
    share = wanted / chunk
    plain_s, plain_w = cost(_decoding(batch, context))
    chunk_context = chunk / prompt * _prompt_context(mix, m)
    mixed_s, mixed_w = cost(
        ForwardPass(
            prefill_tokens=max(1, round(chunk)),
            prefill_context=chunk_context,
            decode_batch=round(batch),
            decode_kv_tokens=batch * context,
        )
    )
    mean_s = (1.0 - share) * plain_s + share * mixed_s
    energy = (1.0 - share) * plain_s * plain_w + share * mixed_s * mixed_w
    spread_s = (mixed_s - plain_s) * sqrt(share * (1.0 - share) / steps)
    return SharedPasses(mean_s, spread_s, energy / mean_s, mixed_s * prompt / chunk)


def _prompt_counts(tokens: float, most_tokens: int) -> list[int]:
    """Numbers of prompts per pass worth trying: powers of two and the most that fit."""
    most = min(_MOST_PROMPTS, max(1, int(most_tokens / tokens)))
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts if most == 1 else [*counts, most]


def _prompt_context(mix: Mix, m: Margins) -> float:
    """Tokens that all tokens of a mean prompt attend to together, its own spread included."""
    tokens = max(1.0, mix.computed_tokens)
    cached = mix.input_tokens - mix.computed_tokens
    return tokens * cached + tokens * (tokens * (1.0 + m.input_cv2) + 1.0) / 2.0


def prompt_pass(
    engine: EngineModel, cost: Cost, mix: Mix, prompts: int, m: Margins
) -> tuple[float, float]:
    """Seconds and mean watts to compute `prompts` prompts, in several passes if one is too long."""
    tokens = prompts * max(1.0, mix.computed_tokens)
    context = prompts * _prompt_context(mix, m)
    passes = ceil(tokens / engine.max_batched_tokens)
    seconds, joules = 0.0, 0.0
    for number in range(passes):
        # Later chunks attend to all earlier ones: shares 1, 3, 5, ... of the square.
        part = context * (2 * number + 1) / (passes * passes)
        work = ForwardPass(prefill_tokens=max(1, round(tokens / passes)), prefill_context=part)
        duration_s, watts = cost(work)
        seconds += duration_s
        joules += duration_s * watts
    return seconds, joules / seconds


def _decoding(batch: float, context: float) -> ForwardPass:
    return ForwardPass(decode_batch=max(1, round(batch)), decode_kv_tokens=batch * context)


def _context(mix: Mix, m: Margins) -> float:
    """Tokens of context that a decoding sequence holds at a random time."""
    return max(1.0, mix.input_tokens + mix.output_tokens * (1.0 + m.output_cv2) / 2.0)


def _most_sequences(
    engine: EngineModel, context: float, servers: int, m: Margins
) -> tuple[int, float]:
    """Most sequences that fit, and the most that may be in flight on average for the cache's sake.

    Both the number of sequences and the size of each vary.
    """
    fitting = engine.kv_capacity_tokens * m.kv_fraction / context
    deviations = m.cache_deviations * sqrt(1.0 + m.input_cv2)
    return min(int(fitting), engine.max_num_seqs), mean_batch(fitting, servers, deviations)


def _with_room(
    most: float, limit: Limit, by_cache: float, servers: int, m: Margins
) -> tuple[float, Limit]:
    """Mean batch that leaves room for its spread below the largest one, and what limits it."""
    mean = most
    if limit not in (Limit.TTFT, Limit.COMPUTE):  # These have the margin of their queue.
        mean = mean_batch(most, servers, m.batch_deviations)
    return (by_cache, Limit.KV) if by_cache <= mean else (mean, limit)


def _last_good(count: int, exceeded: Callable[[int], Limit | None]) -> tuple[int, Limit]:
    """Largest number up to `count` that exceeds nothing (0: none), and what the next one exceeds.

    Bisection: what exceeds a limit is taken to go on exceeding it.
    """
    limit = exceeded(count)
    if limit is None:
        return count, Limit.SEQS
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        found = exceeded(middle)
        if found is None:
            low = middle
        else:
            high, limit = middle, found
    return low, limit
