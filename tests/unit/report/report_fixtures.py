"""Runs that never happened: shapes a report must draw, made from sines and a seed.

Nothing here is a result of anything; policy names only pick how good the made-up figures are.
"""

from __future__ import annotations

import math
import random

from wattline.sim.result import (
    DeploymentSeries,
    PoolSeries,
    Run,
    RunEvent,
    RunResult,
    RunSeries,
)

POLICIES = (
    "uncapped",
    "uniform-cap",
    "static-caps",
    "best-static",
    "dynamo-clamp",
    "dynamo-clamp-best",
    "threshold",
    "slo-scaler",
    "wattline",
)
BUDGETS = (0.6, 0.7, 0.8, 1.0)
GPUS = 32
GPU_MAX_W = 700.0
_QUALITY = {"wattline": 1.0, "best-static": 0.97, "dynamo-clamp-best": 0.95, "uniform-cap": 0.85}


def fake_run(
    policy: str = "wattline",
    fraction: float = 0.7,
    *,
    steps: int = 240,
    step_s: float = 5.0,
    deployments: int = 1,
    events: bool = True,
    seed: int = 1,
) -> Run:
    """One made-up run; `uncapped` breaks its budget, the others hold it."""
    rng = random.Random(f"{policy}/{fraction}/{seed}")
    budget = fraction * GPUS * GPU_MAX_W
    quality = _QUALITY.get(policy, 0.75) * (0.35 + 0.65 * fraction)
    time_s = [i * step_s for i in range(steps)]
    swing = [0.5 + 0.5 * math.sin(2 * math.pi * i / max(steps, 1)) for i in range(steps)]
    broken = policy == "uncapped" and fraction < 1
    top = GPUS * GPU_MAX_W if broken else budget * 0.985
    cut = [0.8 * budget if 0.6 < i / max(steps, 1) < 0.75 else budget for i in range(steps)]
    enforced = [
        top if broken else min(top, 0.985 * c) * (0.9 + 0.1 * s)
        for s, c in zip(swing, cut, strict=True)
    ]
    booked = [e * 1.01 for e in enforced]
    draw = [
        e * (0.55 + 0.35 * s + 0.03 * rng.random()) for e, s in zip(enforced, swing, strict=True)
    ]
    pools: list[PoolSeries] = []
    served: list[DeploymentSeries] = []
    for number in range(deployments):
        name = f"deployment-{number}"
        for role, phase in (("prefill", 1.0), ("decode", -1.0)):
            pools.append(_pool(name, role, phase, fraction, swing, rng))
        served.append(_deployment(name, quality, swing, rng))
    result = _result(policy, fraction, budget, quality, broken, max(steps, 1) * step_s, seed)
    series = RunSeries(
        step_s=step_s,
        time_s=time_s,
        budget_w=cut,
        booked_w=booked,
        enforced_w=enforced,
        draw_w=draw,
        draw_peak_1s_w=[d * 1.04 for d in draw],
        pools=pools,
        deployments=served,
        events=_events(steps * step_s, rng) if events else [],
    )
    return Run(result=result, series=series)


def fake_comparison(steps: int = 240, deployments: int = 1) -> list[Run]:
    """Nine policies under four budgets."""
    return [
        fake_run(policy, fraction, steps=steps, deployments=deployments)
        for fraction in BUDGETS
        for policy in POLICIES
    ]


def _pool(
    deployment: str,
    role: str,
    phase: float,
    fraction: float,
    swing: list[float],
    rng: random.Random,
) -> PoolSeries:
    cap = [round(GPU_MAX_W * fraction * (1 + 0.25 * phase * (s - 0.5)) / 25) * 25 for s in swing]
    ready = [3 + round(s) for s in swing]
    return PoolSeries(
        name=f"{deployment}/{role}",
        role=role,
        deployment=deployment,
        cap_w=[float(c) for c in cap],
        draw_w=[c * 16 * (0.6 + 0.3 * s) for c, s in zip(cap, swing, strict=True)],
        enforced_w=[c * 16.0 for c in cap],
        ready=ready,
        starting=[1 if 0.4 < s < 0.5 else 0 for s in swing],
        queue_tokens=[2e4 * s * rng.random() for s in swing],
    )


def _deployment(
    name: str, quality: float, swing: list[float], rng: random.Random
) -> DeploymentSeries:
    offered = [20 + 15 * s + 2 * rng.random() for s in swing]
    load = [s / max(quality, 0.2) for s in swing]
    ttft = [0.25 + 0.2 * x + 0.1 * rng.random() for x in load]
    itl = [0.018 + 0.012 * x + 0.003 * rng.random() for x in load]
    return DeploymentSeries(
        name=name,
        ttft_target_s=1.0,
        itl_target_s=0.05,
        offered_rps=offered,
        goodput_rps=[o * min(1.0, quality + 0.1 * rng.random()) for o in offered],
        rejected_rps=[max(0.0, o * (0.9 - quality)) for o in offered],
        ttft_p50_s=[t if s > 0.02 else None for t, s in zip(ttft, swing, strict=True)],
        ttft_p99_s=[
            t * (2 + 3 * s) if s > 0.02 else None for t, s in zip(ttft, swing, strict=True)
        ],
        itl_p50_s=[t if s > 0.02 else None for t, s in zip(itl, swing, strict=True)],
        itl_p99_s=[t * 1.6 if s > 0.02 else None for t, s in zip(itl, swing, strict=True)],
    )


def _result(
    policy: str,
    fraction: float,
    budget: float,
    quality: float,
    broken: bool,
    duration_s: float,
    seed: int,
) -> RunResult:
    requests = int(27 * duration_s)
    met = int(requests * min(1.0, quality))
    completed = int(requests * min(1.0, quality + 0.05))
    tokens = completed * 210
    energy = 0.75 * budget * duration_s
    top = GPUS * GPU_MAX_W if broken else 0.985 * budget
    return RunResult(
        policy=policy,
        budget_w=budget,
        budget_fraction=fraction,
        seed=seed,
        requests=requests,
        completed=completed,
        rejected=requests - completed,
        unfinished=0,
        goodput_rps=met / duration_s,
        slo_attainment=met / requests,
        ttft_p50_ms=310.0 / quality,
        ttft_p99_ms=820.0 / quality**2,
        itl_p50_ms=22.0 / quality,
        itl_p99_ms=38.0 / quality,
        energy_j=energy,
        j_per_token=energy / tokens if tokens else None,
        output_tokens=tokens,
        peak_booked_w=top,
        peak_enforced_w=top,
        peak_draw_1s_w=0.95 * top,
        over_budget_enforced_ws=(top - budget) * duration_s if broken else 0.0,
        exposure_enforced_ws=1840.0,
        over_budget_draw_ws=0.0,
        cap_writes_per_hour=0.0 if broken else 412.0,
        cap_reversals_per_hour=0.0 if broken else 31.0,
        replica_changes=6,
        gpus=GPUS,
        wall_s=1.0,
    )


def _events(duration_s: float, rng: random.Random) -> list[RunEvent]:
    events = [
        RunEvent(
            time_s=0.6 * duration_s,
            kind="budget",
            text="Budget cut to 80 % of itself",
            exposure_ws=1240.0,
        ),
        RunEvent(time_s=0.75 * duration_s, kind="budget", text="Budget restored"),
        RunEvent(time_s=0.3 * duration_s, kind="fault", text="Metrics outage begins"),
        RunEvent(time_s=0.35 * duration_s, kind="fault", text="Metrics are back"),
        RunEvent(
            time_s=0.5 * duration_s,
            kind="exposure",
            text="A rival writer raised GPU 7 to 700 W",
            exposure_ws=600.0,
        ),
        RunEvent(time_s=0.45 * duration_s, kind="admission", text="Shedding above 8,192 tokens"),
    ]
    for _ in range(12):
        events.append(
            RunEvent(
                time_s=round(rng.random() * duration_s, 1),
                kind="plan",
                text="Prefill is short of watts: 50 W per GPU move from decode to prefill",
            )
        )
    return sorted(events, key=lambda event: (event.time_s, event.text))
