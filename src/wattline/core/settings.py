"""Settings of the decision: the static half of its input, recorded once per run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wattline.core.engine import EngineModel
from wattline.core.fleet import Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to decide. `engines` holds one model per pool, in the fleet's order."""

    fleet: Fleet
    engines: tuple[EngineModel, ...]
    objective: Literal["throughput", "energy"] = "throughput"
