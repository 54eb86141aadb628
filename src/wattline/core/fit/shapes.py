"""A model's shape guessed from its parameter counts, where the shape itself is not known.

The rules are medians over published models of 8 to 671 billion parameters. They move predicted step
times by some 10 to 30 % from those of the true shape: a `config.json` is always better.
"""

from __future__ import annotations

from wattline.core.fleet import ModelSpec

_VOCABULARY = 150_000
_HEAD_DIM = 128
_KV_HEADS = 8
_EXPERTS = 128
_ROUTED_SHARE = 0.65
"""Share of experts in use over share of parameters in use: attention and embeddings make the rest
(Qwen3-235B 0.67, DeepSeek-V3 0.57, gpt-oss-120b 0.72)."""
_MAMBA_STATE = 128
_ATTENTION_SHARE = 0.1
"""Layers of a Mamba hybrid that attend (Nemotron Nano v2: 4 of 56, 6 of 62)."""
_RECURRENT_SHARE = 0.45


def guessed_spec(
    name: str, params: float, active_params: float, architecture: str, precision: str
) -> ModelSpec:
    """Shape of a model of `params` parameters, `active_params` of them used for a token.

    Dense: hidden^3 = 10.7 x params (12 x layers x hidden^2 with layers = hidden / 128). Mixture of
    experts: hidden from the active parameters, 20 % less, and 60 x (params / 235e9)^0.25 layers.
    `architecture` with "mamba" or "hybrid" in it gets recurrent layers. Counts are parameters.
    """
    words = architecture.lower()
    sparse = active_params < 0.9 * params
    hidden = (10.7 * active_params) ** (1.0 / 3.0) * (0.8 if sparse else 1.0)
    hidden = max(_HEAD_DIM, 128 * round(hidden / 128.0))
    layers = round(60.0 * (params / 235e9) ** 0.25) if sparse else round(hidden / 128.0)
    layers = max(4, layers)
    share = _ROUTED_SHARE * active_params / params if sparse else 0.0
    recurrent = "mamba" in words or "hybrid" in words
    table = min(_VOCABULARY * hidden, 0.2 * active_params)
    return ModelSpec(
        name=name,
        params=params,
        active_params=active_params,
        layers=layers,
        hidden=hidden,
        heads=max(1, hidden // _HEAD_DIM),
        kv_heads=_KV_HEADS,
        head_dim=_HEAD_DIM,
        experts=_EXPERTS if sparse else 0,
        precision=precision,
        architecture=architecture,
        experts_per_token=max(1, round(_EXPERTS * share)) if sparse else 0,
        expert_params=(params - active_params) / (1.0 - share) if sparse else 0.0,
        embedding_params=table,
        head_params=table,
        dense_precision="bf16" if precision in ("mxfp4", "nvfp4") else None,
        recurrent_layers=round((1.0 - _ATTENTION_SHARE) * layers) if recurrent else 0,
        state_elements=(
            _RECURRENT_SHARE * layers * 2.0 * hidden * _MAMBA_STATE if recurrent else 0.0
        ),
    )
