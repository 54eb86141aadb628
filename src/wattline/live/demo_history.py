"""What a Prometheus of the live stack kept, beside what others measured of the same minutes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from wattline.core.errors import WattlineError

Get = Callable[[str], tuple[int, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Figures of one span; None where Prometheus has nothing.

    requests: that the frontends finished, with an answer or a refusal. ttft_s: their mean.
    enforced_w: the largest sum of limits in the agents' reports, at the times of scrapes.
    lag_s: the most that a worker woke up late, as an engine in real time. series: how many there
    are.
    """

    requests: float | None
    ttft_s: float | None
    enforced_w: float | None
    lag_s: float | None
    series: float | None


def ask_history(get: Get, url: str, start_s: float, end_s: float) -> History:
    """Ask for the span, given in seconds since 1970. WattlineError when Prometheus refuses."""
    span = f"[{max(5, math.ceil(end_s - start_s))}s]"
    mean = (
        f"sum(increase(dynamo_frontend_time_to_first_token_seconds_sum{span})) / "
        f"sum(increase(dynamo_frontend_time_to_first_token_seconds_count{span}))"
    )
    fine = f"{span[:-1]}:1s]"

    def one(expression: str) -> float | None:
        return _instant(get, url, expression, end_s)

    return History(
        requests=one(f"sum(increase(dynamo_frontend_requests_total{span}))"),
        ttft_s=one(mean),
        enforced_w=one(f"max_over_time(sum(wattline_agent_gpu_enforced_limit_watts){fine})"),
        lag_s=one(f"max(max_over_time(wattline_worker_lag_seconds_max{span}))"),
        series=one('count({__name__=~".+"})'),
    )


def _instant(get: Get, url: str, expression: str, at_s: float) -> float | None:
    words = urlencode({"query": expression, "time": f"{at_s:.3f}"})
    status, body = get(f"{url}/api/v1/query?{words}")
    if status != 200:
        raise WattlineError(f"prometheus: {status}: {body[:200].decode(errors='replace')}")
    found = json.loads(body)["data"]["result"]
    value = float(found[0]["value"][1]) if found else math.nan
    return value if math.isfinite(value) else None
