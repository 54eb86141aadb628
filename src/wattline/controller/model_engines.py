"""From a predictor's tables to engines: what to ask for, and what to make of the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from pathlib import Path

from wattline.catalog.engines import engine_profile
from wattline.catalog.fleet_spec import AnyEngine, DeploymentSpec, PoolSpec, RooflineEngine
from wattline.catalog.profiles import Profile, Watts
from wattline.catalog.specs import model, model_file
from wattline.controller.models_settings import AicSpec
from wattline.core import roofline
from wattline.core.calibration.sweep import SweepFailed, Swept
from wattline.core.capacity import fleet_capacity_rps
from wattline.core.engine import EngineModel, ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, Fleet, Pool, Role, Setting
from wattline.core.mix import Mix
from wattline.core.power_figures import Predicted, SideWatts, believed
from wattline.core.profile import DecodeSlice
from wattline.drivers.aic import SYSTEMS, Point, Request, Table

LEAST_TOKENS = 128
USUAL_TOKENS = 32_768
"""Prompt lengths and contexts that are asked for: powers of two between, and more for longer
requests."""
MOST_TOKENS = 1 << 20
_PRECISIONS = {None: None, "bf16": "bfloat16", "fp8": "fp8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One pool of a deployment that is predicted.

    models (names of the same one), system and the words for precisions are the library's. moe:
    tensor- and expert-parallel size of experts, None for a dense model. declared: the roofline that
    stands until then.
    """

    index: int
    pool: Pool
    spec: PoolSpec
    models: tuple[str, ...]
    system: str
    gemm_quant: str | None
    kv_quant: str | None
    moe: tuple[int, int] | None
    tp: int
    max_num_seqs: int
    max_batched_tokens: int
    declared: roofline.RooflineEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a sweep makes of one deployment: an engine and its profile per pool, both sides' watts.

    package: the library, backend_version: what it measured with.
    """

    engines: tuple[AnyEngine, ...]
    profiles: tuple[Profile, ...]
    prefill: SideWatts
    decode: SideWatts
    package: str
    backend_version: str


class Infeasible(SweepFailed):
    """Engines that could be built and cannot meet the targets."""


def members_of(
    spec: DeploymentSpec,
    deployment: Deployment,
    fleet: Fleet,
    engines: Sequence[EngineModel],
    aic: AicSpec,
    folder: Path,
) -> tuple[Member, ...]:
    """The deployment's pools; InputError for what the library cannot be asked about."""
    found = []
    pools = [
        (index, pool) for index, pool in enumerate(fleet.pools) if pool.deployment == spec.name
    ]
    for pool_spec, (index, pool) in zip(spec.pools, pools, strict=True):
        where = f"models.aic, deployment {spec.name}, pool {pool.name}"
        declared = engines[index]
        options = spec.engine if pool_spec.engine is None else pool_spec.engine
        if not isinstance(options, RooflineEngine) or not isinstance(
            declared, roofline.RooflineEngine
        ):
            remedy = "only roofline engines are replaced: leave the deployment out of `deployments`"
            raise InputError(where, f"engine {options.kind}", remedy)
        tp = pool_spec.tensor_parallel or pool.gpus_per_replica
        if tp != pool.gpus_per_replica:
            remedy = "data-parallel replicas are not predicted: leave the deployment out"
            raise InputError(where, f"tensor_parallel {tp}", remedy)
        system = aic.systems.get(pool.gpu, SYSTEMS.get(pool.gpu))
        if system is None:
            remedy = "name the library's system in models.aic.systems"
            raise InputError(where, pool.gpu, remedy)
        moe = model(deployment.model).is_moe
        experts = (1, tp) if pool_spec.expert_parallel else (tp, 1)
        found.append(
            Member(
                index=index,
                pool=pool,
                spec=pool_spec,
                models=_model_names(spec, aic, folder),
                system=system,
                gemm_quant=_precision(spec, moe, where),
                kv_quant="fp8" if options.kv_precision == "fp8" else None,
                moe=experts if moe else None,
                tp=tp,
                max_num_seqs=options.max_num_seqs,
                max_batched_tokens=options.max_batched_tokens,
                declared=declared,
            )
        )
    return tuple(found)


def requests_of(members: Sequence[Member], aic: AicSpec, mix: Mix) -> list[Request]:
    """A request per pool, over powers of two that hold the mean request."""
    longest = max(mix.input_tokens, mix.input_tokens + mix.output_tokens)
    top = max(USUAL_TOKENS, min(MOST_TOKENS, 2 ** ceil(log2(max(2.0, 2.0 * longest)))))
    tokens = tuple(2**power for power in range(int(log2(LEAST_TOKENS)), int(log2(top)) + 1))
    return [
        Request(
            models=member.models,
            config_digest=_config_digest(member.models[0]),
            system=member.system,
            backend=aic.backend,
            backend_version=aic.backend_version,
            tp=member.tp,
            moe_tp=None if member.moe is None else member.moe[0],
            moe_ep=None if member.moe is None else member.moe[1],
            gemm_quant=member.gemm_quant,
            kv_quant=member.kv_quant,
            prefill_tokens=tokens,
            contexts=tokens,
            # Between two contexts the shorter one is looked up at the same use of the cache, with
            # up to twice the sequences.
            batches=tuple(2**power for power in range(ceil(log2(member.max_num_seqs)) + 2)),
            max_batched_tokens=member.max_batched_tokens,
            max_num_seqs=member.max_num_seqs,
            memory_fraction=aic.memory_fraction,
        )
        for member in members
    ]


def found_of(members: Sequence[Member], fleet: Fleet, tables: Sequence[Table]) -> Found:
    """Engines of the pools. Watts count only where both sides of the deployment have them."""
    limits_w = [fleet.product_of(member.pool).default_limit_w for member in members]
    sides = (
        _side(members, tables, (Role.PREFILL, Role.AGGREGATED), prompts=True),
        _side(members, tables, (Role.DECODE, Role.AGGREGATED), prompts=False),
    )
    prefill, decode = believed(_predicted(sides[0]), _predicted(sides[1]), min(limits_w))
    profiles = [
        profile_of(table, _watts(prefill, sides[0]), _watts(decode, sides[1])) for table in tables
    ]
    engines = [
        _engine(member, table, profile, prefill.predicted)
        for member, table, profile in zip(members, tables, profiles, strict=True)
    ]
    return Found(
        engines=tuple(engines),
        profiles=tuple(profiles),
        prefill=prefill,
        decode=decode,
        package=tables[0].package,
        backend_version=tables[0].backend_version,
    )


def judged(
    found: Found, members: Sequence[Member], deployment: Deployment, fleet: Fleet, mix: Mix
) -> Swept[Found] | SweepFailed:
    """What the engines promise at the largest limits: the least latencies, and tokens per second.

    The latencies are those of one mean prompt and of one sequence that decodes: what cannot be met
    so cannot be met at all.
    """
    pools = [member.pool for member in members]
    part = Fleet(products=fleet.products, deployments=(deployment,), pools=tuple(pools))
    ttft_s = itl_s = None
    for pool, engine in zip(pools, found.engines, strict=True):
        full = Setting(fleet.product_of(pool).max_limit_w)
        tokens = max(1, round(mix.computed_tokens))
        context = mix.input_tokens + mix.output_tokens / 2.0
        if pool.role is not Role.DECODE:
            work = ForwardPass(tokens, tokens * (mix.input_tokens - tokens + (tokens + 1) / 2.0))
            ttft_s = _least(ttft_s, engine.cost(work, full).duration_s)
        if pool.role is not Role.PREFILL:
            work = ForwardPass(decode_batch=1, decode_kv_tokens=context)
            itl_s = _least(itl_s, engine.cost(work, full).duration_s)
    rate = fleet_capacity_rps(part, found.engines, [mix])[0]
    missed = (ttft_s or 0.0) > deployment.slo.ttft_s or (itl_s or 0.0) > deployment.slo.itl_s
    if rate <= 0.0 and not missed:
        # A latency that is missed by itself is said with its number by whoever judges.
        return Infeasible("no replica meets the targets at its largest limit, margins included")
    return Swept(
        config=found,
        ttft_s=ttft_s,
        itl_s=itl_s,
        throughput=rate * (mix.input_tokens + mix.output_tokens),
    )


def profile_of(
    table: Table, prefill_watts: Watts | None = None, decode_watts: Watts | None = None
) -> Profile:
    """A table as a profile, which is what it is: latencies at the default limit."""
    slices: dict[int, dict[float, float]] = {}
    for point in table.decode:
        usage = min(1.0, point.batch * point.tokens / table.kv_tokens)
        slices.setdefault(point.tokens, {})[usage] = point.seconds
    prefill = {point.tokens: point.seconds for point in table.prefill}
    return Profile(
        tuple(float(tokens) for tokens in sorted(prefill)),
        tuple(prefill[tokens] for tokens in sorted(prefill)),
        tuple(
            DecodeSlice(
                float(context),
                tuple(sorted(slices[context])),
                tuple(slices[context][usage] for usage in sorted(slices[context])),
            )
            for context in sorted(slices)
        ),
        table.kv_tokens,
        form="prediction",
        about=(("source", f"{table.package}, data of {table.backend_version}"),),
        prefill_watts=prefill_watts,
        decode_watts=decode_watts,
    )


def _engine(member: Member, table: Table, profile: Profile, watts: bool) -> AnyEngine:
    built = engine_profile(
        profile,
        member.pool,
        split=member.declared,
        max_num_seqs=member.max_num_seqs,
        max_batched_tokens=member.max_batched_tokens,
    )
    _, _, said = built.coverage.partition("; ")
    if not watts:
        said += "; watts: not predicted (too little was measured)"
    source = f"{table.package}, {table.backend_version}"
    return replace(built, coverage=f"latency: predicted by {source} at the default limit; {said}")


def _watts(side: SideWatts, point: Point | None) -> Watts | None:
    if not side.predicted or point is None:
        return None
    return Watts(side.watts, float(point.tokens), float(point.batch))


def _side(
    members: Sequence[Member], tables: Sequence[Table], roles: tuple[Role, ...], *, prompts: bool
) -> Point | None:
    """The pass of a side that draws most, of those whose power is known; else any of them."""
    points = [
        point
        for member, table in zip(members, tables, strict=True)
        if member.pool.role in roles
        for point in (table.prefill if prompts else table.decode)
    ]
    known = [p for p in points if Predicted(p.power_w, p.coverage).usable]
    return max(known or points, key=lambda p: p.power_w or 0.0, default=None)


def _predicted(point: Point | None) -> Predicted:
    return Predicted(None, None) if point is None else Predicted(point.power_w, point.coverage)


def _least(known: float | None, value: float) -> float:
    return value if known is None else min(known, value)


def _precision(spec: DeploymentSpec, moe: bool, where: str) -> str | None:
    if spec.precision not in _PRECISIONS or (moe and spec.precision is not None):
        remedy = "leave precision out and name a checkpoint of it in models.aic.model_names"
        raise InputError(where, f"precision {spec.precision}", remedy)
    return _PRECISIONS[spec.precision]


def _model_names(spec: DeploymentSpec, aic: AicSpec, folder: Path) -> tuple[str, ...]:
    """What the library may call the model: as given, a folder, or each of its published names."""
    given = aic.model_names.get(spec.name)
    if given is not None:
        beside = folder / given
        return (str(beside) if beside.is_dir() else given,)
    if Path(spec.model).exists():
        return (str(Path(spec.model).absolute()),)
    named = [spec.model] if "/" in spec.model else []
    names = [*named, *(alias for alias in model_file(spec.model).aliases if "/" in alias)]
    if not names:
        remedy = "name the library's model in models.aic.model_names"
        raise InputError(f"models.aic, deployment {spec.name}", spec.model, remedy)
    return tuple(dict.fromkeys(names))


def _config_digest(name: str) -> str | None:
    """Of a folder's `config.json`, so that a changed file is another question."""
    path = Path(name)
    config = path / "config.json" if path.is_dir() else path
    try:
        return hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else None
    except OSError:
        return None
