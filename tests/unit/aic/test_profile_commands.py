"""`wattline profile show` and `sweep`, and a simulation on what a sweep wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aic_standin import StandIn
from wattline.catalog import engine_profile
from wattline.catalog.profiles import read_profile
from wattline.cli.profile import profile
from wattline.cli.simulate import simulate
from wattline.core.errors import InputError
from wattline.core.fleet import Pool, Role

VECTOR = json.loads(
    (Path(__file__).parents[2] / "vectors" / "dynamo_profile_h200.json").read_text("utf-8")
)


def run(*arguments: str) -> str:
    """What the command printed; errors come through as they are raised."""
    result = CliRunner().invoke(profile, arguments, catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    for half in ("prefill", "decode"):
        document = {**VECTOR[half], "model": "a-model"}
        (tmp_path / f"{half}_raw_data.json").write_text(json.dumps(document))
    return tmp_path


def sweep(standin: StandIn, *more: str) -> str:
    return run(
        *("sweep", "--model", "Llama-3.1-8B", "--gpu", "H200", "--python", str(standin.python)),
        *more,
    )


def test_show_says_what_a_profile_holds(folder: Path) -> None:
    text = run("show", str(folder))
    assert "JSON pair; GPUs per data-parallel rank: 1" in text
    assert "model: a-model" in text
    assert "17 prompt lengths, 100 to 16,372 tokens; TTFT 19.5 to 375 ms" in text
    assert "41 points, contexts 350 to 13,585 tokens" in text
    assert "cache 945,029 tokens" in text
    assert "watts: none" in text
    (folder / "decode_raw_data.json").unlink()
    assert "decode: none" in run("show", str(folder))


def test_show_says_what_caps_would_do(folder: Path) -> None:
    record = json.loads(run("show", str(folder), "--gpu", "H200", "--json"))
    caps = record["caps"]
    assert [row["cap_w"] for row in caps["rows"]] == [700.0, 600.0, 500.0, 400.0, 300.0, 200.0]
    assert "assumed split" in caps["coverage"]
    for half in ("prefill", "decode"):
        seconds = [row[half]["duration_s"] for row in caps["rows"]]
        assert seconds == sorted(seconds)
        assert all(row[half]["power_w"] <= row["cap_w"] for row in caps["rows"])
    text = run("show", str(folder), "--gpu", "H200", "--model", "Llama-3.1-8B")
    assert "roofline of Llama-3.1-8B" in text
    assert text.count(" W ") > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "Llama-3.1-8B"], "--model and --gpus-per-replica belong to it"),
        (["--gpu", "H2000"], "did you mean H200"),
        (["--gpu", "H200", "--gpus-per-replica", "2", "--model", "nope"], "nope"),
    ],
)
def test_wrong_questions_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run("show", str(folder), *arguments)


def test_a_sweep_over_sizes_and_caps(tmp_path: Path) -> None:
    standin = StandIn(tmp_path / "env", prefill_w=650.0, decode_w=1275.0, coverage=0.95)
    sizes = ["--gpus-per-replica", "1", "--gpus-per-replica", "4"]
    one, four = json.loads(sweep(standin, *sizes, "--json"))
    assert (one["gpus_per_replica"], four["gpus_per_replica"]) == (1, 4)
    assert (one["prefill_w"], one["decode_w"]) == (650.0, 1275.0)
    for role in ("prefill", "decode"):
        rates = [row[role]["rps"] for row in one["rows"]]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] > rates[-1]
    text = sweep(standin, *sizes)
    assert "4 GPUs per replica; latency: predicted by aiconfigurator 0.12.0, 0.24.0" in text
    assert "watts of prefill and decode: predicted" in text


def test_what_a_sweep_wrote_is_a_profile_with_its_watts(tmp_path: Path) -> None:
    standin = StandIn(tmp_path / "env", prefill_w=650.0, decode_w=500.0, coverage=0.95)
    sweep(standin, "--out", str(tmp_path / "out"))
    found = read_profile(tmp_path / "out" / "1")
    assert found.gpus == 1
    assert dict(found.about)["source"] == "aiconfigurator 0.12.0, data of 0.24.0"
    assert found.prefill_watts is not None
    assert found.decode_watts is not None
    assert (found.prefill_watts.watts, found.decode_watts.watts) == (650.0, 500.0)
    pool = Pool(
        name="p",
        deployment="d",
        role=Role.AGGREGATED,
        gpu="H200",
        gpus=1,
        gpus_per_replica=1,
        min_replicas=0,
        max_replicas=1,
        startup_s=0.0,
    )
    engine = engine_profile(found, pool)
    assert engine.prefill_watts != 1.0
    assert "prefill 650 W, decode 500 W" in run("show", str(tmp_path / "out" / "1"))


def test_a_scenario_runs_on_a_profile(tmp_path: Path) -> None:
    sweep(StandIn(tmp_path / "env"), "--out", str(tmp_path / "out"))
    engine: dict[str, Any] = {"kind": "profile", "path": "out/1"}
    pools = [
        {"name": "p", "role": "prefill", "gpu": "H200", "gpus": 1, "startup_s": 5},
        {"name": "d", "role": "decode", "gpu": "H200", "gpus": 1, "engine": engine},
    ]
    scenario = {
        "name": "profiled",
        "description": "A decode pool on a profile.",
        "duration_s": 10,
        "drain_s": 5,
        "deployments": [
            {
                "name": "chat",
                "model": "Llama-3.1-8B",
                "slo": {"ttft_s": 0.5, "itl_s": 0.03},
                "pools": pools,
            }
        ],
        "traffic": [{"kind": "conversation", "mean_rps": 10}],
        "budget": {"total_percent": 80},
        "plant": {"gpus_per_node": 2},
    }
    (tmp_path / "scenario.yaml").write_text(json.dumps(scenario))
    result = CliRunner().invoke(
        simulate,
        [str(tmp_path / "scenario.yaml"), "--out", str(tmp_path / "run")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert (tmp_path / "run" / "recording.jsonl.gz").exists()
