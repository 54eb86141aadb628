"""What a scenario tells a policy besides the settings of the decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wattline.core.fleet import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyContext:
    """Values that the scenario, or a sweep over a scenario, gives to a policy.

    role_caps: caps per role as fractions of the product's largest limit, for `static-caps`.
    pool_caps_w: caps per pool in the fleet's order, for `best-static` and `dynamo-clamp-best`: one
    candidate of a sweep in hindsight.
    pool_replicas: replicas per pool in the fleet's order, for `fewest-uncapped`: one candidate of a
    search in hindsight.
    """

    role_caps: Mapping[Role, float] = field(default_factory=dict)
    pool_caps_w: tuple[float, ...] | None = None
    pool_replicas: tuple[int, ...] | None = None
