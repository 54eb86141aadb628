"""The process that asks the predictor, and what is kept of its answers; against a stand-in."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aic_standin import StandIn
from wattline.drivers.aic import Aic, AicError, Request, installed, table_of
from wattline.drivers.aic_cache import MOST_FILES, TableCache

REQUEST = Request(
    models=("Qwen/Qwen3-32B",),
    system="h200_sxm",
    backend="vllm",
    backend_version=None,
    tp=2,
    prefill_tokens=(128, 1024, 4096),
    contexts=(1024, 4096),
    batches=(1, 64),
)


@pytest.fixture(name="standin")
def _standin(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "env")


def aic_of(standin: StandIn, limit_s: float = 30.0, cache: Path | None = None) -> Aic:
    return Aic(python=standin.python, limit_s=limit_s, cache=cache)


def test_a_table_holds_what_was_said(standin: StandIn) -> None:
    standin.behave(prefill_w=600.0, decode_w=450.0, coverage=0.95)
    table = aic_of(standin).sweep([REQUEST])[0]
    assert table.package == "aiconfigurator 0.12.0"
    assert table.backend_version == "0.24.0"
    assert table.kv_tokens == 720_000
    assert [point.tokens for point in table.prefill] == [128, 1024, 4096]
    assert table.prefill[1].seconds == pytest.approx((10.0 + 1024 * 0.01) / 1e3)
    last = table.decode[-1]
    assert (last.batch, last.tokens, last.power_w, last.coverage) == (64, 4096, 450.0, 0.95)
    assert last.seconds == pytest.approx((6.0 + 64 * 0.02 + 64 * 4096 * 1e-5) / 1e3)


def test_points_that_do_not_fit_the_cache_are_not_asked_for(standin: StandIn) -> None:
    table = aic_of(standin).sweep([replace(REQUEST, contexts=(1024, 400_000))])[0]
    # 720,000 tokens fit; the largest batch that does is asked for as well.
    assert {(point.batch, point.tokens) for point in table.decode} == {
        (1, 1024),
        (64, 1024),
        (1, 400_000),
    }
    table = aic_of(standin).sweep([replace(REQUEST, contexts=(20_000,))])[0]
    assert [point.batch for point in table.decode] == [1, 36]


def test_points_that_fail_are_left_out_and_counted(standin: StandIn) -> None:
    standin.behave(failing=[4096])
    table = aic_of(standin).sweep([REQUEST])[0]
    assert [point.tokens for point in table.prefill] == [128, 1024]
    assert table.failed_points == 3
    assert table.why == "no point at 4096"
    standin.behave(failing=[1024, 4096])
    with pytest.raises(AicError, match="1 prefill and 0 decode points are too few: no point at"):
        aic_of(standin).sweep([REQUEST])


def test_the_first_name_that_the_library_knows_is_used(standin: StandIn) -> None:
    request = replace(REQUEST, models=("a/one", "b/two", "c/three"))
    standin.behave(unknown=["a/one"])
    assert aic_of(standin).sweep([request])[0].model == "b/two"
    standin.behave(unknown=["a/one", "b/two", "c/three"])
    with pytest.raises(AicError, match="no model a/one"):
        aic_of(standin).sweep([request])


def test_answers_are_kept_by_question_and_version(standin: StandIn, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = aic_of(standin, cache=cache).sweep([REQUEST])
    standin.behave(what="raises")
    assert aic_of(standin, cache=cache).sweep([REQUEST, REQUEST]) == [*first, *first]
    assert aic_of(standin, cache=cache).cached([REQUEST]) == first
    for other in (
        replace(REQUEST, tp=1),
        replace(REQUEST, config_digest="1"),
        replace(REQUEST, batches=(1,)),
    ):
        assert aic_of(standin, cache=cache).cached([REQUEST, other]) is None
    standin.set_version("0.13.0")
    assert aic_of(standin, cache=cache).cached([REQUEST]) is None
    with pytest.raises(AicError, match="no data for this system"):
        aic_of(standin, cache=cache).sweep([REQUEST])


@pytest.mark.parametrize("damage", ["cut", "foreign", "edited", "binary", "deep", "wrong"])
def test_a_damaged_answer_is_set_aside_and_asked_for_anew(
    standin: StandIn, tmp_path: Path, damage: str
) -> None:
    cache = tmp_path / "cache"
    first = aic_of(standin, cache=cache).sweep([REQUEST])
    (file,) = cache.glob("*.json")
    text = file.read_text()
    document = json.loads(text)
    if damage == "wrong":
        # A whole file by its checksum, whose answer is no table.
        TableCache(cache, "aiconfigurator 0.12.0").put(
            {key: value for key, value in document["question"].items() if key != "version"},
            {"prefill": "none"},
        )
    else:
        damaged = {
            "cut": text[: len(text) // 2].encode(),
            "foreign": text.replace('"tp": 2', '"tp": 4', 1).encode(),
            "edited": text.replace('"kv_tokens": 720000', '"kv_tokens": 720001', 1).encode(),
            "binary": bytes(range(256)),
            "deep": b"[" * 100_000,
        }[damage]
        file.write_bytes(damaged)
    assert aic_of(standin, cache=cache).cached([REQUEST]) is None
    assert len(list(cache.glob("*.corrupt"))) == 1
    assert aic_of(standin, cache=cache).sweep([REQUEST]) == first
    assert aic_of(standin, cache=cache).cached([REQUEST]) == first


def test_a_cache_that_cannot_be_written_costs_time_only(standin: StandIn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = aic_of(standin, cache=tmp_path / "file" / "cache").sweep([REQUEST])[0]
    assert len(table.prefill) == 3


def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    cache = TableCache(tmp_path, "1")
    for number in range(MOST_FILES + 5):
        cache.put({"n": number}, {"answer": number})
        os.utime(cache._path({"n": number}), (number, number))
    assert len(list(tmp_path.glob("*.json"))) == MOST_FILES
    assert cache.get({"n": 0}) is None
    assert cache.get({"n": MOST_FILES + 4}) == {"answer": MOST_FILES + 4}


def test_what_hangs_is_killed_and_reaped(standin: StandIn) -> None:
    standin.behave(what="hangs")
    aic = aic_of(standin, limit_s=2.0)
    with pytest.raises(AicError, match=r"no answer in 2 s: raise models\.aic\.limit_s"):
        aic.sweep([REQUEST])
    pid = int((standin.folder / "hanging").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    standin.behave()
    assert aic.sweep([REQUEST])


def test_closing_ends_a_sweep_that_runs(standin: StandIn) -> None:
    standin.behave(what="hangs")
    aic = aic_of(standin, limit_s=60.0)
    failures: list[str] = []

    def ask() -> None:
        with pytest.raises(AicError) as caught:
            aic.sweep([REQUEST])
        failures.append(str(caught.value))

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(600):
        if (standin.folder / "hanging").exists():
            break
        time.sleep(0.05)
    aic.close()
    thread.join(30.0)
    assert len(failures) == 1
    assert failures[0].startswith("aiconfigurator: its process ended with -9: ")
    with pytest.raises(AicError, match="the controller ends"):
        aic.sweep([REQUEST])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raises", "aiconfigurator: RuntimeError: no data for this system"),
        ("dies", "its process ended with 9"),
    ],
)
def test_failures_are_one_line(standin: StandIn, what: str, message: str) -> None:
    standin.behave(what=what)
    with pytest.raises(AicError, match=message) as caught:
        aic_of(standin).sweep([REQUEST])
    assert "\n" not in str(caught.value)
    assert not caught.value.missing


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("echo garbage", "its answer is no JSON"),
        ("echo '[1]'", "does not fit the question"),
        ("head -c 17000000 /dev/zero", "17,000,000 bytes is not believed"),
        ("exit 0", "its answer is no JSON"),
    ],
)
def test_an_interpreter_that_is_none_is_one_line(tmp_path: Path, says: str, message: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat > /dev/null\n{says}\n")
    python.chmod(0o755)
    with pytest.raises(AicError, match=message) as caught:
        Aic(python=python, limit_s=30.0, cache=None).sweep([REQUEST])
    assert "\n" not in str(caught.value)


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AicError, match=r"name the interpreter") as caught:
        Aic(python=tmp_path / "python", limit_s=5.0, cache=None).sweep([REQUEST])
    assert caught.value.missing
    if installed(None) is not None:
        pytest.skip("this environment has the library")
    with pytest.raises(AicError, match=r"pip install 'wattline\[aic\]'") as caught:
        Aic(python=Path(sys.executable), limit_s=30.0, cache=None).sweep([REQUEST])
    assert caught.value.missing


def test_a_library_of_unknown_version_is_asked_each_time(standin: StandIn, tmp_path: Path) -> None:
    for info in list(standin.folder.rglob("METADATA")):
        info.unlink()
        info.parent.rmdir()
    cache = tmp_path / "cache"
    assert aic_of(standin, cache=cache).sweep([REQUEST])[0].package == "unknown"
    assert not cache.exists()


def test_the_library_gets_no_network_and_no_secrets(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    spy = standin.folder / "spy.json"
    api = standin.folder / "lib/python3.11/site-packages/aiconfigurator/__init__.py"
    api.write_text(
        f"import json, os\njson.dump(dict(os.environ), open({str(spy)!r}, 'w'))\n", "utf-8"
    )
    aic_of(standin).sweep([REQUEST])
    seen = json.loads(spy.read_text())
    assert "SOME_TOKEN" not in seen
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["https_proxy"] == "http://127.0.0.1:9"


_ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=3)
)
_POINTS = st.lists(st.lists(_ATOMS, max_size=6), max_size=4)


@given(
    st.fixed_dictionaries(
        {
            "kv_tokens": _ATOMS,
            "backend_version": _ATOMS,
            "failed_points": st.one_of(st.just(0), _ATOMS),
            "prefill": st.one_of(_ATOMS, _POINTS),
            "decode": st.one_of(_ATOMS, _POINTS),
        },
        optional={"error": _ATOMS, "why": _ATOMS},
    )
)
@settings(max_examples=200)
def test_any_answer_is_a_table_or_one_line(document: Any) -> None:
    try:
        table = table_of("x", document)
    except AicError as error:
        said = str(error)
    else:
        said = ""
        assert len(table.prefill) >= 2
    assert "\n" not in said


def test_latencies_that_mean_impossible_stay_what_they_are() -> None:
    impossible = [[128, 999_999.0, None, None], [1024, 999_999.0, None, None]]
    table = table_of(
        "x",
        {
            "kv_tokens": 1000,
            "backend_version": "1",
            "failed_points": 0,
            "prefill": impossible,
            "decode": [[1, 128, 999_999.0, None, None]],
        },
    )
    assert table.prefill[0].seconds == pytest.approx(999.999)
