from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.core.fit.validation import folds, model_family

SAME = [
    (
        "Qwen/Qwen3-30B-A3B-Instruct-2507",
        "Qwen/Qwen3-30B-A3B-Thinking-2507",
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8",
    ),
    (
        "Qwen/Qwen3-235B-A22B-Instruct-2507",
        "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8",
        "Qwen/Qwen3-VL-235B-A22B-Instruct-FP8",
    ),
    ("Qwen/Qwen3-32B", "Qwen/Qwen3-VL-32B-Instruct"),
    ("Qwen/Qwen3-8B", "Qwen/Qwen3-VL-8B-Instruct", "qwen3-8b-awq"),
    (
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Llama-3.3-70B-Instruct",
        "nvidia/Llama-3.3-70B-Instruct-FP8",
    ),
    ("deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-V3.1", "nvidia/DeepSeek-V3-0324-NVFP4"),
    (
        "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
        "nvidia/NVIDIA-Nemotron-Nano-12B-v2",
        "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16",
    ),
    ("Qwen/Qwen3-Coder-480B-A35B-Instruct", "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"),
]


@pytest.mark.parametrize("names", SAME)
def test_variants_of_one_model_are_one_family(names: tuple[str, ...]) -> None:
    assert len({model_family(name) for name in names}) == 1


def test_different_models_are_different_families() -> None:
    names = [group[0] for group in SAME]
    names += ["openai/gpt-oss-20b", "openai/gpt-oss-120b", "Qwen/Qwen3-14B"]
    names += ["meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-405B-Instruct"]
    names += ["google/gemma-3-12b-it", "google/gemma-3-27b-it"]
    names += [f"meta-llama/Llama-4-{x}" for x in ("Scout-17B-16E-Instruct", "Maverick-17B-128E")]
    assert len({model_family(name) for name in names}) == len(names)


@given(st.text(min_size=1, max_size=40))
def test_every_name_has_a_family(name: str) -> None:
    assert model_family(name) == model_family(name)
    assert model_family(name) or not name.rsplit("/", 1)[-1]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30))
def test_folds_hold_each_row_out_once_and_never_split_a_family(families: list[str]) -> None:
    held: list[int] = []
    for family, outside, inside in folds(families):
        assert {families[index] for index in inside} == {family}
        assert family not in {families[index] for index in outside}
        assert len(outside) + len(inside) == len(families)
        held += inside
    assert sorted(held) == list(range(len(families)))
