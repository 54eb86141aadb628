"""What predicted engines show: to metrics, `/state` and readiness. Immutable."""

from __future__ import annotations

from dataclasses import dataclass

from wattline.controller.model_alternatives import Alternative

DISABLED_REASONS = (
    "infeasible_at_startup",
    "startup_exception",
    "consecutive_failures",
    "operator",
)
"""Why no sweep is tried any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentModels:
    """Where one deployment's engines come from. Counts are since the start.

    configured: whether they are to be predicted. source: what is in force: `declared` or `aic`.
    state: what happens, in a word. why: the newest failure, or why nothing is tried any more.
    exceptions: sweeps without a usable answer. clamped_*: sweeps whose watts of that side were not
    credible. prefill_w, decode_w: watts per GPU as used, None while nothing is predicted; raw ones
    beside them. alternatives: see `model_alternatives`.
    """

    name: str
    configured: bool = False
    source: str = "declared"
    state: str = "declared"
    why: str | None = None
    sweeping: bool = False
    consecutive_failures: int = 0
    sweeps: int = 0
    exceptions: int = 0
    regressions: int = 0
    disabled_reason: str | None = None
    clamped_prefill: int = 0
    clamped_decode: int = 0
    prefill_w: float | None = None
    decode_w: float | None = None
    prefill_raw_w: float | None = None
    decode_raw_w: float | None = None
    package: str | None = None
    age_s: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsView:
    """All deployments, in order."""

    deployments: tuple[DeploymentModels, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What needs a person."""
        return tuple(
            f"models of {entry.name}: {entry.why}"
            for entry in self.deployments
            if entry.disabled_reason not in (None, "operator")
        )
