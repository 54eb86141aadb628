import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.agent.journal import (
    GpuRecord,
    Journal,
    JournalError,
    JournalState,
    decode,
    encode,
)
from wattline.core.errors import InputError

WATTS = st.none() | st.floats(0, 2000)
RECORDS = st.builds(
    GpuRecord,
    original_w=WATTS,
    ours_w=st.lists(st.floats(0, 2000), max_size=3).map(tuple),
    held_w=WATTS,
    brake_w=WATTS,
    lease_s=WATTS,
    expiry_w=WATTS,
    clock_mhz=st.none() | st.integers(0, 3000),
    pinned_w=WATTS,
    let_go=st.booleans(),
)
STATES = st.builds(
    JournalState,
    incarnation=st.integers(0, 2**52),
    epoch=st.integers(0, 2**52),
    budget_version=st.none() | st.integers(0, 2**52),
    operator_hold=st.none() | st.text(max_size=20),
    braked=st.booleans(),
    gpus=st.dictionaries(st.text(min_size=1, max_size=8), RECORDS, max_size=3),
)
SAMPLE = JournalState(
    incarnation=7,
    epoch=3,
    operator_hold="ada: maintenance",
    gpus={"GPU-a": GpuRecord(original_w=700.0, ours_w=(400.0, 500.0), held_w=400.0)},
)


@given(STATES)
def test_what_is_written_is_what_is_read(state: JournalState) -> None:
    assert decode(encode(state)) == state


@given(STATES, st.data())
def test_any_damage_is_noticed(state: JournalState, data: st.DataObject) -> None:
    whole = encode(state)
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    damaged = whole[:at] + bytes([other]) + whole[at + 1 :]
    try:
        read = decode(damaged)
    except InputError:
        return
    assert read == state  # white space in the head may change without changing what it says


@given(STATES, st.data())
def test_a_torn_journal_is_refused(state: JournalState, data: st.DataObject) -> None:
    whole = encode(state)
    with pytest.raises(InputError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 2))])


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        decode(content)
    assert "\n" not in str(caught.value)


def test_another_version_is_refused() -> None:
    head, body, _ = encode(SAMPLE).decode().split("\n")
    later = {**json.loads(head), "version": 2}
    with pytest.raises(InputError, match="version"):
        decode(f"{json.dumps(later)}\n{body}\n".encode())


def test_there_is_none_at_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.load() == JournalState()
    assert journal.problem is journal.set_aside is None


def test_it_outlives_its_process_and_is_for_its_owner_only(tmp_path: Path) -> None:
    Journal(tmp_path).commit(SAMPLE)
    assert Journal(tmp_path).load() == SAMPLE
    assert (tmp_path / "journal.json").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.json", "unjournalled"]


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    writes: list[bytes] = []
    journal = Journal(tmp_path, replace=lambda path, content: writes.append(content))
    journal.commit(SAMPLE)
    journal.commit(SAMPLE)
    assert len(writes) == 1


def test_a_failed_write_keeps_the_state_of_before(tmp_path: Path) -> None:
    full = False

    def replace(path: Path, content: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    journal = Journal(tmp_path, replace=replace)
    journal.commit(SAMPLE)
    full = True
    with pytest.raises(JournalError, match="No space"):
        journal.commit(JournalState(incarnation=8))
    assert journal.state == SAMPLE
    assert journal.problem is not None
    full = False
    journal.commit(SAMPLE)
    assert journal.problem is None


def test_a_disk_that_is_really_full_keeps_the_old_journal(tmp_path: Path) -> None:
    Journal(tmp_path).commit(SAMPLE)

    def to_full_device(path: Path, content: bytes) -> None:
        Path("/dev/full").write_bytes(content)

    journal = Journal(tmp_path, replace=to_full_device)
    journal.load()
    with pytest.raises(JournalError):
        journal.commit(JournalState(incarnation=8))
    assert Journal(tmp_path).load() == SAMPLE


def test_a_mark_on_a_full_disk_outlives_a_crash_until_the_journal_is_written(
    tmp_path: Path,
) -> None:
    Journal(tmp_path).load()

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path, replace=full)
    journal.load()
    assert not journal.unjournalled
    assert journal.mark_unjournalled()
    after = Journal(tmp_path)
    after.load()
    assert after.unjournalled
    after.commit(SAMPLE)
    again = Journal(tmp_path)
    again.load()
    assert not again.unjournalled


def test_damaged_journals_are_kept_under_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / "journal.json").write_bytes(b"damage %d" % number)
        journal = Journal(tmp_path)
        assert journal.load() == JournalState()
        assert journal.set_aside is not None
        assert f"journal.json.corrupt-{number}" in journal.set_aside
        assert (tmp_path / f"journal.json.corrupt-{number}").read_bytes() == b"damage %d" % number


def test_damaged_journals_do_not_fill_the_disk(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / "journal.json").write_bytes(b"damage %d" % number)
        Journal(tmp_path).load()
    kept = list(tmp_path.glob("journal.json.corrupt-*"))
    assert len(kept) == 20
    assert any(path.read_bytes() == b"damage 24" for path in kept)


def test_a_journal_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    Journal(tmp_path).commit(SAMPLE)
    os.chmod(tmp_path / "journal.json", 0o666)
    journal = Journal(tmp_path)
    assert journal.load() == JournalState()
    assert journal.set_aside is not None


@pytest.mark.parametrize(
    ("record", "enforced_w", "ours"),
    [
        pytest.param(GpuRecord(original_w=700.0, ours_w=(400.0,)), 400.0, True, id="ours"),
        pytest.param(GpuRecord(original_w=700.0, ours_w=(300.0, 400.0)), 400.0, True, id="before"),
        pytest.param(GpuRecord(original_w=700.0, ours_w=(400.0,)), 550.0, False, id="a rival's"),
        pytest.param(
            GpuRecord(original_w=700.0, ours_w=(400.0,), brake_w=200.0), 200.0, True, id="braked"
        ),
        pytest.param(GpuRecord(original_w=700.0, brake_w=200.0), 200.0, True, id="first braked"),
        pytest.param(GpuRecord(original_w=200.0, brake_w=200.0), 200.0, False, id="always there"),
        pytest.param(GpuRecord(), 700.0, False, id="never seen"),
    ],
)
def test_whose_a_limit_is(record: GpuRecord, enforced_w: float, ours: bool) -> None:
    assert record.may_be_ours(enforced_w) is ours
