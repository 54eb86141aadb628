"""Valid input for everything that the controller reads: what the mutations start from."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzz_mutations import RAW_NUMBERS, Mutator
from wattline.core.fleet import Setting
from wattline.drivers.dynamo.plugin.constrain import PowerPlan, RolePlan
from wattline.drivers.dynamo.plugin.state_file import StateFile, encode_state

PAGES = Path(__file__).resolve().parents[1] / "tests" / "vectors" / "dynamo_pages"
MODEL = "tiny"
PARKED = Setting(200.0)

_OURS = b"""# TYPE wattline_worker_ready gauge
wattline_worker_ready{worker_id="2a"} 1
wattline_worker_queued_prefill_tokens{worker_id="2a"} 812
wattline_worker_active_kv_tokens{worker_id="2a"} 30211
wattline_worker_kv_capacity_tokens{worker_id="2a"} 1048576
wattline_worker_running_requests{worker_id="2a"} 12
wattline_worker_waiting_requests{worker_id="2a"} 1
wattline_worker_in_flight_requests{worker_id="2a"} 13
dynamo_component_uptime_seconds{worker_id="2a"} 12.5
"""


def frontend_pages() -> list[bytes]:
    """Pages of a real frontend, in the order in which its counters grew."""
    names = ("fresh", "two_requests", "under_load", "rejections")
    return [(PAGES / f"frontend_{name}.txt").read_bytes() for name in names]


def worker_pages() -> list[bytes]:
    """Pages of Dynamo's mock workers and of ours."""
    names = ("decode_mocker_fresh", "decode_mocker_under_load", "prefill_mocker")
    return [*((PAGES / f"{name}.txt").read_bytes() for name in names), _OURS]


HOSTILE_NUMBERS = (
    *RAW_NUMBERS,
    "nan",
    "+Inf",
    "-1",
    "1e300",
    "1e15",
    "1e12",
    "9007199254740993",
    "0",
    "",
    "0x1p3",
    "1,5",
    "\u0661\u0662",
)
"""Values of a series: those of JSON's readers, and what counters never show."""


def some_page(mutator: Mutator, pages: list[bytes]) -> bytes:
    """A page with other values, lines twice, without some, or mutated bytes."""
    draw = mutator.draw
    if draw.random() < 0.25:
        return mutator.some_bytes(pages)
    lines = draw.choice(pages).decode().splitlines()
    for _ in range(draw.randint(1, 4)):
        if not lines:
            break
        _LINE_MUTATIONS[draw.randrange(len(_LINE_MUTATIONS))](draw, lines)
    return "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"


def _value(draw: Random, lines: list[str]) -> None:
    samples = [place for place, line in enumerate(lines) if line and line[0] != "#"]
    if samples:
        place = draw.choice(samples)
        name = lines[place].rpartition(" ")[0]
        lines[place] = f"{name} {draw.choice(HOSTILE_NUMBERS)}"


def _all_values(draw: Random, lines: list[str]) -> None:
    """One value for every series: what adds up to more than a float holds."""
    value = draw.choice(HOSTILE_NUMBERS)
    for place, line in enumerate(lines):
        if line and line[0] != "#":
            lines[place] = f"{line.rpartition(' ')[0]} {value}"


def _twice(draw: Random, lines: list[str]) -> None:
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))


def _gone(draw: Random, lines: list[str]) -> None:
    begin = draw.randrange(len(lines))
    del lines[begin : begin + draw.randint(1, 12)]


def _label(draw: Random, lines: list[str]) -> None:
    place = draw.randrange(len(lines))
    text = draw.choice(('a="', "a", '="",', "{", "}", "\\", '"', 'model="x",', "x" * 20_000))
    lines[place] = lines[place].replace("{", "{" + text, 1)


def _scaled(draw: Random, lines: list[str]) -> None:
    """All counts times a factor: a counter that jumps, or falls."""
    factor = draw.choice((0.0, 0.5, 1e3, 1e6, 1e9, 1e20, 1e290))
    for place, line in enumerate(lines):
        name, _, value = line.rpartition(" ")
        if line and line[0] != "#":
            try:
                lines[place] = f"{name} {float(value) * factor!r}"
            except ValueError:
                continue


_LINE_MUTATIONS: tuple[Callable[[Random, list[str]], None], ...] = (
    _value,
    _value,
    _all_values,
    _twice,
    _gone,
    _label,
    _scaled,
)


def prometheus_answers() -> list[object]:
    """Answers of the HTTP API, version 1: of each kind of result."""
    labels = {"__name__": "up", "pod": "decode-0", "exported_pod": "w", "Hostname": "n1"}
    now_s = 1_800_000_000.0
    vector: list[object] = []
    for number in range(3):
        metric = {**labels, "gpu": str(number)}
        vector.append({"metric": metric, "value": [now_s, str(400.5 + number)]})
    points = [[now_s - 60 + n * 10, str(n)] for n in range(7)]
    matrix: list[object] = [{"metric": labels, "values": points}]
    return [
        {"status": "success", "data": {"resultType": "vector", "result": vector}},
        {"status": "success", "data": {"resultType": "vector", "result": []}},
        {"status": "success", "data": {"resultType": "matrix", "result": matrix}},
        {"status": "success", "data": {"resultType": "scalar", "result": [now_s, "3"]}},
        {
            "status": "success",
            "warnings": ["PromQL info: x", "a store is gone"],
            "isPartial": True,
            "data": {"resultType": "vector", "result": vector},
        },
        {"status": "error", "errorType": "bad_data", "error": "parse error at char 3"},
    ]


THRESHOLD_ANSWERS: list[object] = [
    {
        "thresholds": [
            {
                "model": MODEL,
                "active_decode_blocks_threshold": 0.85,
                "active_prefill_tokens_threshold": 10_000,
                "active_prefill_tokens_threshold_frac": 1.5,
            }
        ]
    },
    {"thresholds": []},
    {
        "model": MODEL,
        "active_decode_blocks_threshold": None,
        "active_prefill_tokens_threshold": None,
        "active_prefill_tokens_threshold_frac": None,
    },
]

COMMANDS: list[object] = [
    {"by": "ann", "why": "PSU 2", "total_w": 1500.0, "for_s": 60.0},
    {"by": "ann", "why": "done", "clear": True},
    {"by": "ann", "why": "a look", "for_s": 5.0},
    {"by": "ann", "why": "a test", "pool": "decode", "cap_w": 300.0},
    {"by": "ann", "why": "a test", "pool": "prefill", "replicas": 1, "for_s": 3.0},
    {"by": "ann", "why": "hot", "node": "n1"},
    {"by": "ann", "why": "done", "what": "all"},
]

ORDERS: list[object] = [
    [
        {"id": "1", "kind": "hold", "by": "ann", "why": "a look", "since_s": 1.0, "until_s": 2e9},
        {
            "id": "2",
            "kind": "pin",
            "by": "ann",
            "why": "a test",
            "since_s": 1.8e9,
            "pool": "decode",
            "cap_w": 300.0,
        },
        {
            "id": "3",
            "kind": "cordon",
            "by": "ann",
            "why": "hot",
            "since_s": 1.8e9,
            "node": "n1",
            "gpus": ["GPU-00000000-0000-0000-0000-000000000000"],
        },
        {
            "id": "4",
            "kind": "pin",
            "by": "b",
            "why": "c",
            "since_s": 1.8e9,
            "until_s": None,
            "pool": "prefill",
            "replicas": 1,
        },
    ],
    [],
]

BUDGETS: list[object] = [
    {"version": 7, "override": None},
    {
        "version": 8,
        "override": {
            "total_w": 1500.0,
            "by": "ann",
            "why": "PSU 2",
            "since_s": 1.8e9,
            "until_s": 1.9e9,
        },
    },
]


def profile_documents() -> list[dict[str, object]]:
    """Prefill and decode halves of a JSON pair."""
    points = [(usage, tokens) for tokens in (1000, 3000) for usage in (0.1, 0.5, 0.9)]
    return [
        {
            "prefill_isl": [100, 1000, 4000, 16_000],
            "prefill_ttft": [8.0, 40.0, 160.0, 700.0],
            "prefill_thpt_per_gpu": [12_500.0, 25_000.0, 25_000.0, 22_857.0],
        },
        {
            "x_kv_usage": [usage for usage, _ in points],
            "y_context_length": [tokens for _, tokens in points],
            "z_itl": [5.0 + 20.0 * usage for usage, _ in points],
            "z_thpt_per_gpu": [1000.0] * len(points),
            "max_kv_tokens": [500_000],
        },
    ]


def profile_grid() -> dict[str, np.ndarray[Any, Any]]:
    """Planner profile data."""
    return {
        "prefill_isl": np.array([100.0, 1000.0, 4000.0]),
        "prefill_ttft_ms": np.array([8.0, 40.0, 160.0]),
        "decode_active_kv_tokens": np.array([0.0, 100_000.0, 500_000.0]),
        "decode_context_length": np.array([1000.0, 4000.0]),
        "decode_itl": np.array([[5.0, 5.5], [10.0, 11.0], [20.0, 22.0]]),
    }


HOSTILE_COLUMNS: tuple[np.ndarray[Any, Any], ...] = (
    np.array([]),
    np.array(5.0),
    np.array([np.nan, 1.0, 2.0]),
    np.array([np.inf, 1.0, 2.0]),
    np.array([-1.0, 2.0, 3.0]),
    np.array([1e308, 1e308, 1e308]),
    np.array([1e-300, 1e-300, 1e-300]),
    np.array([1e9, 1e9, 1e9]),
    np.array([3.0, 2.0, 1.0]),
    np.array([1, 1, 1]),
    np.array(["a", "b", "c"]),
    np.array([True, False, True]),
    np.array([1 + 2j, 2.0, 3.0]),
    np.array([[1e-6, 1e9], [1e9, 1e-6], [1.0, 1.0]]),
    np.array([None, {}, "x"], dtype=object),
    np.zeros((3, 0, 2)),
)
"""In the place of a column."""


def packed(columns: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """As an NPZ file."""
    file = io.BytesIO()
    # The arrays by name: as they would be given as keywords.
    np.savez(file, **columns)  # type: ignore[arg-type]
    return file.getvalue()


def plugin_states() -> list[object]:
    """State files of the planner's plugin."""
    roles = {
        "prefill": RolePlan(watts_per_replica_w=2800.0, min_replicas=1, wanted_replicas=3),
        "decode": RolePlan(watts_per_replica_w=1600.0, min_replicas=1, wanted_replicas=None),
    }
    plan = PowerPlan(version=41, budget_w=2e4, guard_w=500.0, elsewhere_w=2400.0, roles=roles)
    return [json.loads(encode_state(StateFile(plan, 1_800_000_000.0)))]
