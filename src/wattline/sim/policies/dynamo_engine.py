"""What Dynamo's planner (release 1.6.1) asks its performance model, asked of our engine models.

Rates: prefill `batch / ttft`, decode `batch / (osl * itl)`, aggregated the same with the prompt
tokens that keep pace with decoding in every pass; batches are searched, those that meet the targets
come first, the highest rate wins. Latencies: the time to work off a queue plus one prompt of mean
length, and the time of one decode pass. Planner's formulas: facts of `engine_query` of the release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import Role, Setting, Slo
from wattline.core.settings import Settings
from wattline.sim.policies.common import most_replicas

_MAX_CANDIDATES = 128
"""Batch sizes that the planner's capacity search looks at."""
_MAX_HIT_RATE = 0.95
"""Largest share of a prompt that the planner takes as cached."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Mean request as the planner predicts it; `hit_rate` is the cached share of the prompt."""

    input_tokens: int
    output_tokens: int
    hit_rate: float = 0.0

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that prefill has to compute."""
        return max(1, ceil(self.input_tokens * (1.0 - min(self.hit_rate, _MAX_HIT_RATE))))

    @property
    def context_tokens(self) -> int:
        """Mean context of a sequence while it decodes."""
        return max(1, self.input_tokens + self.output_tokens // 2)


def engine_rps(engine: EngineModel, setting: Setting, role: Role, shape: Shape, slo: Slo) -> float:
    """Return the requests per second of one replica; 0.0 where not even one request fits."""
    if role is Role.PREFILL:
        most = min(engine.max_num_seqs, engine.max_batched_tokens // shape.computed_tokens)
        candidates = [_prefill_rate(engine, setting, shape, b, slo) for b in _batches(max(1, most))]
    elif role is Role.DECODE:
        most = min(engine.max_num_seqs, engine.kv_capacity_tokens // shape.context_tokens)
        candidates = [_decode_rate(engine, setting, shape, b, slo) for b in _batches(most)]
    else:
        most = min(
            engine.max_num_seqs,
            engine.kv_capacity_tokens // shape.context_tokens,
            engine.max_batched_tokens - 1,
        )
        candidates = [
            _mixed_rate(engine, setting, shape, b, slo)
            for b in _batches(most)
            if _prompt_share(shape, b) <= engine.max_batched_tokens - b
        ]
    return max(candidates, default=(False, 0.0))[1]


def balanced_replicas(
    settings: Settings, pools: Sequence[int], caps: Sequence[Setting], shape: Shape, slo: Slo
) -> dict[int, int]:
    """Replicas of a deployment's `pools` for the highest demand that all of them can serve.

    What an operator deploys who knows the mean request and no more: no pool is larger than the
    smallest one needs. `caps` is per pool of the fleet.
    """
    fleet = settings.fleet
    rates = {
        i: engine_rps(settings.engines[i], caps[i], fleet.pools[i].role, shape, slo) for i in pools
    }
    most = {i: most_replicas(fleet.pools[i]) for i in pools}
    demand_rps = min((most[i] * rate for i, rate in rates.items() if rate > 0.0), default=0.0)
    return {
        # A hair less than the product, so that it does not round up to one replica more.
        i: min(most[i], max(1, ceil(demand_rps / rate - 1e-9))) if rate > 0.0 else most[i]
        for i, rate in rates.items()
    }


def _batches(most: int) -> list[int]:
    if most <= _MAX_CANDIDATES:
        return list(range(1, most + 1))
    return [1 + i * (most - 1) // (_MAX_CANDIDATES - 1) for i in range(_MAX_CANDIDATES)]


def _prompt_share(shape: Shape, batch: int) -> int:
    """Prompt tokens per pass that keep `batch` sequences decoding for ever."""
    return ceil(batch * shape.computed_tokens / max(1, shape.output_tokens))


def _prefill_rate(
    engine: EngineModel, setting: Setting, shape: Shape, batch: int, slo: Slo
) -> tuple[bool, float]:
    ttft_s = prefill_time_s(engine, setting, batch * shape.computed_tokens, shape)
    return ttft_s <= slo.ttft_s, batch / ttft_s


def _decode_rate(
    engine: EngineModel, setting: Setting, shape: Shape, batch: int, slo: Slo
) -> tuple[bool, float]:
    itl_s = decode_itl_s(engine, setting, batch, batch * shape.context_tokens)
    return itl_s <= slo.itl_s, batch / (max(1, shape.output_tokens) * itl_s)


def _mixed_rate(
    engine: EngineModel, setting: Setting, shape: Shape, batch: int, slo: Slo
) -> tuple[bool, float]:
    share = _prompt_share(shape, batch)
    held = batch * shape.context_tokens
    itl_s = mixed_itl_s(engine, setting, batch, held, share, shape)
    ttft_s = prefill_time_s(engine, setting, share + shape.computed_tokens, shape, batch, held)
    meets = itl_s <= slo.itl_s and ttft_s <= slo.ttft_s
    return meets, batch / (max(1, shape.output_tokens) * itl_s)


def prefill_time_s(
    engine: EngineModel,
    setting: Setting,
    tokens: float,
    shape: Shape,
    decode_batch: int = 0,
    decode_kv_tokens: float = 0.0,
) -> float:
    """Seconds to compute `tokens` prompt tokens in chunks, decoding `decode_batch` beside them.

    Every token attends to its prompt's cached part and to half of the computed part on average.
    """
    chunk = max(1, engine.max_batched_tokens - decode_batch)
    full, tail = divmod(ceil(tokens), chunk)
    cost_s = 0.0
    for count, times in ((chunk, full), (tail, 1)):
        if count and times:
            work = ForwardPass(
                count, count * _attended(shape), decode_batch, float(decode_kv_tokens)
            )
            cost_s += times * engine.cost(work, setting).duration_s
    return cost_s


def _attended(shape: Shape) -> float:
    return shape.input_tokens - shape.computed_tokens + (shape.computed_tokens + 1) / 2.0


def decode_itl_s(engine: EngineModel, setting: Setting, batch: int, kv_tokens: float) -> float:
    """Seconds of one decode pass over `batch` sequences; infinite where the batch is empty."""
    if batch < 1:
        return inf
    return engine.cost(ForwardPass(0, 0.0, batch, float(kv_tokens)), setting).duration_s


def mixed_itl_s(
    engine: EngineModel,
    setting: Setting,
    batch: int,
    kv_tokens: float,
    prompt_tokens: int,
    shape: Shape,
) -> float:
    """Seconds of one pass that decodes `batch` sequences and computes `prompt_tokens`."""
    tokens = min(prompt_tokens, engine.max_batched_tokens - batch)
    work = ForwardPass(tokens, tokens * _attended(shape), batch, float(kv_tokens))
    return engine.cost(work, setting).duration_s
