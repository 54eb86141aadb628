"""Engines from Dynamo's profiling results, and the files that they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.catalog import engine_profile
from wattline.catalog.profiles import Profile, read_profile
from wattline.core.engine import ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, Pool, Role, Setting, Slo
from wattline.core.profile import DecodeSlice, ProfileEngine

PREFILL: dict[str, Any] = {
    "prefill_isl": [256, 1024, 4096],
    "prefill_ttft": [20.0, 50.0, 210.0],
    "prefill_thpt_per_gpu": [12_800.0, 20_480.0, 19_500.0],
}
DECODE: dict[str, Any] = {
    "x_kv_usage": [0.1, 0.5, 0.9, 0.1, 0.9],
    "y_context_length": [1000, 1000, 1000, 4000, 4000],
    "z_itl": [10.0, 20.0, 40.0, 8.0, 24.0],
    "z_thpt_per_gpu": [1.0, 1.0, 1.0, 1.0, 1.0],
    "max_kv_tokens": 100_000,
}
POOL = Pool(
    name="pool",
    deployment="chat",
    role=Role.DECODE,
    gpu="H200",
    gpus=8,
    gpus_per_replica=1,
    min_replicas=0,
    max_replicas=8,
    startup_s=60.0,
)
CHAT = Deployment(name="chat", model="Qwen3-32B", slo=Slo(1.0, 0.05))
FULL = Setting(700.0)


def write_json(folder: Path, prefill: Any = PREFILL, decode: Any = DECODE) -> Path:
    (folder / "prefill_raw_data.json").write_text(json.dumps(prefill))
    (folder / "decode_raw_data.json").write_text(json.dumps(decode))
    return folder


@pytest.fixture(name="engine")
def _engine(tmp_path: Path) -> ProfileEngine:
    return engine_profile(write_json(tmp_path), POOL, CHAT)


def prompt(tokens: int, before: int = 0) -> ForwardPass:
    return ForwardPass(tokens, tokens * before + tokens * (tokens + 1) / 2)


def test_measured_points_come_back_at_the_default_limit(engine: ProfileEngine) -> None:
    for tokens, ttft_ms in zip(PREFILL["prefill_isl"], PREFILL["prefill_ttft"], strict=True):
        spent = engine.cost(prompt(int(tokens)), FULL).duration_s
        assert spent == pytest.approx(ttft_ms / 1e3, rel=2e-3)
    # 10,000 tokens held at a context of 1,000 each: usage 0.1.
    spent = engine.cost(ForwardPass(decode_batch=10, decode_kv_tokens=10_000.0), FULL).duration_s
    assert spent == pytest.approx(0.010, rel=2e-3)


def test_between_points_it_is_linear(engine: ProfileEngine) -> None:
    work = ForwardPass(decode_batch=30, decode_kv_tokens=30_000.0)
    assert engine.measured_s(work) == pytest.approx(0.015)
    # Context 2,500 lies half way between the slices; usage 0.5 is 20 ms in one, 16 ms in the other.
    work = ForwardPass(decode_batch=20, decode_kv_tokens=50_000.0)
    assert engine.measured_s(work) == pytest.approx(0.018)


def test_chunks_of_a_prompt_add_up_to_the_prompt(engine: ProfileEngine) -> None:
    fixed = engine.measured_s(prompt(1024)) + engine.measured_s(prompt(1024, 1024))
    whole = engine.measured_s(prompt(2048))
    overhead = engine.measured_s(prompt(1))
    assert fixed - overhead == pytest.approx(whole, rel=0.02)


def test_two_short_prompts_in_a_pass_cost_less_than_two_passes(engine: ProfileEngine) -> None:
    together = ForwardPass(512, 2 * 256 * 257 / 2)
    assert engine.measured_s(together) <= 2 * engine.measured_s(prompt(256))
    assert engine.measured_s(together) >= engine.measured_s(prompt(256))


@given(cap=st.floats(200.0, 700.0), batch=st.integers(1, 100), context=st.integers(10, 5000))
@settings(max_examples=40, deadline=None)
def test_caps_are_obeyed_and_never_speed_up(cap: float, batch: int, context: int) -> None:
    engine = _plain()
    work = ForwardPass(decode_batch=batch, decode_kv_tokens=float(batch * context))
    cost = engine.cost(work, Setting(cap))
    assert cost.power_w <= cap
    assert cost.duration_s >= engine.cost(work, FULL).duration_s


def _plain() -> ProfileEngine:
    from wattline.catalog import fit
    from wattline.core.profile import DecodeSlice

    return ProfileEngine(
        prefill_tokens=(100.0, 1000.0),
        prefill_s=(0.01, 0.05),
        decode=(DecodeSlice(1000.0, (0.1, 0.9), (0.01, 0.04)),),
        kv_capacity_tokens=100_000,
        kv_bytes_per_token=131_072.0,
        default_cap_w=700.0,
        response=fit("H200").response,
    )


def test_without_a_model_the_split_is_assumed_and_said(tmp_path: Path) -> None:
    engine = engine_profile(write_json(tmp_path), POOL)
    assert "assumed split" in engine.coverage
    both = ForwardPass(1024, 1024 * 1025 / 2, 10, 10_000.0)
    expected = 0.050 + 0.010 - engine.measured_s(prompt(1))
    assert engine.cost(both, FULL).duration_s == pytest.approx(expected, rel=0.05)


def test_npz_folders_give_the_same_engine(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    write_json(tmp_path / "json")
    for half, content in (("prefill", PREFILL), ("decode", DECODE)):
        folder = tmp_path / "npz" / f"selected_{half}_interpolation"
        folder.mkdir(parents=True)
        arrays: dict[str, Any] = {key: np.atleast_1d(value) for key, value in content.items()}
        np.savez(folder / "raw_data.npz", **arrays)
    assert read_profile(tmp_path / "npz") == read_profile(tmp_path / "json")


def test_a_half_that_was_not_profiled_is_an_error_only_when_used(tmp_path: Path) -> None:
    (tmp_path / "prefill_raw_data.json").write_text(json.dumps(PREFILL))
    engine = engine_profile(tmp_path, POOL)
    assert engine.cost(prompt(1024), FULL).duration_s > 0.0
    with pytest.raises(ValueError, match="no decode measurements"):
        engine.cost(ForwardPass(decode_batch=1, decode_kv_tokens=10.0), FULL)


@pytest.mark.parametrize(
    ("half", "change", "message"),
    [
        ("prefill", {"prefill_isl": [256, -1, 4096]}, r"prefill_isl\[1\]: -1.0: between"),
        ("prefill", {"prefill_ttft": [1.0]}, "equally long"),
        ("prefill", {"prefill_ttft": []}, "profile at least one point"),
        ("prefill", {"prefill_ttft": ["fast"]}, "give a list of numbers"),
        ("decode", {"z_itl": [1.0, 1.0, float("nan"), 1.0, 1.0]}, r"z_itl\[2\]: nan"),
        ("decode", {"x_kv_usage": [0.1, 0.5, 9.0, 0.1, 0.9]}, r"x_kv_usage\[2\]: 9.0"),
        ("decode", {"max_kv_tokens": 0}, "max_kv_tokens"),
        ("decode", {"z_itl": None}, "z_itl"),
    ],
)
def test_bad_profiles_name_file_and_key(
    tmp_path: Path, half: str, change: dict[str, Any], message: str
) -> None:
    tables = {"prefill": dict(PREFILL), "decode": dict(DECODE)}
    tables[half].update(change)
    write_json(tmp_path, tables["prefill"], tables["decode"])
    with pytest.raises(InputError, match=message) as caught:
        read_profile(tmp_path)
    assert f"{half}_raw_data.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_keys_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_profile(tmp_path / "absent")
    with pytest.raises(InputError, match="no profiling results"):
        read_profile(tmp_path)
    write_json(tmp_path, prefill={"prefill_isl": [1]})
    with pytest.raises(InputError, match="prefill_ttft"):
        read_profile(tmp_path)


@given(st.binary(max_size=200))
@settings(max_examples=40, deadline=None)
def test_any_bytes_are_refused_in_one_line(tmp_path_factory: Any, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("profile")
    (folder / "selected_decode_interpolation").mkdir()
    (folder / "selected_decode_interpolation" / "raw_data.npz").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_profile(folder)
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.floats(0.5, 1000.0), min_size=2, max_size=6),
    st.integers(1, 8192),
    st.integers(0, 100_000),
    st.floats(200.0, 700.0),
)
def test_no_chunk_is_free_however_odd_the_measured_prompts_are(
    ttft_ms: list[float], tokens: int, before: int, cap_w: float
) -> None:
    lengths = tuple(100.0 * 3.0**n for n in range(len(ttft_ms)))
    profile = Profile(
        prefill_tokens=lengths,
        prefill_s=tuple(each / 1e3 for each in ttft_ms),
        decode=(DecodeSlice(1000.0, (0.1, 0.9), (0.01, 0.02)),),
        max_kv_tokens=100_000,
    )
    found = engine_profile(profile, POOL, CHAT).cost(prompt(tokens, before), Setting(cap_w))
    assert found.duration_s > 0.0
    assert 0.0 < found.power_w <= cap_w + 1e-6
