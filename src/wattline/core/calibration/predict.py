"""What the models say of the load that is there: for comparison with what is measured.

The load is taken as it is seen, queue and batch included, so that a comparison is about the speed
and the watts of the engine and not about how much it was given to do. A queue that demand made long
makes the predicted TTFT long as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import Role, Setting
from wattline.core.mix import Mix
from wattline.core.operating_point import Cost, prompt_pass, shared_passes
from wattline.core.point import Margins, with_idle
from wattline.core.snapshot import PoolView

_MARGINS = Margins()
_MOST_QUEUE = 1e4
"""Prompts per replica beyond which a queue is not one that a prediction can be made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Of one pool at the load that is seen. None: the role has none, or the load is not known.

    stage_s: time from arrival to the end of the prompt's pass (prefill), or to the first token
    (aggregated); queue_s: the part of it that is spent behind other prompts. itl_s: time between
    tokens. draw_w: mean watts per serving GPU.
    """

    stage_s: float | None = None
    queue_s: float = 0.0
    itl_s: float | None = None
    draw_w: float | None = None


def predict(
    engine: EngineModel,
    role: Role,
    setting: Setting,
    mix: Mix,
    view: PoolView,
    *,
    tokens_per_s: float,
    slower: float = 1.0,
) -> Predicted:
    """What a pool should show under `setting`.

    tokens_per_s: prompt tokens that one replica has to compute per second. slower: factor by which
    its prompts are known to take longer than modelled, for the share of time that it is busy.
    """
    if view.ready <= 0:
        return Predicted()

    def cost(work: ForwardPass) -> tuple[float, float]:
        spent = engine.cost(work, setting)
        return spent.duration_s, spent.power_w

    if role is Role.PREFILL:
        one_s, busy_w = prompt_pass(engine, cost, mix, 1, _MARGINS)
        stage_s = _prompt_s(engine, cost, mix, view)
        busy = min(1.0, slower * one_s * tokens_per_s / max(1.0, mix.computed_tokens))
        return Predicted(
            stage_s=stage_s,
            queue_s=0.0 if stage_s is None else stage_s - one_s,
            draw_w=engine.idle_w + (busy_w - engine.idle_w) * busy,
        )
    running, held = view.running, view.active_kv_tokens
    if running is None or held is None or not (isfinite(running) and isfinite(held)):
        return Predicted()
    if running <= 0.0 or held <= 0.0:
        return Predicted()
    batch = running / view.ready
    if role is Role.DECODE:
        work = ForwardPass(
            decode_batch=max(1, round(batch)), decode_kv_tokens=held / running * max(1.0, batch)
        )
        seconds, watts = cost(work)
        return Predicted(itl_s=seconds, draw_w=with_idle(engine, batch, watts))
    steps = max(1.0, mix.output_tokens - 1.0)
    passes = shared_passes(engine, cost, mix, batch, held / running, steps, _MARGINS)
    if passes is None:
        return Predicted()
    ahead = _prompts_ahead(mix, view)
    own_s = passes.prompt_s + passes.mean_s / 2.0
    return Predicted(
        stage_s=None if ahead is None else ahead * passes.prompt_s + own_s,
        queue_s=0.0 if ahead is None else ahead * passes.prompt_s,
        itl_s=passes.mean_s,
        draw_w=with_idle(engine, batch, passes.watts),
    )


def handover_s(engine: EngineModel, mix: Mix) -> float:
    """Seconds to move a prompt's cache from prefill to decode."""
    moved = mix.input_tokens * engine.kv_bytes_per_token
    return _MARGINS.kv_latency_s + moved / _MARGINS.kv_bytes_per_s


def _prompts_ahead(mix: Mix, view: PoolView) -> float | None:
    """Mean prompts waiting or running at a replica; None if nobody knows, or beyond all bounds."""
    queued = view.queued_prefill_tokens
    if queued is None or not (isfinite(queued) and queued >= 0.0):
        return None
    ahead = queued / view.ready / max(1.0, mix.computed_tokens)
    return ahead if ahead <= _MOST_QUEUE else None


def _prompt_s(engine: EngineModel, cost: Cost, mix: Mix, view: PoolView) -> float | None:
    """Seconds to compute all that is queued at a replica and a mean prompt behind it.

    An upper bound of what the median request waits: routers prefer the shortest queue, and some of
    the running pass is over.
    """
    ahead = _prompts_ahead(mix, view)
    if ahead is None:
        return None
    low = int(ahead)
    low_s = prompt_pass(engine, cost, mix, 1 + low, _MARGINS)[0]
    high_s = prompt_pass(engine, cost, mix, 2 + low, _MARGINS)[0]
    return low_s + (high_s - low_s) * (ahead - low)
