"""Reading traces: the formats, their recognition, and one clear line for whatever is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.core.errors import InputError
from wattline.sim.trace_files import coarse_step_s, read_trace, spread
from wattline.sim.traces import write_trace

VECTORS = Path(__file__).parents[2] / "vectors" / "traces"
AZURE = VECTORS / "azure_2023_conv_200.csv"
MOONCAKE = VECTORS / "mooncake_fast25_50.jsonl"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:15:46.6805900,374,44\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "trace"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_azure_rows_are_read_as_they_stand() -> None:
    trace = read_trace(AZURE)
    requests = list(trace)
    assert len(requests) == 200
    assert (requests[0].time_s, requests[0].input_tokens, requests[0].output_tokens) == (0, 374, 44)
    # 18:15:46.680590 to 18:15:50.995169 in the file.
    assert requests[1].time_s == pytest.approx(4.314579)
    assert trace.quantum_s is None
    assert trace.duration_s == requests[-1].time_s


def test_azure_2024_times_with_and_without_zone_or_fraction(tmp_path: Path) -> None:
    rows = "2024-05-12 00:00:00.009930+00:00,2162,5\n2024-05-12 00:00:01+00:00,2399,6\n"
    trace = read_trace(write(tmp_path, HEADER + rows + "2024-05-12 02:00:02+02:00,1,1\r\n"))
    assert trace.time_s.tolist() == [0.0, 0.99007, 1.99007]


def test_mooncake_keeps_hashes_and_spreads_three_second_steps() -> None:
    trace = read_trace(MOONCAKE, seed=3)
    raw = [json.loads(line) for line in MOONCAKE.read_text().splitlines()]
    assert [len(r.prefix_hashes) for r in trace] == [len(row["hash_ids"]) for row in raw]
    assert [r.input_tokens for r in trace] == [row["input_length"] for row in raw]
    assert trace.quantum_s == 3.0
    assert "steps of 3 s" in trace.info().notes[0]
    for request, row in zip(trace, raw, strict=True):
        assert 0.0 <= request.time_s - row["timestamp"] / 1e3 <= 3.001
    assert len(set(trace.time_s.tolist())) > 45


def test_spread_depends_on_the_seed_only() -> None:
    assert read_trace(MOONCAKE, 1).time_s.tolist() == read_trace(MOONCAKE, 1).time_s.tolist()
    assert read_trace(MOONCAKE, 1).time_s.tolist() != read_trace(MOONCAKE, 2).time_s.tolist()


@given(
    steps=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    step_s=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_spread_moves_no_request_past_its_step(steps: list[int], step_s: float, seed: int) -> None:
    times = np.sort(np.array(steps, dtype=np.float64) * step_s)
    moved = spread(times, step_s, seed)
    assert np.all(np.diff(moved) >= 0.0)
    assert np.all(moved >= times)
    assert np.all(moved <= times + step_s)


def test_fine_or_sparse_clocks_are_not_called_coarse() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    assert coarse_step_s(np.sort(np.round(rng.random(500) * 100, 6))) is None
    assert coarse_step_s(np.arange(100.0) * 3.0) is None
    assert coarse_step_s(np.repeat(np.arange(50.0) * 2.0, 3)) == 2.0
    assert coarse_step_s(np.array([0.0, 0.0])) is None


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_own_format_keeps_everything(tmp_path: Path, name: str) -> None:
    trace = read_trace(MOONCAKE, seed=5)
    path = tmp_path / name
    write_trace(path, trace)
    again = read_trace(path)
    assert list(again) == list(trace)
    assert again.duration_s == trace.duration_s
    first = path.read_bytes()
    write_trace(path, trace)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_gzip_is_recognised_by_content(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(AZURE.read_bytes()))
    assert list(read_trace(path)) == list(read_trace(AZURE))


def test_rows_without_tokens_are_dropped_counted_and_stated(tmp_path: Path) -> None:
    empty = "2023-11-16 18:15:47,0,4\n2023-11-16 18:15:48,10,0\n"
    trace = read_trace(write(tmp_path, HEADER + ROW + empty))
    assert len(trace) == 1
    assert trace.dropped == 2
    assert "left out" in trace.info().notes[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("hello,world\n", "trace:1: 'hello,world'"),
        (HEADER, "no request"),
        (HEADER + "2023-11-16 18:15:46,374\n", "trace:2: '2023-11-16 18:15:46,374'"),
        (HEADER + ROW + "2023-11-16 18:15:46,3", "trace:3"),
        (HEADER + "yesterday,1,1\n", "trace:2: TIMESTAMP: 'yesterday'"),
        (HEADER + "2023-11-16 18:15:46,-5,1\n", "trace:2: ContextTokens: '-5'"),
        (HEADER + "2023-11-16 18:15:46,nan,1\n", "trace:2: ContextTokens: 'nan'"),
        (HEADER + "2023-11-16 18:15:46,1,1e9\n", "trace:2: GeneratedTokens: '1e9'"),
        (HEADER + "2023-11-16 18:15:46,1,10000001\n", "GeneratedTokens: 10000001"),
        (HEADER + "2023-11-16 18:15:46,1," + "9" * 9000 + "\n", "trace:2: GeneratedTokens"),
        (HEADER + ROW + "2023-11-16 18:15:45,1,1\n", "sort the file by time"),
        (HEADER + ROW + "2033-11-16 18:15:45,1,1\n", "at most 400 days"),
        ('{"timestamp": 0, "input_length": 1}\n', "trace:1: output_length"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1}\n', "timestamp: -1"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', "timestamp: nan"),
        ('{"timestamp": 0, "input_length": true, "output_length": 1}\n', "input_length: True"),
        ('{"timestamp": 0, "input_length": 1.5, "output_length": 1}\n', "input_length: 1.5"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 3}\n', "hash_ids"),
        (
            '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1, 2]}\n',
            "one hash stands for 512",
        ),
        ('{"time_s": 0, "input_tokens": 1, "output_tokens": 1}\n{"time_s": 0, "inp', "trace:2"),
        ('{"format": "wattline.trace/9"}\n', "this version reads"),
        ('{"format": "wattline.trace/1", "duration_s": 0}\n', "duration_s"),
        (
            '{"format": "wattline.trace/1", "duration_s": 1}\n'
            '{"time_s": 2, "input_tokens": 1, "output_tokens": 1}\n',
            "must not end before",
        ),
        ('{"what": 1}\n', "trace:1"),
        ("[" * 100_000, "trace:1"),
        ('{"time_s":' + "[" * 100_000, "not JSON"),
        (HEADER.encode() + b"2023-11-16 18:15:46,\xff\xfe,1\n", "trace:2: b'\\xff\\xfe,1\\n'"),
        (gzip.compress((HEADER + ROW * 500).encode(), mtime=0)[:60], "cut off or damaged"),
        (b"\x1f\x8bnonsense", "cut off or damaged"),
    ],
)
def test_bad_files_are_one_line_with_the_place(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    message = refusal(write(tmp_path, content))
    assert expected in message
    assert message.startswith(str(tmp_path / "trace"))


def test_missing_file_and_folder_are_input_errors(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.csv")
    assert "directory" in refusal(tmp_path)


def test_truncated_lines_of_any_format_are_refused_or_read(tmp_path: Path) -> None:
    for source in (AZURE, MOONCAKE):
        content = source.read_bytes()
        for length in range(0, len(content), 97):
            said = outcome(write(tmp_path, content[:length]))
            assert said != "read 0"
            assert "\n" not in said


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 9),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-5, 2**65), max_size=4),
)


ROWS = st.one_of(
    *(
        st.fixed_dictionaries(dict.fromkeys(required, VALUES), optional=dict.fromkeys(also, VALUES))
        for required, also in (
            (("timestamp", "input_length"), ("output_length", "hash_ids")),
            (("time_s",), ("input_tokens", "output_tokens", "deployment", "prefix_hashes")),
            (("format",), ("duration_s", "time_s")),
        )
    )
)


def outcome(path: Path) -> str:
    """The refusal's text, or how many requests were read."""
    try:
        return f"read {len(read_trace(path))}"
    except InputError as error:
        return str(error)


@given(rows=st.lists(ROWS, max_size=4))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_any_json_rows_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    said = outcome(write(tmp_path_factory.mktemp("fuzz", numbered=True), text))
    assert "\n" not in said
    assert said != "read 0"


@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_any_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    for head in (b"", HEADER.encode(), b"\x1f\x8b"):
        said = outcome(write(tmp_path_factory.mktemp("fuzz", numbered=True), head + content))
        assert "\n" not in said
        assert said != "read 0"
