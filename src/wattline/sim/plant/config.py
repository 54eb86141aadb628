"""What the plant assumes beside the engine models; docs/concepts/plant.md says where from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Routing(StrEnum):
    """How a frontend picks a worker."""

    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    KV_AWARE = "kv_aware"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterNoise:
    """How imperfectly a GPU's limiter holds its mean.

    `mean_fraction` is the run mean of a GPU held at its cap; `sample_sigma` the standard deviation
    of one 0.1 s sample as a fraction of the draw above idle; `memory` the correlation between
    neighbouring samples; `replica_correlation` that between the GPUs of one replica. Calibrated to
    0.1 s traces of H100s at 700 W (openg2g 0eb9477, made by ML.ENERGY): one GPU shows up to 910 W
    in a sample, 761 W over 1 s and a run mean of 691 W; the mean of 4 GPUs 785, 708 and 674 W.
    """

    mean_fraction: float = 0.987
    sample_sigma: float = 0.103
    memory: float = 0.11
    replica_correlation: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantConfig:
    """Assumptions of the plant.

    `kv_bytes_per_s_per_gpu` and `kv_latency_s`: moving a prompt's cache from prefill to decode (one
    400 Gb/s port per GPU; latency assumed). `prefix_block_tokens`: prompt tokens that one hash of a
    request stands for (Mooncake's traces: 512); blocks live in what live requests leave of the KV
    capacity.
    `loading_fraction`: draw of a GPU that loads a model, as a fraction of the way from idle to its
    maximum limit (assumed). `unknown_idle_fraction` of the maximum limit stands for the idle draw
    of a product without a published figure (assumed; known products: 0.10 to 0.21).
    """

    routing: Routing = Routing.LEAST_LOADED
    gpus_per_node: int = 8
    sample_s: float = 0.1
    noise: LimiterNoise = LimiterNoise()
    kv_bytes_per_s_per_gpu: float = 50e9
    kv_latency_s: float = 0.002
    prefix_caching: bool = True
    prefix_block_tokens: int = 512
    loading_fraction: float = 0.25
    unknown_idle_fraction: float = 0.15
