"""An engine from measured latencies: Dynamo's profiling results, with the cap response added.

The profile gives time to first token over prompt length, and inter-token latency over cache use and
context, all at the GPU's default limit. A pass is looked up there; how it then answers a lower cap
follows from the split into arithmetic, memory and other time that a roofline of the same model and
GPU would have, or from assumed shares. Dynamo's profiles hold no watts; where a predictor gives
some, they scale those of the cap response.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from wattline.core.engine import ForwardPass, PassCost
from wattline.core.fleet import Setting
from wattline.core.power import CapResponse
from wattline.core.roofline import PassTime, RooflineEngine

ASSUMED_PREFILL = PassTime(0.9, 0.3, 0.05)
ASSUMED_DECODE = PassTime(0.25, 0.8, 0.15)
"""Shape of a prompt pass and a decode step where no roofline is known; only ratios matter."""
_LEAST_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class DecodeSlice:
    """Inter-token latencies at one context length: cache use (0 to 1, rising) against seconds."""

    context_tokens: float
    kv_usage: tuple[float, ...]
    itl_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ProfileEngine:
    """One replica whose latencies were measured at `default_cap_w`.

    prefill_tokens (rising) and prefill_s are prompt lengths and times to first token; either half
    may be empty for a replica that never does it. decode is one slice per context, rising.
    prefill_watts, decode_watts: draw of prompt passes and of decode steps over that of the cap
    response, for a phase of which watts are known; a cap then bites that much sooner or later.
    """

    prefill_tokens: tuple[float, ...]
    prefill_s: tuple[float, ...]
    decode: tuple[DecodeSlice, ...]
    kv_capacity_tokens: int
    kv_bytes_per_token: float
    default_cap_w: float
    response: CapResponse
    roofline: RooflineEngine | None = None
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    coverage: str = "latency: profiled at the default limit; cap response: assumed"
    prefill_watts: float = 1.0
    decode_watts: float = 1.0
    kind: Literal["profile"] = field(default="profile")

    def __post_init__(self) -> None:
        """Reject factors that no board could have."""
        if not (0.0 < self.prefill_watts <= 10.0 and 0.0 < self.decode_watts <= 10.0):
            raise ValueError(f"watts factors: {self.prefill_watts}, {self.decode_watts}: 0 to 10")

    @property
    def idle_w(self) -> float:
        """Watts per GPU with the model loaded and no request in flight."""
        return self.response.idle_w

    def measured_s(self, work: ForwardPass) -> float:
        """Seconds of a pass at the default limit, interpolated; ValueError if not profiled."""
        total_s = 0.0
        if work.decode_batch > 0:
            total_s = self._decode_s(work.decode_batch, work.decode_kv_tokens)
        if work.prefill_tokens > 0:
            fixed_s = self._prompt_fixed_s
            prompt_s = self._prompt_s(work.prefill_tokens, work.prefill_context)
            # A pass that does both pays the fixed part once.
            total_s += prompt_s if work.decode_batch == 0 else prompt_s - fixed_s
        return total_s

    def cost(self, work: ForwardPass, setting: Setting, derate: float = 1.0) -> PassCost:
        """Cost of one pass under `setting`; `derate` < 1 lowers the clock that can be reached."""
        measured_s = self.measured_s(work)
        if measured_s <= 0.0:
            return PassCost(0.0, min(self.idle_w, setting.cap_w), 1.0)
        compute_s, memory_s, other_s = self._shape(work)
        response = self._response(work)
        usual = response.settle(compute_s, memory_s, other_s, self.default_cap_w)
        scale = measured_s / usual.duration_s
        ceiling = setting.clock if setting.clock < derate else derate
        settled = response.settle(
            compute_s * scale, memory_s * scale, other_s * scale, setting.cap_w, ceiling
        )
        return PassCost(settled.duration_s, settled.power_w, settled.clock)

    def _response(self, work: ForwardPass) -> CapResponse:
        """The cap response with the phase's watts; of a pass that does both, the mean by time."""
        if self.prefill_watts == self.decode_watts or work.decode_batch == 0:
            return self._prefill_response
        if work.prefill_tokens == 0:
            return self._decode_response
        decode_s = self._decode_s(work.decode_batch, work.decode_kv_tokens)
        prompt_s = self._prompt_s(work.prefill_tokens, work.prefill_context)
        if decode_s + prompt_s <= 0.0:
            return self.response
        watts = self.prefill_watts * prompt_s + self.decode_watts * decode_s
        return _drawing(self.response, watts / (decode_s + prompt_s))

    @cached_property
    def _prefill_response(self) -> CapResponse:
        return _drawing(self.response, self.prefill_watts)

    @cached_property
    def _decode_response(self) -> CapResponse:
        return _drawing(self.response, self.decode_watts)

    def _shape(self, work: ForwardPass) -> PassTime:
        if self.roofline is not None:
            return self.roofline.time(work)
        if work.prefill_tokens == 0:
            return ASSUMED_DECODE
        if work.decode_batch == 0:
            return ASSUMED_PREFILL
        decode_s = self._decode_s(work.decode_batch, work.decode_kv_tokens)
        prompt_s = self._prompt_s(work.prefill_tokens, work.prefill_context)
        parts = zip(ASSUMED_PREFILL, ASSUMED_DECODE, strict=True)
        return PassTime(*(prompt * prompt_s + step * decode_s for prompt, step in parts))

    @cached_property
    def _prompt_fixed_s(self) -> float:
        """Time of an empty prompt: the first two points drawn on to zero, at least 0."""
        return max(0.0, min(_line(self.prefill_tokens, self.prefill_s, 0.0), self.prefill_s[0]))

    def _prompt_s(self, tokens: int, context: float) -> float:
        """Time of prompt tokens that attend to `context` tokens in total.

        A chunk of t tokens after a earlier ones has context t * a + t (t + 1) / 2, which gives a
        and makes the chunk the difference of two measured prompts. A smaller context means several
        short prompts in one pass, taken as equally long. Where noise or a broken file has the
        longer prompt as fast, the chunk takes a tenth of its tokens' share of that prompt.
        """
        if not self.prefill_tokens:
            raise ValueError("this profile has no prefill measurements")
        fixed_s = self._prompt_fixed_s
        before = context / tokens - (tokens + 1) / 2.0
        if before >= 0.0:
            whole_s = self._ttft(before + tokens)
            least_s = _LEAST_SHARE * (whole_s - fixed_s) * tokens / (before + tokens)
            return fixed_s + max(0.0, least_s, whole_s - self._ttft(before))
        each = max(1.0, 2.0 * context / tokens - 1.0)
        return fixed_s + tokens / each * max(0.0, self._ttft(each) - fixed_s)

    def _ttft(self, tokens: float) -> float:
        if tokens <= 0.0:
            return self._prompt_fixed_s
        if tokens < self.prefill_tokens[0]:
            share = tokens / self.prefill_tokens[0]
            return self._prompt_fixed_s + share * (self.prefill_s[0] - self._prompt_fixed_s)
        seconds = _line(self.prefill_tokens, self.prefill_s, tokens)
        # Drawn on beyond the last point, where noise may have the line fall.
        return max(seconds, self.prefill_s[-1]) if tokens > self.prefill_tokens[-1] else seconds

    def _decode_s(self, batch: int, kv_tokens: float) -> float:
        """Step time, linear in cache use within a slice and in context between slices."""
        if not self.decode:
            raise ValueError("this profile has no decode measurements")
        usage = kv_tokens / self.kv_capacity_tokens
        context = kv_tokens / batch
        above = bisect_left(self._contexts, context)
        if above == 0:
            return _clamped(self.decode[0], usage)
        if above == len(self.decode):
            return _clamped(self.decode[-1], usage)
        low, high = self.decode[above - 1], self.decode[above]
        share = (context - low.context_tokens) / (high.context_tokens - low.context_tokens)
        return (1.0 - share) * _clamped(low, usage) + share * _clamped(high, usage)

    @cached_property
    def _contexts(self) -> tuple[float, ...]:
        return tuple(entry.context_tokens for entry in self.decode)


def _drawing(response: CapResponse, factor: float) -> CapResponse:
    """A board that draws `factor` times the watts while it works; idle is left as it is."""
    if factor == 1.0:
        return response
    return replace(
        response,
        static_w=response.static_w * factor,
        compute_w=response.compute_w * factor,
        memory_w=response.memory_w * factor,
    )


def _clamped(entry: DecodeSlice, usage: float) -> float:
    """Interpolate within the measured range; outside it, the nearest point stands."""
    low, high = entry.kv_usage[0], entry.kv_usage[-1]
    return _line(entry.kv_usage, entry.itl_s, min(max(usage, low), high))


def _line(xs: tuple[float, ...], ys: tuple[float, ...], x: float) -> float:
    """Interpolate linearly; the outer segments are drawn on beyond the ends."""
    if len(xs) == 1:
        return ys[0]
    above = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    share = (x - xs[above - 1]) / (xs[above] - xs[above - 1])
    return ys[above - 1] + share * (ys[above] - ys[above - 1])
