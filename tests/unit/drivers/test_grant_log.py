"""The coordinator's log: durable before sent, torn tails survived, damage and rivals refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattline.core.errors import InputError
from wattline.drivers.grant_log import FencedError, GrantLog, GrantLogError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coordinator" / "grants.log"


@pytest.fixture
def log(path: Path) -> GrantLog:
    """Opened; closed by the test or with the process."""
    return GrantLog(path)


def reopened(path: Path) -> tuple[int, list[object], int]:
    log = GrantLog(path)
    log.close()
    return log.replay.epoch, list(log.replay.records), log.replay.torn_bytes


def filled(path: Path, batches: int = 3) -> list[dict[str, int]]:
    log = GrantLog(path)
    log.open_epoch(1)
    records = [{"sequence": number} for number in range(batches)]
    for record in records:
        log.append([record], epoch=1)
    log.close()
    return records


def test_what_was_appended_is_there_after_a_restart(path: Path, log: GrantLog) -> None:
    assert (log.epoch, log.replay.records) == (0, ())
    log.open_epoch(3)
    log.append([{"gpu": "a", "watts": 400.0}, {"gpu": "b", "watts": 200.5}], epoch=3)
    log.append([{"gpu": "a", "watts": 300.0}], epoch=3)
    log.close()
    assert reopened(path) == (
        3,
        [{"gpu": "a", "watts": 400.0}, {"gpu": "b", "watts": 200.5}, {"gpu": "a", "watts": 300.0}],
        0,
    )


def test_only_the_user_may_read_it(path: Path, log: GrantLog) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_epochs_only_rise(log: GrantLog) -> None:
    log.open_epoch(2)
    for epoch in (1, 2):
        with pytest.raises(FencedError, match="not newer"):
            log.open_epoch(epoch)
    with pytest.raises(FencedError, match="holds epoch 2, not 1"):
        log.append([{}], epoch=1)


def test_a_second_coordinator_is_kept_out(path: Path, log: GrantLog) -> None:
    with pytest.raises(FencedError, match="another coordinator has it open"):
        GrantLog(path)
    log.open_epoch(1)


def test_one_who_wrote_past_the_lock_is_noticed_before_anything_is_sent(
    path: Path, log: GrantLog
) -> None:
    log.open_epoch(1)
    path.with_name(path.name + ".lock").unlink()
    rival = GrantLog(path)
    rival.open_epoch(2)
    rival.close()
    before = path.read_bytes()
    with pytest.raises(FencedError, match="another coordinator wrote"):
        log.append([{}], epoch=1)
    with pytest.raises(FencedError, match="another coordinator wrote"):
        log.compact([])
    assert path.read_bytes() == before


def test_a_log_that_was_replaced_or_removed_is_noticed(path: Path, log: GrantLog) -> None:
    log.open_epoch(1)
    copy = path.read_bytes()
    path.unlink()
    with pytest.raises(FencedError, match="removed"):
        log.append([{}], epoch=1)
    path.write_bytes(copy)
    with pytest.raises(FencedError, match="another coordinator wrote"):
        log.append([{}], epoch=1)


def test_a_log_cut_anywhere_yields_a_prefix_and_says_what_was_torn(
    path: Path, tmp_path: Path
) -> None:
    records = filled(path, 2)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        cut = tmp_path / f"cut-{length}"
        cut.write_bytes(whole[:length])
        epoch, found, torn = reopened(cut)
        assert found == records[: len(found)]
        assert epoch == (1 if length >= whole.index(b"\n") else 0)
        assert torn == length - _whole_lines(whole, length)
        again = GrantLog(cut)
        assert again.replay.torn_bytes == 0
        again.open_epoch(7)
        again.append([{"after": length}], epoch=7)
        again.close()
        assert reopened(cut) == (7, [*found, {"after": length}], 0)


def _whole_lines(content: bytes, length: int) -> int:
    """Bytes of whole lines in the first `length`; one that lacks only its line feed is whole."""
    ends = [index for index, byte in enumerate(content) if byte == 0x0A and index <= length]
    return min(ends[-1] + 1, length) if ends else 0


def test_blocks_that_were_never_filled_in_are_a_torn_tail(path: Path) -> None:
    records = filled(path)
    with path.open("ab") as file:
        file.write(b"\0" * 512)
    assert reopened(path) == (1, records, 512)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_changed_byte_never_passes(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "changed.log"
    path.unlink(missing_ok=True)
    filled(path)
    whole = bytearray(path.read_bytes())
    # The line feed at the very end apart: without it the line is still whole.
    where = data.draw(st.integers(0, len(whole) - 2))
    whole[where] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"set the file aside|epochs must rise"):
        GrantLog(path)
    path.write_bytes(b"")
    GrantLog(path).close()  # the refusal let go of the lock


def test_another_format_is_refused_by_name(path: Path, log: GrantLog) -> None:
    log.open_epoch(1)
    log.close()
    content = path.read_bytes().replace(b"grant-log-1", b"grant-log-9")
    _, text = content.rstrip(b"\n").split(b" ", 1)
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))
    with pytest.raises(InputError, match="wattline-grant-log-9"):
        GrantLog(path)


def test_a_line_that_nests_too_deeply_is_damage(path: Path) -> None:
    path.parent.mkdir()
    text = b"[" * 100_000
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))
    with pytest.raises(InputError, match="set the file aside"):
        GrantLog(path)


def test_compaction_keeps_the_epoch_and_what_it_was_given(path: Path, log: GrantLog) -> None:
    log.open_epoch(4)
    for number in range(100):
        log.append([{"sequence": number}], epoch=4)
    before = log.size_bytes
    log.compact([{"sequence": 99}])
    assert log.size_bytes < before / 10
    assert log.size_bytes == path.stat().st_size
    log.append([{"sequence": 100}], epoch=4)
    with pytest.raises(FencedError, match="another coordinator has it open"):
        GrantLog(path)
    log.close()
    assert reopened(path) == (4, [{"sequence": 99}, {"sequence": 100}], 0)


def test_a_leftover_of_a_compaction_that_was_killed_is_ignored(path: Path) -> None:
    records = filled(path)
    path.with_name(path.name + ".new").write_bytes(b"half a li")
    assert reopened(path) == (1, records, 0)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from wattline.drivers.grant_log import GrantLog, GrantLogError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = GrantLog(Path(sys.argv[1]))
log.open_epoch(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
done = 0
try:
    while True:
        log.append([{"sequence": done}], epoch=1)
        done += 1
except GrantLogError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append([{"sequence": "after"}], epoch=1)
print(done)
"""


def test_a_full_disk_refuses_the_append_and_leaves_no_half_line(path: Path) -> None:
    """A file-size limit fails a write in the middle, as a full disk does."""
    answer = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    error, done = answer.stdout.splitlines()
    assert "cannot be written: File too large" in error
    assert int(done) > 0
    epoch, records, torn = reopened(path)
    assert (epoch, torn) == (1, 0)
    assert records == [*({"sequence": n} for n in range(int(done))), {"sequence": "after"}]


def test_after_a_failed_fsync_nothing_more_is_taken(
    path: Path, log: GrantLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.open_epoch(1)

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(GrantLogError, match="fsync failed"):
        log.append([{}], epoch=1)
    monkeypatch.undo()
    with pytest.raises(GrantLogError, match="start the coordinator anew"):
        log.append([{}], epoch=1)


KILLED = """
import sys
from pathlib import Path
from wattline.drivers.grant_log import GrantLog
log = GrantLog(Path(sys.argv[1]))
log.open_epoch(log.epoch + 1)
number = 0
while True:
    log.append([{"sequence": number}], epoch=log.epoch)
    if number % 7 == 6:
        log.compact([{"sequence": number}])
    print(number, flush=True)
    number += 1
"""


def test_what_was_said_to_be_on_disk_survives_a_kill(path: Path) -> None:
    for epoch in range(1, 4):
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert writer.stdout is not None
            for _ in range(20):
                said = int(writer.stdout.readline())
        finally:
            writer.send_signal(signal.SIGKILL)
            rest = writer.communicate(timeout=30)[0].split()
        said = max([said, *map(int, rest)])
        found_epoch, records, _ = reopened(path)
        assert found_epoch == epoch
        last = records[-1]
        assert isinstance(last, dict)
        assert last["sequence"] >= said
