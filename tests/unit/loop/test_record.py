from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_fixtures import experiment, small

from wattline.core.errors import InputError
from wattline.recording.codec import settings_from_json, settings_to_json
from wattline.recording.record import Recording
from wattline.sim.replay import replay
from wattline.sim.runs import Job, run


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "recording.jsonl.gz"
    ready = experiment(duration_s=15)
    run(ready, Job("wattline", ready.budget_w(None)), record=path, command="test")
    return path


def test_every_decision_is_recomputed_to_the_byte(recording: Path) -> None:
    outcome = replay(Recording(recording))
    assert outcome.difference is None
    assert outcome.decisions == 25


def test_a_run_is_recorded_to_the_same_bytes(recording: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl.gz"
    ready = experiment(duration_s=15)
    run(ready, Job("wattline", ready.budget_w(None)), record=again, command="test")
    assert again.read_bytes() == recording.read_bytes()


@pytest.mark.parametrize("policy", ["dynamo-clamp", "threshold", "slo-scaler", "oracle"])
def test_policies_with_state_of_their_own_replay_too(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl.gz"
    ready = experiment(duration_s=15)
    run(ready, Job(policy, ready.budget_w(None)), record=path)
    outcome = replay(Recording(path))
    assert outcome.difference is None
    assert outcome.decisions > 0


def test_a_changed_snapshot_is_noticed(recording: Path, tmp_path: Path) -> None:
    lines = gzip.decompress(recording.read_bytes()).split(b"\n")
    place = next(i for i in range(1, len(lines), 2) if b'"time_s":9.0' in lines[i])
    lines[place] = lines[place].replace(b'"guard_w":', b'"guard_w":5')
    changed = tmp_path / "changed.jsonl.gz"
    changed.write_bytes(gzip.compress(b"\n".join(lines)))
    difference = replay(Recording(changed)).difference
    assert difference is not None
    assert difference.recorded != difference.replayed


def test_a_failed_run_leaves_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl.gz"
    ready = small()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ready, Job("wattline", ready.budget_w(None)), record=path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_settings_survive_the_way_through_json() -> None:
    given_settings = small().settings
    assert settings_from_json(settings_to_json(given_settings), "here") == given_settings


def test_unknown_settings_are_refused() -> None:
    document = settings_to_json(small().settings) | {"cap_stepw": 1}
    with pytest.raises(InputError, match="cap_stepw"):
        settings_from_json(document, "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (gzip.compress(b""), "empty"),
        (b"not gzip", "gzip"),
        (gzip.compress(b"not json\n"), "not JSON"),
        (gzip.compress(b"[1]\n"), "object"),
        (gzip.compress(b'{"schema":"wattline.recording/99"}\n'), "wattline.recording/1"),
        (gzip.compress(b'{"schema":"wattline.recording/1"'), "truncated"),
    ],
    ids=["no bytes", "no lines", "no gzip", "no json", "no object", "other schema", "cut off"],
)
def test_unusable_recordings_say_what_is_wrong(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        replay(Recording(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(recording.read_bytes()[:-100])
    with pytest.raises(InputError):
        replay(Recording(path))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), value=st.integers(0, 255))
def test_damage_gives_one_clear_line_or_a_difference(
    recording: Path, tmp_path: Path, place: int, value: int
) -> None:
    content = bytearray(gzip.decompress(recording.read_bytes())[:60_000])
    content[place % len(content)] = value
    path = tmp_path / "damaged.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(content), 1))
    try:
        replay(Recording(path))
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017  # equal or different decisions are fine too
