"""Dynamo's profiling results in each of their forms, down to the engine of a configured pool."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.catalog import engine_profile
from wattline.catalog.fleet_spec import DeploymentSpec, to_engines, to_fleet
from wattline.catalog.profiles import GRID_POINTS, Watts, read_profile
from wattline.core.engine import ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Pool, Role, Setting
from wattline.core.profile import ProfileEngine

VECTOR = json.loads(
    (Path(__file__).parents[2] / "vectors" / "dynamo_profile_h200.json").read_text("utf-8")
)
POOL = Pool(
    name="chat",
    deployment="chat",
    role=Role.AGGREGATED,
    gpu="H200",
    gpus=8,
    gpus_per_replica=1,
    min_replicas=0,
    max_replicas=8,
    startup_s=60.0,
)
FULL = Setting(700.0)


def pair(folder: Path, **decode: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "prefill_raw_data.json").write_text(json.dumps(VECTOR["prefill"]))
    (folder / "decode_raw_data.json").write_text(json.dumps({**VECTOR["decode"], **decode}))
    return folder


def grid(path: Path, **changes: Any) -> Path:
    """A planner grid with ITL = 5 ms + 10 us per 1,000 tokens held + 1 us per token of context."""
    held = np.linspace(0.0, 400_000.0, 100)
    context = np.linspace(1.0, 8192.0, 100)
    itl_ms = 5.0 + held[:, None] * 1e-5 + context[None, :] * 1e-3
    arrays: dict[str, Any] = {
        "prefill_isl": np.linspace(100.0, 10_000.0, 100),
        "prefill_ttft_ms": 10.0 + np.linspace(100.0, 10_000.0, 100) * 0.02,
        "decode_active_kv_tokens": held,
        "decode_context_length": context,
        "decode_itl": itl_ms,
        **changes,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def decode_of(engine: ProfileEngine, batch: int, context: float) -> float:
    return engine.measured_s(ForwardPass(decode_batch=batch, decode_kv_tokens=batch * context))


def test_every_point_that_dynamo_measured_on_an_h200_comes_back(tmp_path: Path) -> None:
    engine = engine_profile(pair(tmp_path / "p"), POOL)
    prefill, decode = VECTOR["prefill"], VECTOR["decode"]
    for tokens, ttft_ms in zip(prefill["prefill_isl"], prefill["prefill_ttft"], strict=True):
        work = ForwardPass(tokens, tokens * (tokens + 1) / 2.0)
        assert engine.cost(work, FULL).duration_s == pytest.approx(ttft_ms / 1e3, rel=2e-3)
    for usage, context, itl_ms in zip(
        decode["x_kv_usage"], decode["y_context_length"], decode["z_itl"], strict=True
    ):
        batch = round(usage * decode["max_kv_tokens"][0] / context)
        if batch >= 1:  # The batch is whole, so the use of the cache is met to its rounding.
            assert decode_of(engine, batch, context) == pytest.approx(itl_ms / 1e3, rel=0.02)


def test_a_raw_profile_says_how_many_gpus_it_is_of(tmp_path: Path) -> None:
    assert read_profile(pair(tmp_path / "p")).gpus == 1
    halved = dict(VECTOR["prefill"])
    halved["prefill_thpt_per_gpu"] = [rate / 4 for rate in halved["prefill_thpt_per_gpu"]]
    (tmp_path / "p" / "prefill_raw_data.json").write_text(json.dumps(halved))
    assert read_profile(tmp_path / "p").gpus == 4
    with pytest.raises(InputError, match="pool chat has 1 GPUs per replica"):
        engine_profile(tmp_path / "p", POOL)


def test_what_a_pre_swept_file_says_of_itself_is_kept_and_checked(tmp_path: Path) -> None:
    folder = pair(tmp_path / "p", gpu_type="h200_sxm", tp=1, gpu_count=1, model="Qwen/Qwen3-32B")
    assert dict(read_profile(folder).about)["gpu_type"] == "h200_sxm"
    engine_profile(folder, POOL)
    pair(folder, gpu_count=8)
    with pytest.raises(InputError, match="replicas of 8 GPUs"):
        engine_profile(folder, POOL)


@pytest.mark.parametrize("inside", [False, True])
def test_planner_profile_data_is_read_and_thinned(tmp_path: Path, inside: bool) -> None:
    file = grid(tmp_path / "perf_data.npz")
    profile = read_profile(tmp_path if inside else file)
    assert profile.form == "planner profile data"
    assert profile.max_kv_tokens == 400_000
    assert len(profile.prefill_tokens) == len(profile.decode) == GRID_POINTS
    assert (profile.prefill_tokens[0], profile.prefill_tokens[-1]) == (100.0, 10_000.0)
    engine = engine_profile(profile, POOL)
    for batch, context in ((1, 1000.0), (50, 4000.0), (40, 8000.0)):
        expected_ms = 5.0 + batch * context * 1e-5 + context * 1e-3
        assert decode_of(engine, batch, context) == pytest.approx(expected_ms / 1e3, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decode_itl": np.ones((3, 3))}, "a row for each of 100 cache contents"),
        ({"decode_itl": np.zeros((100, 100))}, r"decode_itl\[0\]: 0.0: between"),
        ({"decode_itl": None}, "no decode_itl"),
        ({"decode_active_kv_tokens": np.linspace(9.0, 1.0, 100)}, "not rising"),
        ({"decode_context_length": np.ones(100)}, "not rising"),
        ({"prefill_isl": np.array(["a"] * 100)}, "not numbers"),
        ({"prefill_ttft_ms": np.full(100, np.inf)}, "inf: between"),
        ({"prefill_isl": np.array([{"a": 1}], dtype=object)}, "not a readable NPZ"),
    ],
)
def test_broken_planner_data_is_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = grid(tmp_path / "grid.npz", **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_profile(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_raw_file_given_by_itself_is_told_from_planner_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "raw_data.npz", prefill_isl=[1.0], prefill_ttft=[1.0])
    with pytest.raises(InputError, match="give the folder two levels above"):
        read_profile(tmp_path / "raw_data.npz")
    with pytest.raises(InputError, match=r"planner's \.npz"):
        read_profile(Path(__file__))


def test_a_file_that_would_unpack_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("prefill_isl.npy", bytes(65 << 20))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="at most 64 arrays"):
        read_profile(file)


def refusal_of(read: Callable[[], object]) -> str:
    """What an InputError said, empty if there was none; every other error fails the test."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""


_ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(allow_nan=True),
    st.text(max_size=4),
)
_VALUES = st.recursive(_ATOMS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(
    prefill=st.dictionaries(
        st.sampled_from(["prefill_isl", "prefill_ttft", "prefill_thpt_per_gpu", "power_w", "tp"]),
        _VALUES,
    ),
    decode=st.dictionaries(
        st.sampled_from(["x_kv_usage", "y_context_length", "z_itl", "max_kv_tokens", "power_w"]),
        _VALUES,
    ),
    broken=st.binary(max_size=6),
)
@settings(max_examples=120, deadline=None)
def test_any_json_is_an_engine_or_one_line(
    tmp_path_factory: Any, prefill: Any, decode: Any, broken: bytes
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "prefill_raw_data.json").write_bytes(json.dumps(prefill).encode() + broken)
    (folder / "decode_raw_data.json").write_text(json.dumps(decode))
    said = refusal_of(lambda: engine_profile(folder, POOL))
    assert "\n" not in said
    assert len(said) < 1000


@given(position=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.integers(0, 200))
@settings(max_examples=120, deadline=None)
def test_a_damaged_npz_is_an_engine_or_one_line(
    tmp_path_factory: Any, position: int, value: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    half = folder / "selected_prefill_interpolation"
    half.mkdir()
    np.savez(half / "raw_data.npz", prefill_isl=[10.0, 20.0], prefill_ttft=[1.0, 2.0])
    content = bytearray((half / "raw_data.npz").read_bytes())
    content[position % len(content)] = value
    (half / "raw_data.npz").write_bytes(content[: len(content) - cut])
    assert "\n" not in refusal_of(lambda: read_profile(folder))


def test_stated_watts_scale_those_of_the_cap_response(tmp_path: Path) -> None:
    folder = pair(tmp_path / "p", power_w=400.0, power_context_length=5644.0, power_batch=40)
    profile = read_profile(folder)
    assert profile.decode_watts == Watts(400.0, 5644.0, 40.0)
    assert profile.prefill_watts is None
    plain = engine_profile(pair(tmp_path / "q"), POOL)
    engine = engine_profile(folder, POOL)
    work = ForwardPass(decode_batch=40, decode_kv_tokens=40 * 5644.0)
    assert engine.cost(work, FULL).power_w == pytest.approx(400.0, abs=0.5)
    assert engine.cost(work, FULL).duration_s == pytest.approx(plain.cost(work, FULL).duration_s)
    assert "watts of decode: predicted" in engine.coverage
    prompt = ForwardPass(4096, 4096 * 4097 / 2.0)
    assert engine.cost(prompt, Setting(450.0)) == plain.cost(prompt, Setting(450.0))


@given(cap=st.floats(200.0, 700.0), watts=st.floats(150.0, 1500.0), batch=st.integers(1, 160))
@settings(max_examples=60, deadline=None)
def test_whatever_watts_are_stated_caps_are_obeyed(cap: float, watts: float, batch: int) -> None:
    base = _vector_engine()
    engine = ProfileEngine(
        **{
            **{name: getattr(base, name) for name in base.__dataclass_fields__ if name != "kind"},
            "decode_watts": min(2.0, max(0.5, watts / 600.0)),
            "prefill_watts": min(2.0, max(0.5, watts / 900.0)),
        }
    )
    for work in (
        ForwardPass(decode_batch=batch, decode_kv_tokens=batch * 2000.0),
        ForwardPass(2048, 2048 * 2049 / 2.0, batch, batch * 2000.0),
    ):
        capped, full = engine.cost(work, Setting(cap)), engine.cost(work, FULL)
        assert capped.power_w <= cap
        assert capped.duration_s >= full.duration_s


def _vector_engine() -> ProfileEngine:
    from wattline.catalog import fit
    from wattline.core.profile import DecodeSlice

    return ProfileEngine(
        prefill_tokens=(100.0, 10_000.0),
        prefill_s=(0.02, 0.25),
        decode=(DecodeSlice(2000.0, (0.1, 0.9), (0.008, 0.04)),),
        kv_capacity_tokens=400_000,
        kv_bytes_per_token=131_072.0,
        default_cap_w=700.0,
        response=fit("H200").response,
    )


def _deployment(**engine: Any) -> DeploymentSpec:
    pools: list[dict[str, Any]] = [
        {"name": "p", "role": "prefill", "gpu": "H200", "gpus": 4},
        {"name": "d", "role": "decode", "gpu": "H200", "gpus": 4, "engine": engine},
    ]
    slo = {"ttft_s": 2.0, "itl_s": 0.05}
    return DeploymentSpec.model_validate(
        {"name": "chat", "model": "Llama-3.1-8B", "slo": slo, "pools": pools}
    )


def test_a_pool_may_have_an_engine_of_its_own(tmp_path: Path) -> None:
    pair(tmp_path / "results")
    spec = _deployment(kind="profile", path="results", measured_cap_w=600.0, max_num_seqs=128)
    fleet = to_fleet([spec], "file")
    prefill, decode = to_engines([spec], fleet, tmp_path, "file")
    assert prefill.kind == "roofline"
    assert isinstance(decode, ProfileEngine)
    assert decode.max_num_seqs == 128
    assert decode.default_cap_w == 600.0
    assert "profiled at 600 W" in decode.coverage
    assert decode.roofline is not None


def test_a_profile_that_is_not_there_is_named_with_its_deployment(tmp_path: Path) -> None:
    spec = _deployment(kind="profile", path="results")
    with pytest.raises(InputError, match=r"file, deployment chat: .*results: 'no such folder'"):
        to_engines([spec], to_fleet([spec], "file"), tmp_path, "file")
