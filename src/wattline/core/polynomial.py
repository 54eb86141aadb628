"""The timing of Dynamo's mock engine, so that both can simulate the same engine.

A prompt pass of t new tokens takes 4.209989e-7 t^2 + 1.518344e-2 t + 16.50142 ms; a decode step
max(1, -25.74 u^2 + 54.01 u + 5.74) ms, with u the share of cache tokens in use; a pass that does
both takes the sum. Source: ai-dynamo mocker, default polynomial timing, checked against its offline
replay (1.4.2): one request of 2,048 tokens has a TTFT of 55.208 ms, one of 512 tokens 30.152 ms.

The mock engine says nothing of watts: prompt time counts mostly as arithmetic and decode time
mostly as memory traffic, through the cap response of the GPU given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from wattline.core.engine import ForwardPass, PassCost
from wattline.core.fleet import Setting
from wattline.core.power import CapResponse
from wattline.core.roofline import PassTime

PREFILL_COMPUTE_SHARE = 0.9
DECODE_COMPUTE_SHARE = 0.2
"""Share of the time of a prompt pass and of a decode step that is arithmetic: assumed."""

LLAMA_8B_KV_BYTES = 131_072.0
"""Bytes of cache per token where no model is named."""


@dataclass(frozen=True, kw_only=True)
class PolynomialEngine:
    """One mock replica. Its first token comes with the decode step after the prompt pass.

    kv_capacity_tokens is the mocker's default of 16,384 blocks of 64 tokens. `response` must have
    no overlap, so that a pass takes the sum of its parts. The mock engine has no model: its cache
    is taken to be that of an 8B Llama in 16 bits (32 layers x 2 x 8 heads x 128 x 2 bytes).
    """

    response: CapResponse
    kv_capacity_tokens: int = 16_384 * 64
    kv_bytes_per_token: float = LLAMA_8B_KV_BYTES
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    coverage: str = "timing: checked against Dynamo's replay; watts: assumed split"
    kind: Literal["polynomial"] = field(default="polynomial")

    def __post_init__(self) -> None:
        """Reject a response under which parts of a pass would hide behind each other."""
        if self.response.overlap != 0.0:
            raise ValueError("the mock engine's times add up: give a response with overlap 0")

    @property
    def idle_w(self) -> float:
        """Watts per GPU with the model loaded and no request in flight."""
        return self.response.idle_w

    def time(self, work: ForwardPass) -> PassTime:
        """Seconds of a pass at full clock."""
        prompt_s = decode_s = 0.0
        if work.prefill_tokens > 0:
            tokens = work.prefill_tokens
            prompt_s = (4.209989e-7 * tokens * tokens + 1.518344e-2 * tokens + 16.50142) * 1e-3
        if work.decode_batch > 0:
            used = min(1.0, work.decode_kv_tokens * self._per_token)
            decode_s = max(1.0, (-25.74 * used + 54.01) * used + 5.74) * 1e-3
        compute_s = PREFILL_COMPUTE_SHARE * prompt_s + DECODE_COMPUTE_SHARE * decode_s
        return PassTime(compute_s, prompt_s + decode_s - compute_s, 0.0)

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        """Cost of one pass under `setting`; `derate` < 1 lowers the clock that can be reached."""
        compute_s, memory_s, other_s = self.time(work)
        ceiling = setting.clock if setting.clock < derate else derate
        settled = self.response.settle(compute_s, memory_s, other_s, setting.cap_w, ceiling)
        return PassCost(settled.duration_s, settled.power_w, settled.clock)

    @cached_property
    def _per_token(self) -> float:
        return 1.0 / self.kv_capacity_tokens
