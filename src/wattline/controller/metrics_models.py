"""Metrics of calibration, of model sweeps, and of where values come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wattline.controller.metric_catalogue import AIC
from wattline.controller.models_view import DISABLED_REASONS
from wattline.controller.view import TickView
from wattline.core.calibration.state import RoleCalibration
from wattline.core.fleet import Fleet, Role

Sample = tuple[str, Sequence[str], float | None]
"""Name, values of the labels, value; None: not known now, hence not shown."""

_P = "wattline_controller_"
_COMPONENT = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.AGGREGATED: "agg"}
_KINDS = {
    Role.PREFILL: ("ttft", "power"),
    Role.DECODE: ("itl", "power"),
    Role.AGGREGATED: ("ttft", "itl", "power"),
}
"""Factors that a role has; the others stay as they began."""


def calibration_samples(view: TickView, fleet: Fleet) -> Iterator[Sample]:
    """Correction factors and drift; nothing while calibration is off."""
    if view.decision is None or view.decision.next_state is None:
        return
    calibration = view.decision.next_state.calibration
    largest: dict[str, float] = {}
    pegged: dict[str, int] = {}
    for deployment, entry in zip(fleet.deployments, calibration, strict=False):
        for role in entry.roles:
            label = (deployment.name, role.role.value)
            for kind in _KINDS[role.role]:
                name = _coefficient(kind, role)
                factor, count = getattr(role.factors, kind), getattr(role.pegged, kind)
                largest[name] = max(factor, largest.get(name, 0.0))
                pegged[name] = count + pegged.get(name, 0)
                yield _P + "calibration_factor", (*label, kind), factor
                in_force = getattr(role.in_force, kind)
                yield _P + "calibration_factor_in_force", (*label, kind), in_force
            yield _P + "calibration_windows_total", label, float(role.windows)
        yield _P + "drifts_total", (deployment.name,), float(entry.drift.fired)
        yield _P + "drift_violations", (deployment.name,), float(entry.drift.violations)
    for name, factor in largest.items():
        kind, _, component = name.partition("_")
        yield AIC + f"c_{kind}", (component,) if component else (), factor
    for name, count in pegged.items():
        yield AIC + "correction_pegged_total", (name,), float(count)


def _coefficient(kind: str, role: RoleCalibration) -> str:
    """Its name as Dynamo has it: `power_agg`, `ttft`."""
    return f"power_{_COMPONENT[role.role]}" if kind == "power" else kind


def model_samples(view: TickView) -> Iterator[Sample]:
    """Sweeps of models; nothing where no deployment's models come from them."""
    swept = [entry for entry in view.models.deployments if entry.configured]
    for entry in swept:
        label = (entry.name,)
        yield _P + "models_sweeping", label, float(entry.sweeping)
        yield _P + "models_sweeps_total", label, float(entry.sweeps)
        yield _P + "models_age_seconds", label, entry.age_s
    if not swept:
        return
    yield AIC + "consecutive_failures", (), float(max(each.consecutive_failures for each in swept))
    yield AIC + "optimizer_exceptions_total", (), float(sum(each.exceptions for each in swept))
    yield AIC + "throughput_regression_total", (), float(sum(each.regressions for each in swept))
    yield AIC + "power_w_clamped_total", ("prefill",), float(sum(e.clamped_prefill for e in swept))
    yield AIC + "power_w_clamped_total", ("decode",), float(sum(e.clamped_decode for e in swept))
    speedups = [option.speedup for each in swept for option in each.alternatives]
    yield AIC + "advisory_alternative_tp_speedup", (), max(speedups, default=None)
    disabled = {each.disabled_reason for each in swept}
    for reason in DISABLED_REASONS:
        yield AIC + "optimizer_disabled_reason", (reason,), float(reason in disabled)


def source_samples(view: TickView, fleet: Fleet) -> Iterator[Sample]:
    """Where demand and draw come from, and how Prometheus is."""
    history = view.history
    standing_in = {} if history is None else history.demand
    for deployment, seen in zip(fleet.deployments, view.snapshot.demand, strict=True):
        label = (deployment.name,)
        yield _P + "demand_age_seconds", label, seen.age_s
        if seen.arrivals is not None:
            source = "prometheus" if deployment.name in standing_in else "frontends"
            yield _P + "demand_source", (*label, source), 1.0
    known = sum(watts is not None for watts in view.snapshot.gpus.draw_w)
    used = 0 if history is None else len(history.used)
    yield _P + "draw_gpus", ("agent",), float(known - used)
    if history is not None:
        yield _P + "draw_gpus", ("prometheus",), float(used)
        yield _P + "prometheus_up", (), float(history.why is None)
        yield _P + "prometheus_age_seconds", (), history.age_s
