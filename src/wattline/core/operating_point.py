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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, exp

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import Role, Slo
from wattline.core.mix import Mix
from wattline.core.queueing import mean_batch, mean_wait_s, most_utilisation

LOADS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a replica's rate at which `Point.curve_w` is given."""

_BATCH_SHARES = (0.15, 0.4, 0.7)
# Batches tried for an aggregated replica: 1.01**-1200 of the most is the least.
_BATCHES = 1200
# More prompts than this in one pass change nothing: a pass is long past its fixed costs.
_MOST_PROMPTS = 64

Cost = Callable[[ForwardPass], tuple[float, float]]
"""Seconds and watts per GPU of a pass under the setting in question."""


class Limit(StrEnum):
    """What keeps a replica from serving more."""

    TTFT = "ttft"
    ITL = "itl"
    KV = "kv"
    SEQS = "seqs"
    COMPUTE = "compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """What is kept free below the targets, and what is assumed about the traffic's spread.

    itl_fraction, ttft_fraction: share of the target that the model's mean may use. ttft_quantile:
    share of requests that must not wait too long. utilisation: most time that prompts may take.
    kv_fraction: share of the cache that may be held. batch_deviations: standard deviations by which
    the mean batch stays below the largest. input_cv2, output_cv2: squared coefficients of variation
    of prompt work and output length (chat traces of Azure 2023: about 1 and 0.6).
    kv_bytes_per_s, kv_latency_s: moving a prompt's cache to decode (one 400 Gb/s port per GPU).
    """

    itl_fraction: float = 0.95
    ttft_fraction: float = 1.0
    ttft_quantile: float = 0.9
    utilisation: float = 0.95
    kv_fraction: float = 0.95
    batch_deviations: float = 1.0
    input_cv2: float = 1.0
    output_cv2: float = 0.6
    kv_bytes_per_s: float = 50e9
    kv_latency_s: float = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One replica at its capacity under one setting.

    batch: sequences (decode, aggregated) or prompts (prefill) in a pass. utilisation: share of time
    in passes. busy_w: mean watts per GPU during passes. ttft_s and itl_s are means at this point,
    None where the role has none. A rate of 0: no load meets the target that `limit` names.
    """

    rate_rps: float
    batch: float
    utilisation: float
    busy_w: float
    draw_w: float
    curve_w: tuple[float, ...]
    ttft_s: float | None
    itl_s: float | None
    limit: Limit


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
        pass_s, busy_w = _prompt_pass(engine, cost, mix, prompts, m)
        each_s = pass_s / prompts
        most = most_utilisation(target_s - pass_s, each_s, servers, m.input_cv2, m.ttft_quantile)
        used = min(most, m.utilisation)
        if best is not None and used / each_s <= best.rate_rps:
            continue
        wait_s = mean_wait_s(used, each_s, servers, m.input_cv2)
        best = _point(
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

    high, limit = _most_batch(engine, context, m)
    most, hit = _last_good(high, exceeded) if high else (0, None)
    limit = hit or limit
    if most == 0:
        return _nothing(engine, limit)
    mean = mean_batch(most, servers, m.batch_deviations)
    seconds, watts = step(mean)
    loads = [(0.0, engine.idle_w)]
    for share in _BATCH_SHARES:
        part_s, part_w = step(mean * share)
        loads.append((share * seconds / part_s, _with_idle(engine, mean * share, part_w)))
    draw = _with_idle(engine, mean, watts)
    return _point(
        engine=engine,
        rate_rps=mean / (steps * seconds),
        batch=mean,
        utilisation=1.0 - exp(-mean),
        busy_w=watts,
        curve=_curve([*loads, (1.0, draw)]),
        ttft_s=None,
        itl_s=seconds,
        limit=limit,
    )


def _aggregated(
    engine: EngineModel, cost: Cost, mix: Mix, slo: Slo, servers: int, m: Margins
) -> Point:
    context = _context(mix, m)
    steps = max(1.0, mix.output_tokens - 1.0)

    def shared(batch: float) -> _SharedPasses | None:
        return _shared_passes(engine, cost, mix, batch, context, steps, m)

    high, limit = _most_batch(engine, context, m)

    def batch_at(number: int) -> float:
        """Batches from far below one to the most, in steps of one per cent."""
        return high * 1.01 ** (number - _BATCHES)

    def exceeded(number: int) -> Limit | None:
        batch = batch_at(number)
        passes = shared(batch)
        if passes is None:
            return Limit.COMPUTE
        if passes.mean_s > slo.itl_s * m.itl_fraction:
            return Limit.ITL
        left_s = slo.ttft_s * m.ttft_fraction - passes.prompt_s - passes.mean_s / 2.0
        allowed = most_utilisation(left_s, passes.prompt_s, servers, m.input_cv2, m.ttft_quantile)
        used = batch / (steps * passes.mean_s) * passes.prompt_s
        if used <= min(allowed, m.utilisation):
            return None
        return Limit.TTFT if allowed < m.utilisation else Limit.COMPUTE

    number, hit = _last_good(_BATCHES, exceeded) if high else (0, None)
    limit = hit or limit
    mean = batch_at(number)
    if limit not in (Limit.TTFT, Limit.COMPUTE):  # These have the margin of their queue.
        mean = mean_batch(mean, servers, m.batch_deviations)
    passes = shared(mean) if number else None
    if passes is None:
        return _nothing(engine, limit)
    rate = mean / (steps * passes.mean_s)
    loads = [(0.0, engine.idle_w)]
    for share in _BATCH_SHARES:
        part = shared(mean * share)
        if part is not None:
            load = share * passes.mean_s / part.mean_s
            loads.append((load, _with_idle(engine, mean * share, part.watts)))
    used = rate * passes.prompt_s
    wait_s = mean_wait_s(min(used, m.utilisation), passes.prompt_s, servers, m.input_cv2)
    return _point(
        engine=engine,
        rate_rps=rate,
        batch=mean,
        utilisation=1.0 - exp(-mean),
        busy_w=passes.watts,
        curve=_curve([*loads, (1.0, _with_idle(engine, mean, passes.watts))]),
        ttft_s=wait_s + passes.prompt_s + passes.mean_s / 2.0,
        itl_s=passes.mean_s,
        limit=limit,
    )


@dataclass(frozen=True, slots=True)
class _SharedPasses:
    """Passes of an aggregated replica: mean seconds and watts, and seconds to take in a prompt."""

    mean_s: float
    watts: float
    prompt_s: float


def _shared_passes(
    engine: EngineModel,
    cost: Cost,
    mix: Mix,
    batch: float,
    context: float,
    steps: float,
    m: Margins,
) -> _SharedPasses | None:
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
    return _SharedPasses(mean_s, energy / mean_s, mixed_s * prompt / chunk)


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


def _prompt_pass(
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


def _most_batch(engine: EngineModel, context: float, m: Margins) -> tuple[int, Limit]:
    """Most sequences that the cache and the engine allow, and which of them it is."""
    by_cache = int(engine.kv_capacity_tokens * m.kv_fraction / context)
    if by_cache < engine.max_num_seqs:
        return by_cache, Limit.KV
    return engine.max_num_seqs, Limit.SEQS


def _last_good(count: int, exceeded: Callable[[int], Limit | None]) -> tuple[int, Limit | None]:
    """Largest number up to `count` that exceeds nothing (0: none), and what the next one exceeds.

    Bisection: what exceeds a limit is taken to go on exceeding it.
    """
    limit = exceeded(count)
    if limit is None:
        return count, None
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        found = exceeded(middle)
        if found is None:
            low = middle
        else:
            high, limit = middle, found
    return low, limit


def _with_idle(engine: EngineModel, batch: float, watts: float) -> float:
    """Mean watts when the batch is Poisson around `batch`: with chance exp(-batch) it is empty."""
    empty = exp(-batch)
    return empty * engine.idle_w + (1.0 - empty) * watts


def _curve(points: Sequence[tuple[float, float]]) -> list[float]:
    """Watts at `LOADS` between points of (load, watts), loads rising from 0 to 1."""
    loads = [load for load, _ in points]
    watts = [power for _, power in points]
    return [interpolate(loads, watts, load) for load in LOADS]


def interpolate(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """Value at `place` on the line through points whose places rise; the last value beyond."""
    for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
        if place <= right:
            return low + (high - low) * (place - left) / (right - left) if right > left else high
    return values[-1]


def _point(
    *,
    engine: EngineModel,
    rate_rps: float,
    batch: float,
    utilisation: float,
    busy_w: float,
    curve: Sequence[float],
    ttft_s: float | None,
    itl_s: float | None,
    limit: Limit,
) -> Point:
    if rate_rps <= 0.0:
        return _nothing(engine, limit)
    return Point(
        rate_rps=six_digits(rate_rps),
        batch=round(batch, 3),
        utilisation=round(utilisation, 6),
        busy_w=round(busy_w, 3),
        draw_w=round(curve[-1], 3),
        curve_w=tuple(round(watts, 3) for watts in curve),
        ttft_s=None if ttft_s is None else round(ttft_s, 6),
        itl_s=None if itl_s is None else round(itl_s, 6),
        limit=limit,
    )


def _nothing(engine: EngineModel, limit: Limit) -> Point:
    """No load meets the targets."""
    return Point(
        rate_rps=0.0,
        batch=0.0,
        utilisation=0.0,
        busy_w=engine.idle_w,
        draw_w=engine.idle_w,
        curve_w=(engine.idle_w,) * len(LOADS),
        ttft_s=None,
        itl_s=None,
        limit=limit,
    )


def six_digits(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.6g}")
