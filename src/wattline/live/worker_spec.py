"""What one worker process is told: a JSON document on its command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from wattline.catalog import engines
from wattline.core.engine import EngineModel
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, Pool, Role, Slo

ENGINES = ("roofline", "polynomial")
_COUNTS = (
    "max_num_seqs",
    "max_batched_tokens",
    "block_tokens",
    "default_max_tokens",
    "stream_steps",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One replica. Paths are strings, as JSON has them.

    namespace and component: where Dynamo's frontend finds it; component None: by role. startup_s:
    from the start of the process until it is registered. block_tokens: tokens of a block of the
    cache, equal on all workers of a model. drain_s: how long requests in flight may take after
    SIGTERM; quiet_s: how long requests that a frontend has sent already may still arrive.
    default_max_tokens: output of a request that names none. stream_steps: decode steps per item of
    the answer. metrics_port: 0 takes a free one. `name` is the label of the worker's own series.
    """

    role: Role
    gpus: tuple[str, ...]
    gpus_file: str
    model: str
    model_dir: str
    served_name: str
    namespace: str = "dynamo"
    component: str | None = None
    engine: str = "roofline"
    precision: str | None = None
    max_num_seqs: int = 256
    max_batched_tokens: int = 8192
    block_tokens: int = 64
    startup_s: float = 0.0
    drain_s: float = 120.0
    quiet_s: float = 1.0
    default_max_tokens: int = 256
    stream_steps: int = 1
    metrics_port: int = 0
    name: str = "worker"

    @property
    def endpoint(self) -> str:
        """Dynamo's name of what is served."""
        component = self.component or ("prefill" if self.role is Role.PREFILL else "backend")
        return f"{self.namespace}.{component}.generate"

    def to_json(self) -> str:
        """The document that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, changes: Sequence[str] = ()) -> WorkerSpec:
        """Read a document; InputError for anything but what `to_json` writes.

        `changes` are what a supervisor fills in: `gpus=A,B`, `metrics_port=N`, `name=X`.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise InputError("worker specification", text[:80], f"no JSON: {error}") from None
        known = {field.name for field in fields(cls)}
        if not isinstance(raw, dict) or not set(raw) <= known:
            found = sorted(set(raw) - known) if isinstance(raw, dict) else raw
            raise InputError("worker specification", found, f"keys are {', '.join(sorted(known))}")
        raw.update(_change(word) for word in changes)
        try:
            raw["role"] = Role(raw["role"])
            raw["gpus"] = tuple(raw["gpus"])
            spec = cls(**raw)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("worker specification", raw, f"cannot be used: {error}") from None
        spec.check()
        return spec

    def check(self) -> None:
        """Raise InputError for values that no worker can run with."""
        if self.engine not in ENGINES:
            raise InputError("worker, engine", self.engine, f"use one of {', '.join(ENGINES)}")
        for name in _COUNTS:
            found = getattr(self, name)
            if not isinstance(found, int) or found < 1:
                raise InputError(f"worker, {name}", found, "a whole number, at least 1")
        for name in ("startup_s", "drain_s", "quiet_s"):
            found = getattr(self, name)
            if not isinstance(found, int | float) or not 0.0 <= found <= 86_400.0:
                raise InputError(f"worker, {name}", found, "0 to 86400 seconds")
        if not (Path(self.model_dir) / "tokenizer.json").exists():
            remedy = "no tokenizer.json: `python -m wattline.live.environment` makes one"
            raise InputError("worker, model_dir", self.model_dir, remedy)


def _change(word: str) -> tuple[str, object]:
    name, given, value = word.partition("=")
    if given and name == "gpus":
        return name, [uuid for uuid in value.split(",") if uuid]
    if given and name == "metrics_port" and value.isdecimal():
        return name, int(value)
    if given and name == "name":
        return name, value
    raise InputError("worker", word, "only gpus, metrics_port and name can be given so")


def build_engine(spec: WorkerSpec, product: str) -> EngineModel:
    """The engine model of the replica on GPUs of a catalog product, as scenarios have it."""
    if spec.engine == "polynomial":
        return engines.engine_polynomial(
            product,
            max_num_seqs=spec.max_num_seqs,
            max_batched_tokens=spec.max_batched_tokens,
        )
    pool = Pool(
        name=spec.name,
        deployment=spec.served_name,
        role=spec.role,
        gpu=product,
        gpus=len(spec.gpus),
        gpus_per_replica=len(spec.gpus),
        min_replicas=0,
        max_replicas=1,
        startup_s=spec.startup_s,
    )
    deployment = Deployment(name=spec.served_name, model=spec.model, slo=Slo(1.0, 1.0))
    return engines.engine(
        pool,
        deployment,
        precision=spec.precision,
        max_num_seqs=spec.max_num_seqs,
        max_batched_tokens=spec.max_batched_tokens,
    )
