"""Busy thresholds of the frontends, from replicas that serve and caps that their chips follow.

What capping takes away, the frontend sheds first: a worker may hold no more than it can serve
within the targets. The thresholds are those of Dynamo's `/busy_threshold`: a worker is busy when it
strictly exceeds any of them, and a request is refused when all workers are busy.

Prompt tokens a worker may hold: the tokens that it computes within the TTFT target, less what
follows the prefill (moving the cache, the first decode step), a long prompt itself, and, where more
is held than fits into one pass, the half pass that a prompt waits for its neighbours in the last
one; at least a mean prompt, if another one after it still makes it. Decode blocks: the share of the
KV cache in use when the largest batch that meets the ITL target decodes, less what is on its way
from prefill by then; at least one mean sequence: where a sequence alone is late already, as under
the lowest limits that a fleet starts with, refusing the one beside it helps neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt

from wattline.core.capacity import Margins
from wattline.core.decision import Admission
from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import Fleet, Role, Setting, Slo
from wattline.core.mix import Mix

# Share of a target that is planned for; the rest is for arrivals that cluster.
_MARGIN = 0.95
# Spread of lengths and the speed of links, as capacities assume them.
_SPREAD = Margins()
# Length of a long prompt over the mean one: 19 in 20 are shorter when lengths spread as wide as
# their mean (exponential: ln 20), which the public chat traces nearly do.
_LONG_PROMPT = 3.0
# Utilisation of prefill between which room is made for long prompts. Well below capacity a refused
# request is lost for nothing; near it a late prompt takes the place of one that would be in time.
_CALM, _FULL = 0.6, 0.9
# A sequence holds whole blocks of the cache; 16 to 64 tokens are common.
_BLOCK_TOKENS = 64
_CACHE_ENTRIES = 8192


@dataclass(frozen=True, slots=True)
class InForce:
    """Replicas of a pool that serve, and the setting that their chips follow now."""

    ready: int
    setting: Setting


@dataclass(frozen=True, slots=True)
class Worker:
    """One pool as the frontends of its deployment meet it."""

    role: Role
    engine: EngineModel
    gpus_per_replica: int
    in_force: InForce


def admission(
    deployment: int,
    fleet: Fleet,
    engines: Sequence[EngineModel],
    pools: Sequence[InForce],
    mix: Mix,
    slo: Slo,
    rate_rps: float | None = None,
) -> Admission:
    """Thresholds of deployment number `deployment`; `pools` are those of the fleet, in order.

    `rate_rps` is the rate of offered requests, None if it is not known: then a full load is
    assumed. The same rule serves every policy.
    """
    name = fleet.deployments[deployment].name
    workers = [
        Worker(pool.role, engine, pool.gpus_per_replica, in_force)
        for pool, engine, in_force in zip(fleet.pools, engines, pools, strict=True)
        if pool.deployment == name
    ]
    return worker_admission(workers, mix, slo, rate_rps)


def worker_admission(
    workers: Sequence[Worker], mix: Mix, slo: Slo, rate_rps: float | None = None
) -> Admission:
    """Thresholds of one deployment from its pools.

    Thresholds hold for all workers of a frontend, so the pool that can take least sets them. Pools
    that serve nothing do not count; without any the thresholds stay unset.
    """
    serving = [worker for worker in workers if worker.in_force.ready > 0]
    tokens, blocks = [], []
    prompt_s = 0.0
    long_prompt = _long_prompt(serving, mix, slo, rate_rps)
    for worker in serving:
        if worker.role is not Role.DECODE:
            held, own_s = _prompt_limit(worker, mix, slo, long_prompt)
            tokens.append(held)
            prompt_s = max(prompt_s, own_s)
    for worker in serving:
        if worker.role is Role.DECODE:
            blocks.append(_decode_limit(worker, mix, slo, prompt_s))
        elif worker.role is Role.AGGREGATED:
            blocks.append(_mixed_limit(worker, mix, slo))
    return Admission(
        active_decode_blocks=min(blocks) if blocks else None,
        active_prefill_tokens=min(tokens) if tokens else None,
    )


def _long_prompt(serving: Sequence[Worker], mix: Mix, slo: Slo, rate_rps: float | None) -> float:
    """Length over the mean of the prompts that room is left for, by how full prefill is."""
    if rate_rps is None:
        return _LONG_PROMPT
    prompts = [worker for worker in serving if worker.role is not Role.DECODE]
    most = sum(
        worker.in_force.ready
        * _prompt_rate(worker.engine, worker.in_force.setting, mix, _beside(worker, mix, slo))[0]
        for worker in prompts
    )
    used = rate_rps * mix.computed_tokens / most if most > 0.0 else 1.0
    # Tenths: the thresholds need not follow every wobble of the load.
    share = round(10.0 * min(1.0, max(0.0, (used - _CALM) / (_FULL - _CALM)))) / 10.0
    return 1.0 + (_LONG_PROMPT - 1.0) * share


def _beside(worker: Worker, mix: Mix, slo: Slo) -> int:
    """Sequences that decode beside the prompts of a worker."""
    if worker.role is not Role.AGGREGATED:
        return 0
    return _mixed_batch(worker.engine, worker.in_force.setting, mix, slo)


def _prompt_limit(worker: Worker, mix: Mix, slo: Slo, long_prompt: float) -> tuple[float, float]:
    """Prompt tokens that a worker may hold, and seconds that a mean prompt takes on it."""
    batch = _beside(worker, mix, slo)
    rate, pass_s = _prompt_rate(worker.engine, worker.in_force.setting, mix, batch)
    moving_s = 0.0
    if worker.role is Role.PREFILL:
        moved = worker.engine.kv_bytes_per_token * mix.input_tokens
        moving_s = moved / (_SPREAD.kv_bytes_per_s * worker.gpus_per_replica) + slo.itl_s
    own_tokens = long_prompt * mix.computed_tokens
    within = rate * (_MARGIN * slo.ttft_s - moving_s)
    held = within - own_tokens
    room = worker.engine.max_batched_tokens
    if held + own_tokens > room:
        # Prompts that come later fill the pass that ends a prompt: half of one on average.
        held = max(room - own_tokens, held - 0.5 * rate * pass_s)
    # One prompt ahead of a mean one, as long as that one makes it: without any queue, requests are
    # refused by chance well below capacity.
    held = max(held, min(mix.computed_tokens, within - mix.computed_tokens))
    own_s = mix.computed_tokens / rate + moving_s
    return float(max(0, int(held))), round(own_s, 6)


def _decode_limit(worker: Worker, mix: Mix, slo: Slo, prompt_s: float) -> float:
    """Share of KV blocks that a decode worker may hold."""
    batch = _decode_batch(worker.engine, worker.in_force.setting, mix, slo)
    # Prompts that were admitted and are not here yet: what is held turns over once per answer, so
    # that many more are coming while one is computed; both together are the batch.
    answer_s = slo.itl_s * mix.output_tokens
    held = batch / (1.0 + prompt_s / answer_s)
    return _share(worker.engine, held, mix)


def _mixed_limit(worker: Worker, mix: Mix, slo: Slo) -> float:
    """Share of KV blocks that an aggregated worker may hold."""
    batch = _mixed_batch(worker.engine, worker.in_force.setting, mix, slo)
    return _share(worker.engine, batch, mix)


def _share(engine: EngineModel, sequences: float, mix: Mix) -> float:
    """Share of the cache that so many sequences hold, at least one of them; four digits."""
    tokens = max(sequences * _context(mix), _context(mix) + _BLOCK_TOKENS)
    return min(1.0, ceil(1e4 * tokens / engine.kv_capacity_tokens) / 1e4)


def _context(mix: Mix) -> float:
    """Tokens of context that a decoding sequence holds at a random time.

    Long answers are met more often than short ones (inspection paradox).
    """
    return mix.input_tokens + 0.5 * (1.0 + _SPREAD.output_cv2) * mix.output_tokens


@lru_cache(maxsize=_CACHE_ENTRIES)
def _prompt_rate(
    engine: EngineModel, setting: Setting, mix: Mix, batch: int
) -> tuple[float, float]:
    """Prompt tokens per second in full passes beside `batch` decoding sequences, and a pass's time.

    A pass holds as many mean prompts as fit, whole ones or a chunk of one.
    """
    room = max(1, engine.max_batched_tokens - batch)
    computed = max(1.0, mix.computed_tokens)
    tokens = min(room, max(1, int(computed)) * max(1, int(room / computed)))
    # Every token attends to what precedes it in its prompt: half of it on average, and all of what
    # was found in the cache.
    attended = mix.input_tokens - 0.5 * computed
    work = ForwardPass(
        prefill_tokens=tokens,
        prefill_context=tokens * attended,
        decode_batch=batch,
        decode_kv_tokens=batch * _context(mix),
    )
    pass_s = engine.cost(work, setting).duration_s
    return tokens / pass_s, pass_s


@lru_cache(maxsize=_CACHE_ENTRIES)
def _decode_batch(engine: EngineModel, setting: Setting, mix: Mix, slo: Slo) -> int:
    """Largest batch whose step meets the ITL target and whose contexts fit into the cache."""
    target_s = _MARGIN * slo.itl_s
    return _largest(engine, mix, lambda batch: _step_s(engine, setting, mix, batch) <= target_s)


@lru_cache(maxsize=_CACHE_ENTRIES)
def _mixed_batch(engine: EngineModel, setting: Setting, mix: Mix, slo: Slo) -> int:
    """Largest batch that meets the ITL target while the prompts that feed it are computed.

    A batch of b takes b / (ITL x output tokens) new prompts per second; the share of time that they
    take stretches every step.
    """
    target_s = _MARGIN * slo.itl_s
    rate, _ = _prompt_rate(engine, setting, mix, 0)

    def meets(batch: int) -> bool:
        prompts_rps = batch / (target_s * mix.output_tokens)
        left = 1.0 - prompts_rps * mix.computed_tokens / rate
        return left > 0.0 and _step_s(engine, setting, mix, batch) <= target_s * left

    return _largest(engine, mix, meets)


def _step_s(engine: EngineModel, setting: Setting, mix: Mix, batch: int) -> float:
    work = ForwardPass(decode_batch=batch, decode_kv_tokens=batch * _context(mix))
    return engine.cost(work, setting).duration_s


def _largest(engine: EngineModel, mix: Mix, meets: Callable[[int], bool]) -> int:
    """Largest batch for which `meets` holds (it holds up to some batch and not beyond), 0 if none.

    Bounded by the engine's own limit and by the cache.
    """
    low = 0
    # The contexts of n sequences sum up to n means give or take sqrt(n): a cache that is full on
    # average would make sequences wait half of the time.
    fitting = engine.kv_capacity_tokens / _context(mix)
    high = min(engine.max_num_seqs, int(fitting - sqrt(fitting))) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if meets(middle):
            low = middle
        else:
            high = middle
    return low
