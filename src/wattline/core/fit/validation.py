"""Which rows belong together: families of models, and folds that never split one."""

from __future__ import annotations

import re
from collections.abc import Sequence

_VARIANT = re.compile(
    r"instruct|thinking|chat|it|base|coder|vl|omni|vision|audio|next|preview|hf|nvidia|distill"
    r"|fp8|fp4|nvfp4|mxfp4|bf16|fp16|bfloat16|awq|gptq|int4|int8|w4a16|w8a8|kv|dynamic|quantized"
    r"|\d{4}|\d{6}|\d{8}"
)
"""Words of a model name that name a variant, a modality, a precision or a date."""

_SIZE = re.compile(r"\d+(\.\d+)?[bm]|a\d+(\.\d+)?b|\d+e")
_VERSION = re.compile(r"v?(\d+)(\.\d+)?")
_LINE_AND_MAJOR = re.compile(r"([a-z]+)(\d+)(\.\d+)?")


def model_family(name: str) -> str:
    """Name the base model that `name` is a variant of: same line, major version and size.

    Dropped are the publisher, variants (Instruct, Thinking, Coder), modalities (VL, Omni),
    precisions, dates and minor versions, so that Llama-3.1-70B and Llama-3.3-70B fall together as
    do Qwen3-30B-A3B, Qwen3-Coder-30B-A3B and Qwen3-Omni-30B-A3B. DeepSeek R1 and V3 are one model,
    Nemotron Nano 9B v2 is cut from the 12B, and a distilled model belongs to what it runs on.
    """
    text = name.rsplit("/", 1)[-1].lower()
    if "distill" in text:
        text = text.split("distill", 1)[1].strip("-_ ")
    if "deepseek" in text and re.search(r"r1|v3", text):
        return "deepseek-3"
    words: list[str] = []
    for word in re.split(r"[-_\s:]+", text):
        if word and not _VARIANT.fullmatch(word):
            words.append(_plain(word))
    if "nemotron" in words and "nano" in words:
        words = [word for word in words if not _SIZE.fullmatch(word)]
    return "-".join(words) or text


def folds(families: Sequence[str]) -> list[tuple[str, list[int], list[int]]]:
    """One fold per family: its name, the indices to fit on, and those held out. In name order."""
    result = []
    for family in sorted(set(families)):
        inside = [index for index, name in enumerate(families) if name == family]
        outside = [index for index, name in enumerate(families) if name != family]
        result.append((family, outside, inside))
    return result


def _plain(word: str) -> str:
    """Drop the minor version of a word; sizes stay as they are."""
    if _SIZE.fullmatch(word):
        return word
    version = _VERSION.fullmatch(word)
    if version:
        return version.group(1)
    line = _LINE_AND_MAJOR.fullmatch(word)
    return line.group(1) + line.group(2) if line else word
