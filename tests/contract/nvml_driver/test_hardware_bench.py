"""The read-only hardware checks, on virtual GPUs: they find a lie, and they write nothing."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from wattline.virtual.gpus import Cause, Group
from wattline.virtual.node import VirtualNode

BENCH = Path(__file__).parents[3] / "bench" / "hardware.py"


def checked(node: VirtualNode, folder: Path) -> tuple[int, dict[str, Any]]:
    out = folder / "hardware.json"
    command = [sys.executable, str(BENCH), "--seconds", "0.5", "--runs", "5", "--json", str(out)]
    done = subprocess.run(
        command, env=os.environ | node.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.returncode, json.loads(out.read_text())


def test_good_gpus_pass_and_nothing_is_written(tmp_path: Path) -> None:
    with VirtualNode(tmp_path / "node", ("h200", "b200")) as node:
        code, results = checked(node, tmp_path)
        assert code == 0
        assert [gpu["identity"]["uuid"] for gpu in results["gpus"]] == list(node.gpus.uuids())
        assert all(check["ok"] for gpu in results["gpus"] for check in gpu["checks"])
        assert all(
            latency["median_us"] > 0 for gpu in results["gpus"] for latency in gpu["latency"]
        )
        assert results["functions"]
        assert all("Set" not in name and "Reset" not in name for name in results["functions"])
        for uuid in node.gpus.uuids():
            assert node.gpus.calls(uuid, Group.LIMIT_WRITE) == 0
            assert node.gpus.calls(uuid, Group.CLOCK_WRITE) == 0
            changes, _ = node.gpus.changes(uuid)
            assert all(change.cause is not Cause.NVML for change in changes)


def test_a_missing_source_is_no_agreement(tmp_path: Path) -> None:
    with VirtualNode(tmp_path / "node", ("h200",)) as node:
        node.gpus.hide_fields(0, [190])
        code, results = checked(node, tmp_path)
        found = {check["name"]: check["ok"] for check in results["gpus"][0]["checks"]}
        assert found["enforced: field 190, GetEnforcedPowerLimit"] is None
        assert code == 0


def test_no_setter_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCH)])
    binding = runpy.run_path(str(BENCH))["ReadOnlyBinding"](pynvml)
    setters = [
        name
        for name in dir(pynvml)
        if name.startswith("nvml") and any(verb in name for verb in ("Set", "Reset", "Clear"))
    ]
    assert len(setters) > 20
    for name in ["nvmlLib", *setters]:
        if name.startswith(("nvmlDeviceGet", "nvmlSystemGet")):
            continue
        with pytest.raises(AttributeError, match="only reads"):
            getattr(binding, name)
