"""A stand-in for AIConfigurator: the calls that its documentation names, with made-up numbers.

It lies in an environment of its own, as the library does: an interpreter beside a `site-packages`.
What it answers is in `behaviour.json` and may be changed while a test runs. That the real library
answers these calls so is what tests/contract/aic checks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

API = """
import json, os, sys, time
from pathlib import Path

BEHAVIOUR = json.loads((Path(__file__).parents[5] / "behaviour.json").read_text())


class Estimate:
    def __init__(self, ttft, tpot, power_w, coverage):
        self.ttft, self.tpot, self.power_w, self.power_coverage = ttft, tpot, power_w, coverage
        self.backend_version = BEHAVIOUR["backend_version"]


def cli_estimate(model_path, system_name, *, mode, backend_name, backend_version, isl, osl,
                 batch_size, tp_size, pp_size, moe_tp_size, moe_ep_size, gemm_quant_mode,
                 kvcache_quant_mode):
    print("the library talks on standard output")
    os.write(1, b"and so does what lies below it")
    what = BEHAVIOUR["what"]
    if what == "raises":
        raise RuntimeError("no data for\\nthis system")
    if what == "hangs":
        (Path(__file__).parents[5] / "hanging").write_text(str(os.getpid()))
        time.sleep(600)
    if what == "dies":
        os._exit(9)
    if model_path in BEHAVIOUR["unknown"]:
        raise KeyError(f"no model {model_path}")
    if isl in BEHAVIOUR["failing"]:
        raise ValueError(f"no point at {isl}")
    if mode == "static_ctx":
        seconds = BEHAVIOUR["prompt_ms"] + isl * BEHAVIOUR["token_ms"] / tp_size
        return Estimate(seconds, 0.0, BEHAVIOUR["prefill_w"], BEHAVIOUR["coverage"])
    step = BEHAVIOUR["step_ms"] + batch_size * 0.02 + batch_size * isl * 2e-5 / tp_size
    return Estimate(0.0, step, BEHAVIOUR["decode_w"], BEHAVIOUR["coverage"])
"""
MEMORY = """
def estimate_kv_cache(model_path, system, backend, backend_version=None, *, max_num_tokens,
                      max_batch_size, memory_fraction_kind, memory_fraction_value, tp_size, pp_size,
                      moe_tp_size, moe_ep_size, gemm_quant_mode, kvcache_quant_mode):
    assert memory_fraction_kind == ("of_free" if backend == "trtllm" else "of_total")
    return {"total_kv_size_tokens": int(400_000 * tp_size * memory_fraction_value)}
"""
USUAL: dict[str, Any] = {
    "what": "answers",
    "backend_version": "0.24.0",
    "prompt_ms": 10.0,
    "token_ms": 0.02,
    "step_ms": 6.0,
    "prefill_w": None,
    "decode_w": None,
    "coverage": 0.0,
    "failing": [],
    "unknown": [],
}


class StandIn:
    """A folder with the stand-in; `python` is its interpreter."""

    def __init__(self, folder: Path, version: str = "0.12.0", **behaviour: Any) -> None:
        self.folder = folder
        packages = folder / "lib" / "python3.11" / "site-packages"
        self.python = folder / "bin" / "python"
        for path, text in (
            ("aiconfigurator/__init__.py", ""),
            ("aiconfigurator/cli/__init__.py", ""),
            ("aiconfigurator/cli/api.py", API),
            ("aiconfigurator_core/__init__.py", ""),
            ("aiconfigurator_core/sdk/__init__.py", ""),
            ("aiconfigurator_core/sdk/memory.py", MEMORY),
        ):
            (packages / path).parent.mkdir(parents=True, exist_ok=True)
            (packages / path).write_text(text)
        self.set_version(version)
        self.python.parent.mkdir(exist_ok=True)
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
        self.python.chmod(0o755)
        self.behave(**behaviour)

    def set_version(self, version: str) -> None:
        """Install another version in place of this one."""
        packages = self.folder / "lib" / "python3.11" / "site-packages"
        for old in packages.glob("aiconfigurator-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        info = packages / f"aiconfigurator-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: aiconfigurator\nVersion: {version}\n"
        (info / "METADATA").write_text(text)

    def behave(self, **behaviour: Any) -> None:
        """What it answers from now on."""
        (self.folder / "behaviour.json").write_text(json.dumps({**USUAL, **behaviour}))
