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
from math import floor

from pydantic import TypeAdapter, ValidationError

from wattline.core.decision import CapSteps, Decision, ReplicaStep
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet
from wattline.core.settings import Settings
from wattline.core.snapshot import GpuTable, Phase, Snapshot

SCHEMA = "wattline.orders/2"
LINE_START = b'{"schema":"wattline.orders/'
_SAME_W = 0.0005
_REGISTER_W = 0.75  # a register may round to whole watts
_LONGEST_TICK_S = 5.0  # as in a decision: a pause saves up no allowance to rise


class OrderKind(StrEnum):
    """What an operator can order."""

    HOLD = "hold"
    PIN = "pin"
    CORDON = "cordon"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order in force.

    hold: no raise, no change of replicas or thresholds. pin: `pool` keeps `cap_w` or `replicas`.
    cordon: `gpus` (those of `node`) take no new replica and no raise, and their replicas drain.
    restore: `gpus` (those of `node`, if it is given) get `originals_w` back, in the same order.
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
    originals_w: tuple[float, ...] = ()


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
    be sent. given_back: GPUs whose nodes let go of them once they have their original limits.
    """

    schema: str
    tick: int
    orders: tuple[Order, ...]
    caps: CapSteps
    replicas: tuple[ReplicaStep, ...]
    drain: tuple[tuple[int, int], ...]
    given_back: tuple[str, ...]
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
    originals_w = given_back_w(
        orders,
        settings.fleet,
        snapshot.gpus.uuid,
        snapshot.gpus.pool,
        snapshot.budget.usable_w,
    )
    kept = _kept(snapshot.gpus, decision.caps, held=held, cordoned=cordoned, over=over)
    kept = {gpu: step for gpu, step in kept.items() if snapshot.gpus.uuid[gpu] not in originals_w}
    if not held and not over:
        kept |= _giving_back(snapshot, kept, originals_w)
    return Carried(
        schema=SCHEMA,
        tick=snapshot.tick,
        orders=tuple(orders),
        caps=CapSteps(
            tuple(kept),
            tuple(cap_w for cap_w, _ in kept.values()),
            tuple(clock for _, clock in kept.values()),
        ),
        replicas=() if held else _replicas(snapshot, decision, orders, settings),
        drain=_leaving(snapshot.gpus, cordoned),
        given_back=tuple(uuid for uuid in snapshot.gpus.uuid if uuid in originals_w),
        admission=not held,
        reasons=tuple(
            OrderReason(
                index, f"operator_{order.kind}", f"{name}: {_sentence(order, snapshot.gpus)}."
            )
            # A hold comes last: it is what stands where several concern a pool.
            for order in sorted(orders, key=lambda order: order.kind is OrderKind.HOLD)
            for index, name in enumerate(pools)
            if _concerns(order, index, name, snapshot.gpus)
        ),
    )


def _kept(
    gpus: GpuTable, steps: CapSteps, *, held: bool, cordoned: set[str], over: bool
) -> dict[int, tuple[float, float]]:
    """Cap and clock per GPU that may be sent: a hold keeps all back, a cordon its node's raises."""
    kept = {}
    for gpu, cap_w, clock in zip(steps.gpu, steps.cap_w, steps.clock, strict=True):
        raises = cap_w > gpus.granted_w[gpu] + _SAME_W
        needed = over and cap_w < gpus.granted_w[gpu] - _SAME_W
        if needed or not (held or (raises and (over or gpus.uuid[gpu] in cordoned))):
            kept[gpu] = (cap_w, clock)
    return kept


def given_back_w(
    orders: Sequence[Order],
    fleet: Fleet,
    uuids: Sequence[str],
    pools: Sequence[int],
    usable_w: float,
) -> dict[str, float]:
    """Original limit per GPU that is to get it back; none where they do not fit together.

    They fit when they leave all other GPUs their lowest limits. `pools`: each GPU's, by index.
    """
    wanted = {
        uuid: watts
        for order in orders
        if order.kind is OrderKind.RESTORE
        for uuid, watts in zip(order.gpus, order.originals_w, strict=True)
    }
    if not wanted:
        return {}
    lowest_w = [fleet.product_of(pool).min_limit_w for pool in fleet.pools]
    need_w = sum(wanted.get(uuid, lowest_w[pool]) for uuid, pool in zip(uuids, pools, strict=True))
    return wanted if need_w <= usable_w + _SAME_W else {}


def _giving_back(
    snapshot: Snapshot, kept: dict[int, tuple[float, float]], originals_w: dict[str, float]
) -> dict[int, tuple[float, float]]:
    """Steps towards original limits: lowerings at once, raises as far as watts are free."""
    gpus, budget = snapshot.gpus, snapshot.budget
    rises_w = sum(max(0.0, cap_w - gpus.booked_w[gpu]) for gpu, (cap_w, _) in kept.items())
    left_w = budget.usable_w - sum(gpus.booked_w) - rises_w
    if budget.rise_w_per_s is not None:
        seconds = 0.0
        if snapshot.state is not None:
            seconds = min(_LONGEST_TICK_S, max(0.0, snapshot.time_s - snapshot.state.time_s))
        left_w = min(left_w, budget.rise_w_per_s * seconds - rises_w)
    steps = {}
    for gpu, uuid in enumerate(gpus.uuid):
        if uuid not in originals_w:
            continue
        original_w, granted_w = originals_w[uuid], gpus.granted_w[gpu]
        booked_w = max(granted_w, gpus.booked_w[gpu])
        # Whole milliwatts, as a grant has them.
        cap_w = min(original_w, floor(1000.0 * (booked_w + max(0.0, left_w))) / 1000.0)
        if abs(cap_w - granted_w) > _SAME_W and (cap_w == original_w or cap_w > granted_w):
            left_w -= max(0.0, cap_w - booked_w)
            steps[gpu] = (cap_w, 1.0)
    return steps


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


def _sentence(order: Order, gpus: GpuTable) -> str:
    match order.kind:
        case OrderKind.HOLD:
            what = "held"
        case OrderKind.CORDON:
            what = f"node {order.node} cordoned"
        case OrderKind.PIN:
            what = f"pinned to {_pinned(order)}"
        case OrderKind.RESTORE:
            what = _restored(order, gpus)
    return f"{what} by {order.by} {until_text(order.until_s)}: {order.why}"


def _pinned(order: Order) -> str:
    if order.cap_w is not None:
        return f"{order.cap_w:g} W per GPU"
    return f"{order.replicas} replicas"


def _restored(order: Order, gpus: GpuTable) -> str:
    enforced_w = dict(zip(gpus.uuid, gpus.enforced_w, strict=True))
    back = sum(
        (watts := enforced_w.get(uuid)) is not None and watts >= original_w - _REGISTER_W
        for uuid, original_w in zip(order.gpus, order.originals_w, strict=True)
    )
    where = f"GPU {order.gpus[0]}" if order.node is None else f"node {order.node}"
    return f"{where} given back, {back} of {len(order.gpus)} original limits in force,"


def until_text(until_s: float | None) -> str:
    """Until when, in words; times are UTC."""
    if until_s is None:
        return "until it is taken back"
    return f"until {datetime.fromtimestamp(until_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
