"""Decide again on every recorded snapshot and compare to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.recording.codec import Header, decision_to_json
from wattline.recording.orders import carried_to_json, carry_out
from wattline.recording.record import Recording, Tick
from wattline.recording.values import computable
from wattline.sim.policies.context import PolicyContext
from wattline.sim.policies.registry import StartingPolicy, build


@dataclass(frozen=True, slots=True)
class Difference:
    """The first tick on which a replay differs, with both texts around the first byte."""

    tick: int
    line: int
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class Replay:
    """Decisions compared, and the first difference if there is one.

    notes: what of the recording could not be read.
    """

    decisions: int
    difference: Difference | None
    notes: tuple[str, ...] = ()


def replay(recording: Recording, progress: Callable[[float], None] | None = None) -> Replay:
    """Feed the recording to a fresh policy of the same settings; stops at the first difference.

    A folder of segments has a policy of its own per segment. Where operators had ordered something,
    what was carried out is recomputed too.
    """
    policy: StartingPolicy | None = None
    header: Header | None = None
    count = 0
    for tick in recording.ticks():
        if policy is None or tick.header is not header:
            header = tick.header
            policy = recorded_policy(header, str(tick.path))
        with computable(f"{tick.path}:{tick.line}"):
            difference = _compared(tick, policy)
        if difference is not None:
            return Replay(count, difference, tuple(recording.notes))
        count += 1
        if progress is not None:
            progress(1.0)
    return Replay(count, None, tuple(recording.notes))


def _compared(tick: Tick, policy: StartingPolicy) -> Difference | None:
    decision = policy.decide(tick.snapshot)
    again = decision_to_json(decision)
    if again != tick.decision_json:
        return _difference(tick.snapshot.tick, tick.line, tick.decision_json, again)
    if tick.carried is None or tick.carried_json is None:
        return None
    carried = carry_out(tick.snapshot, decision, tick.carried.orders, tick.header.settings)
    again = carried_to_json(carried)
    if again != tick.carried_json:
        return _difference(tick.snapshot.tick, tick.line + 1, tick.carried_json, again)
    return None


def recorded_policy(header: Header, where: str) -> StartingPolicy:
    """A fresh policy as the recording's header describes it."""
    document = header.policy_context
    caps, replicas = document.get("pool_caps_w"), document.get("pool_replicas")
    try:
        context = PolicyContext(
            role_caps={Role(role): float(cap) for role, cap in document["role_caps"].items()},
            pool_caps_w=None if caps is None else tuple(float(cap) for cap in caps),
            pool_replicas=None if replicas is None else tuple(int(n) for n in replicas),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: policy_context", document, f"cannot be read ({error}); record again"
        ) from error
    return build(header.policy, header.settings, context)


def _difference(tick: int, line: int, recorded: bytes, replayed: bytes) -> Difference:
    place = next(
        (index for index, (a, b) in enumerate(zip(recorded, replayed, strict=False)) if a != b),
        min(len(recorded), len(replayed)),
    )
    window = slice(max(0, place - 60), place + 60)
    return Difference(
        tick, line, recorded[window].decode("utf-8", "replace"), replayed[window].decode()
    )
