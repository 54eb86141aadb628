"""The newest tick as plain JSON: what `/state` answers and `wattline operate status` shows."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from wattline.controller.metrics import reason_codes
from wattline.controller.view import TickView
from wattline.core.calibration.state import DeploymentCalibration
from wattline.core.fleet import Fleet

SCHEMA = "wattline.state-page/1"


def state_page(view: TickView, fleet: Fleet, now_s: float) -> bytes:
    """The page; `now_s` is of the monotonic clock that the view was made by."""
    return json.dumps(_document(view, fleet, now_s), allow_nan=False).encode() + b"\n"


def _document(view: TickView, fleet: Fleet, now_s: float) -> dict[str, Any]:
    snapshot, budget = view.snapshot, view.budget.budget
    return {
        "schema": SCHEMA,
        "tick": snapshot.tick,
        "time_s": snapshot.time_s,
        "age_s": round(now_s - view.made_s, 3),
        "took_s": round(view.took_s, 4),
        "advisory": view.advisory,
        "epoch": view.caps.epoch,
        "budget": {
            "total_w": budget.total_w,
            "guard_w": budget.guard_w,
            "usable_w": budget.usable_w,
            "version": budget.version,
            "cause": view.budget.cause,
            "booked_w": round(sum(view.caps.booked_w), 3),
            "exposure_w": view.caps.exposure_w,
            "exposures": list(view.caps.exposures),
        },
        "pools": [_pool(view, fleet, index) for index in range(len(fleet.pools))],
        "deployments": [_deployment(view, fleet, i) for i in range(len(fleet.deployments))],
        "nodes": [asdict(node) for node in view.nodes],
        "gpus": [
            {
                "uuid": uuid,
                "pool": fleet.pools[snapshot.gpus.pool[gpu]].name,
                "replica": snapshot.gpus.replica[gpu],
                "phase": snapshot.gpus.phase[gpu],
                "enforced_w": snapshot.gpus.enforced_w[gpu],
                "granted_w": view.caps.granted_w[gpu],
                "booked_w": view.caps.booked_w[gpu],
                "draw_w": snapshot.gpus.draw_w[gpu],
                "draw_source": _draw_source(view, gpu),
            }
            for gpu, uuid in enumerate(snapshot.gpus.uuid)
        ],
        "admission": {
            "mode": view.admission_mode,
            "frontends": [asdict(frontend) for frontend in view.frontends],
        },
        "orders": [] if view.carried is None else [asdict(o) for o in view.carried.orders],
        "prometheus": None if view.history is None else asdict(view.history),
        "models": asdict(view.models)["deployments"],
        "recorder": asdict(view.recorder),
        "missing": list(snapshot.missing),
        "problems": list(view.problems),
        "reload": view.reload,
        "counters": asdict(view.counters),
    }


def _draw_source(view: TickView, gpu: int) -> str | None:
    """Who measured it; its age is that of the node's report, or in `prometheus`."""
    if view.snapshot.gpus.draw_w[gpu] is None:
        return None
    used = () if view.history is None else view.history.used
    return "prometheus" if view.snapshot.gpus.uuid[gpu] in used else "agent"


def _pool(view: TickView, fleet: Fleet, index: int) -> dict[str, Any]:
    state = view.snapshot.pools[index]
    code, sentence = reason_codes(view).get(index, ("no_decision", ""))
    page: dict[str, Any] = {
        "name": fleet.pools[index].name,
        "deployment": fleet.pools[index].deployment,
        "role": fleet.pools[index].role,
        "ready": state.ready,
        "starting": state.starting,
        "draining": state.draining,
        "queued_prefill_tokens": state.queued_prefill_tokens,
        "active_kv_tokens": state.active_kv_tokens,
        "running": state.running,
        "reason": code,
        "sentence": sentence,
    }
    if view.decision is not None:
        page["plan"] = asdict(view.decision.plan[index])
        page["recommended"] = asdict(view.decision.recommended[index])
    return page


def _calibration(state: DeploymentCalibration) -> dict[str, Any]:
    """Factors as followed and as applied, and drift."""
    return {
        "roles": [
            {
                "role": entry.role,
                "factors": asdict(entry.factors),
                "in_force": asdict(entry.in_force),
                "windows": entry.windows,
                "pegged": asdict(entry.pegged),
            }
            for entry in state.roles
        ],
        "estimate_tokens_per_s": state.estimate_tokens_per_s,
        "violation": state.why,
        "violations": state.drift.violations,
        "drifts": state.drift.fired,
        "last_drift_s": state.drift.fired_s,
    }


def _deployment(view: TickView, fleet: Fleet, index: int) -> dict[str, Any]:
    page: dict[str, Any] = {"name": fleet.deployments[index].name}
    if view.decision is not None:
        page["admission"] = asdict(view.decision.admission[index])
        if view.decision.facts is not None:
            page["facts"] = asdict(view.decision.facts.deployments[index])
        state = view.decision.next_state
        if state is not None and state.calibration:
            page["calibration"] = _calibration(state.calibration[index])
    return page
