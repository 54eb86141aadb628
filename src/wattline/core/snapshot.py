"""What is seen at one tick: the only input of a decision besides its settings.

Values that can be missing are `None`; the reason stands in `Snapshot.missing`. Tables over GPUs are
columns of equal length, because a fleet may hold 100,000 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wattline.core.fleet import Setting
from wattline.core.state import State

SCHEMA = "wattline.snapshot/2"


class Phase(StrEnum):
    """What a GPU is doing for its pool."""

    READY = "ready"
    STARTING = "starting"
    DRAINING = "draining"
    PARKED = "parked"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTable:
    """One entry per GPU in every column; a GPU's index is its identity within a run.

    pool: index into the fleet's pools. replica: number of the replica within its pool, -1 if none.
    enforced_w: limit in the newest report (None: never reported or silent). granted_w: newest cap
    sent. booked_w: what the ledger books for it. draw_w: measured, None if unknown. clock: newest
    clock ceiling sent, fraction of maximum. derate: speed left, 1.0 healthy.
    """

    uuid: tuple[str, ...]
    pool: tuple[int, ...]
    replica: tuple[int, ...]
    phase: tuple[Phase, ...]
    enforced_w: tuple[float | None, ...]
    granted_w: tuple[float, ...]
    booked_w: tuple[float, ...]
    draw_w: tuple[float | None, ...]
    clock: tuple[float, ...]
    derate: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """Counts of one pool's replicas and the load that its workers report.

    queued_prefill_tokens: prompt tokens waiting or running. active_kv_tokens: tokens of context
    held. Both are sums over ready replicas, None when metrics are missing. pinned_w: the cap at
    which an operator wants each of its serving GPUs, None where nobody does. reserved_w: watts
    beyond the bookings that no plan may use, because GPUs of the pool are given back. starts: of
    each replica that loads, its number and the seconds since its start, where these are known.
    """

    ready: int
    starting: int
    draining: int
    setting: Setting
    queued_prefill_tokens: float | None
    active_kv_tokens: float | None
    running: float | None
    pinned_w: float | None = None
    reserved_w: float = 0.0
    starts: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandView:
    """What one deployment's frontends counted over the last `window_s` seconds.

    Sums, not averages, so that windows add up. `None` throughout means that metrics are missing
    (an outage), which is not the same as zero. `cached_tokens_sum` counts prompt tokens found in a
    prefix cache. Latency figures are over requests that ended in the window; means may be missing
    where medians are there, and medians out of a histogram are coarse.
    `future_rps` is the true demand ahead, in steps of `future_step_s`, given to the oracle only.
    """

    window_s: float
    arrivals: int | None
    input_tokens_sum: int | None
    cached_tokens_sum: int | None
    completions: int | None
    output_tokens_sum: int | None
    rejected: int | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    itl_p50_s: float | None
    itl_p99_s: float | None
    age_s: float
    future_rps: tuple[float, ...] | None = None
    future_step_s: float = 1.0
    ttft_mean_s: float | None = None
    itl_mean_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Watts that the fleet may book.

    guard_w is kept free. rise_w_per_s limits how fast booked watts may grow (None: no limit).
    """

    total_w: float
    guard_w: float
    version: int
    rise_w_per_s: float | None = None

    @property
    def usable_w(self) -> float:
        """Watts that may be booked: total less guard band."""
        return self.total_w - self.guard_w


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a decision may look at. `demand` is per deployment, `pools` per pool, in order."""

    schema: str
    tick: int
    time_s: float
    budget: Budget
    gpus: GpuTable
    pools: tuple[PoolView, ...]
    demand: tuple[DemandView, ...]
    missing: tuple[str, ...]
    state: State | None
