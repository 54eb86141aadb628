"""Formulas of queueing theory that turn latency targets into loads.

Wait of n servers behind one queue: P(W > t) = C exp(-t / w), with w = s (1 + cv2) / (2 n (1 - u)),
s the service time, cv2 its squared coefficient of variation, u the utilisation (arrivals Poisson;
Allen and Cunneen's approximation of M/G/n), and C = u**(sqrt(2 (n + 1)) - 1) the chance to wait
(Sakasegawa 1977). The exponential tail is exact for M/M/n and the heavy-traffic limit (Kingman
1961) otherwise.
"""

from __future__ import annotations

from math import exp, sqrt


def mean_batch(most: float, servers: int, deviations: float) -> float:
    """Mean batch b with b + deviations x sqrt(b / servers) = most.

    Square-root staffing (Halfin and Whitt 1981): sequences in flight are nearly Poisson, and
    routing shares their spread between servers.
    """
    half = deviations / sqrt(servers) / 2.0
    return (sqrt(half * half + most) - half) ** 2


def _wait_scale(used: float, service_s: float, servers: int, cv2: float) -> float:
    """Mean wait of those who wait, in seconds."""
    return service_s * (1.0 + cv2) / (2.0 * servers * (1.0 - used))


def _chance_to_wait(used: float, servers: int) -> float:
    return float(used ** (sqrt(2.0 * (servers + 1.0)) - 1.0))


def mean_wait_s(used: float, service_s: float, servers: int, cv2: float) -> float:
    """Mean wait over all requests, in seconds, at utilisation `used` below 1."""
    if used <= 0.0:
        return 0.0
    return _chance_to_wait(used, servers) * _wait_scale(used, service_s, servers, cv2)


def most_utilisation(
    left_s: float, service_s: float, servers: int, cv2: float, quantile: float
) -> float:
    """Most utilisation at which a share `quantile` of requests waits at most `left_s` seconds."""
    if left_s <= 0.0:
        return 0.0
    allowed = 1.0 - quantile
    low, high = 0.0, 1.0
    for _ in range(30):
        used = (low + high) / 2.0
        scale_s = _wait_scale(used, service_s, servers, cv2)
        if _chance_to_wait(used, servers) * exp(-left_s / scale_s) <= allowed:
            low = used
        else:
            high = used
    return low
