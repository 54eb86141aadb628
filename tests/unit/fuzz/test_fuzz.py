"""The fuzz of `bench/fuzz.py` with fewer cases, and that it would notice."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

from fuzz import Result, feed, fuzz_target, wrong_with
from fuzz_actuation import RecordingDriver, fuzz_agent, fuzz_protocol
from fuzz_mutations import Mutator
from fuzz_parsers import Target, targets
from wattline.agent.snapshot import Mode
from wattline.core.errors import InputError
from wattline.drivers.gpu.device import GpuError
from wattline.drivers.gpu.simulated import SimulatedNode

CASES = 100
SEED = 20

with tempfile.TemporaryDirectory() as folder:
    NAMES = [target.name for target in targets(Path(folder))]


def target_of(name: str, folder: Path) -> Target:
    return next(target for target in targets(folder) if target.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_takes_or_refuses_in_one_line(name: str, tmp_path: Path) -> None:
    result = fuzz_target(target_of(name, tmp_path), CASES, SEED)
    assert result.defects == []
    assert result.cases == CASES
    assert result.taken + result.refused == CASES


def test_no_write_of_the_protocol_leaves_the_range() -> None:
    _, refused, defects = fuzz_protocol(3000, SEED)
    assert defects == []
    assert 0 < refused < 3000


@pytest.mark.parametrize("mode", list(Mode))
def test_no_write_of_a_whole_agent_leaves_the_range(mode: Mode, tmp_path: Path) -> None:
    _, _, writes, defects = fuzz_agent(mode, 150, SEED, tmp_path)
    assert defects == []
    assert writes > 0


def test_the_same_seed_gives_the_same_cases(tmp_path: Path) -> None:
    target = target_of("grant file", tmp_path)
    first, second = Mutator("x"), Mutator("x")
    assert [target.make(first) for _ in range(50)] == [target.make(second) for _ in range(50)]


def broken(data: bytes) -> Sequence[str]:
    if data == b"crash":
        raise KeyError("crash")
    if data == b"deep":
        raise RecursionError
    if data == b"long":
        raise InputError("a field", "x" * 3000, "r" * 3000)
    if data == b"warning":
        return ["a warning\x0bof two lines"]
    return ["\ud800"] if data == b"surrogate" else []


@pytest.mark.parametrize("data", [b"crash", b"deep", b"long", b"warning", b"surrogate"])
def test_a_parser_that_breaks_is_noticed(data: bytes) -> None:
    result = Result("broken")
    feed(Target("broken", lambda mutator: data, broken), data, result)
    assert result.found == 1
    feed(Target("broken", lambda mutator: b"", broken), b"", result)
    assert (result.found, result.cases) == (1, 2)


def test_long_lines_are_wrong_and_short_ones_are_not() -> None:
    assert wrong_with("x" * 3000) is not None
    assert wrong_with("pods file: 3: needs a list") is None


@pytest.mark.parametrize("watts", [5000.0, 199.0, float("nan")])
def test_a_limit_out_of_range_is_noticed_before_the_device_refuses_it(watts: float) -> None:
    driver = RecordingDriver(SimulatedNode(("NVIDIA H200",)))
    with pytest.raises(GpuError):
        driver.enumerate()[0].write_limit(watts)
    assert [attempt.is_out for attempt in driver.attempts] == [True]
