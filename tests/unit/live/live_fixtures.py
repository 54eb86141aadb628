"""An engine to drive by hand, and GPUs that are lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wattline.catalog.engines import engine_polynomial
from wattline.catalog.products import gpu
from wattline.core.engine import EngineModel
from wattline.core.fleet import Role
from wattline.live.worker_engine import Job, LiveEngine
from wattline.live.worker_spec import WorkerSpec
from wattline.sim.plant.prefix import PrefixCache

PRODUCT = replace(gpu("H200"), idle_w=75.0)


def live_engine(
    engine: EngineModel | None = None,
    *,
    role: Role = Role.AGGREGATED,
    gpus: int = 1,
    startup_s: float = 0.0,
    cap_w: float = 700.0,
    cache: PrefixCache | None = None,
) -> LiveEngine:
    """A replica that starts at time 0, by default of Dynamo's mock engine."""
    made = LiveEngine(
        engine=engine or engine_polynomial("H200"),
        role=role,
        product=PRODUCT,
        gpus=gpus,
        startup_s=startup_s,
        cap_w=cap_w,
        tokens_per_block=64,
        cache=cache,
    )
    made.start(0.0)
    made.run_until(0.0)
    return made


class Watched:
    """Notes when a job moved: (time, tokens so far)."""

    def __init__(self) -> None:
        self.moves: list[tuple[float, int]] = []
        self.now = 0.0

    def changed(self, job: Job) -> None:
        """A job's `changed`."""
        self.moves.append((self.now, job.made))


def drive(engine: LiveEngine, watched: Watched, until_s: float) -> None:
    """Call the engine at exactly the moments that it asks for, up to `until_s`."""
    while (next_s := engine.next_s(watched.now)) is not None and next_s <= until_s:
        watched.now = max(watched.now, next_s)
        engine.run_until(watched.now)
    watched.now = until_s
    engine.run_until(until_s)


def spec(**changes: Any) -> WorkerSpec:
    """A specification for tests that start no process."""
    values: dict[str, Any] = {
        "role": Role.AGGREGATED,
        "gpus": ("GPU-a",),
        "gpus_file": "gpus.state",
        "model": "Qwen3-8B",
        "model_dir": "model",
        "served_name": "tiny",
    }
    return WorkerSpec(**{**values, **changes})


class ListGpus:
    """GPUs whose limits a test sets, and which remember what was wanted."""

    def __init__(self, limit_w: float = 700.0, gpus: int = 1) -> None:
        self.limit_w = [limit_w] * gpus
        self.clock = [1.0] * gpus
        self.wanted_w: list[float] = []

    def limits_w(self) -> tuple[float, ...]:
        """As set."""
        return tuple(self.limit_w)

    def clocks(self) -> tuple[float, ...]:
        """As set."""
        return tuple(self.clock)

    def want(self, watts: float, clocks: tuple[float, ...]) -> None:
        """Remember."""
        self.wanted_w.append(watts)
