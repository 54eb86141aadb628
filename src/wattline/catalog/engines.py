"""Engines of pools: catalog numbers and fitted parameters put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wattline.catalog.fits import fit
from wattline.catalog.products import gpu
from wattline.catalog.profiles import Profile, read_profile
from wattline.catalog.specs import model
from wattline.core.engine import ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, Pool, Setting
from wattline.core.polynomial import LLAMA_8B_KV_BYTES, PolynomialEngine
from wattline.core.profile import ProfileEngine
from wattline.core.roofline import RooflineEngine, roofline_engine

MOST_WATTS_FACTOR = 2.0
"""Predicted watts are believed up to this factor from the fitted response (assumed)."""


def engine(
    pool: Pool,
    deployment: Deployment,
    *,
    precision: str | None = None,
    kv_precision: str = "bf16",
    tp: int | None = None,
    dp: int = 1,
    expert_parallel: bool = False,
    max_num_seqs: int = 256,
    max_batched_tokens: int = 8192,
) -> RooflineEngine:
    """Build the roofline engine of a pool's replicas, with the parameters fitted for its GPU.

    `precision` is that of the weights (the model's own when None), `tp` x `dp` must be the GPUs of
    a replica (`tp` fills them when None). InputError for unknown names, a model that does not fit,
    or a needed number that the catalog lacks. `coverage` of the result says what the parameters
    stand on.
    """
    where = f"pool {pool.name}"
    gpus = pool.gpus_per_replica
    if dp < 1 or gpus % dp:
        raise InputError(f"{where}, dp", dp, f"must divide the {gpus} GPUs of a replica")
    tp = gpus // dp if tp is None else tp
    if tp < 1 or tp * dp != gpus:
        raise InputError(f"{where}, tp", tp, f"tp x dp must be the {gpus} GPUs of a replica")
    if max_num_seqs < 1 or max_batched_tokens < 1:
        limits = (max_num_seqs, max_batched_tokens)
        raise InputError(f"{where}, max_num_seqs and max_batched_tokens", limits, "at least 1")
    fitted = fit(pool.gpu)
    built = roofline_engine(
        model(deployment.model),
        gpu(pool.gpu),
        params=fitted.params,
        response=fitted.response,
        tp=tp,
        dp=dp,
        expert_parallel=expert_parallel,
        precision=precision,
        kv_precision=kv_precision,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        coverage=fitted.coverage,
    )
    # A model that does not fit is an error of the scenario, to be said before anything runs.
    _ = built.kv_capacity_tokens
    return built


def engine_polynomial(
    gpu_name: str = "H200",
    *,
    max_num_seqs: int = 256,
    max_batched_tokens: int = 8192,
    kv_capacity_tokens: int = 16_384 * 64,
) -> PolynomialEngine:
    """Build Dynamo's mock engine on a GPU product, whose cap response gives it watts.

    Its timing is that of the default limit, so arithmetic must not want more than that limit there:
    it would be slowed down twice.
    """
    fitted = fit(gpu_name).response
    room_w = gpu(gpu_name).default_limit_w - fitted.static_w
    response = replace(fitted, overlap=0.0, compute_w=min(fitted.compute_w, room_w))
    return PolynomialEngine(
        response=response,
        kv_capacity_tokens=kv_capacity_tokens,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
    )


def engine_profile(
    results: str | Path | Profile,
    pool: Pool,
    deployment: Deployment | None = None,
    *,
    measured_cap_w: float | None = None,
    max_num_seqs: int = 256,
    max_batched_tokens: int = 8192,
    split: RooflineEngine | None = None,
) -> ProfileEngine:
    """Build an engine from Dynamo's profiling results on the pool's GPU (see `profiles`).

    A profile says nothing of the power limit that it was taken at: the product's default unless
    `measured_cap_w` is given. With a deployment whose model the catalog knows, its roofline (or
    `split`, if one is at hand) divides each pass into arithmetic and memory time; otherwise the
    division is assumed and the cache of an 8B Llama taken for transfers, and `coverage` says so.
    InputError for a profile of replicas of another size.
    """
    profile = results if isinstance(results, Profile) else read_profile(Path(results))
    product, fitted = gpu(pool.gpu), fit(pool.gpu)
    _check_size(profile, pool, str(results) if not isinstance(results, Profile) else "profile")
    if split is None and deployment is not None:
        split = engine(pool, deployment)
    how = f"roofline of {split.model.name}" if split is not None else "assumed split"
    limit_w = product.default_limit_w if measured_cap_w is None else measured_cap_w
    at = "the default limit" if measured_cap_w is None else f"{measured_cap_w:g} W"
    built = ProfileEngine(
        prefill_tokens=profile.prefill_tokens,
        prefill_s=profile.prefill_s,
        decode=profile.decode,
        kv_capacity_tokens=profile.max_kv_tokens,
        kv_bytes_per_token=split.kv_bytes_per_token if split is not None else LLAMA_8B_KV_BYTES,
        default_cap_w=limit_w,
        response=fitted.response,
        roofline=split,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        coverage=f"latency: profiled at {at}; cap response: {how}, {fitted.coverage}",
    )
    return _with_watts(built, profile)


def _check_size(profile: Profile, pool: Pool, where: str) -> None:
    said = dict(profile.about).get("gpu_count")
    wrong = profile.gpus is not None and pool.gpus_per_replica % profile.gpus
    if said is not None and said.isdecimal() and int(said) != pool.gpus_per_replica:
        wrong = True
    if wrong:
        raise InputError(
            where,
            f"replicas of {said or profile.gpus} GPUs",
            f"pool {pool.name} has {pool.gpus_per_replica} GPUs per replica: profile it so",
        )


def _with_watts(built: ProfileEngine, profile: Profile) -> ProfileEngine:
    """The engine with its watts scaled to those that the profile states, if it states any."""
    prompt, step = profile.prefill_watts, profile.decode_watts
    phases = []
    if prompt is not None and profile.prefill_tokens:
        tokens = max(1, round(prompt.tokens))
        work = ForwardPass(tokens, tokens * (tokens + 1) / 2.0)
        built = replace(built, prefill_watts=_factor(built, work, prompt.watts))
        phases.append("prefill")
    if step is not None and profile.decode:
        batch = max(1, round(step.batch))
        work = ForwardPass(decode_batch=batch, decode_kv_tokens=batch * step.tokens)
        built = replace(built, decode_watts=_factor(built, work, step.watts))
        phases.append("decode")
    if not phases:
        return built
    return replace(built, coverage=f"{built.coverage}; watts of {' and '.join(phases)}: predicted")


def _factor(built: ProfileEngine, work: ForwardPass, watts: float) -> float:
    factor = watts / built.cost(work, Setting(built.default_cap_w)).power_w
    return round(min(MOST_WATTS_FACTOR, max(1.0 / MOST_WATTS_FACTOR, factor)), 6)
