"""The fault campaign puts back only files that a coordinator wrote, never its own forgeries."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parents[3] / "bench"


@pytest.fixture
def faults_grants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("faults_grants")


def make_cell() -> Any:
    scheduled: list[Any] = []
    return SimpleNamespace(
        rng=random.Random(1),
        forged=set(),
        scheduled=scheduled,
        later=lambda _delay_s, action: scheduled.append(action),
    )


def make_node(folder: Path) -> Any:
    source = folder / "n1.json"
    grant = {"epoch": 3, "sequence": 7, "watts": 300.0}
    source.write_text(json.dumps({"epoch": 3, "grants": [grant]}))
    source.chmod(0o644)
    return SimpleNamespace(source=source, name="n1")


def test_a_coordinators_file_is_put_back(faults_grants: ModuleType, tmp_path: Path) -> None:
    cell, node = make_cell(), make_node(tmp_path)
    genuine = node.source.read_bytes()
    assert "repeated" in faults_grants.replayed_file(cell, node)
    node.source.write_text("{}")
    (put_back,) = cell.scheduled
    put_back()
    assert node.source.read_bytes() == genuine


@pytest.mark.parametrize("kind", ["writable by all", "of an older epoch", "beyond every range"])
def test_a_forgery_is_not_put_back(faults_grants: ModuleType, tmp_path: Path, kind: str) -> None:
    cell, node = make_cell(), make_node(tmp_path)
    other = SimpleNamespace(source=tmp_path / "n2.json")
    cell.nodes = [node, other]
    genuine = node.source.read_bytes()
    cell.rng = SimpleNamespace(choice=lambda _kinds: kind, uniform=lambda low, _high: low)
    assert faults_grants.damaged_file(cell, node) == kind
    assert node.source.read_bytes() != genuine
    assert faults_grants.replayed_file(cell, node) is None
