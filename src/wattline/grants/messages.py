"""What coordinator and node say to each other: plain values, no transport.

`Gpu` is whatever both sides name a GPU by: its UUID on real nodes, an index in the simulator.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

PROTOCOL_VERSION = 1
"""Carried by every message on the wire; another version is refused with a clear word."""

Gpu = TypeVar("Gpu", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(Generic[Gpu]):
    """A lease on watts for one GPU, addressed to one incarnation of its node.

    epoch, sequence: the newest pair is the one to obey. incarnation: the start (or brake) of the
    node that it is meant for; any other must not obey it. watts: leave to enforce so much. brake_w:
    where a brake takes the GPU. lease_s: seconds on the node's monotonic clock, counted from
    receipt, for which the node may act on it; receiving the same grant again renews it. expiry_w:
    where the node goes when the lease has ended; None: it stays where it is. budget_version: the
    budget that it was made under; a node that has seen a newer one obeys no raise of it.
    lowers_only: more is booked than may be, so this one must not raise what is enforced, whatever
    the coordinator believed that to be: the node holds no more than it did, and follows down.
    """

    gpu: Gpu
    incarnation: int
    epoch: int
    sequence: int
    watts: float
    brake_w: float
    lease_s: float
    expiry_w: float | None = None
    budget_version: int | None = None
    lowers_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt(Generic[Gpu]):
    """Asks one incarnation of a node to take up an epoch for one GPU, and to say what it holds.

    It grants nothing and takes nothing. Its sequence is one of the grants' own: the report that
    carries it proves every older grant superseded, as the report of a newer grant does.
    """

    gpu: Gpu
    incarnation: int
    epoch: int
    sequence: int
    budget_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Generic[Gpu]):
    """What a node says about one GPU.

    incarnation: the start (or brake) of the node that speaks. epoch, sequence: the newest grant or
    adoption acted on, addressed to this incarnation (sequence 0: the epoch is accepted, nothing
    acted on yet). report_sequence: the number of this report, rising by the order of making within
    an incarnation. enforced_w: the limit that the hardware says it obeys, read after acting.
    held_w: the largest limit that the node may still write by itself, a write under way included.
    standing_s: seconds for which the enforced limit is known to have stood when the report was
    made; they count as settled. budget_version: the newest version of the budget that the node has
    seen, None if it watches none. persistence: False: the driver may unload when idle and come back
    at the default limit; None: not known, taken as False.
    """

    gpu: Gpu
    incarnation: int
    epoch: int
    sequence: int
    report_sequence: int
    enforced_w: float
    held_w: float
    standing_s: float = 0.0
    budget_version: int | None = None
    persistence: bool | None = None


Message = Grant[Gpu] | Adopt[Gpu]
"""What travels from the coordinator to a node."""
