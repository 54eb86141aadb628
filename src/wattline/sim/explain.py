"""Why a recorded run did what it did, in text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from wattline.core.decision import Decision, PoolPlan
from wattline.core.errors import InputError
from wattline.core.fleet import Fleet, Setting
from wattline.core.problem import Evaluation, evaluate
from wattline.core.settings import Settings
from wattline.core.snapshot import Snapshot
from wattline.recording.record import Recording, Tick

_SETTING = re.compile(
    r"(?P<pool>[^=]+)=(?:(?P<replicas>\d{1,9})x)?(?P<cap>\d{1,9}(?:\.\d{1,6})?)W?"
    r"(?:@(?P<clock>[01]|[01]?\.\d{1,6}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Change:
    """A tick on which a pool's reason or plan changed."""

    tick: int
    time_s: float
    pool: str
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Overview:
    """A whole recording: ticks per pool and reason code, and where reasons or plans changed.

    notes: what of it could not be read.
    """

    policy: str
    ticks: int
    codes: dict[str, dict[str, int]]
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


def overview(recording: Recording) -> Overview:
    """Read a recording through."""
    codes: dict[str, Counter[str]] = {}
    last: dict[str, tuple[str, PoolPlan]] = {}
    changes: list[Change] = []
    ticks = 0
    for tick in recording.ticks():
        ticks += 1
        names = [pool.name for pool in tick.header.settings.fleet.pools]
        for index, code, sentence in reasons_of(tick):
            name = names[index]
            codes.setdefault(name, Counter())[code] += 1
            now = (code, tick.decision.plan[index])
            if last.get(name) != now:
                snapshot = tick.snapshot
                changes.append(Change(snapshot.tick, snapshot.time_s, name, code, sentence))
            last[name] = now
    ranked = {name: dict(counted.most_common()) for name, counted in codes.items()}
    return Overview(recording.header.policy, ticks, ranked, tuple(changes), tuple(recording.notes))


def reasons_of(tick: Tick) -> list[tuple[int, str, str]]:
    """Pool, code and sentence: an operator's order comes before the decision's own reason."""
    ordered = {} if tick.carried is None else {r.pool: r for r in tick.carried.reasons}
    found = []
    for reason in tick.decision.reasons:
        order = ordered.get(reason.pool)
        if order is None:
            found.append((reason.pool, str(reason.code), reason.sentence))
        else:
            found.append((reason.pool, order.code, order.sentence))
    return found


def find_tick(recording: Recording, number: int) -> tuple[Tick, Tick | None]:
    """The recorded tick `number` and the one before it; InputError if it was not recorded."""
    before: Tick | None = None
    last = None
    for tick in recording.ticks():
        if tick.snapshot.tick == number:
            return tick, before
        if tick.snapshot.tick > number:
            break
        before = last = tick
    end = "none" if last is None else str(last.snapshot.tick)
    raise InputError("--tick", number, f"no decision was recorded on it; the last before is {end}")


def last_tick(recording: Recording) -> Tick:
    """The last recorded tick; InputError if nothing was recorded."""
    last = recording.last_tick()
    if last is None:
        raise InputError(str(recording.path), "no decision", "the run ended before its first tick")
    return last


def parse_plans(text: str, fleet: Fleet, decision: Decision) -> tuple[PoolPlan, ...]:
    """Plans from `POOL=[Nx]WATTS[@CLOCK],...`; pools not named keep the plan of `decision`."""
    names = [pool.name for pool in fleet.pools]
    plans = list(decision.plan)
    for part in text.split(","):
        match = _SETTING.fullmatch(part.strip())
        if match is None:
            raise InputError(
                "--why-not", part, "write POOL=WATTS, POOL=NxWATTS or POOL=WATTS@CLOCK"
            )
        if match["pool"] not in names:
            raise InputError("--why-not", match["pool"], f"pools are {', '.join(names)}")
        index = names.index(match["pool"])
        before = plans[index]
        plans[index] = PoolPlan(
            int(match["replicas"]) if match["replicas"] else before.replicas,
            Setting(
                float(match["cap"]),
                float(match["clock"]) if match["clock"] else before.setting.clock,
            ),
        )
    return tuple(plans)


@dataclass(frozen=True, slots=True)
class WhyNot:
    """The plan that was taken beside another one, both judged in the same allocation problem."""

    taken: Evaluation
    other: Evaluation
    plans: tuple[PoolPlan, ...]


def why_not(snapshot: Snapshot, decision: Decision, settings: Settings, text: str) -> WhyNot:
    """What `text` (see `parse_plans`) would have done on this tick instead of what was decided."""
    from wattline.core.decide import problems_of

    plans = parse_plans(text, settings.fleet, decision)
    for pool, plan in zip(settings.fleet.pools, plans, strict=True):
        if plan.replicas * pool.gpus_per_replica > pool.gpus:
            raise InputError(
                "--why-not", f"{pool.name}={plan.replicas}x", f"the pool has {pool.gpus} GPUs"
            )
        product, cap_w = settings.fleet.product_of(pool), plan.setting.cap_w
        if not product.min_limit_w <= cap_w <= product.max_limit_w:
            raise InputError(
                "--why-not",
                f"{pool.name}={cap_w:g}",
                f"limits of {product.name} are {product.min_limit_w:g} to "
                f"{product.max_limit_w:g} W",
            )
        if not 0.1 <= plan.setting.clock <= 1.0:
            raise InputError(
                "--why-not", f"@{plan.setting.clock:g}", "a clock is a share from 0.1 to 1"
            )
    besides = [
        frozenset((taken.setting, other.setting))
        for taken, other in zip(decision.plan, plans, strict=True)
    ]
    problems, usable_w = problems_of(snapshot, settings, besides)
    deployments = [deployment.name for deployment in settings.fleet.deployments]

    def grouped(chosen: Sequence[PoolPlan]) -> list[list[PoolPlan]]:
        groups: list[list[PoolPlan]] = [[] for _ in deployments]
        for pool, plan in zip(settings.fleet.pools, chosen, strict=True):
            groups[deployments.index(pool.deployment)].append(plan)
        return groups

    return WhyNot(
        taken=evaluate(problems, grouped(decision.plan), usable_w, settings.headroom),
        other=evaluate(problems, grouped(plans), usable_w, settings.headroom),
        plans=plans,
    )
