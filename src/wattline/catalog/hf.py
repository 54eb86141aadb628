"""Read a Hugging Face style `config.json` into a `ModelSpec`.

Parameter counts follow from the shape, so that any model directory works without weights. Families
understood: dense and mixture-of-experts transformers with grouped-query or latent attention,
sliding windows, Mamba-2 and gated-delta-net hybrids; the text part of multimodal models (their
vision and audio towers are not modelled). Norms and biases, under 0.1 % of any model, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from wattline.catalog.files import invalid
from wattline.core.errors import InputError
from wattline.core.fleet import ModelSpec

REFERENCE_CONTEXT_TOKENS = 4096
"""Context at which cache per token of sliding-window layers is counted (they stop growing)."""

Count = Annotated[int, Field(gt=0, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]


class HfConfig(BaseModel):
    """The fields of a `config.json` that decide time and memory; all others are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_type: str = ""
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    intermediate_size: CountOrZero | None = None
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None
    quantization_config: dict[str, Any] | None = None

    # Experts; the families disagree on names.
    num_experts: CountOrZero | None = None
    num_local_experts: CountOrZero | None = None
    n_routed_experts: CountOrZero | None = None
    num_experts_per_tok: CountOrZero | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "num_experts_per_tok", "num_experts_per_token", "top_k_experts"
        ),
    )
    moe_intermediate_size: CountOrZero | None = None
    shared_expert_intermediate_size: CountOrZero | None = None
    n_shared_experts: CountOrZero | None = None
    first_k_dense_replace: CountOrZero = 0
    moe_layer_freq: int | list[int] = 1
    decoder_sparse_step: Count = 1
    mlp_only_layers: list[int] = []
    interleave_moe_layer_step: CountOrZero = 1
    intermediate_size_mlp: CountOrZero | None = None

    # Latent attention.
    kv_lora_rank: Count | None = None
    q_lora_rank: Count | None = None
    qk_nope_head_dim: Count | None = None
    qk_rope_head_dim: Count | None = None
    v_head_dim: Count | None = None

    # Windows and layers of other kinds.
    sliding_window: CountOrZero | None = None
    use_sliding_window: bool = True
    sliding_window_pattern: int | None = None
    attention_chunk_size: CountOrZero | None = None
    layer_types: list[str] | None = None
    hybrid_override_pattern: str | None = None
    mamba_num_heads: Count | None = None
    mamba_head_dim: Count | None = None
    ssm_state_size: Count | None = None
    n_groups: Count = 1
    conv_kernel: Count = 4
    linear_num_key_heads: Count | None = None
    linear_num_value_heads: Count | None = None
    linear_key_head_dim: Count | None = None
    linear_value_head_dim: Count | None = None
    attn_output_gate: bool = False

    @property
    def kv_heads(self) -> int:
        """Key/value heads; as many as query heads where the config names none."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Elements of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def experts(self) -> int:
        """Routed experts of a layer, 0 for a dense model."""
        return self.num_experts or self.num_local_experts or self.n_routed_experts or 0


def parse_config(name: str, raw: Mapping[str, Any], where: str) -> ModelSpec:
    """Turn a parsed `config.json` into a spec; InputError naming `where` and the field."""
    text = _text_part(raw)
    try:
        config = HfConfig.model_validate(text)
    except ValidationError as error:
        raise invalid(where, error) from None
    precision, dense_precision = _precision(config, where)
    return _spec(name, config, precision, dense_precision, where)


def read_model_dir(path: Path) -> ModelSpec:
    """Read `path`, a `config.json` or a directory that holds one (and `hf_quant_config.json`)."""
    file = path / "config.json" if path.is_dir() else path
    raw = _read_json(file)
    sidecar = file.with_name("hf_quant_config.json")
    if "quantization_config" not in raw and sidecar.is_file():
        quantization = _read_json(sidecar).get("quantization")
        if isinstance(quantization, dict):
            raw = {**raw, "quantization_config": {"quant_method": "modelopt", **quantization}}
    name = file.parent.name if file.name == "config.json" else file.stem
    return parse_config(name or str(file), raw, str(file))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(str(file), "no such file", "give a directory with a config.json") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(str(file), str(error), "give a readable config.json") from None
    if not isinstance(loaded, dict):
        raise InputError(str(file), loaded, "a config.json holds one object")
    return loaded


_SHARED_KEYS: tuple[str, ...] = (
    "quantization_config",
    "torch_dtype",
    "dtype",
    "tie_word_embeddings",
)


def _text_part(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a multimodal config to its language model."""
    text = dict(raw)
    for key in ("thinker_config", "text_config", "llm_config"):
        inner = text.get(key)
        if isinstance(inner, dict):
            kept = {name: text[name] for name in _SHARED_KEYS if name in text}
            text = {**kept, **inner}
    return text


def _spec(
    name: str, config: HfConfig, precision: str, dense_precision: str | None, where: str
) -> ModelSpec:
    kinds = _layer_kinds(config, where)
    attention = kinds.count("full") + kinds.count("window")
    windowed, window = kinds.count("window"), config.sliding_window or 0
    if config.attention_chunk_size and "window" in kinds:
        window = config.attention_chunk_size
    attention_params = _attention_params(config) * attention
    recurrent_params, state = _recurrent(config, kinds)
    mlp_params, expert_params, active_expert_params = _feed_forward(config, kinds, where)
    table = float(config.vocab_size * config.hidden_size)
    embedding = 0.0 if config.tie_word_embeddings else table
    dense = attention_params + recurrent_params + mlp_params + embedding + table
    latent = config.kv_lora_rank is not None
    kv_heads, head_dim = config.kv_heads, config.head_width
    factor, decode_factor = attention / len(kinds), 1.0
    if latent:
        kv_heads, head_dim, factor, decode_factor = _latent_cache(config, where)
    elif windowed:
        grown = min(1.0, window / REFERENCE_CONTEXT_TOKENS)
        factor = (attention - windowed * (1.0 - grown)) / len(kinds)
    hybrid = attention < len(kinds)
    return ModelSpec(
        name=name,
        params=dense + expert_params,
        active_params=dense + active_expert_params,
        layers=len(kinds),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        experts=config.experts,
        precision=precision,
        architecture="hybrid" if hybrid else "moe" if config.experts else "dense",
        kv_bytes_per_token_factor=factor,
        experts_per_token=config.num_experts_per_tok or 0,
        expert_params=expert_params,
        embedding_params=embedding,
        head_params=table,
        dense_precision=dense_precision,
        windowed_layers=windowed,
        window_tokens=window if windowed else 0,
        recurrent_layers=len(kinds) - attention,
        state_elements=state,
        decode_attention_factor=decode_factor,
    )


LayerKind = Literal["full", "window", "recurrent", "mlp", "experts"]


def _layer_kinds(config: HfConfig, where: str) -> list[LayerKind]:
    """Say what mixes tokens in each layer; `mlp` and `experts` are layers that mix none."""
    layers = config.num_hidden_layers
    if config.hybrid_override_pattern is not None:
        names: dict[str, LayerKind] = {"M": "recurrent", "*": "full", "-": "mlp", "E": "experts"}
        pattern = config.hybrid_override_pattern
        if len(pattern) != layers or any(letter not in names for letter in pattern):
            raise InputError(
                f"{where}, hybrid_override_pattern",
                pattern,
                f"use {layers} of the letters M, *, - and E, one per layer",
            )
        return [names[letter] for letter in pattern]
    window = (config.sliding_window or config.attention_chunk_size) and config.use_sliding_window
    if config.layer_types is not None:
        if len(config.layer_types) != layers:
            raise InputError(
                f"{where}, layer_types", len(config.layer_types), f"give {layers}, one per layer"
            )
        return [_kind_of(layer, bool(window)) for layer in config.layer_types]
    if not window or config.model_type.startswith("llama4"):
        if config.attention_chunk_size and config.model_type.startswith("llama4"):
            # Llama 4: every fourth layer attends to everything, the others within a chunk.
            return ["full" if (layer + 1) % 4 == 0 else "window" for layer in range(layers)]
        return ["full"] * layers
    default = 6 if config.model_type.startswith("gemma3") else 0
    every = config.sliding_window_pattern or default
    if every:
        return ["full" if (layer + 1) % every == 0 else "window" for layer in range(layers)]
    # Mistral and others: one window for all layers where `use_sliding_window` is not refused.
    return ["window"] * layers


def _kind_of(layer_type: str, window: bool) -> LayerKind:
    if "linear" in layer_type or "mamba" in layer_type:
        return "recurrent"
    if window and ("sliding" in layer_type or "chunked" in layer_type):
        return "window"
    return "full"


def _attention_params(config: HfConfig) -> float:
    hidden, heads = config.hidden_size, config.num_attention_heads
    if config.kv_lora_rank is not None:
        nope = config.qk_nope_head_dim or config.head_width
        rope = config.qk_rope_head_dim or 0
        value = config.v_head_dim or config.head_width
        rank = config.q_lora_rank
        queries = heads * (nope + rope) * (rank or hidden) + hidden * (rank or 0)
        keys = hidden * (config.kv_lora_rank + rope) + config.kv_lora_rank * heads * (nope + value)
        return float(queries + keys + heads * value * hidden)
    width = config.head_width
    gates = 2 if config.attn_output_gate else 1
    return float(hidden * width * ((1 + gates) * heads + 2 * config.kv_heads))


def _latent_cache(config: HfConfig, where: str) -> tuple[int, int, float, float]:
    """Return kv_heads, head_dim, cache factor and decode arithmetic factor of latent attention.

    The cache holds one latent vector and one rotary key per token and layer, whatever the heads;
    the effective head size is that of the prompt's arithmetic (query-key and value products).
    """
    if config.qk_nope_head_dim is None or config.v_head_dim is None:
        raise InputError(
            f"{where}, qk_nope_head_dim and v_head_dim", None, "needed by latent attention"
        )
    rank, rope = config.kv_lora_rank or 0, config.qk_rope_head_dim or 0
    width = (config.qk_nope_head_dim + rope + config.v_head_dim) // 2
    return 1, width, (rank + rope) / (2.0 * width), (2.0 * rank + rope) / (2.0 * width)


def _recurrent(config: HfConfig, kinds: list[LayerKind]) -> tuple[float, float]:
    """Parameters of all recurrent layers, and state elements of one sequence."""
    layers, hidden = kinds.count("recurrent"), config.hidden_size
    if layers == 0:
        return 0.0, 0.0
    if config.mamba_num_heads and config.mamba_head_dim and config.ssm_state_size:
        inner = config.mamba_num_heads * config.mamba_head_dim
        groups = 2 * config.n_groups * config.ssm_state_size
        into = hidden * (2 * inner + groups + config.mamba_num_heads)
        mixed = (inner + groups) * config.conv_kernel
        state = inner * config.ssm_state_size + mixed
        return float(layers * (into + mixed + inner * hidden)), float(layers * state)
    key = (config.linear_num_key_heads or 0) * (config.linear_key_head_dim or 0)
    value_heads = config.linear_num_value_heads or 0
    value = value_heads * (config.linear_value_head_dim or 0)
    params = hidden * (2 * key + 2 * value + 2 * value_heads) + value * hidden
    return float(layers * params), float(layers * value * (config.linear_key_head_dim or 0))


def _feed_forward(
    config: HfConfig, kinds: list[LayerKind], where: str
) -> tuple[float, float, float]:
    """Parameters of dense and shared feed-forward parts, of all experts, of those active."""
    hidden = config.hidden_size
    # Gate, up and down projections; squared-ReLU models have no gate.
    matrices = 2 if config.hybrid_override_pattern is not None else 3
    routed = [_is_moe_layer(config, kinds, layer) for layer in range(len(kinds))]
    dense_layers = sum(
        1
        for layer, kind in enumerate(kinds)
        if not routed[layer] and (kind == "mlp" or config.hybrid_override_pattern is None)
    )
    wide = config.intermediate_size_mlp or config.intermediate_size
    if dense_layers and not wide:
        raise InputError(f"{where}, intermediate_size", wide, "needed by its dense layers")
    mlp = float(dense_layers * matrices * hidden * (wide or 0))
    if not any(routed):
        return mlp, 0.0, 0.0
    per_token = config.num_experts_per_tok
    if not per_token or per_token > config.experts:
        raise InputError(
            f"{where}, num_experts_per_tok", per_token, f"between 1 and {config.experts} experts"
        )
    width = config.moe_intermediate_size or config.intermediate_size
    if not width:
        raise InputError(f"{where}, moe_intermediate_size", width, "needed by its experts")
    shared = config.shared_expert_intermediate_size or (config.n_shared_experts or 0) * width
    if config.model_type.startswith("llama4"):
        shared = width
    moe_layers = sum(routed)
    mlp += float(moe_layers * hidden * (3 * shared + config.experts))
    one = float(moe_layers * matrices * hidden * width)
    return mlp, one * config.experts, one * per_token


def _is_moe_layer(config: HfConfig, kinds: list[LayerKind], layer: int) -> bool:
    if not config.experts:
        return False
    if config.hybrid_override_pattern is not None:
        return kinds[layer] == "experts"
    if config.model_type.startswith("llama4"):
        step = config.interleave_moe_layer_step
        return step > 0 and (layer + 1) % step == 0
    if isinstance(config.moe_layer_freq, list):
        return layer < len(config.moe_layer_freq) and config.moe_layer_freq[layer] > 0
    if layer in config.mlp_only_layers or layer < config.first_k_dense_replace:
        return False
    return (layer + 1) % config.decoder_sparse_step == 0


def _precision(config: HfConfig, where: str) -> tuple[str, str | None]:
    """Precision of the weights, and that of everything but experts where it differs."""
    quantization = config.quantization_config
    if not quantization:
        kept = config.dtype or config.torch_dtype or "bfloat16"
        # Engines serve float32 checkpoints in 16 bits.
        if kept.removeprefix("torch.") in ("bfloat16", "float16", "float32", "half", "auto"):
            return "bf16", None
        if kept.startswith("float8"):
            return "fp8", None
        raise InputError(f"{where}, torch_dtype", kept, "use bfloat16, float16, float32 or float8")
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo", "")).lower()
    bits = quantization.get("bits", quantization.get("w_bit"))
    if method == "mxfp4":
        return "mxfp4", "bf16"
    if "fp4" in algorithm:
        return "nvfp4", None
    if "fp8" in algorithm or "fp8" in method:
        return "fp8", None
    if method == "compressed-tensors":
        return _compressed(quantization, where), None
    if bits == 4 or quantization.get("load_in_4bit") is True:
        return "int4", None
    if bits == 8 or quantization.get("load_in_8bit") is True:
        return "int8", None
    raise InputError(
        f"{where}, quantization_config",
        quantization.get("quant_method"),
        "known are fp8, mxfp4, nvfp4 (modelopt), compressed-tensors, and 4- or 8-bit integers",
    )


def _compressed(quantization: Mapping[str, Any], where: str) -> str:
    groups = quantization.get("config_groups")
    found: object = groups
    if isinstance(groups, dict) and groups:
        first = next(iter(groups.values()))
        weights = first.get("weights") if isinstance(first, dict) else None
        found = weights
        if isinstance(weights, dict):
            kind = (weights.get("num_bits"), weights.get("type"))
            known = {(8, "float"): "fp8", (4, "float"): "nvfp4", (8, "int"): "int8"}
            known[(4, "int")] = "int4"
            if kind in known:
                return known[kind]
    raise InputError(
        f"{where}, quantization_config.config_groups", found, "give weights of 4 or 8 bits"
    )
