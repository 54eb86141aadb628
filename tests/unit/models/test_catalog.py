"""The catalog: sources beside numbers, names, and files that must be refused."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from wattline import catalog
from wattline.catalog.files import Sourced, unknown_name
from wattline.catalog.fits import fitted_files, parse_fitted
from wattline.catalog.products import gpu_files, parse_gpu
from wattline.catalog.specs import model_files, parse_model
from wattline.core.errors import InputError

REQUIRED_GPUS = {"A100-SXM4-80GB", "H100-80GB-HBM3", "H200", "B200", "GB200", "L40S"}
REQUIRED_MODELS = {
    "Llama-3.1-8B",
    "Llama-3.1-405B",
    "Llama-3.3-70B",
    "Qwen3-8B",
    "Qwen3-14B",
    "Qwen3-32B",
    "Qwen3-30B-A3B",
    "Qwen3-235B-A22B",
    "Qwen3-Coder-480B-A35B",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "DeepSeek-V3",
    "gemma-3-12b",
    "gemma-3-27b",
    "Llama-4-Scout",
    "Llama-4-Maverick",
}


def test_what_was_promised_is_there() -> None:
    assert set(catalog.gpu_names()) >= REQUIRED_GPUS
    assert set(catalog.model_names()) >= REQUIRED_MODELS


def _numbers(value: object) -> list[Sourced[str]]:
    if isinstance(value, Sourced):
        return [value]
    if isinstance(value, BaseModel):
        return [n for name in type(value).model_fields for n in _numbers(getattr(value, name))]
    if isinstance(value, dict):
        return [number for inner in value.values() for number in _numbers(inner)]
    assert not isinstance(value, float), "a number without unit and source"
    return []


def test_every_number_of_a_product_has_a_source() -> None:
    for file in gpu_files():
        numbers = _numbers(file)
        assert len(numbers) >= 8
        assert all(len(number.source) >= 8 for number in numbers)


@pytest.mark.parametrize("file", model_files(), ids=lambda file: file.name)
def test_counted_parameters_match_the_published_ones(file: object) -> None:
    spec = catalog.model(file.name)  # type: ignore[attr-defined]
    published = file.published_params.value  # type: ignore[attr-defined]
    # Scout's published 109 B includes its vision encoder.
    assert spec.params == pytest.approx(published, rel=0.015)
    assert spec.active_params <= spec.params
    active = file.published_active_params  # type: ignore[attr-defined]
    if active is not None:
        # gpt-oss counts active parameters without its embedding table.
        counted = spec.active_params - (spec.embedding_params if "gpt" in spec.name else 0.0)
        assert counted == pytest.approx(active.value, rel=0.06)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("h100", "H100-80GB-HBM3"), ("NVIDIA-H200", "H200"), ("b200_sxm", "B200"), ("l40s", "L40S")],
)
def test_products_are_found_by_alias_whatever_the_case(name: str, canonical: str) -> None:
    assert catalog.gpu(name).name == canonical


@pytest.mark.parametrize(
    ("name", "shape", "precision"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct", "Llama-3.3-70B", "bf16"),
        ("llama-3.3-70b-instruct", "Llama-3.3-70B", "bf16"),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "Qwen3-235B-A22B", "fp8"),
        ("deepseek-ai/DeepSeek-R1-0528", "DeepSeek-V3", "fp8"),
        ("openai/gpt-oss-120b", "gpt-oss-120b", "mxfp4"),
    ],
)
def test_models_are_found_by_alias_with_their_precision(
    name: str, shape: str, precision: str
) -> None:
    spec = catalog.model(name)
    assert spec.precision == precision
    assert spec.params == catalog.model(shape).params


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match=r"GPU product: 'H20O': did you mean H200"):
        catalog.gpu("H20O")
    with pytest.raises(InputError, match=r"model: 'lama-3.3-70b': did you mean Llama-3.3-70B"):
        catalog.model("lama-3.3-70b")
    assert "known are a, b" in str(unknown_name("thing", "zzzzzz", ["b", "a"]))


def test_idle_lies_below_loaded_idle_below_the_lowest_limit() -> None:
    for name in catalog.gpu_names():
        product = catalog.gpu(name)
        if product.idle_w is not None and product.loaded_idle_w is not None:
            assert product.idle_w < product.loaded_idle_w < product.min_limit_w


def test_a_missing_number_names_product_and_field() -> None:
    text = _gpu_text().replace("loaded_idle_w:", "idle_w:")
    file = parse_gpu(text, "gpus/test.yaml")
    assert file.loaded_idle_w is None
    from dataclasses import replace

    from wattline.catalog.fits import assumed_response

    product = replace(catalog.gpu("H200"), name="test", loaded_idle_w=None)
    with pytest.raises(InputError, match="GPU product test, loaded_idle_w"):
        assumed_response(product)


def _gpu_text() -> str:
    number = '{{value: {0}, unit: "{1}", source: "made up for a test"}}'
    return "\n".join(
        [
            'name: "test"',
            'architecture: "hopper"',
            "min_limit_w: " + number.format(200, "W"),
            "default_limit_w: " + number.format(700, "W"),
            "max_limit_w: " + number.format(700, "W"),
            "loaded_idle_w: " + number.format(100, "W"),
            "peak_flops: {bf16: " + number.format(1e15, "FLOP/s") + "}",
            "hbm_bytes: " + number.format(8e10, "B"),
            "hbm_bytes_per_s: " + number.format(4e12, "B/s"),
            "settle_s: " + number.format(2.0, "s"),
        ]
    )


@pytest.mark.parametrize(
    ("found", "instead", "message"),
    [
        ('name: "test"', 'nam: "test"', "nam"),
        ("value: 200", "value: 900", "limits must rise"),
        ("value: 200", "value: .nan", "min_limit_w.value"),
        ('unit: "W"', 'unit: "kW"', "min_limit_w.unit"),
        ('source: "made up for a test"', "note: 1", "min_limit_w"),
        ("bf16:", "fp16:", "peak_flops"),
        ('name: "test"', 'name: ["test', "repair the YAML"),
    ],
)
def test_bad_product_files_are_refused_in_one_line(found: str, instead: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_gpu(_gpu_text().replace(found, instead, 1), "gpus/test.yaml")
    assert str(caught.value).startswith("gpus/test.yaml")
    assert "\n" not in str(caught.value)


def test_bad_model_files_are_refused() -> None:
    with pytest.raises(InputError, match=r"models/test\.yaml, config: None: field required"):
        parse_model(
            'name: "x"\npublished_params: {value: 1, unit: "parameters", source: "made up here"}\n'
            'config_source: "here"\n',
            "models/test.yaml",
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "repair the JSON"),
        ('{"product": "H100"}', "engine"),
        (
            '{"product": "H100", "engine": {"mfu": 1}, "response": {}, "coverage": "a test only"}',
            "engine: 'mfu': use activation_passes",
        ),
        (
            '{"product": "H100", "engine": {}, "response": {"gamma": -1}, "coverage": "a test"}',
            "response.gamma",
        ),
    ],
)
def test_bad_fits_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_fitted(text, "fitted/test.json")


def test_every_product_has_parameters_and_says_what_they_stand_on() -> None:
    for name in catalog.gpu_names():
        found = catalog.fit(name)
        assert found.coverage
        assert found.response.idle_w == catalog.gpu(name).loaded_idle_w or name in fitted_files()
        if name not in fitted_files():
            assert found.coverage.startswith(("borrowed", "assumed"))
