"""What a live stack is made of, and the documents that its processes read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattline.catalog.fleet_spec import DeploymentSpec, PoolSpec, RooflineEngine
from wattline.catalog.products import gpu as catalog_gpu
from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.live.environment import Environment
from wattline.live.supervisor import WorkerPool
from wattline.live.worker_command import worker_pool
from wattline.live.worker_spec import WorkerSpec
from wattline.virtual.products import PRODUCTS


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSpec:
    """One deployment on virtual nodes, and who looks after it.

    served_name: the model's name at the frontends; the deployment's name by default. nodes: pool
    number i lies on node i modulo their number. settle_s: of the virtual GPUs; None: the product's.
    startup_s of a pool is that of its workers. decode steps are sent `stream_steps` at a time:
    tokens keep their times in the engine, and it costs less CPU. plugin: also run `wattline
    dynamo-plugin` on the plan that the controller writes. changes: merged into the controller's
    settings, mappings key by key.
    """

    deployment: DeploymentSpec
    budget_w: float
    guard_percent: float = 2.0
    served_name: str | None = None
    nodes: int = 1
    frontends: int = 1
    tick_s: float = 1.0
    settle_s: float | None = None
    stream_steps: int = 1
    drain_s: float = 30.0
    quiet_s: float = 0.5
    prometheus: bool = True
    scrape_s: float = 1.0
    plugin: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self.served_name or self.deployment.name

    @property
    def guard_w(self) -> float:
        """Watts of the first budget that are kept free."""
        return self.budget_w * self.guard_percent / 100.0

    def check(self) -> None:
        """Raise InputError for what worker processes cannot do."""
        if not isinstance(self.deployment.engine, RooflineEngine):
            raise InputError("stack, engine", self.deployment.engine.kind, "use roofline")
        if not 1 <= self.nodes <= len(self.deployment.pools):
            raise InputError("stack, nodes", self.nodes, "from 1 to the number of pools")
        for pool in self.deployment.pools:
            virtual_product(pool)

    def node_of(self, pool: int) -> int:
        """Number of the node on which a pool's GPUs are."""
        return pool % self.nodes

    def products_of(self, node: int) -> list[str]:
        """Products of a node's GPUs, pool after pool."""
        return [
            virtual_product(pool)
            for index, pool in enumerate(self.deployment.pools)
            if self.node_of(index) == node
            for _ in range(pool.gpus)
        ]


def virtual_product(pool: PoolSpec) -> str:
    """Name of a pool's GPUs on a virtual node; InputError for products that it has none of."""
    wanted = catalog_gpu(pool.gpu).name
    for name, product in PRODUCTS.items():
        if product.catalog_name == wanted:
            return name
    known = ", ".join(product.catalog_name for product in PRODUCTS.values())
    raise InputError(f"pool {pool.name}, gpu", pool.gpu, f"virtual nodes have {known}")


def worker_pools(
    spec: StackSpec, environment: Environment, gpus_files: Sequence[Path], discovery: Path
) -> list[WorkerPool]:
    """How each pool's workers are started. `gpus_files`: state file of each node."""
    engine = spec.deployment.engine
    assert isinstance(engine, RooflineEngine), "checked before"
    return [
        worker_pool(
            environment,
            WorkerSpec(
                role=Role(pool.role),
                gpus=(),
                gpus_file=str(gpus_files[spec.node_of(index)]),
                model=spec.deployment.model,
                model_dir=str(environment.model_dir),
                served_name=spec.model_name,
                precision=spec.deployment.precision,
                max_num_seqs=engine.max_num_seqs,
                max_batched_tokens=engine.max_batched_tokens,
                startup_s=pool.startup_s,
                drain_s=spec.drain_s,
                quiet_s=spec.quiet_s,
                stream_steps=spec.stream_steps,
                name=pool.name,
            ),
            discovery,
        )
        for index, pool in enumerate(spec.deployment.pools)
    ]


def controller_document(
    spec: StackSpec,
    *,
    folder: Path,
    listen: str,
    frontends: Sequence[str],
    nodes: Sequence[Mapping[str, Any]],
    pools: Sequence[WorkerPool],
    token_file: Path,
    prometheus: str | None,
) -> dict[str, Any]:
    """The controller's settings; `nodes` as its settings have them. `prometheus`: its address."""
    name = spec.deployment.name
    document: dict[str, Any] = {
        "state_dir": str(folder / "controller"),
        "listen": listen,
        "token_file": str(token_file),
        "tick_s": spec.tick_s,
        "deployments": [spec.deployment.model_dump(mode="json", exclude_defaults=True)],
        "nodes": [dict(node) for node in nodes],
        "budget": {"total_w": spec.budget_w, "guard_percent": spec.guard_percent},
        "sources": {
            "frontends": {name: list(frontends)},
            "model_names": {name: spec.model_name},
        },
        "actuation": {
            "replicas": "supervisor",
            "admission": "autoset",
            "workers": {
                pool.name: {
                    "argv": list(pool.argv),
                    "env": dict(pool.env),
                    "start_limit_s": pool.start_limit_s,
                    "drain_limit_s": pool.drain_limit_s,
                    "virtual_node": str(folder / node_name(spec.node_of(index))),
                }
                for index, pool in enumerate(pools)
            },
        },
    }
    if prometheus is not None:
        history = {"url": prometheus, "interval_s": 5.0, "window_s": 20}
        document["sources"]["prometheus"] = history
    if spec.plugin:
        document["actuation"]["plugin_state"] = {name: str(plan_file(folder))}
    return merged(document, spec.changes)


def node_name(number: int) -> str:
    """Name and folder of a virtual node; `number` counts from 0."""
    return f"node-{number + 1}"


def plan_file(folder: Path) -> Path:
    """Where the controller writes the plan that the plugin answers from."""
    return folder / "plugin" / "plan.json"


def agent_settings(folder: Path, node: str, listen: str, proc_root: Path) -> dict[str, str]:
    """The agent's settings for one node, by name."""
    return {
        "node": node,
        "mode": "grants",
        "grants": str(folder / "grants"),
        "state-dir": str(folder / f"agent-{node}"),
        "brake-file": str(folder / f"brake-{node}"),
        "listen": listen,
        "kubelet-socket": str(folder / "no-kubelet.sock"),
        "proc-root": str(proc_root),
        "dynamo-state": str(folder / "no-dynamo-agent.json"),
    }


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the changes in it; mappings are merged, all else is replaced."""
    result = dict(document)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both and isinstance(old, Mapping) else value
    return result
