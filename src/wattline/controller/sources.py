"""What a controller looks at: the seams between the loop and the drivers.

Every call may take long, fail or lie. The loop gives each a time limit (`gather`); what a source
raises becomes a reason why its values are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wattline.core.snapshot import DemandView, Phase
from wattline.drivers.dynamo.sources import DemandReading, PoolLoad
from wattline.drivers.grant_files import NodeReport


class DemandSource(Protocol):
    """The frontends of one deployment."""

    def read(self, now_s: float) -> DemandReading:
        """Read them now; raises what a driver raises when nothing can be said."""

    def close(self) -> None:
        """Close all connections."""


class LoadSource(Protocol):
    """The workers of one pool."""

    def read(self, now_s: float, urls: Sequence[str]) -> PoolLoad:
        """Read the workers with their metrics at `urls`."""

    def close(self) -> None:
        """Close all connections."""


class NodeSource(Protocol):
    """Where one node's report comes from."""

    def read(self) -> NodeReport:
        """The newest report; WattlineError or OSError when there is none that can be used."""

    def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica that holds GPUs. phase: ready, starting or draining."""

    name: str
    pool: str
    gpus: tuple[str, ...]
    phase: Phase
    metrics_url: str | None = None


class Replicas(Protocol):
    """Who starts and ends replicas."""

    def replicas(self) -> Sequence[ReplicaView]:
        """All that hold GPUs now."""

    def start(self, pool: str, gpus: Sequence[str]) -> str:
        """Start one on these GPUs; its name. WattlineError when it cannot be."""

    def drain(self, replica: str) -> None:
        """Let it finish what it has, then end it; again is harmless."""


def no_demand(age_s: float) -> DemandView:
    """A deployment of which nothing was seen for `age_s`."""
    return DemandView(
        window_s=0.0,
        arrivals=None,
        input_tokens_sum=None,
        cached_tokens_sum=None,
        completions=None,
        output_tokens_sum=None,
        rejected=None,
        ttft_p50_s=None,
        ttft_p99_s=None,
        itl_p50_s=None,
        itl_p99_s=None,
        age_s=age_s,
    )


NO_LOAD = PoolLoad(queued_prefill_tokens=None, active_kv_tokens=None, running=None)
