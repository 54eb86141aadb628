"""Models from a Hugging Face style `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline import catalog
from wattline.catalog.hf import parse_config
from wattline.core.errors import InputError

DENSE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 10,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "torch_dtype": "bfloat16",
}


def spec_of(**changes: Any) -> Any:
    raw = {key: value for key, value in {**DENSE, **changes}.items() if value is not None}
    return parse_config("toy", raw, "config.json")


def test_a_dense_model_by_hand() -> None:
    spec = spec_of()
    attention = 1024 * 64 * (2 * 16 + 2 * 4)
    layer = attention + 3 * 1024 * 4096
    assert spec.params == 10 * layer + 2 * 32_000 * 1024
    assert spec.active_params == spec.params
    assert spec.kv_bytes_per_token(2.0) == 10 * 2 * 4 * 64 * 2
    assert spec.architecture == "dense"


def test_tied_tables_are_counted_once() -> None:
    tied = spec_of(tie_word_embeddings=True)
    assert spec_of().params - tied.params == 32_000 * 1024
    assert tied.head_params == 32_000 * 1024


def test_experts_by_hand() -> None:
    spec = spec_of(
        model_type="qwen3_moe",
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=512,
        first_k_dense_replace=1,
    )
    expert = 3 * 1024 * 512
    assert spec.expert_params == 9 * 8 * expert
    assert spec.params - spec.active_params == 9 * 6 * expert
    assert spec.architecture == "moe"


def test_windows_and_hybrids_shrink_the_cache() -> None:
    half = spec_of(layer_types=["sliding_attention", "full_attention"] * 5, sliding_window=512)
    assert (half.windowed_layers, half.window_tokens) == (5, 512)
    assert half.kv_bytes_per_token_factor == pytest.approx((5 + 5 * 512 / 4096) / 10)
    hybrid = spec_of(
        model_type="nemotron_h",
        hybrid_override_pattern="M-M*-M-M*-",
        mamba_num_heads=8,
        mamba_head_dim=32,
        ssm_state_size=64,
    )
    assert hybrid.architecture == "hybrid"
    assert hybrid.kv_bytes_per_token_factor == pytest.approx(0.2)
    assert hybrid.state_elements > 4 * 8 * 32 * 64


def test_a_multimodal_config_is_its_text_part() -> None:
    wrapped = {
        "model_type": "some_vl",
        "text_config": {k: v for k, v in DENSE.items() if k != "torch_dtype"},
        "vision_config": {"hidden_size": 99},
        "quantization_config": {"quant_method": "fp8"},
    }
    spec = parse_config("vl", wrapped, "config.json")
    assert spec.params == spec_of().params
    assert spec.precision == "fp8"


@pytest.mark.parametrize(
    ("quantization", "precision"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
    ],
)
def test_precision_follows_the_quantisation(quantization: dict[str, Any], precision: str) -> None:
    spec = spec_of(quantization_config=quantization)
    assert spec.precision == precision
    assert (spec.dense_precision == "bf16") == (precision == "mxfp4")


def test_any_model_directory_works(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(DENSE))
    assert catalog.model(folder) == catalog.model(str(folder))
    assert catalog.model(folder).name == "my-model"
    assert catalog.model(str(folder / "config.json")).params == spec_of().params
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "NVFP4"}})
    )
    assert catalog.model(folder).precision == "nvfp4"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "config.json, hidden_size: None: field required"),
        ({"hidden_size": -1}, "config.json, hidden_size: -1"),
        ({"num_hidden_layers": 10**12}, "config.json, num_hidden_layers"),
        ({"vocab_size": "many"}, "config.json, vocab_size: 'many'"),
        ({"intermediate_size": None}, "intermediate_size: None: needed by its dense layers"),
        ({"num_experts": 4, "moe_intermediate_size": 8}, "num_experts_per_tok: None"),
        ({"num_experts": 4, "num_experts_per_tok": 9}, "num_experts_per_tok: 9"),
        ({"layer_types": ["full_attention"]}, "layer_types: 1: give 10"),
        ({"hybrid_override_pattern": "MX"}, "hybrid_override_pattern: 'MX'"),
        ({"kv_lora_rank": 64}, "qk_nope_head_dim and v_head_dim"),
        ({"torch_dtype": "int3"}, "torch_dtype: 'int3'"),
        ({"quantization_config": {"quant_method": "magic"}}, "quantization_config: 'magic'"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "config_groups"),
    ],
)
def test_bad_configs_name_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        spec_of(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", "\x00", '{"hidden_size": 1e999}'])
def test_unreadable_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError) as caught:
        catalog.model(tmp_path)
    assert "config.json" in str(caught.value)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        catalog.model(tmp_path)
    with pytest.raises(InputError, match="model"):
        catalog.model(str(tmp_path / "absent"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(
            sorted(
                [
                    *DENSE,
                    "quantization_config",
                    "layer_types",
                    "num_experts",
                    "kv_lora_rank",
                    "text_config",
                    "sliding_window",
                    "moe_layer_freq",
                    "hybrid_override_pattern",
                ]
            )
        ),
        json_values,
        max_size=4,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_values_give_a_model_or_one_line(changes: dict[str, Any]) -> None:
    refused = ""
    try:
        spec = parse_config("fuzz", {**DENSE, **changes}, "config.json")
    except InputError as error:
        refused = str(error)
    assert refused or (spec.params > 0 and spec.kv_bytes_per_token(2.0) >= 0)
    assert "\n" not in refused
