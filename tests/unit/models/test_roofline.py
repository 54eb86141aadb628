"""The roofline engine: hand-worked times, what must hold everywhere, and measured serving."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline import catalog
from wattline.core.engine import ForwardPass
from wattline.core.errors import InputError
from wattline.core.fleet import Deployment, GpuProduct, ModelSpec, Pool, Role, Setting, Slo
from wattline.core.power import CapResponse
from wattline.core.roofline import EngineParams, RooflineEngine, roofline_engine

TOY_GPU = GpuProduct(
    name="toy",
    architecture="hopper",
    min_limit_w=100.0,
    default_limit_w=500.0,
    max_limit_w=500.0,
    idle_w=50.0,
    peak_flops={"bf16": 1e15, "fp8": 2e15},
    hbm_bytes=80e9,
    hbm_bytes_per_s=4e12,
    interconnect_bytes_per_s=None,
    min_clock_mhz=None,
    max_clock_mhz=None,
    settle_s=2.0,
)
TOY_MODEL = ModelSpec(
    name="toy",
    params=10e9,
    active_params=10e9,
    layers=20,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    experts=0,
    precision="bf16",
    architecture="dense",
)
PLAIN = EngineParams(
    gemm_mfu=0.5,
    gemm_half_tokens=0.0,
    attention_mfu=0.5,
    weight_bandwidth=0.5,
    cache_bandwidth=0.5,
    activation_passes=0.0,
    pass_overhead_s=1e-3,
    layer_overhead_s=1e-5,
    sequence_overhead_s=0.0,
)
RESPONSE = CapResponse(static_w=100.0, compute_w=350.0, memory_w=120.0, idle_w=80.0)
LOOSE = Setting(10_000.0)


def toy(**changes: object) -> RooflineEngine:
    options: dict[str, object] = {"params": PLAIN, "response": RESPONSE, **changes}
    return roofline_engine(TOY_MODEL, TOY_GPU, **options)  # type: ignore[arg-type]


def pool(gpu: str, gpus_per_replica: int) -> Pool:
    return Pool(
        name="pool",
        deployment="chat",
        role=Role.AGGREGATED,
        gpu=gpu,
        gpus=8,
        gpus_per_replica=gpus_per_replica,
        min_replicas=0,
        max_replicas=8,
        startup_s=60.0,
    )


def deployment(model: str) -> Deployment:
    return Deployment(name="chat", model=model, slo=Slo(1.0, 0.05))


def prompt(tokens: int) -> ForwardPass:
    return ForwardPass(prefill_tokens=tokens, prefill_context=tokens * (tokens + 1) / 2)


def decode(batch: int, context: int) -> ForwardPass:
    return ForwardPass(decode_batch=batch, decode_kv_tokens=float(batch * context))


def test_a_decode_step_by_hand() -> None:
    spent = toy().time(decode(10, 1000))
    assert spent.compute_s == pytest.approx(
        2 * 10e9 * 10 / (1e15 * 0.5) + 4 * 32 * 128 * 20 * 10_000 / (1e15 * 0.5)
    )
    weights_s = 10e9 * 2 / (4e12 * 0.5)
    cache_s = 10_000 * 2 * 20 * 8 * 128 * 2 / (4e12 * 0.5)
    assert spent.memory_s == pytest.approx(weights_s + cache_s)
    assert spent.other_s == pytest.approx(1e-3 + 20 * 1e-5)


def test_a_prompt_by_hand() -> None:
    spent = toy().time(prompt(1000))
    pairs = 1000 * 1001 / 2
    assert spent.compute_s == pytest.approx(
        2 * 10e9 * 1000 / (1e15 * 0.5) + 4 * 32 * 128 * 20 * pairs / (1e15 * 0.5)
    )


def test_eight_bit_weights_halve_reading_and_arithmetic() -> None:
    wide, narrow = toy(), toy(precision="fp8")
    step, chunk = decode(1, 1), prompt(4096)
    assert narrow.time(step).memory_s == pytest.approx(wide.time(step).memory_s / 2, rel=1e-3)
    assert narrow.time(chunk).compute_s < 0.6 * wide.time(chunk).compute_s
    assert narrow.kv_capacity_tokens > wide.kv_capacity_tokens


def test_four_bit_weights_run_in_what_the_gpu_has() -> None:
    widened = toy(precision="nvfp4")
    assert widened.peak_flops == TOY_GPU.peak_flops["bf16"]
    blackwell = catalog.engine(pool("B200", 1), deployment("Qwen3-32B"), precision="nvfp4")
    assert blackwell.peak_flops == catalog.gpu("B200").peak_flops["fp4"]


def test_kv_capacity_is_what_memory_leaves() -> None:
    free = 80e9 * 0.9 - 4e9 - 20e9
    assert toy().kv_capacity_tokens == int(free / (2 * 20 * 8 * 128 * 2))


def test_a_model_that_does_not_fit_says_so() -> None:
    with pytest.raises(InputError, match="does not fit: use more GPUs per replica"):
        catalog.engine(pool("H100", 1), deployment("Llama-3.3-70B"))


def test_several_gpus_need_a_known_link() -> None:
    with pytest.raises(InputError, match="toy, interconnect_bytes_per_s: None: unknown"):
        toy(tp=2)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tp": 3}, "tp"),
        ({"dp": 3}, "dp"),
        ({"precision": "fp7"}, "precision"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
    ],
)
def test_impossible_replicas_are_refused(options: dict[str, object], field: str) -> None:
    with pytest.raises(InputError, match=field):
        catalog.engine(pool("H200", 4), deployment("Qwen3-32B"), **options)  # type: ignore[arg-type]


MODELS = ("Llama-3.1-8B", "Qwen3-30B-A3B", "gpt-oss-20b", "gemma-3-12b", "Nemotron-Nano-9B-v2")


@pytest.mark.parametrize("model", MODELS)
@given(
    prefill=st.integers(0, 8192),
    batch=st.integers(0, 256),
    context=st.integers(1, 20_000),
    cap=st.floats(200.0, 700.0),
    clock=st.floats(0.3, 1.0),
)
@settings(max_examples=25, deadline=None)
def test_every_pass_obeys_its_cap_and_more_work_takes_longer(
    model: str, prefill: int, batch: int, context: int, cap: float, clock: float
) -> None:
    engine = catalog.engine(pool("H200", 1), deployment(model))
    setting = Setting(cap, clock)
    work = ForwardPass(prefill, prefill * (prefill + 1) / 2, batch, float(batch * context))
    cost = engine.cost(work, setting)
    assert cost.power_w <= cap
    assert cost.clock <= clock
    longer = ForwardPass(
        prefill + 64, (prefill + 64) * (prefill + 65) / 2, batch, float(batch * context)
    )
    assert engine.cost(longer, setting).duration_s >= cost.duration_s
    assert engine.cost(work, Setting(cap + 50.0, clock)).duration_s <= cost.duration_s
    assert engine.cost(work, setting, derate=0.6).duration_s >= cost.duration_s


def test_no_work_costs_nothing() -> None:
    cost = toy().cost(ForwardPass(), Setting(500.0))
    assert cost.duration_s == 0.0
    assert cost.power_w == RESPONSE.idle_w


def test_experts_are_read_as_far_as_tokens_reach_them() -> None:
    engine = catalog.engine(pool("H200", 1), deployment("Qwen3-30B-A3B"))
    one, many = engine.time(decode(1, 1)), engine.time(decode(256, 1))
    spec = engine.model
    share_one = spec.experts_per_token / spec.experts
    dense = spec.params - spec.expert_params
    ratio = (dense + spec.expert_params) / (dense + share_one * spec.expert_params)
    assert 0.5 * ratio < many.memory_s / one.memory_s < 2.0 * ratio


def test_windows_bound_what_attention_reads() -> None:
    gpt = catalog.engine(pool("H200", 1), deployment("gpt-oss-20b"))
    near, far = gpt.time(decode(64, 128)), gpt.time(decode(64, 12_800))
    spec = gpt.model
    layer = 2 * spec.kv_heads * spec.head_dim * 2
    full_layers = spec.layers - spec.windowed_layers
    grown = 64 * (12_800 - 128) * layer * full_layers
    rate = gpt.hbm_bytes_per_s * gpt.params.cache_bandwidth
    assert far.memory_s - near.memory_s == pytest.approx(grown / rate, rel=1e-6)


def test_latent_attention_keeps_one_vector_per_token() -> None:
    spec = catalog.model("DeepSeek-V3")
    assert spec.kv_bytes_per_token(2.0) == pytest.approx(61 * (512 + 64) * 2)


def test_derating_is_a_lower_clock() -> None:
    engine = toy()
    slow = engine.cost(prompt(4096), LOOSE, derate=0.5)
    assert slow.clock == 0.5
    assert slow == engine.cost(prompt(4096), Setting(LOOSE.cap_w, 0.5))


def test_engines_hash_compare_and_travel() -> None:
    first = catalog.engine(pool("H200", 2), deployment("Llama-3.3-70B"), precision="fp8")
    second = catalog.engine(pool("H200", 2), deployment("Llama-3.3-70B"), precision="fp8")
    work = decode(8, 500)
    assert first == second
    assert hash(first) == hash(second)
    copy = pickle.loads(pickle.dumps(first))
    assert copy == first
    assert copy.cost(work, Setting(400.0)) == first.cost(work, Setting(400.0))


# Measured: ML.ENERGY leaderboard v3, vLLM, Llama-3.3-70B in bf16 on 4 x H100 at 700 W, chat
# (ml-energy/leaderboard, public/data/models). Decode carries almost all of its time.
MEASURED = [(8, 447.0, 465.0, 16.9e-3), (256, 630.0, 5130.0, 39e-3)]


@pytest.mark.parametrize(("batch", "watts", "tokens_per_s", "itl_s"), MEASURED)
def test_llama_70b_on_four_h100_stays_near_measured_serving(
    batch: int, watts: float, tokens_per_s: float, itl_s: float
) -> None:
    engine = catalog.engine(pool("H100", 4), deployment("Llama-3.3-70B"))
    cost = engine.cost(decode(batch, 800), Setting(700.0))
    assert cost.power_w == pytest.approx(watts, rel=0.25)
    # Pure decode at full batch is an upper bound on the rate: prompts are served in between.
    assert batch / cost.duration_s == pytest.approx(tokens_per_s, rel=0.35) or (
        tokens_per_s < batch / cost.duration_s < 2.0 * tokens_per_s
    )
    assert cost.duration_s < 1.2 * itl_s
