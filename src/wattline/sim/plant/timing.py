"""Costs of one replica's passes under one setting, memoised.

A run of decode steps has a closed form: the batch stays, the context grows by the batch in every
step, and within a cell of context the step time is taken as affine, so that n steps last
n*first + growth*n*(n-1)/2. Cells are 1/128 of the KV capacity: linear interpolation errs by less
than 0.01 % for Dynamo's quadratic mock engine. Costs are quantised (1e-9 s, 1e-3 W), so that the
last bit of a library's `pow` does not reach the order of events.
"""

from __future__ import annotations

from math import ceil, sqrt

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import Setting

_CELLS = 128
_PASS_QUANTA = 4096
_MEMO_LIMIT = 8192


class DecodeCell:
    """Step time and watts for one batch size within one cell of context."""

    __slots__ = ("end_tokens", "power_w", "s_per_token", "start_s", "start_tokens")

    def __init__(
        self, start_tokens: float, end_tokens: float, start_s: float, end_s: float, power_w: float
    ) -> None:
        self.start_tokens = start_tokens
        self.end_tokens = end_tokens
        self.start_s = start_s
        self.s_per_token = (end_s - start_s) / (end_tokens - start_tokens)
        self.power_w = power_w


class StepTimes:
    """Memoised costs of one engine under one setting and derating.

    `prefill_bias` and `decode_bias` multiply the durations (a model that is wrong), `power_bias`
    the watts; watts never pass `limit_w`, the mean that the limiter holds.
    """

    __slots__ = (
        "_cells",
        "_decode_bias",
        "_derate",
        "_engine",
        "_passes",
        "_power_bias",
        "_prefill_bias",
        "_setting",
        "cell_tokens",
        "limit_w",
        "pass_quantum",
    )

    def __init__(
        self,
        engine: EngineModel,
        setting: Setting,
        derate: float,
        biases: tuple[float, float, float],
        limit_w: float,
    ) -> None:
        self._engine = engine
        self._setting = setting
        self._derate = derate
        self._prefill_bias, self._decode_bias, self._power_bias = biases
        self.limit_w = limit_w
        self.cell_tokens = max(1.0, engine.kv_capacity_tokens / _CELLS)
        self.pass_quantum = max(1, engine.kv_capacity_tokens // _PASS_QUANTA)
        self._cells: dict[tuple[int, int], DecodeCell] = {}
        self._passes: dict[tuple[int, float, int, int], tuple[float, float]] = {}

    def cell(self, batch: int, kv_tokens: int) -> DecodeCell:
        """Return the cell that holds `kv_tokens` for decode steps of `batch` sequences."""
        key = (batch, int(kv_tokens / self.cell_tokens))
        found = self._cells.get(key)
        if found is None:
            found = self._cells[key] = self._make_cell(*key)
        return found

    def _make_cell(self, batch: int, index: int) -> DecodeCell:
        if len(self._cells) > _MEMO_LIMIT:
            self._cells.clear()
        start_tokens = index * self.cell_tokens
        end_tokens = start_tokens + self.cell_tokens
        start_s, start_w = self._cost(
            ForwardPass(decode_batch=batch, decode_kv_tokens=start_tokens)
        )
        end_s, end_w = self._cost(ForwardPass(decode_batch=batch, decode_kv_tokens=end_tokens))
        return DecodeCell(start_tokens, end_tokens, start_s, end_s, (start_w + end_w) / 2.0)

    def pass_cost(
        self, prefill_tokens: int, prefill_context: float, batch: int, kv_tokens: int
    ) -> tuple[float, float]:
        """Seconds and watts per GPU of one pass; the context of the decodes is rounded coarsely."""
        quantum = self.pass_quantum
        key = (prefill_tokens, prefill_context, batch, (kv_tokens + quantum // 2) // quantum)
        found = self._passes.get(key)
        if found is None:
            if len(self._passes) > _MEMO_LIMIT:
                self._passes.clear()
            found = self._passes[key] = self._cost(
                ForwardPass(
                    prefill_tokens=prefill_tokens,
                    prefill_context=prefill_context,
                    decode_batch=batch,
                    decode_kv_tokens=float(key[3] * quantum),
                )
            )
        return found

    def _cost(self, work: ForwardPass) -> tuple[float, float]:
        cost = self._engine.cost(work, self._setting, self._derate)
        seconds = round(cost.duration_s * self._bias(work), 9)
        return max(seconds, 1e-9), min(round(cost.power_w * self._power_bias, 3), self.limit_w)

    def _bias(self, work: ForwardPass) -> float:
        if not work.prefill_tokens:
            return self._decode_bias
        if not work.decode_batch or self._prefill_bias == self._decode_bias:
            return self._prefill_bias
        prefill = ForwardPass(
            prefill_tokens=work.prefill_tokens, prefill_context=work.prefill_context
        )
        decode = ForwardPass(decode_batch=work.decode_batch, decode_kv_tokens=work.decode_kv_tokens)
        prefill_s = self._engine.cost(prefill, self._setting, self._derate).duration_s
        decode_s = self._engine.cost(decode, self._setting, self._derate).duration_s
        biased_s = prefill_s * self._prefill_bias + decode_s * self._decode_bias
        return biased_s / (prefill_s + decode_s)


def steps_s(count: int, first_s: float, growth_s: float) -> float:
    """Seconds that `count` steps last when the first takes `first_s` and each `growth_s` more."""
    return count * first_s + growth_s * (count * (count - 1) // 2)


def whole_steps(elapsed_s: float, count: int, first_s: float, growth_s: float) -> int:
    """Count the steps of a run of `count` that are complete `elapsed_s` after its start."""
    if elapsed_s <= 0.0:
        return 0
    half = growth_s / 2.0
    linear = first_s - half
    if abs(half) < 1e-15:
        guess = int(elapsed_s / first_s)
    else:
        root = linear * linear + 4.0 * half * elapsed_s
        guess = count if root <= 0.0 else int((sqrt(root) - linear) / (2.0 * half))
    guess = min(max(guess, 0), count)
    while guess < count and steps_s(guess + 1, first_s, growth_s) <= elapsed_s:
        guess += 1
    while guess > 0 and steps_s(guess, first_s, growth_s) > elapsed_s:
        guess -= 1
    return guess


def steps_within(start_tokens: int, end_tokens: float, per_step: int) -> int:
    """Count steps until a context that grows by `per_step` reaches `end_tokens`; at least 1."""
    return max(1, ceil((end_tokens - start_tokens) / per_step))
