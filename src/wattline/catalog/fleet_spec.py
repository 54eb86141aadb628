"""Deployments and pools as configuration files describe them, and the fleet made of them.

Scenarios and the live controller read the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from wattline.catalog import engines as catalog
from wattline.catalog.products import gpu
from wattline.catalog.yaml_files import StrictModel
from wattline.core import polynomial, profile, roofline
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, Fleet, GpuProduct, Pool, Role, Slo

AnyEngine = roofline.RooflineEngine | polynomial.PolynomialEngine | profile.ProfileEngine

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class RooflineEngine(StrictModel):
    """Times and watts from the model's shape, the GPU's peaks and fitted efficiencies."""

    kind: Literal["roofline"] = "roofline"
    """Always `roofline`."""
    max_num_seqs: Count = 256
    """Most sequences in one decode batch."""
    max_batched_tokens: Count = 8192
    """Most tokens in one pass: the size of a prompt chunk."""
    kv_precision: Literal["bf16", "fp8"] = "bf16"
    """Precision of the key/value cache."""


class PolynomialEngine(StrictModel):
    """The timing polynomials of Dynamo's mock engine, with the cap response of the GPU."""

    kind: Literal["polynomial"]
    """Always `polynomial`."""
    max_num_seqs: Count = 256
    """Most sequences in one decode batch."""
    max_batched_tokens: Count = 8192
    """Most tokens in one pass."""
    kv_capacity_tokens: int = Field(default=1_048_576, ge=1000, le=1_000_000_000)
    """Tokens of context that fit in a replica."""


class ProfileEngine(StrictModel):
    """Measured times from Dynamo's profiling results."""

    kind: Literal["profile"]
    """Always `profile`."""
    path: str
    """Folder with the profiling results, or planner profile data (`.npz`); relative to the file."""
    measured_cap_w: float | None = Field(default=None, ge=1.0, le=100_000.0)
    """Power limit of the GPUs that were profiled; left out: the product's default limit."""
    max_num_seqs: Count = 256
    """Most sequences in one decode batch."""
    max_batched_tokens: Count = 8192
    """Most tokens in one pass."""


Engine = Annotated[RooflineEngine | PolynomialEngine | ProfileEngine, Field(discriminator="kind")]


class PoolSpec(StrictModel):
    """GPUs of one product set aside for one role of one deployment."""

    name: Name
    """Unique in the file."""
    role: Literal["prefill", "decode", "aggregated"]
    """What its replicas do."""
    gpu: str
    """GPU product, as `wattline models` lists them."""
    gpus: Count
    """GPUs set aside."""
    gpus_per_replica: int = Field(default=1, ge=1, le=1024)
    """GPUs of one replica: the tensor-parallel size, unless that is given."""
    tensor_parallel: int | None = Field(default=None, ge=1, le=64)
    """GPUs over which each layer is split; the rest of a replica's GPUs run data-parallel."""
    expert_parallel: bool = False
    """Spread whole experts over the replica's GPUs instead of splitting each."""
    min_replicas: int = Field(default=1, ge=0, le=1_000_000)
    """Fewest replicas that may serve."""
    max_replicas: int | None = Field(default=None, ge=1, le=1_000_000)
    """Most replicas; left out: as many as the GPUs hold."""
    startup_s: float = Field(default=90.0, ge=0.0, le=3600.0)
    """From the order to start a replica until it serves."""
    engine: Engine | None = None
    """Where its times and watts come from; left out: as its deployment says."""

    @property
    def most_replicas(self) -> int:
        """Upper bound on replicas."""
        held = self.gpus // self.gpus_per_replica
        return held if self.max_replicas is None else min(self.max_replicas, held)

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.gpus % self.gpus_per_replica:
            raise ValueError("gpus must be a multiple of gpus_per_replica")
        if self.tensor_parallel is not None and self.gpus_per_replica % self.tensor_parallel:
            raise ValueError("gpus_per_replica must be a multiple of tensor_parallel")
        if not self.min_replicas <= self.most_replicas:
            raise ValueError("min_replicas is more than the GPUs or max_replicas allow")
        return self


class SloSpec(StrictModel):
    """Latency targets: a request counts as good when it meets both."""

    ttft_s: float = Field(gt=0.0, le=3600.0)
    """Time to the first token, queueing included."""
    itl_s: float = Field(gt=0.0, le=60.0)
    """Mean time between the tokens of a request."""


class DeploymentSpec(StrictModel):
    """One served model with its targets and its pools."""

    name: Name
    """Unique in the file."""
    model: str
    """A model that `wattline models` lists, or a folder with a Hugging Face `config.json`."""
    precision: Literal["bf16", "fp8", "int8", "nvfp4", "mxfp4", "int4"] | None = None
    """Precision of the weights; left out: as the model is published."""
    slo: SloSpec
    """Latency targets."""
    priority: float = Field(default=1.0, gt=0.0, le=1000.0)
    """Weight of its requests against those of other deployments."""
    engine: Engine = RooflineEngine()
    """Where times and watts come from."""
    pools: list[PoolSpec] = Field(min_length=1, max_length=100)
    """Prefill and decode pools, or aggregated ones."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        roles = {pool.role for pool in self.pools}
        if roles not in ({"aggregated"}, {"prefill", "decode"}):
            raise ValueError("pools must be all aggregated, or prefill and decode")
        return self


def to_fleet(
    deployments: Sequence[DeploymentSpec], where: str, *, settle_s: float | None = None
) -> Fleet:
    """Build the fleet: pools in the order given, GPU products in order of first use.

    `where` names the file in errors; `settle_s` replaces that of the products. InputError for GPU
    products that the catalog does not hold.
    """
    products: dict[str, GpuProduct] = {}
    pools = []
    for deployment in deployments:
        for pool in deployment.pools:
            with _at(f"{where}, pool {pool.name}, gpu"):
                found = gpu(pool.gpu)
            if settle_s is not None:
                found = replace(found, settle_s=settle_s)
            products.setdefault(found.name, found)
            pools.append(_pool(pool, deployment.name, found.name))
    return Fleet(
        products=tuple(products.values()),
        deployments=tuple(
            Deployment(
                name=deployment.name,
                model=deployment.model,
                slo=Slo(ttft_s=deployment.slo.ttft_s, itl_s=deployment.slo.itl_s),
                priority=deployment.priority,
            )
            for deployment in deployments
        ),
        pools=tuple(pools),
    )


def to_engines(
    deployments: Sequence[DeploymentSpec], fleet: Fleet, folder: Path, where: str
) -> tuple[AnyEngine, ...]:
    """Build the engine of each pool, in the fleet's order, as the decision knows it.

    `folder`: what paths are relative to. InputError for unknown models, models that do not fit
    their GPUs, and unusable profiles.
    """
    engines: list[AnyEngine] = []
    pools = iter(fleet.pools)
    for spec, deployment in zip(deployments, fleet.deployments, strict=True):
        for pool_spec in spec.pools:
            with _at(f"{where}, deployment {spec.name}"):
                engines.append(_engine(spec, pool_spec, next(pools), deployment, folder))
    return tuple(engines)


def _engine(
    spec: DeploymentSpec, pool_spec: PoolSpec, pool: Pool, deployment: Deployment, folder: Path
) -> AnyEngine:
    options = spec.engine if pool_spec.engine is None else pool_spec.engine
    if isinstance(options, ProfileEngine):
        return catalog.engine_profile(
            folder / options.path,
            pool,
            deployment,
            measured_cap_w=options.measured_cap_w,
            max_num_seqs=options.max_num_seqs,
            max_batched_tokens=options.max_batched_tokens,
            split=_roofline(spec, pool_spec, pool, deployment, RooflineEngine()),
        )
    if isinstance(options, PolynomialEngine):
        return catalog.engine_polynomial(
            pool.gpu,
            max_num_seqs=options.max_num_seqs,
            max_batched_tokens=options.max_batched_tokens,
            kv_capacity_tokens=options.kv_capacity_tokens,
        )
    return _roofline(spec, pool_spec, pool, deployment, options)


def _roofline(
    spec: DeploymentSpec,
    pool_spec: PoolSpec,
    pool: Pool,
    deployment: Deployment,
    options: RooflineEngine,
) -> roofline.RooflineEngine:
    tp = pool_spec.tensor_parallel or pool.gpus_per_replica
    return catalog.engine(
        pool,
        deployment,
        precision=spec.precision,
        kv_precision=options.kv_precision,
        tp=tp,
        dp=pool.gpus_per_replica // tp,
        expert_parallel=pool_spec.expert_parallel,
        max_num_seqs=options.max_num_seqs,
        max_batched_tokens=options.max_batched_tokens,
    )


def _pool(spec: PoolSpec, deployment: str, gpu: str) -> Pool:
    return Pool(
        name=spec.name,
        deployment=deployment,
        role=Role(spec.role),
        gpu=gpu,
        gpus=spec.gpus,
        gpus_per_replica=spec.gpus_per_replica,
        min_replicas=spec.min_replicas,
        max_replicas=spec.most_replicas,
        startup_s=spec.startup_s,
    )


@contextmanager
def _at(what: str) -> Iterator[None]:
    """Say where a name stands that another module could not use."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error.where}", error.found, error.remedy) from error
