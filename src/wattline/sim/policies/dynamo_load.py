"""Load scaling of Dynamo's planner (release 1.6.1, target `sla`): one replica up or down.

Up when the predicted latency of every engine exceeds its target; down when the prediction for one
engine fewer stays within 80 % of the target. The planner looks at each engine; a snapshot has the
sums of a pool, so that the mean engine stands for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from wattline.core.engine import EngineModel
from wattline.core.fleet import Setting, Slo
from wattline.core.snapshot import PoolView
from wattline.sim.policies.dynamo_engine import Shape, decode_itl_s, mixed_itl_s, prefill_time_s

SENSITIVITY = 0.8
"""`load_scaling_down_sensitivity`, 80 of 100 by default."""


@dataclass(frozen=True, slots=True)
class LoadAdvice:
    """Replicas that the load asks for (None: no signal) and the latency behind it."""

    desired: int | None
    estimate_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadInput:
    """What load scaling looks at for one pool."""

    engine: EngineModel
    setting: Setting
    view: PoolView
    shape: Shape
    slo: Slo
    minimum: int

    @property
    def survivors(self) -> float:
        """Factor on every engine's load if one engine fewer had to carry it."""
        return self.view.ready / max(1, self.view.ready - 1)


def prefill_advice(seen: LoadInput) -> LoadAdvice:
    """Compare the time to work off the mean queue plus one prompt with the TTFT target."""
    ready, queued = seen.view.ready, seen.view.queued_prefill_tokens
    if queued is None or ready == 0:
        return LoadAdvice(None)
    queue = queued / ready
    own = seen.shape.computed_tokens
    estimate_s = _ttft_s(seen, queue + own)
    own_s = _ttft_s(seen, own)
    after_s = _ttft_s(seen, queue * seen.survivors + own)
    room_s = (seen.slo.ttft_s - own_s) * SENSITIVITY
    can_fall = ready > 1 and room_s > 0.0 and after_s - own_s < room_s
    return _advice(seen, estimate_s, estimate_s > seen.slo.ttft_s, can_fall)


def _ttft_s(seen: LoadInput, tokens: float) -> float:
    return prefill_time_s(seen.engine, seen.setting, tokens, seen.shape)


def decode_advice(seen: LoadInput) -> LoadAdvice:
    """Compare one pass over the mean batch with the ITL target; the cache must hold it too."""
    ready, running, held = seen.view.ready, seen.view.running, seen.view.active_kv_tokens
    if running is None or held is None or ready == 0:
        return LoadAdvice(None)
    if running == 0:
        return _advice(seen, 0.0, False, ready > 1)
    batch, kv_tokens = running / ready, held / ready
    estimate_s = decode_itl_s(seen.engine, seen.setting, max(1, round(batch)), kv_tokens)
    after_kv = kv_tokens * seen.survivors
    after_s = decode_itl_s(
        seen.engine, seen.setting, max(1, ceil(batch * seen.survivors)), after_kv
    )
    can_fall = (
        ready > 1
        and after_kv < seen.engine.kv_capacity_tokens
        and after_s < seen.slo.itl_s * SENSITIVITY
    )
    return _advice(seen, estimate_s, estimate_s > seen.slo.itl_s, can_fall)


def aggregated_advice(seen: LoadInput) -> LoadAdvice:
    """Up if either side asks for it, down only if both agree; chunks run beside decoding."""
    view = seen.view
    ready, queued, running = view.ready, view.queued_prefill_tokens, view.running
    held = view.active_kv_tokens
    if queued is None or running is None or held is None or ready == 0:
        return LoadAdvice(None)
    now = _Mixed(queued / ready, running / ready, held / ready)
    factor = seen.survivors
    later = _Mixed(now.queue * factor, now.batch * factor, (now.kv_tokens + now.queue) * factor)
    own = seen.shape.computed_tokens
    ttft_s = _mixed_ttft_s(seen, now, now.queue + own)
    own_s = _mixed_ttft_s(seen, later, own)
    induced_s = _mixed_ttft_s(seen, later, later.queue + own) - own_s
    room_s = (seen.slo.ttft_s - own_s) * SENSITIVITY
    itl_s = _mixed_itl_s(seen, now)
    can_fall = (
        ready > 1
        and room_s > 0.0
        and induced_s < room_s
        and later.kv_tokens < seen.engine.kv_capacity_tokens
        and _mixed_itl_s(seen, later) < seen.slo.itl_s * SENSITIVITY
    )
    above = ttft_s > seen.slo.ttft_s or itl_s > seen.slo.itl_s
    return _advice(seen, itl_s if itl_s > seen.slo.itl_s else ttft_s, above, can_fall)


@dataclass(frozen=True, slots=True)
class _Mixed:
    """Load of the mean aggregated engine."""

    queue: float
    batch: float
    kv_tokens: float

    @property
    def sequences(self) -> int:
        return round(self.batch)


def _mixed_ttft_s(seen: LoadInput, load: _Mixed, tokens: float) -> float:
    sequences = min(load.sequences, seen.engine.max_batched_tokens - 1)
    return prefill_time_s(seen.engine, seen.setting, tokens, seen.shape, sequences, load.kv_tokens)


def _mixed_itl_s(seen: LoadInput, load: _Mixed) -> float:
    if load.sequences == 0:
        return 0.0
    chunk = min(ceil(load.queue), seen.shape.computed_tokens)
    sequences = min(load.sequences, seen.engine.max_batched_tokens - 1)
    return mixed_itl_s(seen.engine, seen.setting, sequences, load.kv_tokens, chunk, seen.shape)


def _advice(seen: LoadInput, estimate_s: float, above: bool, can_fall: bool) -> LoadAdvice:
    ready = seen.view.ready
    if above:
        return LoadAdvice(ready + 1, estimate_s)
    if can_fall:
        return LoadAdvice(max(ready - 1, seen.minimum), estimate_s)
    return LoadAdvice(None, estimate_s)
