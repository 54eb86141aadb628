"""What a user can get wrong: one line with the place, the value and the remedy, and exit code 2."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import TINY, wattline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.core.errors import InputError
from wattline.sim.snapshot_file import read_plan_input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nothing", "No such command"),
        ("simulate {tiny} --nothing", "--nothing"),
        ("simulate demoo", "did you mean demo"),
        ("simulate missing.yaml", "missing.yaml"),
        ("simulate {folder}", "Is a directory"),
        ("simulate {tiny} --policy watline", "wattline"),
        ("simulate {tiny} --budget much", "60%"),
        ("simulate {tiny} --budget -3", "-3"),
        ("simulate {tiny} --budget nan%", "nan%"),
        ("simulate {tiny} --budget 1e999", "1e999"),
        ("simulate {tiny} --budget 10%", "lowest limits"),
        ("simulate {tiny} --seed -1", "--seed"),
        ("simulate {tiny} --seed 1e3", "--seed"),
        ("simulate {tiny} --from 15", "covers 0 to 15 s"),
        ("simulate {tiny} --from nan", "nan"),
        ("simulate {tiny} --until -1", "-1"),
        ("simulate {tiny} --scale-load 0", "--scale-load"),
        ("simulate {tiny} --scale-load huge", "--scale-load"),
        ("simulate {tiny} --scale-load inf", "--scale-load"),
        ("simulate {tiny} --trace missing.csv", "missing.csv"),
        ("simulate {tiny} --trace {tiny}", "tiny.yaml:"),
        ("simulate {tiny} --out {tiny}", "is a file"),
        ("simulate {tiny} --out {tiny}/run", "choose a folder"),
        ("simulate {tiny} --json {folder}", "name a file"),
        ("simulate {tiny} --json {tiny}/figures.json", "choose a path"),
        ("compare {tiny} --policies ,", "--policies"),
        ("compare {tiny} --policies wattline,nobody", "nobody"),
        ("compare {tiny} --budgets 60%,x", "'x'"),
        ("compare {tiny} --budgets ,", "--budgets"),
        ("compare {tiny} --jobs 0", "--jobs"),
        ("explain missing", "missing"),
        ("explain {tiny}", "gzip"),
        ("explain {run} --tick 99999", "the last before is 19"),
        ("explain {run} --tick -1", "--tick"),
        ("explain {run} --why-not prefill", "POOL=WATTS"),
        ("explain {run} --why-not nobody=300", "prefill, decode"),
        ("explain {run} --why-not prefill=9x300", "1 GPUs"),
        ("explain {run} --why-not prefill=5000", "200 to 700 W"),
        ("explain {run} --why-not prefill=300@0.01", "0.1 to 1"),
        ("replay missing", "missing"),
        ("plan missing.json", "missing.json"),
        ("plan {folder}", "Is a directory"),
        ("plan {tiny}", "`settings` and `snapshot`"),
        ("plan /dev/zero", "at most 256 MiB"),
        ("scenario show demoo", "did you mean demo"),
        ("scenario check {folder}", "Is a directory"),
        ("models show H20", "did you mean H200"),
        ("models show {folder}", "config.json"),
    ],
)
def test_one_line_says_what_is_wrong(
    recorded: Path, tiny: Path, tmp_path: Path, arguments: str, words: str
) -> None:
    places = {"tiny": tiny, "folder": tmp_path, "run": recorded}
    outcome = wattline(*(part.format(**places) for part in arguments.split()))
    assert outcome.code == 2
    assert words in outcome.line
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.yaml"]


GOOD_CSV = (
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
    b"2023-11-16 18:15:46.6805900,374,44\n"
    b"2023-11-16 18:15:50.9951690,396,109\n"
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no rows"),
        (b"\n\n", "no rows"),
        (b"\x00" * 64, "a trace is"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"\x1f\x8b\x08\x00\x00", "damaged"),
        (GOOD_CSV[:-20], ":3"),
        (GOOD_CSV.replace(b"374", b"-374"), ":2: ContextTokens"),
        (GOOD_CSV.replace(b"374", b"NaN"), ":2: ContextTokens"),
        (GOOD_CSV.replace(b"374", b"9" * 400), ":2: ContextTokens"),
        (GOOD_CSV.replace(b"2023-11-16 18:15:50", b"2022-11-16 18:15:50"), "sort"),
        (GOOD_CSV.replace(b"2023-11-16 18:15:50", b"9999-11-16 18:15:50"), "400 days"),
        (GOOD_CSV.replace(b"2023-11-16 18:15:50", b"yesterday"), ":3: TIMESTAMP"),
        (GOOD_CSV.splitlines()[0], "no request"),
        (b'{"time_s": NaN, "input_tokens": 1, "output_tokens": 1}', "time_s"),
        (b'{"time_s": 1, "input_tokens": 1}', "output_tokens"),
        (b'{"time_s": 1, "input_to', "cut off"),
        (b'{"timestamp": 1e400, "input_length": 1, "output_length": 1}', "timestamp"),
    ],
)
def test_traces(tiny: Path, tmp_path: Path, content: bytes, words: str) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_bytes(content)
    outcome = wattline("simulate", tiny, "--trace", trace, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert str(trace) in outcome.line
    assert words in outcome.line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("duration_s: 15", "duration_s: -15", "duration_s"),
        ("duration_s: 15", "duration_s: .nan", "duration_s"),
        ("duration_s: 15", "duration: 15", "did you mean duration_s"),
        ("mean_rps: 30", "mean_rps: 1e300", "mean_rps"),
        ("gpu: H200", "gpu: H20", "H200"),
        ("model: Llama-3.1-8B", "model: Llama-3.1-8", "Llama-3.1-8B"),
        ("model: Llama-3.1-8B", "model: Llama-3.1-405B", "more GPUs"),
        ("{ttft_s: 0.5, itl_s: 0.03}", "fast", "slo"),
        ("name: tiny", "name: tiny\nname: twice", "twice"),
        ("name: tiny", "name: [", "not valid YAML"),
        ("name: tiny", "name: !!python/object:os.system x", "tag"),
        ("total_percent: 60", "total_percent: 0", "total_percent"),
        ("total_percent: 60", "total_percent: 20", "lowest limits"),
    ],
)
def test_scenarios(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TINY.replace(old, new, 1))
    outcome = wattline("simulate", file, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert words in outcome.line
    assert not (tmp_path / "run").exists()


Path_ = tuple[str | int, ...]


def _paths(value: Any, path: Path_ = ()) -> list[Path_]:
    """Where every value of a JSON document stands; of a list, the first two."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:2]))
    return [path, *(inner for key, item in items for inner in _paths(item, (*path, key)))]


def _changed(document: Any, path: Path_, value: Any) -> Any:
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = _changed(document[path[0]], path[1:], value)  # type: ignore[index]
    return copy


def _without(document: Any, path: Path_) -> Any:
    copy = dict(document) if isinstance(document, dict) else list(document)
    if len(path) == 1:
        del copy[path[0]]  # type: ignore[arg-type]
    else:
        copy[path[0]] = _without(document[path[0]], path[1:])  # type: ignore[index]
    return copy


JUNK: tuple[Any, ...] = (
    *(None, True, "", "x", [], {}, [1], {"a": 1}),
    *(0, 1, -1, 2**70, 0.0, -0.5, 1e-300, 1e308, -1e308, float("nan"), float("inf")),
)


def test_plans_with_any_one_value_spoilt(recorded: Path, tmp_path: Path) -> None:
    """A sample of all (field, bad value) pairs; each is refused in one line or decided on."""
    good = json.loads(wattline("explain", recorded, "--tick", 5, "--snapshot").out)
    paths = _paths(good)
    assert len(paths) > 200
    file = tmp_path / "spoilt.json"
    codes = set()
    for path in random.Random(0).sample(paths[1:], 150):
        value = random.Random(str(path)).choice(JUNK)
        for spoilt in (_changed(good, path, value), _without(good, path)):
            file.write_text(json.dumps(spoilt))
            outcome = wattline("plan", file)
            codes.add(outcome.code)
            assert outcome.code == 0 or (outcome.code == 2 and outcome.line), (path, value)
    assert codes == {0, 2}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "settings: &a [x]\nsnapshot: [*a, *a]\n", ":2: 'an alias"),
        ("a.yaml", "settings: {fleet: 2026-11-20}\nsnapshot: {}\n", "settings.fleet"),
        ("a.yaml", "settings: {}\nsnapshot: {time_s: 2026-11-20}\n", "settings.fleet"),
        ("a.yaml", "settings: {1: 2}\nsnapshot: {}\n", "settings.1"),
        ("a.yaml", "settings: !!python/name:os.system\n", ":1"),
        ("a.yaml", "[" * 5000, "not valid"),
        ("a.json", "[" * 5000, "not valid"),
        ("a.json", '{"settings": {"fleet": ' + "[" * 400 + "]" * 400 + '}, "snapshot": {}}', "a."),
        ("a.json", '{"settings": {}, "snapshot": {}, "extra": 1}', "extra"),
        ("a.json", '{"settings": [], "snapshot": {}}', "settings"),
        ("a.json", "1" * 5000, "not valid"),
    ],
)
def test_plans(tmp_path: Path, name: str, content: str, words: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    outcome = wattline("plan", file)
    assert outcome.code == 2
    assert str(file) in outcome.line
    assert words in outcome.line


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["settings", "snapshot", "wattline.snapshot/1"])
)
_DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["settings", "snapshot", "fleet", "gpus"]), inner)
    ),
    max_leaves=12,
)
_FAST = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@_FAST
@given(document=_DOCUMENTS)
def test_any_document_as_a_plan(tmp_path: Path, document: object) -> None:
    file = tmp_path / "any.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"any\.json"):
        read_plan_input(file)


@_FAST
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@pytest.mark.parametrize("name", ["any.json", "any.yaml"])
def test_any_bytes_as_a_plan(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"any\."):
        read_plan_input(file)


_TYPED = st.text(alphabet="0123456789.eE+-%wWnaif xX@=,prdoc", max_size=12) | st.text(max_size=12)


@_FAST
@given(text=_TYPED)
@pytest.mark.parametrize("option", ["--budget", "--scale-load", "--seed", "--from"])
def test_any_number_on_the_command_line(tmp_path: Path, option: str, text: str) -> None:
    # The trace does not exist, so that a number that can be used ends in a refusal as well.
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    outcome = wattline("simulate", file, f"{option}={text}", "--trace", tmp_path / "missing.csv")
    assert outcome.code == 2
    assert outcome.line


@_FAST
@given(text=_TYPED | st.from_regex(r"(prefill|decode)=[0-9x]{1,4}[0-9.]{1,6}(@[0-9.]{1,3})?"))
def test_any_other_plan(recorded: Path, text: str) -> None:
    outcome = wattline("explain", recorded, "--tick", 5, f"--why-not={text}")
    assert outcome.code == 0 or (outcome.code == 2 and outcome.line)
