"""Steady serving on one replica, from the passes of its engine and from what lies around them.

Between two tokens of a request the engine runs one decode pass of the whole batch; every finished
request is replaced by a new one, so a share of the passes also carries prompts. Beside the engine
there is work that no pass shows: images and video are prepared per request, and engines that share
a host slow each other down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.fleet import GpuProduct, ModelSpec, Setting

NODE_GPUS = 8
"""GPUs of a node whose host its replicas share: every product measured came eight to a node."""

PROMPT_TOKENS: Mapping[str, int] = {
    "gpqa": 300,
    "lm-arena-chat": 300,
    "sourcegraph-fim": 1500,
    "image-chat": 1000,
    "video-chat": 1500,
}
"""Assumed mean prompt (with image and video tokens) per task of the ML.ENERGY benchmark, which does
not publish it beside the measurements. Round figures; errors in them go into `request_s`."""

OTHER_TASK = "other"
OTHER_PROMPT_TOKENS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRun:
    """One steady run: `batch` requests in flight on a replica of `gpus` GPUs, copied `dp` times.

    watts are measured per GPU, rate in output tokens per second of the replica; None where not
    measured. `shape_known` is false where `model` was guessed from parameter counts.
    """

    name: str
    family: str
    task: str
    model: ModelSpec
    gpu: GpuProduct
    precision: str
    gpus: int
    dp: int
    expert_parallel: bool
    batch: float
    output_tokens: float
    watts: float | None
    rate: float | None
    shape_known: bool = True

    @property
    def contention(self) -> float:
        """How far the host is shared: 0 for one replica per node, 1 for one per GPU."""
        return max(0.0, NODE_GPUS / self.gpus - 1.0) / (NODE_GPUS - 1.0)

    @property
    def known_task(self) -> str:
        """The task, or `other` for one without parameters of its own."""
        return self.task if self.task in PROMPT_TOKENS else OTHER_TASK

    @property
    def prompts_per_pass(self) -> float:
        """Requests that end, and are replaced, per decode pass."""
        return self.batch / self.output_tokens


@dataclass(frozen=True, slots=True)
class PassMix:
    """A pass that only decodes, one that carries prompts too, and the share of the latter."""

    decode: ForwardPass
    mixed: ForwardPass
    mixed_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What lies around the passes of one run.

    request_s: seconds per request during which the GPU waits. host_s: seconds that a shared host
    needs per pass, side by side with the GPU; host_request_s: the same per request. prompt_stall:
    how many times a prompt's share of a pass is paid, because copies of data parallel attention
    wait for each other. host_w: watts per GPU while it waits.
    """

    request_s: float
    host_s: float
    host_request_s: float
    prompt_stall: float
    host_w: float


def pass_mix(run: ServingRun) -> PassMix:
    """Make up a steady run's passes. Context is the prompt plus, on average, half the output."""
    prompt = PROMPT_TOKENS.get(run.task, OTHER_PROMPT_TOKENS)
    batch = max(1, round(run.batch))
    context = batch * (prompt + run.output_tokens / 2.0)
    prompts = run.prompts_per_pass
    tokens = round(prompt * max(1.0, prompts))
    return PassMix(
        decode=ForwardPass(decode_batch=batch, decode_kv_tokens=context),
        mixed=ForwardPass(
            prefill_tokens=tokens,
            prefill_context=tokens * (prompt + 1) / 2.0,
            decode_batch=batch,
            decode_kv_tokens=context,
        ),
        mixed_share=min(1.0, prompts),
    )


def steady_state(run: ServingRun, engine: EngineModel, around: Surroundings) -> tuple[float, float]:
    """Watts per GPU and output tokens per second of `run` at the GPU's default limit.

    Host and GPU partly overlap: together they take the root of the sum of their squares, which is
    the longer one when they differ much and 1.4 times either when they are equal.
    """
    mix = pass_mix(run)
    setting = Setting(cap_w=run.gpu.default_limit_w)
    decode, mixed = engine.cost(mix.decode, setting), engine.cost(mix.mixed, setting)
    share = mix.mixed_share * around.prompt_stall
    passes_s = decode.duration_s + share * (mixed.duration_s - decode.duration_s)
    decode_j = decode.duration_s * decode.power_w
    energy_j = decode_j + share * (mixed.duration_s * mixed.power_w - decode_j)
    host_s = around.host_s + around.host_request_s * run.prompts_per_pass
    step_s = sqrt(passes_s**2 + host_s**2) + around.request_s * run.prompts_per_pass
    return (energy_j + (step_s - passes_s) * around.host_w) / step_s, run.batch / step_s
