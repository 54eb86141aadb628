"""What `wattline profile fit` says: errors on the fit data, across folds and on a hold-out.

A report of one kind of data has the objects `fit`, `cross_validation`, `leave_one_gpu_out` and
`holdout`, for serving also `fit_of_engine_alone` (without what lies around the engine's passes),
each with `rows`, the four errors as fractions (None with a reason) and `groups`; op-level objects
have `long_kernels` with the same keys, over kernels longer than 0.3 ms. All errors are of the same
predictor that is returned; in the folds it is fitted anew without the rows that it is scored on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattline.core.errors import InputError
from wattline.core.fit.errors import Errors, Prediction, errors_of, report, spread_over
from wattline.core.fit.kernels import KernelRun
from wattline.core.fit.ops import LONG_KERNEL_S, OpFit, fit_ops
from wattline.core.fit.serving import ServingFit, fit_serving
from wattline.core.fit.validation import folds
from wattline.core.fit.workload import ServingRun

Record = dict[str, object]

NO_HOLDOUT = "no hold-out of this kind given"
ONE_PRODUCT = "the data holds one GPU product only"
ONE_FAMILY = "the data holds one family only"
NO_RATE = "kernels have no token rate"
OP_FOLDS = 5
"""Folds of kernels: families of shapes are dealt out in turn, so that none is on both sides."""


@dataclass(frozen=True, slots=True)
class ServingReport:
    """The fit, and the JSON object about it."""

    fit: ServingFit
    record: Record
    fit_errors: Errors
    cross_errors: Errors
    alone_errors: Errors


@dataclass(frozen=True, slots=True)
class OpReport:
    """The fit, and the JSON object about it."""

    fit: OpFit
    record: Record


def serving_report(
    runs: Sequence[ServingRun],
    holdout: Sequence[ServingRun],
    progress: Callable[[str], None] = lambda _: None,
) -> ServingReport:
    """Fit on `runs`, cross-validate over families and GPU products, score `holdout`.

    Rows without watts or without a rate are left out of the fit and counted. InputError when no row
    has both. `progress` is told what is being done.
    """
    usable = [run for run in runs if run.watts is not None and run.rate is not None]
    if not usable:
        raise InputError(
            "avg_power_w, output_tok_s", "blank in every row", "a fit needs rows that have both"
        )
    progress("fitting serving data")
    fit = fit_serving(usable)
    fitted = [_serving_prediction(fit, run) for run in usable]
    alone = [_serving_prediction(fit, run, engine_alone=True) for run in usable]
    families = [run.family for run in usable]
    cross = _cross(usable, families, "family", progress)
    products = [run.gpu.name for run in usable]
    across = _cross(usable, products, "GPU product", progress)
    scored = [_serving_prediction(fit, run) for run in holdout]
    family_of = {run.name: run.family for run in usable}
    record: Record = {
        "fit": report(fitted),
        "cross_validation": {
            **_report_or(cross, ONE_FAMILY),
            "over": "families of models",
            "spread": spread_over(cross, lambda row: family_of[row.model or ""]),
        },
        "leave_one_gpu_out": {**_report_or(across, ONE_PRODUCT), "over": "GPU products"},
        "holdout": {
            **_report_or(scored, NO_HOLDOUT),
            "families_also_in_fit": sorted({run.family for run in holdout} & set(families)),
            "predicted_from": _serving_bases(fit, holdout),
            "shapes_guessed": sorted({run.name for run in holdout if not run.shape_known}),
        },
        "fit_of_engine_alone": report(alone),
        "rows_without_targets": len(runs) - len(usable),
    }
    return ServingReport(fit, record, errors_of(fitted), errors_of(cross), errors_of(alone))


def op_report(
    runs: Sequence[KernelRun],
    holdout: Sequence[KernelRun],
    progress: Callable[[str], None] = lambda _: None,
) -> OpReport:
    """Fit on `runs`, cross-validate over families of shapes and GPU products, score `holdout`."""
    usable = [run for run in runs if run.watts is not None]
    if not usable:
        raise InputError("power_w", "blank in every row", "a fit needs rows that have it")
    progress("fitting op-level data")
    fit = fit_ops(usable)
    families = [run.work.family for run in usable]
    order = {family: str(i % OP_FOLDS) for i, family in enumerate(sorted(set(families)))}
    dealt = [order[family] for family in families]
    products = [run.gpu.name for run in usable]
    bases = {run.gpu.name: fit.base_for(run.gpu).name for run in holdout}
    record: Record = {
        "fit": _op_object(usable, fit.predict(usable), ONE_FAMILY),
        "cross_validation": {
            **_op_folds(usable, dealt, "shapes", ONE_FAMILY, progress),
            "over": f"families of shapes in {OP_FOLDS} folds",
        },
        "leave_one_gpu_out": {
            **_op_folds(usable, products, "GPU product", ONE_PRODUCT, progress),
            "over": "GPU products",
        },
        "holdout": {
            **_op_object(holdout, fit.predict(holdout), NO_HOLDOUT),
            "predicted_from": dict(sorted(bases.items())),
        },
        "rows_without_targets": len(runs) - len(usable),
    }
    return OpReport(fit, record)


def _serving_prediction(
    fit: ServingFit, run: ServingRun, *, engine_alone: bool = False
) -> Prediction:
    watts, rate = fit.predict(run, engine_alone=engine_alone)
    return Prediction(
        gpu=run.gpu.name,
        model=run.name,
        op=None,
        watts=watts,
        measured_watts=run.watts,
        rate=rate,
        measured_rate=run.rate,
    )


def _cross(
    runs: Sequence[ServingRun],
    labels: Sequence[str],
    what: str,
    progress: Callable[[str], None],
) -> list[Prediction]:
    """Predictions of each label's rows by a fit on the others; none if there is one label only."""
    rows: list[Prediction] = []
    for label, outside, inside in folds(labels):
        if not outside:
            return []
        progress(f"without {what} {label}")
        fit = fit_serving([runs[index] for index in outside])
        rows += [_serving_prediction(fit, runs[index]) for index in inside]
    return rows


def _report_or(
    rows: Sequence[Prediction], reason: str, rate_reason: str | None = None
) -> dict[str, object]:
    record = report(rows, rate_reason)
    if not rows:
        record |= {"watts_reason": reason, "token_rate_reason": rate_reason or reason}
    return record


def _serving_bases(fit: ServingFit, runs: Sequence[ServingRun]) -> Record:
    return {run.gpu.name: list(fit.params_for(run.gpu).based_on) for run in runs}


def _op_object(runs: Sequence[KernelRun], watts: Sequence[float], reason: str) -> dict[str, object]:
    rows = [
        Prediction(
            gpu=run.gpu.name,
            model=None,
            op=run.op,
            watts=value,
            measured_watts=run.watts,
            rate=None,
            measured_rate=None,
        )
        for run, value in zip(runs, watts, strict=True)
    ]
    long = [row for run, row in zip(runs, rows, strict=True) if run.latency_s > LONG_KERNEL_S]
    return {
        **_report_or(rows, reason, NO_RATE),
        "long_kernels": _report_or(long, reason if not rows else "no kernel that long", NO_RATE),
    }


def _op_folds(
    runs: Sequence[KernelRun],
    labels: Sequence[str],
    what: str,
    reason: str,
    progress: Callable[[str], None],
) -> dict[str, object]:
    watts: list[float] = []
    scored: list[KernelRun] = []
    for label, outside, inside in folds(labels):
        if not outside:
            break
        progress(f"without {what} {label}")
        held = [runs[index] for index in inside]
        watts += fit_ops([runs[index] for index in outside]).predict(held)
        scored += held
    return _op_object(scored, watts, reason)
