import os
import subprocess
import sys
from pathlib import Path

import pytest

from wattline.agent.grant_source import (
    BrakeFile,
    FileGrantSource,
    GrantEvent,
    GrantsRead,
    GrantsRefused,
)
from wattline.agent.lock import WriterLock
from wattline.core.errors import InputError, WattlineError
from wattline.drivers.grant_files import GrantFile, encode_grants, write_grants
from wattline.drivers.trusted_files import read_trusted, replace_file

ROOT = os.geteuid() == 0


def source(path: Path | None, brake_file: Path | None = None) -> FileGrantSource:
    return FileGrantSource(path, node="n1", brake_file=brake_file, poll_s=0.01, now=lambda: 100.0)


def grants(epoch: int) -> GrantFile:
    return GrantFile(node="n1", epoch=epoch)


def epochs(events: list[GrantEvent]) -> list[int]:
    return [event.grants.epoch for event in events if isinstance(event, GrantsRead)]


def refusal(events: list[GrantEvent]) -> str:
    [event] = events
    assert isinstance(event, GrantsRefused)
    assert "\n" not in event.why
    return event.why


def test_a_file_is_read_when_it_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "grants.json"
    write_grants(file, grants(1))
    watched = source(file)
    assert epochs(watched.look()) == [1]
    assert [watched.look() for _ in range(3)] == [[], [], []]
    write_grants(file, grants(2))
    assert epochs(watched.look()) == [2]
    assert watched.age_s() == 0.0


def test_the_same_grants_once_more_are_one_more_receipt(tmp_path: Path) -> None:
    file = tmp_path / "grants.json"
    write_grants(file, grants(1))
    watched = source(file)
    watched.look()
    watched.look()
    (tmp_path / "other").write_bytes(b"takes the inode that the rename sets free")
    write_grants(file, grants(1))
    os.utime(file, ns=(1, 1))
    assert epochs(watched.look()) == [1]


def test_a_second_replacement_within_the_same_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "grants.json"
    write_grants(file, grants(1))
    watched = source(file)
    assert epochs(watched.look()) == [1]
    before = file.stat()
    file.write_bytes(encode_grants(grants(2)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert epochs(watched.look()) == [2]


def test_a_directory_has_a_file_for_each_node(tmp_path: Path) -> None:
    watched = source(tmp_path)
    assert "no such file" in refusal(watched.look())
    assert watched.look() == []
    write_grants(tmp_path / "n2.json", GrantFile(node="n2", epoch=9))
    write_grants(tmp_path / "n1.json", grants(1))
    assert epochs(watched.look()) == [1]


def test_a_volume_of_kubernetes_is_followed(tmp_path: Path) -> None:
    for version in (1, 2):
        folder = tmp_path / f"..2026_0{version}"
        folder.mkdir()
        write_grants(folder / "n1.json", grants(version))
    (tmp_path / "..data").symlink_to("..2026_01")
    (tmp_path / "n1.json").symlink_to("..data/n1.json")
    watched = source(tmp_path)
    assert epochs(watched.look()) == [1]
    (tmp_path / "..next").symlink_to("..2026_02")
    os.rename(tmp_path / "..next", tmp_path / "..data")
    assert epochs(watched.look()) == [2]


def test_a_refusal_is_said_once_and_good_grants_are_taken_again(tmp_path: Path) -> None:
    file = tmp_path / "n1.json"
    write_grants(file, grants(1))
    watched = source(tmp_path)
    watched.look()
    file.write_bytes(b'{"protocol": 1, "no')
    assert "no whole JSON" in refusal(watched.look())
    assert [watched.look() for _ in range(3)] == [[], [], []]
    write_grants(file, grants(2))
    assert epochs(watched.look()) == [2]
    file.unlink()
    assert "no such file" in refusal(watched.look())


def test_the_brake_file_is_seen_to_come_and_go(tmp_path: Path) -> None:
    brake = tmp_path / "brake"
    watched = source(None, brake)
    assert watched.look() == []
    brake.write_text('{"budget_version": 18}')
    assert watched.look() == [BrakeFile(present=True, budget_version=18)]
    assert watched.look() == []
    brake.unlink()
    assert watched.look() == [BrakeFile(present=False)]


@pytest.mark.parametrize("content", [b"", b"STOP", b'{"budget_version": "x"}', b"\xff" * 100_000])
def test_a_brake_file_of_any_content_brakes(tmp_path: Path, content: bytes) -> None:
    brake = tmp_path / "brake"
    brake.write_bytes(content)
    assert source(None, brake).look() == [BrakeFile(present=True)]


def test_a_brake_that_cannot_be_looked_at_is_not_released_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    brake = folder / "brake"
    brake.write_text("")
    watched = source(None, brake)
    assert watched.look() == [BrakeFile(present=True)]
    folder.rename(tmp_path / "aside")
    folder.symlink_to(folder.name)  # a loop: looking fails, whoever looks
    assert watched.look() + watched.look() == []
    assert [record.message for record in caplog.records] == ["the brake file cannot be looked at"]


def test_a_brake_whose_folder_is_away_is_not_released(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "brake").write_text("")
    watched = source(None, folder / "brake")
    assert watched.look() == [BrakeFile(present=True)]
    folder.rename(tmp_path / "aside")
    assert watched.look() == []
    assert str(folder) in (watched.brake_trouble() or "")
    (tmp_path / "aside").rename(folder)
    assert watched.look() == []
    assert watched.brake_trouble() is None
    (folder / "brake").unlink()
    assert watched.look() == [BrakeFile(present=False)]


@pytest.mark.parametrize("mode", [0o666, 0o662, 0o664])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "n1.json"
    write_grants(file, grants(1))
    file.chmod(mode)
    assert "writable by its owner only" in refusal(source(tmp_path).look())
    file.chmod(0o644)


def test_a_refused_file_is_taken_once_its_mode_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "grants.json"
    write_grants(file, grants(1))
    file.chmod(0o666)
    watched = source(file)
    assert "chmod" in refusal(watched.look())
    assert [watched.look() for _ in range(3)] == [[], [], []]
    file.chmod(0o644)
    assert epochs(watched.look()) == [1]


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    write_grants(folder / "n1.json", grants(1))
    folder.chmod(0o777)
    assert "writable by its owner only" in refusal(source(folder).look())


@pytest.mark.skipif(not ROOT, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "n1.json"
    write_grants(file, grants(1))
    os.chown(file, 12345, 12345)
    assert "uid 12345" in refusal(source(tmp_path).look())


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "grants"
    folder.mkdir()
    write_grants(tmp_path / "elsewhere.json", grants(1))
    (folder / "n1.json").symlink_to("../elsewhere.json")
    assert "link" in refusal(source(folder).look())


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "n1.json", 0o644)
    assert "regular file" in refusal(source(tmp_path).look())


def test_a_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "n1.json").write_bytes(b" " * (1 << 20) + b"{}")
    assert "too large" in refusal(source(tmp_path).look())


def test_a_replaced_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "state"
    replace_file(file, b"old")
    (tmp_path / f".state.{os.getpid()}.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    with pytest.raises(InputError, match="too large"):
        read_trusted(file, max_bytes=2)


def test_a_second_writer_is_refused_and_told_who(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path)
    with pytest.raises(WattlineError, match=f"process {os.getpid()}"):
        WriterLock(tmp_path)
    lock.release()
    WriterLock(tmp_path).release()


def test_a_lock_left_by_a_dead_process_is_no_obstacle(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from wattline.agent.lock import WriterLock\n"
        "lock = WriterLock(pathlib.Path(sys.argv[1])); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "lock").read_text() != ""  # it names a process that is gone
    WriterLock(tmp_path).release()
