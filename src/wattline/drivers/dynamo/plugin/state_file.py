"""What the controller tells the plugin: one small JSON file, replaced in one step.

    {
      "schema": 1,
      "version": 41,                      counts up with every change of the rest
      "made_s": 1780000000.25,            Unix time of this writing
      "budget_w": 20000.0, "guard_w": 500.0,
      "elsewhere_w": 2400.0,              booked beside the replicas below
      "roles": {
        "prefill": {"watts_per_replica_w": 2800.0, "min_replicas": 1, "wanted_replicas": 3},
        "decode":  {"watts_per_replica_w": 1600.0, "min_replicas": 1, "wanted_replicas": null}
      }
    }

The role `aggregated` may stand for `decode`, as the planner calls workers that do both. The
controller replaces the file at every tick, changed or not: its age is how the
plugin knows that somebody still plans. Keys that this schema does not know are ignored.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wattline.core.errors import InputError
from wattline.drivers.dynamo.plugin.constrain import PowerPlan, RolePlan
from wattline.drivers.dynamo.plugin.messages import DECODE, PREFILL
from wattline.drivers.json_fields import Fields, parse
from wattline.drivers.trusted_files import read_trusted, replace_file

SCHEMA = 1
MAX_BYTES = 64 * 1024
LARGEST_W = 1e9
"""A gigawatt: more than any site."""
_ROLE_OF = {"prefill": PREFILL, "decode": DECODE, "aggregated": DECODE}
_LATEST_S = 1e11
_MOST_REPLICAS = 100_000
_CLOCK_SLACK_S = 5.0
"""Writer and reader are on one machine; a file from further ahead means a clock that was set."""


@dataclass(frozen=True, slots=True)
class StateFile:
    """A plan and when it was written."""

    plan: PowerPlan
    made_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A plan as the reader has it. `seen_s`: its own clock; `behind_s`: age at that moment."""

    plan: PowerPlan
    seen_s: float
    behind_s: float

    def age_s(self, now_s: float) -> float:
        """Age on the reader's clock: a wall clock that is set later does not change it."""
        return self.behind_s + max(0.0, now_s - self.seen_s)


def encode_state(state: StateFile) -> bytes:
    """The document; `decode_state` reads it."""
    plan = state.plan
    document = {
        "schema": SCHEMA,
        "version": plan.version,
        "made_s": state.made_s,
        "budget_w": plan.budget_w,
        "guard_w": plan.guard_w,
        "elsewhere_w": plan.elsewhere_w,
        "roles": {
            name: {
                "watts_per_replica_w": role.watts_per_replica_w,
                "min_replicas": role.min_replicas,
                "wanted_replicas": role.wanted_replicas,
            }
            for name, role in plan.roles.items()
        },
    }
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def decode_state(content: bytes, *, where: str) -> StateFile:
    """A document's plan. InputError for one that is torn, of another schema, or cannot be meant."""
    document = parse(content, where)
    if document.count("schema") != SCHEMA:
        raise document.refusal("schema", f"this program reads {SCHEMA}: bring both to one version")
    listed = document.object("roles")
    if listed is None:
        raise document.refusal("roles", "must name the watts of at least one role")
    named = [name for name in _ROLE_OF if listed.has(name)]
    roles = {_ROLE_OF[name]: _role(listed, name) for name in named}
    if not roles or len(roles) < len(named):
        raise document.refusal("roles", "must name prefill, decode or both; or aggregated alone")
    plan = PowerPlan(
        version=document.count("version"),
        budget_w=document.number("budget_w", LARGEST_W),
        guard_w=_or_zero(document, "guard_w"),
        elsewhere_w=_or_zero(document, "elsewhere_w"),
        roles=roles,
    )
    return StateFile(plan, document.number("made_s", _LATEST_S))


def write_state(path: Path, plan: PowerPlan, *, made_s: float) -> None:
    """Replace the file in one step; OSError when that fails.

    Not durable on purpose: after a crash of the machine an old plan is worth nothing, and this is
    written every second.
    """
    replace_file(path, encode_state(StateFile(plan, made_s)), durable=False, mode=0o644)


class StateReader:
    """Reads the file when it was replaced. For one thread at a time."""

    def __init__(
        self,
        path: Path,
        *,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._wall = wall
        self._now = now
        self._mark: tuple[int, int, int] | None = None
        self._made_s: float | None = None
        self._looked_s = now()
        self.seen: Seen | None = None
        """The newest plan that could be read; it stays when a later file cannot be."""
        self.fault: str | None = None
        """Why the file of now cannot be read; None: it can."""

    def look(self) -> bool:
        """Read it if it was replaced; True if `seen` or `fault` may have changed."""
        looked_s, self._looked_s = self._looked_s, self._now()
        try:
            found = os.stat(self._path)
        except OSError as error:
            return self._failed(f"{self._path}: {error.strerror or error}")
        mark = (found.st_ino, found.st_mtime_ns, found.st_size)
        if mark == self._mark:
            return False
        try:
            content = read_trusted(self._path, max_bytes=MAX_BYTES)
            state = decode_state(content, where=str(self._path))
            behind_s = self._behind_s(state.made_s, looked_s)
        except InputError as error:
            self._mark = mark
            return self._failed(str(error))
        except OSError as error:
            return self._failed(f"{self._path}: {error.strerror or error}")
        self._mark, self.fault = mark, None
        self.seen = Seen(state.plan, self._now(), behind_s)
        self._made_s = state.made_s
        return True

    def _behind_s(self, made_s: float, looked_s: float) -> float:
        """Age of a file just read. A newer one than the last was written since the last look.

        So only for the first one, and for a copy of an old one, two wall clocks are compared; that
        one of them is set while both run does no harm.
        """
        newer = self._made_s is not None and made_s > self._made_s
        bounds = [self._now() - looked_s] if newer else []
        behind_s = self._wall() - made_s
        if behind_s >= -_CLOCK_SLACK_S:
            bounds.append(max(0.0, behind_s))
        if not bounds:
            remedy = "it is from the future: set the clock, or write it anew"
            raise InputError(f"{self._path}: made_s", made_s, remedy)
        return min(bounds)

    def _failed(self, why: str) -> bool:
        changed = why != self.fault
        self.fault = why
        return changed


def _role(listed: Fields, name: str) -> RolePlan:
    role = listed.object(name)
    assert role is not None
    watts = role.number("watts_per_replica_w", LARGEST_W)
    if watts < 1.0:
        raise role.refusal("watts_per_replica_w", "a replica has at least 1 W")
    least = role.count_or_none("min_replicas")
    wanted = role.count_or_none("wanted_replicas")
    for field, found in (("min_replicas", least), ("wanted_replicas", wanted)):
        if found is not None and found > _MOST_REPLICAS:
            raise role.refusal(field, f"must be at most {_MOST_REPLICAS}")
    return RolePlan(
        watts_per_replica_w=watts,
        min_replicas=1 if least is None else least,
        wanted_replicas=wanted,
    )


def _or_zero(document: Fields, name: str) -> float:
    return document.number_or_none(name, LARGEST_W) or 0.0
