"""Decide again on every recorded snapshot and compare to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wattline.core.errors import InputError
from wattline.core.fleet import Role
from wattline.sim.policies.context import PolicyContext
from wattline.sim.policies.registry import StartingPolicy, build
from wattline.sim.record import Header, Recording, decision_to_json
from wattline.sim.recorded_values import computable


@dataclass(frozen=True, slots=True)
class Difference:
    """The first tick on which a replay differs, with both decisions around the first byte."""

    tick: int
    line: int
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class Replay:
    """Decisions compared, and the first difference if there is one."""

    decisions: int
    difference: Difference | None


def replay(recording: Recording, progress: Callable[[float], None] | None = None) -> Replay:
    """Feed the recording to a fresh policy of the same settings; stops at the first difference."""
    policy = recorded_policy(recording.header, str(recording.path))
    count = 0
    for tick in recording.ticks():
        with computable(f"{recording.path}:{tick.line}"):
            again = decision_to_json(policy.decide(tick.snapshot))
        if again != tick.decision_json:
            return Replay(
                count, _difference(tick.snapshot.tick, tick.line, tick.decision_json, again)
            )
        count += 1
        if progress is not None:
            progress(1.0)
    return Replay(count, None)


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
