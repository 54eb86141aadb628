"""The fuzz of `bench/fuzz_live.py` with fewer cases, and that it would notice."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

from fuzz import fuzz_target
from fuzz_live_feeds import LiveFiles
from fuzz_live_http import fuzz_http
from fuzz_live_loop import fuzz_loop
from fuzz_live_targets import live_targets
from fuzz_parsers import Target
from wattline.controller.gather import Gatherer
from wattline.core.errors import WattlineError
from wattline.drivers.dynamo import demand

SEED = 20
NAMES = (
    "frontend's page",
    "worker's page",
    "Prometheus answer",
    "/busy_threshold answer",
    "HTTP answer",
    "report over HTTP",
    "controller's file",
    "command to the controller",
    "file of orders",
    "file of the budget",
    "recording",
    "profile",
    "plugin's state",
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    files = LiveFiles(tmp_path_factory.mktemp("live"))
    yield {target.name: target for target in live_targets(files)}
    files.close()


def test_every_target_is_named_here(found: dict[str, Target]) -> None:
    assert tuple(found) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_takes_or_refuses_in_one_line(name: str, found: dict[str, Target]) -> None:
    result = fuzz_target(found[name], 60, SEED)
    assert result.defects == []
    assert result.taken + result.refused == 60


def test_requests_are_answered_and_change_nothing_without_the_token(tmp_path: Path) -> None:
    result = fuzz_http(150, SEED, tmp_path)
    assert result.defects == []
    assert 0 < result.taken < 150


@pytest.mark.parametrize("reports", [False, True])
def test_a_loop_goes_on_over_lies(reports: bool) -> None:
    result = fuzz_loop(50, SEED, reports=reports)
    assert result.defects == []
    assert result.taken + result.refused == 50


def test_counts_that_cannot_be_would_be_noticed(
    found: dict[str, Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOST_REQUESTS", "MOST_TOKENS", "MOST_TOKENS_EACH"):
        monkeypatch.setattr(demand, name, inf)
    result = fuzz_target(found["frontend's page"], 150, SEED)
    assert result.found > 0


def test_a_loop_that_breaks_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Gatherer, calls: object) -> object:
        raise WattlineError("a defect")

    whole = Gatherer.gather
    count = 0

    def sometimes(self: Gatherer, calls: dict[str, object]) -> object:
        nonlocal count
        count += 1
        return broken(self, calls) if count == 60 else whole(self, calls)  # type: ignore[arg-type]

    monkeypatch.setattr(Gatherer, "gather", sometimes)
    result = fuzz_loop(50, SEED, reports=True)
    assert [what for _, what in result.defects] == ["WattlineError: a defect"]
