"""Robust least squares with a Gaussian prior: a small Levenberg-Marquardt in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_DIFFERENCE = 1e-5
_LONGEST_STEP = 1.0
_ATTEMPTS = 8
_CONVERGED = 1e-6


@dataclass(frozen=True, slots=True)
class Prior:
    """Independent normal beliefs about the parameters, before any data: means and spreads."""

    mean: Vector
    spread: Vector


def fit_robust(
    residual: Callable[[Vector], Vector],
    prior: Prior,
    weights: Vector,
    *,
    scale: float,
    strength: float,
    start: Vector | None = None,
    iterations: int = 60,
) -> Vector:
    """Parameters that minimise sum(w * (sqrt(1 + (r/scale)^2) - 1)) + strength/2 * prior terms.

    `residual` maps parameters (n,) to residuals (m,), `weights` is (m,). The loss is quadratic for
    residuals below `scale` and linear beyond, so that single bad rows do not steer the fit. Each
    step solves the normal equations of the reweighted problem with Marquardt's damping (Marquardt
    1963); the Jacobian is a forward difference. Raises no errors of its own; residuals must be
    finite at the prior mean.
    """
    theta = (prior.mean if start is None else start).copy()
    pull = strength / prior.spread**2

    def loss(at: Vector) -> tuple[Vector, float]:
        errors = residual(at)
        bends = np.sqrt(1.0 + (errors / scale) ** 2)
        beliefs = 0.5 * np.sum(pull * (at - prior.mean) ** 2)
        return errors, float(np.sum(weights * (bends - 1.0)) + beliefs)

    damping = 1e-2
    errors, best = loss(theta)
    for _ in range(iterations):
        jacobian = _jacobian(residual, theta, errors)
        curvature = weights / np.sqrt(1.0 + (errors / scale) ** 2) / scale**2
        gradient = jacobian.T @ (curvature * errors) + pull * (theta - prior.mean)
        normal = (jacobian * curvature[:, None]).T @ jacobian + np.diag(pull)
        gain = 0.0
        for _ in range(_ATTEMPTS):
            damped = normal + damping * np.diag(np.diag(normal))
            step = np.clip(-np.linalg.solve(damped, gradient), -_LONGEST_STEP, _LONGEST_STEP)
            tried, value = loss(theta + step)
            if value < best:
                gain = best - value
                theta, errors, best = theta + step, tried, value
                damping = max(damping / 5.0, 1e-7)
                break
            damping *= 4.0
        if gain <= _CONVERGED * best:
            break
    return theta


def _jacobian(residual: Callable[[Vector], Vector], theta: Vector, errors: Vector) -> Vector:
    columns = np.empty((errors.size, theta.size))
    for index in range(theta.size):
        moved = theta.copy()
        moved[index] += _DIFFERENCE
        columns[:, index] = (residual(moved) - errors) / _DIFFERENCE
    return columns
