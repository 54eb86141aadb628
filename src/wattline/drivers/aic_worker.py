"""The process that asks AIConfigurator: a script of its own, run by whichever Python has it.

It imports nothing of Wattline, so the library may live in an environment of its own, and a library
that hangs or fills the memory can be ended without the controller. One JSON document comes in on
standard input, one goes out on standard output; whatever the library prints goes to standard error.

The calls are those of the Python API that AIConfigurator 0.12 documents for its `estimate` command;
AISimulate keeps that module for compatibility.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

DISTRIBUTIONS = ("aisimulate", "aiconfigurator")
API = "aiconfigurator.cli.api"
MEMORY = "aiconfigurator_core.sdk.memory"
NICE = 10
"""The library must not take the processor from the controller that waits for it."""


def main() -> int:
    """Answer one document; 0 if it was answered, errors within the answer included."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    # What libraries print, in Python or below it, must not get into the answer.
    answer_to = os.dup(1)
    os.dup2(2, 1)
    document = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        api = importlib.import_module(API)
        memory = importlib.import_module(MEMORY)
    except ImportError as error:
        answer = {"missing": _line(error)}
    else:
        tables = [_answered(api, memory, request) for request in document["requests"]]
        answer = {"package": _package(), "tables": tables}
    with os.fdopen(answer_to, "w", encoding="utf-8") as out:
        json.dump(answer, out)
    return 0


def _package() -> str:
    for name in DISTRIBUTIONS:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _answered(api: Any, memory: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _table(api, memory, request)
    except Exception as error:
        # Whatever the library raises is its answer to this request.
        return {"error": f"{type(error).__name__}: {_line(error)}"}


def _table(api: Any, memory: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Points of both phases. A point that the library cannot estimate is left out and counted."""
    parallel = {
        "tp_size": request["tp"],
        "pp_size": request["pp"],
        "moe_tp_size": request["moe_tp"],
        "moe_ep_size": request["moe_ep"],
    }
    common = {
        **parallel,
        "backend_name": request["backend"],
        "gemm_quant_mode": request["gemm_quant"],
        "kvcache_quant_mode": request["kv_quant"],
    }

    def estimate(model: str, mode: str, version: str | None, isl: int, batch: int) -> Any:
        return api.cli_estimate(
            model,
            request["system"],
            mode=mode,
            backend_version=version,
            isl=isl,
            osl=2,
            batch_size=batch,
            **common,
        )

    # Looking a version up takes a second; once it is known a point takes milliseconds.
    model, version = _first_known(estimate, request)
    free = request["backend"] == "trtllm"
    cache = memory.estimate_kv_cache(
        model,
        request["system"],
        request["backend"],
        version,
        max_num_tokens=request["max_batched_tokens"],
        max_batch_size=request["max_num_seqs"],
        memory_fraction_kind="of_free" if free else "of_total",
        memory_fraction_value=request["memory_fraction"],
        kvcache_quant_mode=request["kv_quant"],
        gemm_quant_mode=request["gemm_quant"],
        **parallel,
    )
    prefill, decode, why = [], [], []
    for tokens in request["prefill_tokens"]:
        try:
            point = estimate(model, "static_ctx", version, tokens, 1)
            prefill.append([tokens, point.ttft, point.power_w, point.power_coverage])
        except Exception as error:
            why.append(_line(error))
    for context in request["contexts"]:
        for batch in _fitting(request["batches"], cache["total_kv_size_tokens"] // context):
            try:
                point = estimate(model, "static_gen", version, context, batch)
                decode.append([batch, context, point.tpot, point.power_w, point.power_coverage])
            except Exception as error:
                why.append(_line(error))
    return {
        "model": model,
        "backend_version": version,
        "kv_tokens": cache["total_kv_size_tokens"],
        "prefill": prefill,
        "decode": decode,
        "failed_points": len(why),
        "why": why[0] if why else None,
    }


def _first_known(estimate: Callable[..., Any], request: dict[str, Any]) -> tuple[str, str]:
    """The first of the model's names that the library can work with, and the version in use.

    Where there is none, the error of the first name stands.
    """
    why: Exception | None = None
    for model in request["models"]:
        try:
            tokens = request["prefill_tokens"][0]
            first = estimate(model, "static_ctx", request["backend_version"], tokens, 1)
        except Exception as error:
            why = why or error
        else:
            return model, first.backend_version
    raise why or ValueError("no model is named")


def _fitting(batches: list[int], most: int) -> list[int]:
    """The batches up to `most`, and that itself if it lies among them.

    So that nothing has to be drawn on beyond the last point, which would be too fast.
    """
    fitting = {batch for batch in batches if batch <= most}
    if 1 <= most < max(batches):
        fitting.add(most)
    return sorted(fitting)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    sys.exit(main())
