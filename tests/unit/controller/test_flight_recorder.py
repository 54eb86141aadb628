"""Segments: bounded, readable while written, whole after a kill, mended after a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from controller_world import World

from wattline.core.errors import InputError
from wattline.recording.codec import Header, decision_to_json
from wattline.recording.orders import carry_out
from wattline.recording.record import Recording, Tick
from wattline.recording.segments import LEAST_SEGMENT_BYTES, FlightRecorder, segment_files
from wattline.sim.explain import overview
from wattline.sim.replay import replay


@pytest.fixture(scope="module")
def ticks(tmp_path_factory: pytest.TempPathFactory) -> list[Tick]:
    world = World(tmp_path_factory.mktemp("world"))
    world.start()
    world.run(30)
    world.stop()
    return list(Recording(world.folder / "state" / "recording").ticks())


def recorder(folder: Path, header: Header, **changes: float) -> FlightRecorder:
    values = {
        "segment_bytes": LEAST_SEGMENT_BYTES,
        "total_bytes": 4 * LEAST_SEGMENT_BYTES,
        "retry_s": 0.0,
    } | changes
    return FlightRecorder(
        folder,
        header,
        segment_bytes=int(values["segment_bytes"]),
        total_bytes=int(values["total_bytes"]),
        retry_s=values["retry_s"],
        now=lambda: 0.0,
    )


def test_size_is_bounded_and_every_segment_stands_alone(ticks: list[Tick], tmp_path: Path) -> None:
    made = recorder(tmp_path, ticks[0].header)
    for _ in range(30):
        for tick in ticks:
            assert made.append(tick.snapshot, tick.decision)
    made.close()
    files = segment_files(tmp_path)
    assert len(files) > 2
    assert files[0].name != "segment-00000001.jsonl.gz", "the oldest are deleted"
    size = sum(path.stat().st_size for path in files)
    assert size <= 4 * LEAST_SEGMENT_BYTES + 20_000
    assert made.status.bytes_held == size
    for path in files:
        outcome = replay(Recording(path))
        assert outcome.difference is None
        assert outcome.decisions > 0
    whole = replay(Recording(tmp_path))
    assert whole.difference is None
    assert whole.notes == ()
    assert overview(Recording(tmp_path)).ticks == whole.decisions


def test_the_bytes_of_decisions_survive(ticks: list[Tick], tmp_path: Path) -> None:
    made = recorder(tmp_path, ticks[0].header)
    for tick in ticks:
        made.append(tick.snapshot, tick.decision)
    made.close()
    again = list(Recording(tmp_path).ticks())
    assert [tick.decision_json for tick in again] == [
        decision_to_json(tick.decision) for tick in ticks
    ]
    assert [tick.snapshot for tick in again] == [tick.snapshot for tick in ticks]


@pytest.mark.parametrize("cut", [1, 7, 60, 400])
def test_a_torn_tail_is_tolerated_and_said(ticks: list[Tick], tmp_path: Path, cut: int) -> None:
    made = recorder(tmp_path, ticks[0].header)
    for tick in ticks:
        made.append(tick.snapshot, tick.decision)
    path = segment_files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-cut])
    outcome = replay(Recording(tmp_path))
    assert outcome.difference is None
    assert len(ticks) - 5 <= outcome.decisions < len(ticks) + 1
    assert any("is not closed" in note for note in outcome.notes)
    last = Recording(tmp_path).last_tick()
    assert last is not None
    assert last.snapshot.tick == outcome.decisions - 1


def test_a_segment_whose_blocks_were_never_filled_ends_there(
    ticks: list[Tick], tmp_path: Path
) -> None:
    made = recorder(tmp_path, ticks[0].header)
    for tick in ticks:
        made.append(tick.snapshot, tick.decision)
    with segment_files(tmp_path)[0].open("ab") as file:
        file.write(bytes(4096))
    outcome = replay(Recording(tmp_path))
    assert outcome.difference is None
    assert outcome.decisions == len(ticks)
    assert outcome.notes


_WRITER = """
import sys
from pathlib import Path
from wattline.recording.record import Recording
from wattline.recording.segments import FlightRecorder
source, target = Path(sys.argv[1]), Path(sys.argv[2])
ticks = list(Recording(source).ticks())
recorder = FlightRecorder(target, ticks[0].header, segment_bytes=1 << 16, total_bytes=1 << 20,
                          retry_s=0.0, now=lambda: 0.0)
while True:
    for tick in ticks:
        recorder.append(tick.snapshot, tick.decision)
        print("tick", flush=True)
"""


def test_a_kill_loses_at_most_the_last_tick(ticks: list[Tick], tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    first = recorder(source, ticks[0].header)
    for tick in ticks:
        first.append(tick.snapshot, tick.decision)
    first.close()
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(source), str(target)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    with writer.stdout:
        for _ in range(100):
            assert writer.stdout.readline() == b"tick\n"
        writer.send_signal(signal.SIGKILL)
        said = 100 + writer.stdout.read().count(b"tick\n")
    writer.wait(60)
    outcome = replay(Recording(target))
    assert outcome.difference is None
    assert said <= outcome.decisions <= said + 1


_FULL = """
import resource, sys
from pathlib import Path
from wattline.recording.record import Recording
from wattline.recording.segments import FlightRecorder
source, target = Path(sys.argv[1]), Path(sys.argv[2])
ticks = list(Recording(source).ticks())[1:]
clock = [0.0]
recorder = FlightRecorder(target, ticks[0].header, segment_bytes=1 << 20, total_bytes=1 << 22,
                          retry_s=5.0, now=lambda: clock[0])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
done = 0
for _ in range(20):
    for tick in ticks:
        done += recorder.append(tick.snapshot, tick.decision)
assert recorder.status.why is not None, "the disk is full"
assert recorder.status.lost_ticks == 20 * len(ticks) - done
assert done > 5, done
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert not recorder.append(ticks[0].snapshot, ticks[0].decision), "it pauses first"
clock[0] = 5.0
assert recorder.append(ticks[0].snapshot, ticks[0].decision)
assert recorder.status.why is None
recorder.close()
print(done + 1)
"""


def test_a_full_disk_stops_the_recording_and_nothing_else(
    ticks: list[Tick], tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    first = recorder(source, ticks[0].header)
    for tick in ticks:
        first.append(tick.snapshot, tick.decision)
    first.close()
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(source), str(target)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nothing is recorded until this is mended" in done.stderr
    outcome = replay(Recording(target))
    assert outcome.difference is None
    assert outcome.decisions == int(done.stdout)


def test_other_settings_begin_a_segment(ticks: list[Tick], tmp_path: Path) -> None:
    made = recorder(tmp_path, ticks[0].header)
    made.append(ticks[0].snapshot, ticks[0].decision)
    settings = replace(ticks[0].header.settings, headroom=2.0)
    made.begin(replace(ticks[0].header, settings=settings))
    made.append(ticks[1].snapshot, ticks[1].decision)
    made.close()
    found = list(Recording(tmp_path).ticks())
    assert [tick.header.settings.headroom for tick in found] == [1.1, 2.0]
    assert found[1].snapshot.state == ticks[1].snapshot.state


def test_a_segment_that_is_deleted_while_it_is_read_is_said(
    ticks: list[Tick], tmp_path: Path
) -> None:
    made = recorder(tmp_path, ticks[0].header)
    for part in (ticks[:3], ticks[3:6]):
        for tick in part:
            made.append(tick.snapshot, tick.decision)
        made.begin(ticks[0].header)
    recording = Recording(tmp_path)
    os.unlink(segment_files(tmp_path)[1])
    assert len(list(recording.ticks())) == 3
    assert recording.notes == ["segment-00000002.jsonl.gz: was deleted meanwhile"]


def test_an_empty_folder_and_a_folder_without_a_header_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Recording(tmp_path)
    (tmp_path / "segment-00000001.jsonl.gz").write_bytes(b"")
    with pytest.raises(InputError, match="no whole header"):
        Recording(tmp_path)


def test_sizes_that_cannot_work_are_refused(ticks: list[Tick], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two fit"):
        recorder(tmp_path, ticks[0].header, total_bytes=LEAST_SEGMENT_BYTES)


@pytest.mark.parametrize("count", [1, 2, 3, 30])
@pytest.mark.parametrize("torn", [False, True])
def test_the_last_tick_is_found_with_its_state(
    ticks: list[Tick], tmp_path: Path, count: int, torn: bool
) -> None:
    made = recorder(tmp_path, ticks[0].header)
    for tick in ticks[:count]:
        carried = carry_out(tick.snapshot, tick.decision, (), tick.header.settings)
        made.append(tick.snapshot, tick.decision, carried)
    if torn:
        made.append(ticks[0].snapshot, ticks[0].decision)
        path = segment_files(tmp_path)[-1]
        path.write_bytes(path.read_bytes()[:-20])
    last = Recording(tmp_path).last_tick()
    assert last is not None
    if not torn:
        assert (last.snapshot, last.decision) == (
            ticks[count - 1].snapshot,
            ticks[count - 1].decision,
        )
        assert last.carried is not None
        assert last.line == 3 * count
    assert last.snapshot.state is not None or last.snapshot.tick == 0
