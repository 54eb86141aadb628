"""What operators have ordered, laid over a decision: a pure function whose outcome is recorded.

A decision stays what the snapshot and the settings make it, so that it can be recomputed to the
byte. Pinned caps are in the snapshot, and the plan keeps them where they fit. All other orders
change what is carried out of a decision. In a tick with orders in force a recording holds a
third line: the orders, the steps that are left, and one reason per order and pool. Recomputing the
tick recomputes that line too.

An order never stops a lowering that a budget needs: while more is booked than may be, lowerings go
through, whatever is held or pinned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from wattline.core.decision import CapSteps, Decision, ReplicaStep
from wattline.core.errors import InputError
from wattline.core.settings import Settings
from wattline.core.snapshot import GpuTable, Phase, Snapshot

SCHEMA = "wattline.orders/2"
LINE_START = b'{"schema":"wattline.orders/'
_SAME_W = 0.0005


class OrderKind(StrEnum):
    """What an operator can order."""

    HOLD = "hold"
    PIN = "pin"
    CORDON = "cordon"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order in force.

    hold: no raise, no change of replicas or thresholds. pin: `pool` keeps `cap_w` or `replicas`.
    cordon: `gpus` (those of `node`) take no new replica and no raise, and their replicas drain.
    since_s and until_s are seconds since 1970; until_s None: until it is taken back.
    """

    id: str
    kind: OrderKind
    by: str
    why: str
    since_s: float
    until_s: float | None = None
    pool: str | None = None
    cap_w: float | None = None
    replicas: int | None = None
    node: str | None = None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OrderReason:
    """Why pool `pool` (index) is not where the decision alone would have it."""

    pool: int
    code: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What of a decision is carried out.

    drain: (pool, replica) of replicas that leave a cordoned node. admission: whether thresholds may
    be sent.
    """

    schema: str
    tick: int
    orders: tuple[Order, ...]
    caps: CapSteps
    replicas: tuple[ReplicaStep, ...]
    drain: tuple[tuple[int, int], ...]
    admission: bool
    reasons: tuple[OrderReason, ...]


_CARRIED = TypeAdapter(Carried)


def carried_to_json(carried: Carried) -> bytes:
    """The line of a recording, without its line feed."""
    return _CARRIED.dump_json(carried)


def carried_from_json(line: bytes, where: str) -> Carried:
    """The inverse of `carried_to_json`; InputError for another schema."""
    try:
        carried = _CARRIED.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {path}", first.get("input"), first["msg"]) from error
    if carried.schema != SCHEMA:
        raise InputError(f"{where}: schema", carried.schema, f"this version reads {SCHEMA}")
    return carried


def carry_out(
    snapshot: Snapshot, decision: Decision, orders: Sequence[Order], settings: Settings
) -> Carried:
    """Lay `orders` over `decision`. Equal arguments give equal results."""
    pools = [pool.name for pool in settings.fleet.pools]
    held = any(order.kind is OrderKind.HOLD for order in orders)
    cordoned = {gpu for order in orders if order.kind is OrderKind.CORDON for gpu in order.gpus}
    over = sum(snapshot.gpus.booked_w) > snapshot.budget.usable_w + _SAME_W
    return Carried(
        schema=SCHEMA,
        tick=snapshot.tick,
        orders=tuple(orders),
        caps=_caps(snapshot.gpus, decision.caps, held=held, cordoned=cordoned, over=over),
        replicas=() if held else _replicas(snapshot, decision, orders, settings),
        drain=_leaving(snapshot.gpus, cordoned),
        admission=not held,
        reasons=tuple(
            OrderReason(index, f"operator_{order.kind}", f"{name}: {_sentence(order)}.")
            # A hold comes last: it is what stands where several concern a pool.
            for order in sorted(orders, key=lambda order: order.kind is OrderKind.HOLD)
            for index, name in enumerate(pools)
            if _concerns(order, index, name, snapshot.gpus)
        ),
    )


def _caps(
    gpus: GpuTable, steps: CapSteps, *, held: bool, cordoned: set[str], over: bool
) -> CapSteps:
    """The steps that may be sent: a hold keeps all others back, a cordon raises on its node."""
    kept = []
    for gpu, cap_w, clock in zip(steps.gpu, steps.cap_w, steps.clock, strict=True):
        raises = cap_w > gpus.granted_w[gpu] + _SAME_W
        needed = over and cap_w < gpus.granted_w[gpu] - _SAME_W
        if needed or not (held or (raises and (over or gpus.uuid[gpu] in cordoned))):
            kept.append((gpu, cap_w, clock))
    return CapSteps(
        tuple(gpu for gpu, _, _ in kept),
        tuple(cap_w for _, cap_w, _ in kept),
        tuple(clock for _, _, clock in kept),
    )


def _replicas(
    snapshot: Snapshot, decision: Decision, orders: Sequence[Order], settings: Settings
) -> tuple[ReplicaStep, ...]:
    """The decision's steps, and for pinned pools those towards the pinned number."""
    steps = {step.pool: step.change for step in decision.replicas}
    for order in orders:
        for index, pool in enumerate(settings.fleet.pools):
            if order.pool != pool.name or order.replicas is None:
                continue
            view = snapshot.pools[index]
            free = sum(
                owner == index and phase is Phase.PARKED and enforced_w is not None
                for owner, phase, enforced_w in zip(
                    snapshot.gpus.pool, snapshot.gpus.phase, snapshot.gpus.enforced_w, strict=True
                )
            )
            change = order.replicas - view.ready - view.starting
            steps[index] = min(change, free // pool.gpus_per_replica)
    return tuple(ReplicaStep(pool, change) for pool, change in sorted(steps.items()) if change)


def _leaving(gpus: GpuTable, cordoned: set[str]) -> tuple[tuple[int, int], ...]:
    """Replicas that serve or start on a cordoned GPU."""
    here = (Phase.READY, Phase.STARTING)
    found = {
        (pool, replica)
        for uuid, pool, replica, phase in zip(
            gpus.uuid, gpus.pool, gpus.replica, gpus.phase, strict=True
        )
        if uuid in cordoned and replica >= 0 and phase in here
    }
    return tuple(sorted(found))


def _concerns(order: Order, index: int, name: str, gpus: GpuTable) -> bool:
    if order.kind is OrderKind.HOLD:
        return True
    if order.kind is OrderKind.PIN:
        return order.pool == name
    members = set(order.gpus)
    return any(
        pool == index and uuid in members for uuid, pool in zip(gpus.uuid, gpus.pool, strict=True)
    )


def _sentence(order: Order) -> str:
    what = {
        OrderKind.HOLD: "held",
        OrderKind.CORDON: f"node {order.node} cordoned",
        OrderKind.PIN: f"pinned to {_pinned(order)}",
    }[order.kind]
    return f"{what} by {order.by} {until_text(order.until_s)}: {order.why}"


def _pinned(order: Order) -> str:
    if order.cap_w is not None:
        return f"{order.cap_w:g} W per GPU"
    return f"{order.replicas} replicas"


def until_text(until_s: float | None) -> str:
    """Until when, in words; times are UTC."""
    if until_s is None:
        return "until it is taken back"
    return f"until {datetime.fromtimestamp(until_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
